"""Experiments of this package: what they measure, at sizes that take no time."""

import numpy as np
import pytest
from celltransfer.experiments import suites
from celltransfer.experiments.suites import a549_conditions, alignment_controls, probe_bias, probe_cost


def test_the_probe_is_unbiased_with_one_coordinate_and_short_with_many(monkeypatch):
    monkeypatch.setattr(probe_bias, "D", 64)
    suite = probe_bias.ProbeBias()
    one, _ = suite.run({"jacobian": "dense", "direction": "binary", "s": 1, "seed": 0})
    many, _ = suite.run({"jacobian": "dense", "direction": "binary", "s": 32, "seed": 0})
    assert abs(one["bias"]) < 0.05
    assert many["bias"] < -0.5
    assert many["variance_of_8"] < one["variance_of_8"]


def test_times_are_in_those_of_the_bare_map(monkeypatch, tmp_path):
    for name, value in {"DIMS": (8,), "BATCHES": (4, 8), "SECONDS": 0.0}.items():
        monkeypatch.setattr(probe_cost, name, value)
    outcome = suites.run("probe_cost", out=tmp_path, device="cpu")
    assert list(outcome.rows["batch"]) == [4, 8]
    assert (outcome.rows[["bare_ms", "difference", "loop", "exact"]] > 0).all().all()
    assert (outcome.rows["repeats"] == 3).all()
    assert [claim.holds in (True, False) for claim in outcome.claims] == [True, True]


@pytest.mark.parametrize("arm", ["none", "scale and shift", "affine", "bend", "shuffled features", "noise"])
def test_distortions_do_what_they_say(arm):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 2
    moved = alignment_controls.distort(x, arm, np.random.default_rng(1))
    assert moved.shape == x.shape
    affine = np.linalg.lstsq(np.c_[x, np.ones(500)], moved, rcond=None)[0]
    left = np.abs(np.c_[x, np.ones(500)] @ affine - moved).max()
    assert (left < 1e-6) == (arm in ("none", "scale and shift", "affine"))
    if arm == "shuffled features":
        np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(x, axis=0))


def test_truth_tells_like_sets_from_others():
    rng = np.random.default_rng(0)
    target, like = rng.normal(size=(300, 3)), rng.normal(size=(150, 3))
    assert max(alignment_controls.oracle(like, target, 0).values()) < alignment_controls.TOLERANCE
    assert max(alignment_controls.oracle(like + 0.5, target, 0).values()) > alignment_controls.TOLERANCE


def test_different_genes_are_found_with_their_sign():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100, 4))
    b += [2, 0, 0, -2]
    strength = a549_conditions.different(a, b)
    assert strength[0] > 5 > abs(strength[1])
    assert strength[3] < -5


@pytest.mark.real_data
def test_controls_of_conditions_run(real_dataset):
    real_dataset("a549_scicar_peaks")
    suite = a549_conditions.A549Conditions(device="cpu")
    found = {arm: suite.run({"method": arm, "seed": 0})[0] for arm in suite.arms()[:4]}
    assert found[a549_conditions.IDENTITY]["motion"] == 0
    assert found[a549_conditions.CEILING]["energy_distance"] < found[a549_conditions.SHIFT]["energy_distance"]
    assert found[a549_conditions.SHIFT]["energy_distance"] < 0.1 * found[a549_conditions.IDENTITY]["energy_distance"]
