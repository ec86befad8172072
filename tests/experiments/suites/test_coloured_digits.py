"""Colours and their scores, the pictures of one seed, and the suite on few steps."""

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.experiments.suites import coloured_digits as suite
from celltransfer.experiments.suites import get, label


@pytest.fixture
def small(monkeypatch):
    """The digits that come with scikit-learn, and fits of a few steps."""
    load = suite.load_digits
    monkeypatch.setattr(suite, "load_digits", lambda size: load("digits", size))
    brief = {name: (min(steps, 2), cls, options) for name, (steps, cls, options) in suite.METHODS.items()}
    monkeypatch.setattr(suite, "METHODS", brief)
    suite._classifier.cache_clear()
    yield
    suite._classifier.cache_clear()


def test_colours_have_their_hue_and_their_grey():
    rng = np.random.default_rng(0)
    grey, hue = rng.uniform(-1, 1, size=(50, 16)).astype(np.float32), rng.uniform(0, 360, 50)
    pictures = suite.colour(grey, hue)
    assert pictures.shape == (50, 48)
    assert suite.hue_errors(pictures, hue).max() < 8  # full hues are not evenly spaced on the circle of atan2
    np.testing.assert_allclose(suite.greys(pictures), grey, atol=1e-6)
    np.testing.assert_allclose(suite.hue_errors(pictures, hue + 180).mean(), 180, atol=8)


def test_turning_a_hue_by_120_degrees_permutes_colours():
    grey, hue = np.ones((3, 4), np.float32), np.array([10.0, 200.0, 300.0])
    before, after = (suite.colour(grey, h).reshape(3, 3, 4) for h in (hue, (hue + suite.TURN) % 360))
    np.testing.assert_allclose(after, before[:, [2, 0, 1]], atol=1e-6)


def test_frechet_distance_of_normal_laws():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50_000, 2)), 3 * rng.normal(size=(50_000, 2)) + [1, 0]
    assert abs(suite.frechet(a, b) - (1 + 2 * (3 - 1) ** 2)) < 0.2
    assert suite.frechet(a, a) < 1e-8


def test_pictures_of_a_seed_are_told_apart(small):
    cells = suite.Cells(8, 0)
    pair = cells.pair(10)
    assert pair.n_anchors == 10
    np.testing.assert_allclose(suite.hue_errors(pair.anchor_y, suite.hues(pair.anchor_x) + suite.TURN), 0, atol=1e-3)
    assert suite.hue_errors(cells.y, cells.wanted).mean() < 5 < 60 < suite.hue_errors(cells.other, cells.wanted).mean()
    tested = {row.tobytes() for row in suite.greys(cells.x).round(3)}
    assert not tested & {row.tobytes() for row in suite.greys(pair.x).round(3)}


def test_unet_keeps_the_shape_and_few_pixels_take_a_perceptron():
    energy = suite.ImageEnergy(cost="mlp")
    for size in (8, 16):
        rows = torch.zeros(2, 3 * size**2)
        assert energy.make_cost(rows.shape[1], rows.shape[1]).prepare(rows).shape == rows.shape
        assert energy.make_potential(rows.shape[1])(rows).shape == (2, 1)


@pytest.mark.parametrize("arm", ["ieot_energy, U-Net", "ieot_energy, linear", "regression", suite.CEILING])
def test_jobs_run(small, arm):
    scores, arrays = get("coloured_digits")().run({"arm": arm, "pairs": 0 if "control" in arm else 10, "seed": 0})
    assert np.isfinite([scores[name] for name in ("hue_error", "near", "threes", "frechet")]).all()
    assert bool(arrays) == ("control" not in arm)
    if arm == "regression":
        assert scores["hue_error"] < 30
    if arm == suite.CEILING:
        assert scores["near"] == 1


def test_claims_and_picture():
    found = get("coloured_digits")()
    jobs = found.jobs(3)
    errors = {suite.CHANCE: 90, suite.CEILING: 1, "regression": 4}
    rows = pd.DataFrame(
        [
            job | {"hue_error": errors.get(job["arm"], 20 - job["pairs"] / 20) + 0.1 * job["seed"] * len(job["arm"])}
            for job in jobs
        ]
    ).assign(near=1.0, threes=1.0, frechet=5.0, seconds=1.0)
    claims = found.claims(rows)
    assert [claim.holds for claim in claims[:2]] == [True, True]
    assert claims[3].holds is False
    assert found.table(rows).loc["regression, 10 pairs", "seeds"] == 3
    picture = np.zeros((suite.SHOWN, 192))
    drawn = {"source": picture, "pictures": picture, "truth": picture}
    arrays = {label({"arm": m, "pairs": k, "seed": 0}): drawn for m in suite.SHOWN_METHODS for k in suite.NUMBERS}
    assert len(found.draw(rows, arrays).axes) == 8
    assert found.draw(rows, {}) is None


def test_the_full_size_leaves_the_mixture_out():
    assert "ieot" not in {job["arm"] for job in get("coloured_digits")(full=True).jobs(1)}
