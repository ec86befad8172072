"""The tables of a report say what direct computation says."""

from __future__ import annotations

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from celltransfer.errors import ConditionError
from celltransfer.metrics.protocol import Scores
from celltransfer.metrics.scores import (
    correlation_per_feature,
    foscttm,
    foscttm_per_cell,
    knn_accuracy,
    reference_share,
)
from celltransfer.reporting import tables

pytestmark = pytest.mark.filterwarnings(
    "ignore::celltransfer.errors.VerdictWarning", "ignore:method='ridge' fits without conditions"
)


def points(cells, side):
    return cells[[f"{side}_1", f"{side}_2"]].to_numpy()


def test_overall_agrees_with_the_table_and_the_intervals(result):
    overall = result.overall
    for name, row in overall.iterrows():
        assert row["translation"] == pytest.approx(result.table.loc["translation", name])
        assert row["ceiling"] == pytest.approx(result.table.loc["ceiling: all pairs", name])
        assert (row["low"], row["high"]) == pytest.approx(result.intervals[name])
        share = reference_share(row["translation"], row["chance"], row["ceiling"])
        assert row["share"] == pytest.approx(share)
        assert row["share_low"] < share < row["share_high"]
    n = result.about["n_cells"]
    assert overall.loc["foscttm", "chance"] == 0.5
    assert overall.loc["knn_accuracy@10", "chance"] == 10 / n
    directions = overall.loc[["foscttm_source_to_target", "foscttm_target_to_source"], "translation"]
    assert overall.loc["foscttm", "translation"] == pytest.approx(directions.mean())


def test_a_ceiling_at_chance_gives_no_share():
    rng = np.random.default_rng(0)

    def scores(shift):
        cells = {name: rng.uniform(size=200) for name in tables.DIRECTED}
        cells = {name: values * shift if "foscttm" in name else values * 0.05 for name, values in cells.items()}
        return Scores({name: float(values.mean()) for name, values in cells.items()}, cells)

    assert tables.overall(scores(0.5), scores(1.0)).loc["foscttm", ["share", "share_low"]].isna().all()
    known = tables.overall(scores(1.0), scores(0.4)).loc["foscttm"]
    assert known["share_low"] < known["share"] < known["share_high"] < 0.5


def test_groups_agree_with_direct_computation(result):
    groups, cells = result.by_group, result.by_cell
    assert list(groups.index.unique(0)) == ["cell_type", "condition"]
    for (grouping, group), row in groups.iterrows():
        own = cells[cells[grouping] == group]
        assert row["n"] == len(own)
        assert row["foscttm"] == pytest.approx(own["foscttm"].mean())
        assert row["foscttm_low"] <= row["foscttm"] <= row["foscttm_high"]
        assert row["foscttm_source_to_target"] == pytest.approx(own["foscttm_source_to_target"].mean())
    types = groups.loc["cell_type"]
    assert types["n"].sum() == result.about["n_cells"]
    assert list(types["n"]) == sorted(types["n"], reverse=True)
    within = np.average(types["foscttm_within"], weights=types["n"])
    assert within == pytest.approx(result.table.loc["translation", "foscttm_within_label"])
    ceiling = np.average(types["foscttm_ceiling"], weights=types["n"])
    assert ceiling == pytest.approx(result.table.loc["ceiling: all pairs", "foscttm"])


def test_foscttm_within_a_group_is_that_of_the_group_alone():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 4))
    moved = truth + rng.normal(size=truth.shape)
    kind = np.array(["a"] * 35 + ["b"] * 20 + ["alone"] + [None] * 4, dtype=object)
    per_cell = {name: rng.uniform(size=60) for name in tables.DIRECTED}
    mine = Scores({}, per_cell)
    found = tables.by_group({"kind": kind}, mine, mine, moved, truth, 0).loc["kind"]
    assert list(found.index) == ["a", "b", "alone"]
    for name in ("a", "b"):
        assert found.loc[name, "foscttm_within"] == pytest.approx(foscttm(moved[kind == name], truth[kind == name]))
    assert np.isnan(found.loc["alone", "foscttm_within"])
    assert found.loc[["alone"], ["foscttm_low", "foscttm_high"]].isna().all(axis=None)
    assert tables.by_group({}, mine, mine, moved, truth, 0).empty


@pytest.mark.parametrize("as_matrix", [np.asarray, sp.csr_matrix])
def test_features_agree_with_direct_computation(as_matrix):
    rng = np.random.default_rng(0)
    truth = rng.poisson(1.0, size=(50, 6)).astype(np.float32)
    truth[:, 4] = 2.0
    mine = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    mine[:, 5] = 0.3
    found = {f"{how}_per_feature": correlation_per_feature(mine, truth, how) for how in ("pearson", "spearman")}
    names = pd.Index([f"f{i}" for i in range(6)])
    table = tables.by_feature(names, Scores({}, {}, found), mine, as_matrix(truth)).loc[names]
    varies = np.arange(6) != 4
    np.testing.assert_allclose(table["pearson"][varies], found["pearson_per_feature"][varies])
    assert table.loc["f4", ["pearson", "spearman"]].isna().all()
    assert table.loc["f5", "pearson"] == 0
    np.testing.assert_allclose(table["sd_measured"], truth.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(table["sd_translated"], mine.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(table["mean_translated"], mine.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(table["detected"], (truth > 0).mean(axis=0))


def test_features_of_a_report(result, model):
    features = result.by_feature
    assert set(features.index) == set(model.recipes["atac"].feature_names_)
    assert features["pearson"].dropna().is_monotonic_decreasing
    assert features["pearson"].fillna(0).mean() == pytest.approx(
        result.table.loc["translation", "pearson_per_feature"], abs=1e-9
    )


def test_cells_of_a_report(result, cells):
    found = result.by_cell
    assert len(found) == result.about["n_cells"]
    assert (found.index == found["target_id"]).all()
    assert found["foscttm"].mean() == pytest.approx(result.table.loc["translation", "foscttm"])
    assert (found["partner_rank"] >= 1).all()
    assert (found["partner_rank"] <= 10).mean() == pytest.approx(result.table.loc["translation", "knn_accuracy@10"])
    assert (found["cell_type"] == cells["rna"].obs.loc[found.index, "cell_type"].astype(str)).all()
    assert found["translation_support"].between(0, 1).all()


def test_rejection_by_the_error_itself_is_the_best_and_by_chance_changes_nothing():
    rng = np.random.default_rng(0)
    error = rng.uniform(size=4000)
    cells = pd.DataFrame(
        {
            "foscttm": error,
            "translation_good": -error,
            "translation_bad": error,
            "translation_random": rng.uniform(size=4000),
            "translation_constant": 1.0,
            "translation_rejected": error > 0.5,
        }
    )
    cells.loc[:10, "translation_random"] = np.nan
    assert tables.confidences(cells) == ["translation_good", "translation_bad", "translation_random"]
    risk = tables.risk(cells)
    np.testing.assert_allclose(risk.loc[1.0], error.mean())
    np.testing.assert_allclose(risk["translation_good"], risk["best possible"])
    assert (risk["translation_bad"].to_numpy()[1:] > error.mean()).all()
    np.testing.assert_allclose(risk["translation_random"][risk.index > 0.2], error.mean(), atol=0.03)
    half = np.sort(error)[:2000].mean()
    assert risk["best possible"].iloc[10] == pytest.approx(half)
    assert tables.rank_correlation(cells, "translation_good") == pytest.approx(1)
    assert tables.risk(cells[["foscttm", "translation_constant"]]).empty


def test_evidence_beside_the_truth():
    found = {
        "held_out_anchors": 9.0,
        "foscttm_estimate": 0.2,
        "foscttm_low": 0.1,
        "foscttm_high": 0.3,
        "twin_disagreement": 0.4,
        "twin_low": 0.3,
        "twin_high": 0.5,
        "twin_distance": 0.7,
        "knn_accuracy_estimate@50": 0.5,
        "something_new": 1.0,
    }
    evidence = tables.evidence(found, {"foscttm": 0.25, "knn_accuracy@50": 0.2})
    names = ["foscttm", "knn_accuracy@50", "held_out_anchors", "twin_disagreement", "twin_distance", "something_new"]
    assert list(evidence.index) == names
    assert evidence.loc["foscttm", ["low", "high", "measured", "held"]].tolist() == [0.1, 0.3, 0.25, True]
    assert evidence.loc["twin_disagreement", ["low", "high"]].tolist() == [0.3, 0.5]
    assert pd.isna(evidence.loc["twin_distance", "low"])
    assert evidence.loc["knn_accuracy@50", "measured"] == 0.2
    assert pd.isna(evidence.loc["knn_accuracy@50", "held"])
    assert tables.evidence(found, {})["measured"].isna().all()
    assert tables.evidence({}, {"foscttm": 0.1}).empty


def test_accuracy_among_fewer_candidates_is_what_fewer_candidates_give():
    """The expectation agrees with draws of the candidates."""
    rng = np.random.default_rng(0)
    n, m = 400, 120
    truth = rng.normal(size=(n, 5))
    mine = truth + rng.normal(size=truth.shape)
    nearer = foscttm_per_cell(mine, truth).source_to_target
    table = pd.DataFrame({"knn_accuracy@10": [0.5]}, index=["t"])
    found = tables.measured(table, pd.DataFrame({"foscttm_source_to_target": nearer}), "t", m)
    drawn = []
    for _ in range(30):
        some = rng.choice(n, m, replace=False)
        drawn.append(knn_accuracy(mine[some], truth[some], 10))
    assert found["knn_accuracy"] == pytest.approx(np.mean(drawn), abs=0.02)
    assert tables.measured(table, pd.DataFrame(), "t", None)["knn_accuracy"] == 0.5
    assert tables.measured(pd.DataFrame(), pd.DataFrame(), "t", m) == {}


def test_evidence_of_a_report_is_compared_with_the_truth(whole):
    row = whole.evidence.loc["foscttm"]
    truth = whole.table.loc["translation", "foscttm"]
    assert row["measured"] == truth
    assert row["held"] == (row["low"] <= truth <= row["high"])
    word = "holds" if row["held"] else "lies"
    assert f"{word} " in whole.estimate_and_truth()
    assert whole.estimate_and_truth() in whole.to_markdown()


def test_groups_by_other_columns_and_with_gaps(cells, model):
    mdata = cells.copy()
    test = mdata["rna"].obs_names[~mdata["rna"].obs["train"].to_numpy()]
    for adata in mdata.mod.values():
        adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "one", None)
        adata.obs["level"] = pd.Series(np.arange(adata.n_obs) % 3, adata.obs_names).where(adata.obs_names != test[0])
    found = ct.report(model, mdata, groups=["donor", "level"]).by_group
    assert list(found.index.unique(0)) == ["cell_type", "donor", "level", "condition"]
    assert list(found.loc["donor"].index) == ["one"]
    assert found.loc["level", "n"].sum() == len(test) - 1
    assert set(found.loc["level"].index) == {"0.0", "1.0", "2.0"}
    mdata["rna"].obs["barcode"] = mdata["rna"].obs_names
    with pytest.raises(ConditionError, match="to group cells by it"):
        ct.report(model, mdata, groups="barcode")
    with pytest.raises(ConditionError, match="no column 'nothing'"):
        ct.report(model, mdata, groups="nothing")


def test_without_labels_and_conditions_there_are_no_groups(cells, model):
    bare = cells.copy()
    bare.uns.clear()
    result = ct.report(model, bare)
    assert result.by_group.empty
    assert "By group" not in result.to_html()
    assert set(result.pictures()) == {"foscttm", "space", "features", "risk"}


def test_csv_files_hold_the_tables(whole, tmp_path):
    whole.to_csv(tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(whole.frames())
    groups = pd.read_csv(tmp_path / "out" / "by_group.csv", index_col=[0, 1])
    pd.testing.assert_frame_equal(groups, whole.by_group)
    assert len(pd.read_csv(tmp_path / "out" / "by_cell.csv")) == len(whole.by_cell)
