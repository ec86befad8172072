"""The tables of a report say what direct computation says."""

from __future__ import annotations

from dataclasses import replace

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
from celltransfer.reporting.words import evidence_label
from celltransfer.verdict.alignment import alignment

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
        if not tables.beat_ceiling(result.table, name).empty:
            assert np.isnan(row["share"])
            continue
        share = reference_share(row["translation"], row["chance"], row["ceiling"])
        assert row["share"] == pytest.approx(share)
        assert row["share_low"] < share < row["share_high"]
    n = result.about["n_cells"]
    assert overall.loc["foscttm", "share"] > 0
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

    alone = pd.DataFrame()
    assert tables.overall(scores(0.5), scores(1.0), alone).loc["foscttm", ["share", "share_low"]].isna().all()
    known = tables.overall(scores(1.0), scores(0.4), alone).loc["foscttm"]
    assert known["share_low"] < known["share"] < known["share_high"] < 0.5


def test_a_control_that_beats_the_ceiling_leaves_no_share(result):
    """Labels may come from the hidden pairs, so controls that use them take nothing from the ceiling."""
    ceiling = result.table.loc["ceiling: all pairs", "foscttm"]
    for name, beaten in (("condition mean", True), ("label oracle", False)):
        table = result.table.copy()
        table.loc[name] = table.loc["chance"]
        table.loc[name, "foscttm"] = ceiling - 0.01
        changed = replace(result, table=table)
        assert list(tables.beat_ceiling(table, "foscttm").index) == (["condition mean"] if beaten else [])
        text = "\n".join(changed.summary())
        assert ("of the way from chance to the ceiling" in text) != beaten
        assert (f"is no scale, as condition mean ({ceiling - 0.01:.3f}) beats it" in text) == beaten
        shares = overall_of(table).loc[["foscttm", "foscttm_source_to_target"], "share"]
        assert list(shares.isna()) == [beaten, False]
    table.loc["condition mean", "knn_accuracy@10"] = table.loc["ceiling: all pairs", "knn_accuracy@10"] + 0.1
    assert tables.beat_ceiling(table, "knn_accuracy@10").index[0] == "condition mean"


def overall_of(table):
    """The overall table of some scores, beside the `table` of all methods."""
    rng = np.random.default_rng(0)
    cells = {name: rng.uniform(0.2, 0.4, size=200) for name in tables.DIRECTED}
    mine = Scores({name: float(values.mean()) for name, values in cells.items()}, cells)
    return tables.overall(mine, mine, table)


def test_groups_that_are_lost_are_named(result):
    table = pd.DataFrame(
        {
            "n": [100, 90, 80, 10],
            "foscttm_within": [0.55, 0.2, 0.48, 0.5],
            "foscttm_within_low": [0.52, 0.1, 0.44, 0.3],
            "foscttm_within_high": [0.57, 0.3, 0.52, 0.7],
        },
        index=pd.MultiIndex.from_tuples([("type", name) for name in ("mono", "B", "DC", "few")]),
    )
    text = replace(result, by_group=table).lost_within()
    assert text.endswith("is worse than chance within mono (0.550) and no better than chance within DC (0.480).")
    assert text in replace(result, by_group=table).summary()
    assert replace(result, by_group=table.loc[[("type", "B")]]).lost_within() == ""
    assert replace(result, by_group=pd.DataFrame()).lost_within() == ""


def test_a_confidence_that_does_not_rank_the_errors_is_said_to(result):
    error = result.by_cell["foscttm"].to_numpy()
    blind = np.random.default_rng(0).permutation(error)
    for confidence, use in ((-error, "most reliable"), (blind, "does not rank the cells"), (error, "wrong way round")):
        cells = result.by_cell.assign(translation_confidence=confidence)
        text = replace(result, by_cell=cells, risk=tables.risk(cells)).to_html()
        said = {word for word in ("most reliable", "does not rank the cells", "wrong way round") if word in text}
        assert use in said
        assert ("most reliable" in said) == (use == "most reliable")


def test_the_level_is_apart_from_what_is_beside_it():
    found = {"foscttm_estimate": 0.2, "self_rank": 0.2, "held_out_near@10": 0.1, "depth_agreement": -0.87}
    for anchors, counts in ((0.0, True), (9.0, False)):
        known = found | {"held_out_anchors": anchors, "alignment_auc_p": 0.5}
        rests = tables.evidence(known, {})["in_level"]
        assert set(rests.index[rests.astype(bool)]) - {"alignment_auc_p"} == {
            "foscttm",
            "self_rank",
            "held_out_anchors",
        }
        assert rests["alignment_auc_p"] == counts


def test_figures_of_the_alignment_have_words():
    """Of every figure that the test of alignment leaves in a verdict."""
    cells = np.random.default_rng(0).normal(size=(2, 120, 3))
    evidence = alignment(*cells, seed=0).evidence
    for name in evidence:
        assert evidence_label(f"alignment_{name}").startswith("Alignment: ")


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
