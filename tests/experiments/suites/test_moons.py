"""Moons: the data, the distances and their minimisers, and how rows become claims."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import moons, moons_models
from celltransfer.experiments.suites.moons import (
    CONTROLS,
    INPUT,
    OTHER_SEEDS,
    OTHER_WAY,
    OURS,
    PLAN,
    SETTINGS,
    TRUTH,
    Moons,
)


@pytest.mark.parametrize("turn", ["-", "+"])
def test_turning_back_is_the_truth(turn):
    data = moons.draw_sample(0, turn, n=400)
    back = "+" if turn == "-" else "-"
    np.testing.assert_allclose(moons.turned(moons.turned(data.x, turn), back), data.x, atol=1e-6)
    near = moons._classifier(data)
    assert near.score(moons.turned(data.fresh_x, back), data.fresh_moon_x) > 0.99
    assert near.score(data.fresh_x, data.fresh_moon_x) < 0.95
    angle = np.rad2deg(np.arccos((data.x * moons.turned(data.x, back)).sum(1) / np.square(data.x).sum(1)))
    np.testing.assert_allclose(angle, 50, atol=1e-2)


def test_points_of_both_sides_are_independent_and_fresh_ones_are_others():
    data = moons.draw_sample(3, "-", n=100)
    back = moons.turned(data.x, "+")
    everything = np.concatenate([back, data.y, moons.turned(data.fresh_x, "+"), data.fresh_y])
    assert len(np.unique(everything.round(5), axis=0)) == 400


def test_mmd_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)
    same = [
        float(moons_models.mmd(*(torch.tensor(rng.normal(size=(50, 2))) for _ in range(2)), (1.0,))) for _ in range(60)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    # Normal laws of unit variance, one feature, kernel of width w: closed form.
    a, b = (torch.tensor(rng.normal(size=(1500, 1)) + shift) for shift in (0, 1.5))
    expected = 2 * np.sqrt(1 / 3) * (1 - np.exp(-(1.5**2) / 6))
    assert float(moons_models.mmd(a, b, (1.0,))) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("power", "expected"), [(1, 2.0), (2, 4.0)])
def test_emd_of_a_shift(power, expected):
    a = torch.tensor(np.random.default_rng(0).normal(size=(40, 2)), requires_grad=True)
    b = (a.detach() + torch.tensor([2.0, 0.0]))[torch.randperm(40)]
    distance = moons_models.emd(a, b, power)
    assert float(distance.detach()) == pytest.approx(expected, rel=1e-4)
    distance.backward()
    assert (a.grad[:, 0] < 0).all()


def test_a_discriminator_changes_no_faster_than_its_input():
    torch.manual_seed(0)
    critic = moons_models.discriminator(2).train()
    points = torch.randn(200, 2)
    for _ in range(50):  # spectral norms are found by iterating
        critic(points)
    with torch.no_grad():
        steps = (critic.eval()(points) - critic(points.flip(0))).abs().squeeze(1)
    assert (steps <= 1.05 * (points - points.flip(0)).norm(dim=1)).all()


@pytest.mark.parametrize("arm", ["MMD", "EMD", "F o G^-1", "SN-GAN"])
def test_every_method_moves_a_shifted_cloud_towards_the_target(arm):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(300, 2)) * [1.0, 0.5], dtype=torch.float32)
    y = torch.tensor(rng.normal(size=(300, 2)) * [1.0, 0.5] + [1.5, 0], dtype=torch.float32)
    settings = SETTINGS[arm][0] | {"steps": 60, "batch": 64, "hidden": (16, 16)}
    settings |= {"lr": 1e-2} if arm != "F o G^-1" else {}
    looks = []
    f = moons_models.fit(
        moons._METHODS[arm], x, y, seed=0, watch=lambda step, value, move: looks.append(step), **settings
    )
    with torch.no_grad():
        moved = f(x)
    assert float(moons_models.emd(moved, y)) < 0.6 * float(moons_models.emd(x, y))
    assert looks == ([] if arm == "F o G^-1" else [0, 20, 40])


def test_the_rank_correlation_of_objective_and_accuracy():
    assert moons.following(moons.Trace([0, 1, 2], [3.0, 2.0, 1.0], [0.5, 0.7, 0.9]))["rho"] == pytest.approx(-1)
    assert np.isnan(moons.following(moons.Trace([0, 1], [3.0, 2.0], [1.0, 1.0]))["rho"])


def rows(accuracy, loss, rho, emd, verdict, n=5):
    """Rows with figures by arm; they differ a little between seeds."""
    made = []
    for job in Moons().jobs(n):
        arm = job["arm"]
        wiggle = 1e-4 * np.random.default_rng([job["seed"], len(arm)]).normal()
        found = {"accuracy": accuracy.get(arm, 0.8), "rho": rho.get(arm, -0.2), "emd": emd.get(arm, 0.06)}
        found = {name: value + wiggle for name, value in found.items()}
        extra = {"loss": loss + wiggle if arm == OURS else np.nan, "mmd": 0.0, "energy_distance": 0.0, "seconds": 1.0}
        made.append(job | found | extra | {"verdict": verdict})
    return pd.DataFrame(made)


def test_claims_of_a_paper_that_is_right_and_of_one_that_is_not():
    good = rows({OURS: 0.999}, 0.01, {OURS: -0.9}, {"F o G^-1": 0.05}, "aligned")
    assert [claim.holds for claim in Moons().claims(good)] == [True] * 11
    others = dict.fromkeys((*SETTINGS, PLAN), 0.95) | {OURS: 0.7}
    bad = rows(others, 0.4, {OURS: -0.1, "SN-GAN": -0.8}, {OURS: 0.02}, "not aligned")
    assert [claim.holds for claim in Moons().claims(bad)] == [False] * 11


def test_one_seed_tells_nothing_but_of_verdicts():
    found = rows({OURS: 0.999}, 0.01, {OURS: -0.9}, {}, "aligned", n=1)
    assert {claim.holds for claim in Moons().claims(found)[:-1]} == {None}


def test_jobs_and_table():
    jobs = Moons().jobs(4)
    assert len({tuple(job.values()) for job in jobs}) == len(jobs)
    assert {job["arm"] for job in jobs if job["turn"] == "-"} == {*CONTROLS, *SETTINGS}
    assert sum(job["turn"] == "+" for job in jobs) == OTHER_SEEDS * len(OTHER_WAY)
    table = Moons().table(rows({}, 0.0, {}, {}, "aligned"))
    assert len(table) == len(CONTROLS) + len(SETTINGS) + len(OTHER_WAY)


def test_a_short_run_from_end_to_end(monkeypatch, tmp_path):
    short = {arm: tuple(s | {"steps": 4} for s in tried) for arm, tried in SETTINGS.items() if arm in (OURS, "MMD")}
    monkeypatch.setattr(moons, "SETTINGS", short)
    monkeypatch.setattr(moons, "OTHER_WAY", (INPUT,))
    monkeypatch.setattr(moons, "POINTS", 300)
    monkeypatch.setattr(moons, "SCORED", 100)
    monkeypatch.setattr("celltransfer.translators.lrmf.lrmf.DENSITY_STEPS", 4)
    monkeypatch.setattr(Moons, "claims", lambda self, rows: [])
    outcome = base.run("moons", seeds=1, out=tmp_path, device="cpu")
    scores = outcome.rows[outcome.rows["turn"] == "-"].set_index("arm")
    assert scores.loc[TRUTH, "accuracy"] > 0.99 > scores.loc[INPUT, "accuracy"]
    assert np.isfinite(scores.loc[OURS, ["loss", "emd"]].astype(float)).all()
    assert len(outcome.figure.axes) > 4
