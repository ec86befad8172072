"""One job: the row it gives, whatever happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.data.writeback import write_h5mu
from celltransfer.experiments import grid as benchmark
from celltransfer.experiments import peers
from celltransfer.experiments.grid import job as jobs
from celltransfer.experiments.grid import methods
from celltransfer.experiments.grid.arms import Arm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own co-assay."""
    path = tmp_path_factory.mktemp("pilot") / "pilot.h5mu"
    write_h5mu(ct.datasets.simulate(n_obs=160, n_genes=40, n_peaks=60, seed=0), path)
    return path


@pytest.fixture(scope="module")
def arm(pilot: Path) -> Arm:
    return benchmark.own_arm(pilot, "rna", "atac", labels="cell_type")


def _job(arm: Arm, method: str, **values) -> benchmark.Job:
    (found,) = benchmark.jobs([arm], [method], anchors=[values.pop("k", 12)], seeds=[values.pop("seed", 0)], **values)
    return found


def test_own_method_gives_scores_evidence_and_cost(arm: Arm) -> None:
    (row,), cells = jobs.run(_job(arm, "ridge"))
    assert (row["status"], row["reason"]) == ("ok", "")
    assert [row[name] for name in ("dataset", "regime", "part", "k", "seed", "method")] == [
        *("pilot", "disjoint", "test", 12, 0, "ridge")
    ]
    assert row["n"] == 40
    assert 0 < row["foscttm"] < 0.5
    assert {"knn_accuracy@10", "foscttm_csls", "foscttm_within_label", "energy_distance"} <= set(row)
    assert row["verdict"] in ("identified", "ambiguous", "failed")
    assert row["evidence_held_out_anchors"] == 12
    assert 0 < row["fit_seconds"] <= row["judged_seconds"] <= row["seconds"] <= row["run_seconds"]
    assert row["peak_mb"] > 50
    assert row["celltransfer"] == ct.__version__
    assert row["versions"].startswith(f"celltransfer {ct.__version__}, numpy ")
    assert cells["ridge/foscttm"].mean() == pytest.approx(row["foscttm"], abs=2e-4)


def test_controls_are_rows_of_their_own(arm: Arm) -> None:
    rows, cells = jobs.run(_job(arm, "controls"))
    found = {row["method"]: row["foscttm"] for row in rows}
    assert {"control: chance", "control: reference", "control: depth", "control: labels_only"} <= set(found)
    assert found["control: reference"] < found["control: chance"]
    assert set(cells) == {f"{name}/{score}" for name in found for score in jobs.PER_CELL}


@pytest.mark.parametrize(
    ("method", "k", "reason"),
    [("ridge", 0, "1 or more anchors"), ("dimension", 5, "2 or more conditions"), ("ridge", 9999, "9999 of 120")],
)
def test_what_cannot_be_done_is_skipped_with_a_reason(arm: Arm, method: str, k: int, reason: str) -> None:
    (row,), cells = jobs.run(_job(arm, method, k=k))
    assert row["status"] == "skipped"
    assert reason in row["reason"]
    assert not cells


def test_whatever_fails_is_a_row(arm: Arm) -> None:
    (row,), _ = jobs.run(_job(Arm("gone", "/nowhere/gone.h5mu", "rna", "atac"), "ridge"))
    assert row["status"] == "failed"
    assert "gone.h5mu" in row["reason"]
    (row,), _ = jobs.run(benchmark.Job(arm, "disjoint", "test", 5, 0, methods.method("ridge"), ("no_such_module",)))
    assert row["reason"].startswith("ModuleNotFoundError in ")
    assert row["reason"].endswith(": No module named 'no_such_module'")


def test_backward_is_scored_in_the_other_modality(arm: Arm) -> None:
    (row,), _ = jobs.run(_job(arm.backward, "ridge"))
    assert (row["dataset"], row["source"], row["target"]) == ("pilot:backward", "atac", "rna")
    assert row["status"] == "ok"


def test_transductive_cells_keep_their_place_over_seeds(pilot: Path) -> None:
    small = Arm("small", str(pilot), "rna", "atac", transductive=True)
    found = [jobs.run(_job(small, "ridge", seed=seed))[1]["ridge/foscttm"] for seed in (0, 1)]
    for values in found:
        assert len(values) == 160
        assert np.isnan(values).sum() == 12
    assert (np.isnan(found[0]) != np.isnan(found[1])).any()


class _Peer:
    """A peer that predicts the mean training cell, or does something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers) -> None:
        self.seen: dict = {}
        answers = {"missing": None, "applies": None} | answers
        monkeypatch.setattr(peers, "names", lambda: ["mean"])
        monkeypatch.setattr(peers, "missing", lambda name: answers["missing"])
        monkeypatch.setattr(peers, "applies", lambda name, task: answers["applies"])
        monkeypatch.setattr(peers, "versions", lambda name: "mean 1.0")
        monkeypatch.setattr(peers, "translate", self.translate)

    def translate(self, name, task, *, seed, max_seconds):
        self.seen = {"name": name, "seed": seed, "max_seconds": max_seconds}
        return np.ones((task.source_test.n_obs, task.truth.n_vars)), task.truth.var_names


def test_peer_is_scored_like_ours(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = _Peer(monkeypatch)
    (row,), _ = jobs.run(_job(arm, "mean", seed=3), max_seconds=7.0)
    assert row["status"] == "ok"
    assert row["foscttm"] == pytest.approx(0.5)
    assert row["versions"] == "mean 1.0"
    assert peer.seen == {"name": "mean", "seed": 3, "max_seconds": 7.0}


@pytest.mark.parametrize(
    ("answers", "versions"), [({"missing": "not installed"}, ""), ({"applies": "needs counts"}, "mean 1.0")]
)
def test_peer_that_cannot_is_skipped(arm: Arm, monkeypatch: pytest.MonkeyPatch, answers: dict, versions: str) -> None:
    _Peer(monkeypatch, **answers)
    (row,), _ = jobs.run(_job(arm, "mean"))
    assert (row["status"], row["reason"]) == ("skipped", next(iter(answers.values())))
    assert row["versions"] == versions


def test_job_survives_json() -> None:
    job = _job(benchmark.arm("a549_scicar+time"), "ieot(potential=joint)")
    assert jobs.from_json(jobs.to_json(job)) == job
    assert jobs.from_json(jobs.to_json(job)).method.options == {"potential": "joint"}


def test_folder_gets_rows_and_scores_per_cell(arm: Arm, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(jobs.to_json(_job(arm, "controls")))
    jobs.main(tmp_path, 60)
    rows = json.loads((tmp_path / "rows.json").read_text())
    own, cells = jobs.run(_job(arm, "controls"))
    assert [row["foscttm"] for row in rows] == [row["foscttm"] for row in own]
    with np.load(tmp_path / "cells.npz") as found:
        assert set(found) == set(cells)
        np.testing.assert_array_equal(found["control: depth/foscttm"], cells["control: depth/foscttm"])


def test_columns_of_own_data_are_checked_before_anything_runs(pilot: Path) -> None:
    for values in ({"labels": "nothing"}, {"condition": "nothing"}):
        with pytest.raises(ct.errors.InputError, match="nothing"):
            benchmark.own_arm(pilot, "rna", "atac", **values)
    with pytest.raises(ct.errors.ModalityError, match="protein"):
        benchmark.own_arm(pilot, "rna", "protein")
    named = benchmark.own_arm(pilot, condition="condition")
    assert (named.name, named.source, named.target) == ("pilot+condition", "rna", "atac")
