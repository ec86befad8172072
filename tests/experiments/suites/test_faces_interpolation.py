"""Suite faces_interpolation: straight lines, what is found again, its controls, and how it reads its rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import faces_interpolation as suite
from celltransfer.experiments.suites.faces_interpolation import (
    ARMS,
    CEILINGS,
    CONTROLS,
    CYCLE,
    DECODED,
    IDENTITY,
    LATENTS,
    PLAIN,
    RANDOM,
    SHIFT,
    SIDE,
    TIMES,
    Coder,
    FacesInterpolation,
    People,
    Space,
    StepCycle,
    control,
    look,
    own_found,
    rms,
    straight,
    told_apart,
)
from celltransfer.experiments.suites.images import Classifier

torch.set_num_threads(1)


def cloud(n, mean=0.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, LATENTS)) + mean).astype(np.float32)


def test_straight_lines_join_their_ends():
    a, b = cloud(3), cloud(3, seed=1)
    points = straight(a, b)
    assert points.shape == (len(TIMES), 3, LATENTS)
    np.testing.assert_array_equal(points[0], a)
    np.testing.assert_allclose(points[-1], b)
    np.testing.assert_allclose(np.diff(points, axis=0), np.broadcast_to((b - a) / 8, (8, 3, LATENTS)), atol=1e-6)


def test_controls_move_as_they_say():
    x, y, z = cloud(200), cloud(200, mean=2.0, seed=1), cloud(5, seed=2)
    still, shift, random = (control(arm, x, y, 0) for arm in (IDENTITY, SHIFT, RANDOM))
    assert rms(still.path(z)[-1] - z) == 0
    np.testing.assert_allclose(shift.path(z)[-1] - z, np.tile(y.mean(0) - x.mean(0), (5, 1)), atol=1e-5)
    np.testing.assert_allclose(shift.back(shift.path(z)[-1]), z, atol=1e-5)
    drawn = random.path(z)[-1]
    assert all((np.abs(y - one).max(1) < 1e-6).any() for one in drawn)


def test_own_source_is_found_unless_faces_change_places():
    faces = cloud(40)
    assert own_found(2 * faces + 5, faces) == 1
    assert own_found(faces[::-1], faces) == 0
    assert own_found(cloud(40, seed=1), faces) < 0.2


def test_a_classifier_tells_a_shift_and_not_a_redraw():
    assert told_apart(cloud(300)[:, :4], cloud(400, seed=1)[:, :4]) == pytest.approx(0.5, abs=0.08)
    assert told_apart(cloud(300)[:, :4], cloud(400, mean=3.0, seed=1)[:, :4]) > 0.99


def test_latents_have_unit_scale_and_pictures_their_size():
    pixels = np.random.default_rng(0).uniform(-1, 1, (6, SIDE * SIDE)).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        coder = Coder(2).eval()
    latents = coder.encode(pixels)
    space = Space(coder, latents.mean(0), rms(latents - latents.mean(0)))
    z = space.encode(pixels)
    assert rms(z) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(space.decode(z), coder.decode(latents), atol=1e-5)


def test_the_judge_gives_odds_of_the_sex_and_the_age_group():
    rng = np.random.default_rng(0)
    sex, old = rng.integers(2, size=(2, 200))
    pixels = rng.normal(0, 0.1, (200, SIDE, SIDE)).astype(np.float32)
    pixels[:, : SIDE // 2] += sex[:, None, None] - 0.5
    pixels[:, SIDE // 2 :] += old[:, None, None] - 0.5
    pixels = pixels.reshape(200, -1)
    seen = look(Classifier(epochs=4).fit(pixels, 2 * sex + old, 0), pixels)
    assert ((seen.odds > 0) == sex).mean() > 0.95
    assert (seen.old == old).mean() > 0.95
    assert seen.features.shape == (200, 64)


def test_people_of_one_sex():
    people = People(cloud(4), np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1]))
    women = people.of(0)
    np.testing.assert_array_equal(women.pixels, people.pixels[[0, 3]])
    np.testing.assert_array_equal(women.old, [0, 1])


def test_cyclegan_goes_both_ways_in_small_steps():
    x, y = cloud(300), cloud(300, mean=1.0, seed=1)
    trainer = suite.Trainer(max_steps=5, device="cpu", progress=False)
    model = StepCycle().fit(x, y, seed=0, trainer=trainer)
    way = suite._cycle(model)
    points = way.path(x)
    assert points.shape == (len(TIMES), 300, LATENTS)
    np.testing.assert_array_equal(points[0], x)
    np.testing.assert_allclose(points[-1], model.translate(x), atol=1e-5)
    assert way.back(y).shape == y.shape


def rows(paper):
    """Rows as the paper would have them, or the contrary."""
    jobs = pd.DataFrame(FacesInterpolation().jobs(3))
    arm, wiggle = jobs["arm"], 0.001 * jobs["seed"]
    order = [suite.CORRELATED, suite.FIRMLY, PLAIN, CYCLE, SHIFT]
    values = (0.96, 0.93, 0.9, 0.5, 0.4) if paper else (0.2, 0.3, 0.4, 0.5, 0.9)
    good = dict(zip(order, values, strict=True)) | {DECODED: 0.9}
    high = arm.map(good).fillna(0.3) + wiggle
    low = 2.0 - high + 2 * wiggle
    kept = dict.fromkeys(("male", "female", "own", "kept", "steady"), high)
    far = dict.fromkeys(("frechet", "frechet_middle"), low) | {"motion": low}
    between = low + 0.5 if paper else low - 0.5
    apart = dict.fromkeys(("frechet_straight", "frechet_pixels", "auc_pixels", "auc_middle"), between)
    seen = {"age_kept": 0.5 + wiggle + 0.4 * ((arm == suite.SEMANTIC) == paper), "age_right": high}
    return jobs.assign(**kept, **far, **apart, **seen, round_trip=1e-6 if paper else 0.5 + wiggle)


@pytest.mark.parametrize("paper", [True, False])
def test_claims_follow_the_rows(paper):
    held = [claim.holds for claim in FacesInterpolation().claims(rows(paper))]
    assert held == [paper] * len(held)


def test_every_arm_has_a_line_and_pictures_are_drawn():
    found = FacesInterpolation()
    assert list(found.table(rows(True)).index) == [*ARMS, *CONTROLS, *CEILINGS]
    assert found.draw(rows(True), {}) is None
    pictures = {"path": np.zeros((5, suite.SHOWN, SIDE * SIDE))}
    assert found.draw(rows(True), {f"arm-{PLAIN.replace(' ', '-')}_seed-0": pictures}) is not None


@pytest.mark.slow
def test_a_short_run_from_end_to_end(real_dataset, monkeypatch):
    real_dataset("faces_utk32")
    monkeypatch.setattr(suite, "TRAINED", 3)
    monkeypatch.setattr(suite, "trained", lambda *a, epochs, width: base_trained(*a, epochs=1, width=4))
    outcome = base.run("faces_interpolation", seeds=1, device="cpu")
    scores = outcome.rows.set_index("arm")
    assert scores.loc[IDENTITY, "kept"] == pytest.approx(1)
    assert scores.loc[suite.REAL, "male"] > 0.8
    assert scores.loc[PLAIN, "round_trip"] < 1e-3


base_trained = suite.trained
