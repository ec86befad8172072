"""The plane: what the task gives away, what its symmetries are, and how rows become claims."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import plane
from celltransfer.experiments.suites.plane import ARMS, SYMMETRIES, Plane, displacement, sample, task, truth
from celltransfer.train.loop import Trainer

COVARIANCE = np.array([[1.0, plane.CORRELATION], [plane.CORRELATION, 1.0]])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_source_and_target_are_different_cells():
    pair, test = task(2000, "none", rng())
    source_of_target = (pair.y / plane.SCALE)[:, ::-1]
    nearest = np.abs(pair.x[:, None, 0] - source_of_target[None, :, 0]).min(axis=1)
    assert np.mean(nearest == 0) < 0.01
    assert abs(np.corrcoef(pair.x[:, 0], source_of_target[:, 0])[0, 1]) < 3 / np.sqrt(2000)
    assert pair.n_anchors == 0
    assert not np.isin(test[:, 0], pair.x[:, 0]).any()
    np.testing.assert_allclose(np.cov(pair.x.T), COVARIANCE, atol=0.1)
    np.testing.assert_allclose(np.cov(pair.y.T), plane.SCALE**2 * COVARIANCE, atol=0.2)


@pytest.mark.parametrize("choice", ["random", "informative", "centre"])
def test_the_anchor_is_one_true_pair_that_no_other_cell_repeats(choice):
    pair, _ = task(500, choice, rng())
    assert pair.anchors.tolist() == [[500, 500]]
    np.testing.assert_allclose(pair.anchor_y, truth(pair.anchor_x))
    assert not (pair.x[:500] == pair.anchor_x).all(axis=1).any()
    assert not (pair.y[:500] == pair.anchor_y).all(axis=1).any()


def test_symmetries_preserve_the_source_and_are_all_the_sparse_maps_that_do():
    for h in SYMMETRIES.values():
        np.testing.assert_allclose(h @ COVARIANCE @ h.T, COVARIANCE)
        assert np.count_nonzero(h) == 2
    signs = [np.diag(s) for s in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    monomial = [s @ p for s in signs for p in (np.eye(2), np.eye(2)[::-1])]
    kept = [m for m in monomial if np.allclose(m @ COVARIANCE @ m.T, COVARIANCE)]
    assert {tuple(m.ravel()) for m in kept} == {tuple(h.ravel()) for h in SYMMETRIES.values()}


def test_displacement_in_closed_form():
    """|2 x|, |x1 - x2| sqrt 2 and |x1 + x2| sqrt 2, over the roots of their mean squares: 8, 2 and 6."""
    points = sample(50, rng())
    a, b = points.T
    expected = np.min(
        [2 * np.hypot(a, b) / np.sqrt(8), np.sqrt(2) * abs(a - b) / np.sqrt(2), np.sqrt(2) * abs(a + b) / np.sqrt(6)],
        axis=0,
    )
    np.testing.assert_allclose(displacement(points), expected, rtol=1e-5)
    np.testing.assert_allclose(displacement(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -2.0]])), 0, atol=1e-12)


def test_an_informative_anchor_is_moved_further_than_any_other_choice():
    moved = {
        choice: np.array([displacement(task(600, choice, rng(seed))[0].anchor_x)[0] for seed in range(8)])
        for choice in ("informative", "random", "centre")
    }
    assert moved["informative"].min() > 0.6
    assert moved["centre"].max() < 0.2
    assert np.median(moved["random"]) < np.median(moved["informative"])


class Fixed:
    """A translator that is the truth after a symmetry."""

    def __init__(self, symmetry):
        self.symmetry = symmetry
        self.result_ = type("Result", (), {"history": {"monitor": [(0, 0.5), (1, 0.25), (2, 0.75)]}})()

    def translate(self, x):
        return truth(x @ self.symmetry.T)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_scores_of_the_truth_and_of_its_mirror_images(name):
    pair, test = task(300, "centre", rng())
    scores = plane.measure(Fixed(SYMMETRIES[name]), pair, test)
    assert scores["nearest"] == name
    assert scores["energy_distance"] == 0.25
    assert scores["displacement"] == pytest.approx(displacement(pair.anchor_x)[0])
    h = SYMMETRIES[name] - np.eye(2)
    expected = np.trace(h @ COVARIANCE @ h.T) / 2  # mean squared error over the variance of two unit features
    assert scores["error"] == pytest.approx(expected, rel=0.1, abs=1e-6)
    assert scores["te"] == pytest.approx(plane._te(SYMMETRIES[name]), rel=0.1, abs=1e-6)


def rows(found, n=20):
    """Rows with so many found maps per arm, of n."""
    made = [
        {"arm": arm, "seed": seed, "error": 0.01 if seed < found.get(arm, 0) else 1.0}
        | {"te": 0.1, "energy_distance": 0.0, "displacement": 0.5}
        for arm in ARMS
        for seed in range(n)
    ]
    return pd.DataFrame(made)


# Of 80 seeds.
GOOD = {"both": 80, "both, anchor at random": 80, "matching + sparsity": 20, "matching + anchor": 12}
GOOD |= {"both, anchor at the centre": 24, "both, one start, no schedule": 40}
BAD = {"both": 56, "both, anchor at random": 60, "matching + sparsity": 56, "matching + anchor": 80}
BAD |= {"both, anchor at the centre": 80, "both, one start, no schedule": 80}


def test_claims_of_a_theory_that_holds_and_of_one_that_does_not():
    assert [claim.holds for claim in Plane().claims(rows(GOOD, n=80))] == [True] * 6
    claims = Plane().claims(rows(BAD, n=80))
    assert [claim.holds for claim in claims] == [False] * 6
    assert claims[0].found.startswith("found in 56 of 80 (95 % interval 0.587 to ")
    # Twenty seeds of twenty do not show that it is 95 of a hundred.
    assert Plane().claims(rows({"both": 20}))[0].holds is None


def test_few_seeds_and_maps_that_did_not_match_tell_nothing():
    once = Plane().claims(rows({"both": 1, "both, anchor at random": 1}, n=1))
    assert [claim.holds for claim in once] == [None] * 6
    failed = rows({}, n=20).assign(energy_distance=5.0)
    assert [claim.holds for claim in Plane().claims(failed)[2:4]] == [None, None]


def test_table_says_how_many_seeds_found_the_map_beside_chance():
    table = Plane().table(rows({"both": 7}, n=9))
    assert table.loc["both", "found"] == "7 of 9"
    assert table.loc["matching", "anchor"] == "none"
    chance = table.iloc[-1]
    assert chance["found"] == "1 in 4"
    assert 0.5 < float(chance["TE"]) < 3
    assert list(table.index[:-1]) == list(ARMS)


def test_a_short_run_from_end_to_end(monkeypatch, tmp_path):
    def short(**limits):
        return Trainer(**limits | {"max_steps": 4, "check_every": 2, "batch_size": 32})

    arms = {arm: ARMS[arm] for arm in list(ARMS)[:6]}
    monkeypatch.setattr(plane, "task", lambda n, choice, rng: task(300, choice, rng))
    monkeypatch.setattr(plane, "Trainer", short)
    monkeypatch.setattr(plane, "ARMS", arms)
    monkeypatch.setattr(Plane, "claims", lambda self, rows: [])
    outcome = base.run("plane", seeds=2, out=tmp_path, device="cpu")
    assert len(outcome.rows) == 2 * len(arms)
    assert outcome.rows["error"].notna().all()
    assert outcome.rows["displacement"].isna().sum() == 4
    assert {axes.get_title() for axes in outcome.figure.axes} >= {"source", "target", *arms}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "picture.png", "rows.csv", "table.md"]
    assert len(list((tmp_path / "arrays").iterdir())) == len(arms)
    again = base.run("plane", seeds=2, out=tmp_path, device="cpu")
    pd.testing.assert_frame_equal(again.table, outcome.table)
