"""Laws and their map, the scores of the truth, the claims, and a short run."""

import numpy as np
import pandas as pd
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import blobs
from celltransfer.experiments.suites.blobs import ARMS, CEILING, CHANCE, FLOW, GAUSSIAN, Blobs


def test_the_laws_map_carries_one_law_onto_the_other():
    rng = np.random.default_rng(0)
    laws = blobs.draw_laws(rng)
    a, b = (laws.draw(side, 2500, rng) for side in (0, 1))
    scores = blobs.measure(blobs._truth(laws, a), a, b, laws, 0)
    assert scores["map_error"] == 0
    assert max(scores["mean_error"], scores["covariance_error"]) < 0.1
    assert abs(scores["energy"]) < 0.01
    assert scores["verdict"] == "aligned"
    away = blobs.measure(a, a, b, laws, 0)
    assert away["energy"] > 0.1
    assert away["verdict"] == "not aligned"


def rows(flow, gaussian, loss, verdict):
    made = []
    for job in Blobs().jobs(5):
        error = {FLOW: flow, GAUSSIAN: gaussian, CHANCE: 0.5}.get(job["arm"], 0.0) + 1e-3 * job["seed"] * (flow > 0)
        names = ("mean_error", "covariance_error", "map_error", "energy", "auc")
        losses = {"loss": loss + 1e-3 * job["seed"], "held_out_loss": loss + 1e-3 * job["seed"], "parameters": 1000}
        made.append(job | dict.fromkeys(names, error) | losses | {"verdict": verdict})
    return pd.DataFrame(made)


def test_claims_can_hold_and_fail():
    assert [c.holds for c in Blobs().claims(rows(0.1, 0.05, 0.01, "aligned"))] == [True] * 9
    found = [c.holds for c in Blobs().claims(rows(0.8, 0.9, 2.0, "not aligned"))]
    # Five runs cannot tell a share of nothing from two in five.
    assert found == [False, True, *[False] * 6, None]
    assert Blobs().claims(rows(0.1, 0.05, -1.0, "aligned"))[1].holds is False


def test_table_has_controls():
    made = rows(0.1, 0.05, 0.01, "aligned")
    made.loc[~made["arm"].isin(ARMS), ["loss", "held_out_loss", "parameters"]] = np.nan
    table = Blobs().table(made)
    assert list(table.index) == [*ARMS, CHANCE, CEILING]
    assert table.loc[FLOW, "parameters"] == "1,000"
    assert table.loc[CHANCE, "loss"] == ""


def test_a_short_run_from_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(blobs, "STEPS", 50)
    monkeypatch.setattr(blobs, "FRESH", 100)
    monkeypatch.setattr(blobs, "ARMS", {name: ARMS[name] for name in (FLOW, GAUSSIAN)})
    outcome = base.run("blobs", seeds=1, out=tmp_path, device="cpu")
    assert len(outcome.rows) == 4
    assert (tmp_path / "picture.png").exists()
