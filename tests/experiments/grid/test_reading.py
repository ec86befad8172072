"""Tables, comparisons, curves and the judge of the verdict, from results that are made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from celltransfer.errors import InputError
from celltransfer.experiments import grid as benchmark
from celltransfer.experiments.grid import compare, curves, verdicts
from celltransfer.experiments.grid import report as tables
from celltransfer.experiments.grid.rows import Results, higher_is_better

if TYPE_CHECKING:
    from pathlib import Path

SCORES = {"ridge": 0.30, "fgw": 0.20, "pot_fgw": 0.25, "control: chance": 0.5, "control: reference": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two numbers of anchors, three seeds; with more anchors all methods win .05."""
    folder = tmp_path_factory.mktemp("results")
    store, rng = Results(folder / "out"), np.random.default_rng(0)
    difficulty = rng.normal(0, 0.05, 100)
    for job in benchmark.jobs(
        [benchmark.arm("simulate")], ["ridge", "fgw", "pot_fgw"], anchors=[1, 10], seeds=range(3)
    ):
        _keep(store, folder, job, job.method.name, difficulty, rng)
    for job in benchmark.jobs([benchmark.arm("simulate")], ["controls"], anchors=[1, 10], seeds=range(3)):
        for name in ("control: chance", "control: reference"):
            _keep(store, folder, job, name, difficulty, rng)
    (job,) = benchmark.jobs([benchmark.arm("simulate")], ["pls"], anchors=[10], seeds=[0])
    store.add([_row(job, "pls", status="timeout", reason="not done after 9 s")])
    return folder / "out"


def _keep(store: Results, folder: Path, job: benchmark.Job, name: str, difficulty: np.ndarray, rng: Any) -> None:
    gain = 0.05 * (job.k == 10) * (not name.startswith("control"))
    cells = SCORES[name] - gain + difficulty + rng.normal(0, 0.01, len(difficulty))
    np.savez(folder / "cells.npz", **{f"{name}/foscttm": cells, f"{name}/knn_accuracy@50": 1 - cells})
    scores = {"foscttm": cells.mean(), "knn_accuracy@50": 1 - cells.mean()}
    row = _row(job, name, seconds=2.0, peak_mb=300.0, cpu_seconds=36.0, **scores)
    store.add(*store.found([row], folder / "cells.npz")[:2])


def _row(job: benchmark.Job, name: str, **values: Any) -> dict[str, Any]:
    about = {"source": "rna", "target": "atac", "n": 100, "machine": "a computer", "status": "ok", "reason": ""}
    return job.key | about | {"method": name, "versions": "celltransfer 0, numpy 2", "celltransfer": "0"} | values


def test_table_has_means_the_best_in_bold_and_controls_below(folder: Path) -> None:
    rows = benchmark.load(folder)
    table = tables.table(rows, "foscttm")
    assert list(table.columns) == ["k = 1", "k = 10", "seconds", "MB"]
    names = [name.removesuffix(" †") for name in table.index]
    assert names == ["fgw", "ridge", "pls", "pot_fgw", "control: reference", "control: chance"]
    table.index = pd.Index(names)
    mean, sd = rows.loc[(rows["method"] == "fgw") & (rows["k"] == 10), "foscttm"].agg(["mean", "std"])
    assert table.loc["fgw", "k = 10"] == f"**{mean:.3f} ± {sd:.3f}**"
    assert not table.loc["ridge", "k = 10"].startswith("**")
    assert table.loc["pls"].tolist() == ["", "timeout", "", ""]
    assert table.loc["fgw", ["seconds", "MB"]].tolist() == ["2.0", "300"]
    assert tables.table(rows, "knn_accuracy@50").filter(like="fgw", axis=0).iloc[0, 0].startswith("**")


def test_seeds_that_are_missing_are_said(folder: Path) -> None:
    rows = benchmark.load(folder)
    rows.loc[(rows["method"] == "ridge") & (rows["seed"] == 2), "status"] = "failed"
    assert tables.table(rows, "foscttm").loc["ridge", "k = 1"].endswith("(2 of 3)")


def test_report_says_all(folder: Path) -> None:
    targets = pd.DataFrame({"dataset": ["simulate"], "k": [10], "target": [0.1], "score": ["foscttm"]})
    text = tables.report(benchmark.load(folder), targets=targets)
    for part in (
        "### simulate, rna to atac, disjoint regime: 100 cells scored, 3 seeds",
        "`foscttm`, lower is better:",
        "`knn_accuracy@50`, higher is better:",
        "| target |  | 0.1 |",
        "- `pls` timeout (1 job, k = 10): not done after 9 s",
        "Ran with celltransfer 0, numpy 2.",
        "Machine: a computer. CPU hours: 0.30 (",
    ):
        assert part in text
    assert text.count("| target |") == 1
    with pytest.raises(InputError, match="no score 'nothing'"):
        tables.report(benchmark.load(folder), ["nothing"])


def test_targets_need_their_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("dataset,target\na,1\n")
    with pytest.raises(InputError, match="no column 'k'"):
        tables.read_targets(tmp_path / "t.csv")


def test_comparison_finds_the_difference_and_what_it_says(folder: Path) -> None:
    rows = benchmark.load(folder)
    table = compare.compare(rows, "fgw").set_index(["k", "against"])
    best = table.loc[(10, "pot_fgw (best other)")]
    assert best["difference"] == pytest.approx(-0.05, abs=0.005)
    assert best["low"] < -0.05 < best["high"] < -0.04
    assert (best["says"], best["seeds"]) == ("better", 3)
    assert set(table["says"]) == {"better"}
    other_way = compare.compare(rows, "ridge", ["fgw"])
    assert set(other_way["says"]) == {"worse"}
    assert set(compare.compare(rows, "ridge", ["fgw"], "knn_accuracy@50")["says"]) == {"worse"}
    assert compare.compare(rows, "ridge", ["ridge", "pls"]).empty
    said = compare.sentences(compare.compare(rows, "fgw"), "fgw")
    assert len(said) == 2
    assert said[0].startswith("- simulate, disjoint, k = 1: fgw is better than pot_fgw (best other) (0.")


def test_equal_methods_are_not_below_each_other(folder: Path) -> None:
    rows = benchmark.load(folder)
    rows = rows[rows["k"] == 10]
    found = compare._difference(rows, "fgw", "fgw", "foscttm")
    assert found is not None
    assert found["says"] == "not below"


def test_curve_has_lines_band_ceiling_and_chance(folder: Path) -> None:
    figure = curves.curves(benchmark.load(folder))
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["ceiling: all pairs", "chance", "fgw", "peers, best to worst", "ridge"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10"]
    with pytest.raises(InputError, match="no score to draw"):
        curves.curves(benchmark.load(folder), regime="shared")


def _judged(n: int = 60) -> pd.DataFrame:
    """Runs of three data sets whose estimates are noisy truths; another piece of evidence is the truth reversed."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.05, 0.5, n)
    estimate = truth + rng.normal(0, 0.02, n)
    return pd.DataFrame(
        {
            "dataset": np.repeat(["a", "b", "c"], n // 3),
            "k": np.tile([3, 10], n // 2),
            "method": "ridge",
            "status": "ok",
            "n": 100,
            "foscttm": truth,
            "verdict": np.where(estimate < 0.3, "identified", np.where(estimate > 0.4, "failed", "ambiguous")),
            "evidence_foscttm_estimate": estimate,
            "evidence_foscttm_low": estimate - 0.1,
            "evidence_foscttm_high": estimate + 0.1,
            "evidence_reversed": -truth,
        }
    )


def test_confusion_counts_runs() -> None:
    rows = _judged()
    table = verdicts.confusion(rows)
    assert list(table.index) == ["identified", "ambiguous", "failed"]
    assert table.to_numpy().sum() == len(rows)
    assert table.loc["identified", "not usable"] == 0
    assert table.loc["failed", "usable"] == 0
    assert verdicts.confusion(rows, "dataset").to_numpy().sum() == len(rows)
    rows["status"] = "failed"
    assert verdicts.confusion(rows).empty


def test_verdicts_are_concluded_anew_from_their_evidence() -> None:
    rows = _judged(6)[:3].assign(
        evidence_self_rank=[0.1, 0.5, np.nan],
        evidence_n_anchors=10.0,
        evidence_held_out_anchors=10.0,
        evidence_reference_cells=1000.0,
        evidence_held_out_rank=[0.05, 0.6, np.nan],
        evidence_held_out_sd=0.1,
        evidence_twin_disagreement=0.0,
        verdict="ambiguous",
    )
    again = verdicts.judge_again(rows)
    assert list(again["verdict"]) == ["identified", "failed", "ambiguous"]
    assert again["evidence_foscttm_estimate"][0] < 0.2 < again["evidence_foscttm_estimate"][1]
    assert again["evidence_foscttm_estimate"][2] == rows["evidence_foscttm_estimate"][2]
    assert list(rows["verdict"]) == ["ambiguous"] * 3
    pd.testing.assert_frame_equal(verdicts.judge_again(_judged()), _judged())


def test_good_evidence_beats_the_trivial_predictor() -> None:
    table = verdicts.predictors(_judged())
    estimate, flipped = table.loc["foscttm_estimate"], table.loc["reversed"]
    assert table.index[0] == "foscttm_estimate"
    assert estimate["pooled"] > 0.95 > 0.6 > estimate["trivial"]
    assert estimate["within data set and k"] > 0.9
    assert estimate["AUROC"] > 0.95 > estimate["AUROC, trivial"]
    assert flipped["pooled"] == flipped["AUROC"] == flipped["worst without one"] == 1


def test_estimates_are_not_turned_round() -> None:
    rows = _judged()
    rows["evidence_foscttm_estimate"] *= -1
    assert verdicts.predictors(rows).loc["foscttm_estimate", "pooled"] < -0.9


def test_coverage_is_the_share_inside() -> None:
    rows = _judged()
    table = verdicts.coverage(rows)
    assert table.loc["ridge", "foscttm inside"] == 1
    assert table.loc["ridge", "foscttm width"] == pytest.approx(0.2)
    rows["evidence_foscttm_high"] = rows["evidence_foscttm_low"]
    assert verdicts.coverage(rows).loc["ridge", "foscttm inside"] == 0


def test_knn_intervals_are_brought_to_the_cells_scored() -> None:
    rows = _judged().assign(**{"knn_accuracy@10": 0.1, "evidence_reference_cells": 1000.0})
    rows["evidence_knn_accuracy_low"] = rows["evidence_knn_accuracy_high"] = 0.01  # 10 of 1000; of 100 it is 0.1
    rows["evidence_knn_accuracy_high"] += 1e-9
    assert verdicts.coverage(rows).loc["ridge", "knn_accuracy@10 inside"] == 1


def test_report_of_verdicts() -> None:
    text = verdicts.report(_judged())
    assert "60 runs with a verdict, 3 data sets." in text
    assert "| identified |" in text
    with pytest.raises(InputError, match="no column 'nothing'"):
        verdicts.report(_judged(), "nothing")
    with pytest.raises(InputError, match="no verdict"):
        verdicts.report(_judged().drop(columns="verdict"))


def test_direction_of_scores() -> None:
    assert higher_is_better("knn_accuracy@50")
    assert higher_is_better("pearson_per_cell")
    assert not any(map(higher_is_better, ("foscttm", "foscttm_within_label", "mse", "energy_distance")))
