"""Suite gain_study: its toys, its geodesic, and how it reads its rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.experiments.suites.gain_study import (
    ARMS,
    CONTROLS,
    CYCLE,
    GAINS,
    LAWS,
    LINE,
    MIDDLE,
    MOVED,
    SHIFT,
    SMALL,
    TURNED,
    GainStudy,
    draw_blobs,
    draw_line,
    measure,
    off_geodesic,
)

torch.set_num_threads(1)


def test_moved_blobs_are_shifted_and_targets_are_other_draws():
    data = draw_blobs(0, MOVED)
    np.testing.assert_allclose(data["truth"] - data["fresh_x"], np.tile(SHIFT, (len(data["truth"]), 1)), atol=1e-5)
    assert not np.isin(data["y"], data["x"] + SHIFT.astype(np.float32)).any()
    assert measure(data["truth"], data["fresh_x"], data)["accuracy"] > 0.99


def test_turned_blobs_lie_where_moved_ones_do_and_the_least_motion_is_wrong_there():
    moved, turned = draw_blobs(0, MOVED), draw_blobs(0, TURNED)
    np.testing.assert_allclose(np.sort(moved["centres"].sum(1)), np.sort(turned["centres"].sum(1)), atol=1e-9)
    scores = measure(turned["fresh_x"] + SHIFT, turned["fresh_x"], turned)
    assert scores["accuracy"] < 0.01
    assert scores["energy"] < 0.01


def test_the_straight_path_of_the_increasing_map_is_the_geodesic():
    data = draw_line(0)
    times = np.linspace(0, 1, 6)[:, None]
    straight = (1 - times) * data["fresh_x"][:, 0] + times * data["truth"][:, 0]
    assert off_geodesic(straight) < 0.1
    late = np.where(times < 1, data["fresh_x"][:, 0], data["truth"][:, 0])
    (m, _), (n, _) = LAWS
    assert off_geodesic(late) == pytest.approx((n - m) / 2, abs=0.3)


def test_a_job_runs_and_its_start_is_measured(monkeypatch):
    monkeypatch.setattr("celltransfer.experiments.suites.gain_study.TRAINED", 3)
    scores, arrays = GainStudy(device="cpu").run({"task": MOVED, "arm": ARMS[2], "gain": 2.0, "seed": 0})
    assert scores["cost_start"] > 1
    assert arrays["path"].shape[0] == 6
    scores, _ = GainStudy(device="cpu").run({"task": LINE, "arm": CYCLE, "gain": SMALL, "seed": 1})
    assert np.isfinite(scores["off_geodesic"])
    assert scores["cost_start"] < 1e-3


def rows(good):
    jobs = pd.DataFrame(GainStudy().jobs(5))
    large = jobs["gain"] >= MIDDLE
    bad = (jobs["arm"] == CYCLE) & large if good else jobs["arm"].isin(ARMS[2:]) & large
    bad |= (jobs["arm"] == ARMS[1]) & large
    wrong = np.where(bad | (jobs["task"] == TURNED), 1.0, 0.0) + 0.001 * jobs["seed"]
    return jobs.assign(
        accuracy=1 - wrong,
        error=wrong,
        cost=1 + wrong,
        cost_start=0.0,
        energy=0.0,
        off_geodesic=wrong + (jobs["arm"] == CYCLE),
    )


def test_claims_follow_the_rows():
    suite = GainStudy()
    assert [claim.holds for claim in suite.claims(rows(good=True))] == [True] * 9
    assert False in [claim.holds for claim in suite.claims(rows(good=False))]


def test_every_arm_has_its_lines():
    table = GainStudy().table(rows(good=True))
    assert len(table) == len(ARMS) * (len(GAINS) + 1) + 2 * len(ARMS[:-1]) + 3 * len(CONTROLS)
