"""The Swiss roll: what the true law is, who is paired, and how rows become claims."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import swiss_roll
from celltransfer.experiments.suites.swiss_roll import ARMS, CEILING, CHANCE, COUNTS, FEW, OURS, UNPAIRED, SwissRoll

MANY = SwissRoll().many


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def test():
    """Few test sources, and much truth of each."""
    x = swiss_roll.source(20, rng(1))
    truth, again = (swiss_roll.fresh(x, 100, rng(seed)) for seed in (2, 3))
    return swiss_roll.Test(x, truth, again, *swiss_roll.modes(x, truth), swiss_roll.target(500, rng(4)))


def test_partners_are_drawn_from_a_plan_between_all_points_that_prefers_either_turn():
    x, y = swiss_roll.source(64, rng(0)), swiss_roll.target(64, rng(1))
    drawn = np.stack([swiss_roll.partners(x, y, rng(seed)) for seed in range(60)])
    assert np.isin(drawn[..., 0], y[:, 0]).all()
    # Every target is taken as often as every other: the plan has uniform marginals.
    counts = np.array([(drawn[..., 0] == value).sum() for value in y[:, 0]])
    assert np.abs(counts / 60 - 1).max() < 0.6
    turned = swiss_roll.turned(x)
    np.testing.assert_allclose((turned * x).sum(axis=1), 0, atol=1e-12)
    cost = np.minimum(*(np.square(drawn - side * turned).sum(axis=2) for side in (1, -1)))
    shuffled = y[rng(2).permutation(64)]
    chance = np.minimum(*(np.square(shuffled - side * turned).sum(axis=1) for side in (1, -1)))
    assert cost.mean() < 0.5 * chance.mean()


def test_the_turn_is_by_90_degrees():
    np.testing.assert_allclose(swiss_roll.turned(np.array([[1.0, 0.0], [0.0, 2.0]])), [[0, 1], [-2, 0]])


def test_unpaired_points_are_the_pairs_and_then_others_drawn_independently():
    data = swiss_roll.draw_data(100, 300, 200, seed=0)
    assert [part.shape for part in data] == [(100, 2), (100, 2), (300, 2), (200, 2)]
    np.testing.assert_array_equal(data.x[:100], data.xp)
    np.testing.assert_array_equal(data.y[:100], data.yp)
    more = swiss_roll.draw_data(100, 500, 500, seed=0)
    np.testing.assert_array_equal(more.xp, data.xp)
    np.testing.assert_array_equal(more.x[:300], data.x)
    assert not np.isin(data.y[100:, 0], data.yp[:, 0]).any()
    only = swiss_roll.draw_data(128, 128, 128, seed=1)
    np.testing.assert_array_equal(only.x, only.xp)


def test_most_sources_have_two_modes_on_either_side_of_the_truth(test):
    assert 0.4 < test.both.mean() < 1
    left, right = test.centres[:, test.both]
    turned = swiss_roll.turned(test.x[test.both])
    assert ((left * turned).sum(axis=1) > 0).all()
    assert ((right * turned).sum(axis=1) < 0).all()
    assert (np.linalg.norm(left - right, axis=1) > test.radii[:, test.both].sum(axis=0)).all()


def test_scores_tell_the_truth_from_chance_from_a_mean_and_from_one_mode(test):
    truth = swiss_roll.measure(test.again, test)
    assert abs(truth["energy"]) < 0.02
    assert truth["both_modes"] > 0.9
    other = swiss_roll.target(2000, rng(5)).reshape(100, 20, 2)
    chance = swiss_roll.measure(other, test)
    assert chance["energy"] > 0.3
    assert abs(chance["marginal"]) < 0.02  # the marginal law alone sees nothing
    mean = swiss_roll.measure(np.broadcast_to(test.truth.mean(axis=0), test.truth.shape), test)
    assert mean["both_modes"] == 0
    assert mean["energy"] > 0.3
    mirrored = np.where(np.sum(test.again * swiss_roll.turned(test.x), axis=2, keepdims=True) > 0, 1, -1) * test.again
    assert swiss_roll.measure(mirrored, test)["both_modes"] == 0


def rows(energy, both=None, n=4, counts=(0.3, 0.2)):
    """Rows whose energy distance is given by arm, or by (arm, pairs); the counts' are of few and of many targets."""
    both = {OURS: 0.98} | (both or {})
    made = []
    for job in SwissRoll().jobs(n):
        wiggle = 0.001 * job["seed"] + 0.0005 * (len(job["arm"]) % 3) * job["seed"]
        value = energy.get((job["arm"], job["pairs"]), energy.get(job["arm"], 0.5))
        if job["sources"] != job["targets"]:
            value = counts[0] if job["targets"] < job["sources"] else counts[1]
        made.append(job | {"energy": value + wiggle, "both_modes": both.get(job["arm"], 0.1) + wiggle, "seconds": 1.0})
    return pd.DataFrame(made).assign(frechet=0.1, marginal=0.01, two_modes=70, device="cpu", full=False)


GOOD = {OURS: 0.1, ("ieot_energy", FEW): 0.3, ("ieot_energy", MANY): 0.2}
GOOD |= {(arm, MANY): 0.05 for arm in ("cgan", "cnf", "cgmm_ss")}
BAD = {OURS: 0.6, ("ieot_energy", FEW): 0.3, ("ieot_energy", MANY): 0.4}
BAD |= {(arm, MANY): 0.8 for arm in ("cgan", "cnf", "cgmm_ss")}


def test_claims_of_a_paper_that_is_right_and_of_one_that_is_not():
    good = SwissRoll().claims(rows(GOOD))
    assert [claim.holds for claim in good] == [True] * len(good)
    assert len(good) == 1 + (len(ARMS) - 3) + 3 + 2 + 3 + 1
    bad = SwissRoll().claims(rows(BAD, {OURS: 0.5, "regression": 0.9, "ugan_l2": 0.9}, counts=(0.2, 0.3)))
    assert [claim.holds for claim in bad] == [False] * len(bad)


def test_one_seed_tells_nothing():
    assert {claim.holds for claim in SwissRoll().claims(rows(GOOD, n=1))} == {None}


def test_jobs_are_all_different_and_count_every_number_of_unpaired_points():
    jobs = SwissRoll().jobs(5)
    keys = {tuple(job.values()) for job in jobs}
    assert len(keys) == len(jobs)
    few = {(job["sources"], job["targets"]) for job in jobs if job["arm"] == OURS and job["pairs"] == FEW}
    assert few == {(i, j) for i in COUNTS for j in COUNTS}
    assert SwissRoll(full=True).many == 16_384


def test_the_table_has_chance_and_ceiling_and_ends_with_the_numbers_of_unpaired_points():
    table = SwissRoll().table(rows(GOOD))
    assert {CHANCE, CEILING} <= set(table.index)
    assert len(table) == 2 * len(ARMS) + 2 + len(COUNTS) ** 2 - 1
    first = len(table) - len(COUNTS) ** 2 + 1
    assert f"{UNPAIRED} + {UNPAIRED}" not in set(table["unpaired"][first:])
    assert table.loc[CHANCE, "pairs"] == ""


def test_a_short_run_from_end_to_end(monkeypatch, tmp_path, test):
    class Truth:
        def fit(self, x, y, anchors, **_):
            np.testing.assert_array_equal(anchors[:, 0], anchors[:, 1])
            assert len(anchors) in (FEW, 256)
            return self

        def sample(self, x, n, seed):
            return test.again[:, : len(x)]

    made = SimpleNamespace(sample=lambda x, n, seed: test.truth)
    monkeypatch.setattr(swiss_roll, "draw_test", lambda seed: test)
    monkeypatch.setattr(swiss_roll, "make", lambda name, **settings: Truth())
    monkeypatch.setattr(swiss_roll.conditional, "fit", lambda *args, **settings: made)
    monkeypatch.setattr(swiss_roll, "SOURCES", 20)
    monkeypatch.setattr(swiss_roll, "DRAWS", 100)
    monkeypatch.setattr(SwissRoll, "many", 256)
    outcome = base.run("swiss_roll", seeds=2, out=tmp_path, device="cpu")
    assert outcome.rows[["energy", "frechet", "both_modes", "marginal"]].notna().all().all()
    titles = {axes.get_title().split("\n")[0] for axes in outcome.figure.axes}
    assert titles >= {"the truth", *ARMS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "picture.png", "rows.csv", "table.md"]
