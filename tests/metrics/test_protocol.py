from __future__ import annotations

from dataclasses import replace

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.errors import AnchorError, ConfigError, FeatureError, InputError
from celltransfer.metrics.controls import CONTROLS
from celltransfer.metrics.protocol import control_table, leak_test, make_task, score, score_points


@pytest.fixture(scope="module")
def joint():
    """240 co-assayed cells; each modality holds its cells in its own order."""
    rng = np.random.default_rng(0)
    n = 240
    types, time = rng.integers(3, size=n), rng.integers(2, size=n)
    latent = np.eye(3)[types] * 2 + rng.normal(size=(n, 3)) * 0.7
    obs = pd.DataFrame({"type": np.array(["T", "B", "NK"], object)[types], "time": time, "batch": "one"})
    obs.index = [f"cell{i:03d}" for i in range(n)]
    obs.loc[obs.index[:7], "type"] = None
    names = (("rna", 60), ("atac", 80))
    sides = {}
    for name, p in names:
        rate = np.exp(latent @ rng.normal(size=(3, p)) * 0.5 + np.log(2) + 0.3 * rng.normal(size=(n, 1)))
        counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
        sides[name] = AnnData(counts, obs=obs.copy(), var=pd.DataFrame(index=[f"{name}_{j}" for j in range(p)]))
        sides[name].obsm["X_joint"] = latent
    sides["atac"] = sides["atac"][rng.permutation(n)].copy()
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(sides)


def truth_prediction(task):
    return AnnData(
        np.asarray(task.normalizer.transform(task.truth.X).toarray()), obs=task.truth.obs, var=task.truth.var
    )


def mean_of_pool(mdata, anchors, source_test):
    rng = np.random.default_rng(0)
    target = mdata["atac"].X.toarray()
    return target[rng.integers(len(target), size=source_test.n_obs)]


def original(task):
    """Original barcodes of the target cells of a task, in row order."""
    return task.target_names[task.mdata["atac"].obs_names].to_numpy()


def test_disjoint_cells_give_one_modality_and_anchors_both(joint):
    task = make_task(joint, "rna", "atac", n_anchors=12, seed=1)
    source, target = set(task.mdata["rna"].obs_names), set(original(task))
    assert source & target == set(task.anchors["source_id"])
    assert len(task.anchors) == 12
    assert abs(len(source) - len(target)) <= 1
    assert not (source | target) & set(task.source_test.obs_names)
    assert len(source | target) + task.source_test.n_obs == 240
    assert task.source_test.n_obs == 60


def test_anchor_table_and_truth_are_the_real_pairs(joint):
    task = make_task(joint, "rna", "atac", n_anchors=9)
    assert (task.target_names[task.anchors["target_id"]].to_numpy() == task.anchors["source_id"].to_numpy()).all()
    row = task.mdata["atac"][task.anchors["target_id"]].X.toarray()
    np.testing.assert_array_equal(row, joint["atac"][task.anchors["source_id"]].X.toarray())
    assert list(task.truth.obs_names) == list(task.source_test.obs_names)
    np.testing.assert_array_equal(task.truth.X.toarray(), joint["atac"][task.source_test.obs_names].X.toarray())


def test_shared_cells_give_both_in_unrelated_orders(joint):
    task = make_task(joint, "rna", "atac", regime="shared", n_anchors=5)
    source, target = task.mdata["rna"].obs_names.to_numpy(), original(task)
    assert set(source) == set(target)
    assert np.mean(source == target) < 0.05


def test_nothing_but_the_condition_reaches_the_method(joint):
    task = make_task(joint, "rna", "atac", condition="time", labels="type")
    for adata in (*task.mdata.mod.values(), task.source_test):
        assert list(adata.obs) == ["time"]
        assert not adata.obsm and not adata.layers and not adata.uns  # noqa: PT018
    assert list(task.mdata.obs) == ["time"]
    assert not task.mdata["rna"].obs_names.intersection(task.mdata["atac"].obs_names).size
    order = task.mdata["atac"].obs_names.argsort()
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.3
    np.testing.assert_array_equal(task.mdata["atac"].obs["time"], joint["atac"].obs.loc[original(task), "time"])


def test_input_is_left_alone(joint):
    columns, before = list(joint.obs), {name: adata.copy() for name, adata in joint.mod.items()}
    make_task(joint, "rna", "atac", condition="time", labels="type")
    assert list(joint.obs) == columns
    for name, adata in before.items():
        assert (adata.X != joint[name].X).nnz == 0
        pd.testing.assert_frame_equal(adata.obs, joint[name].obs)


def test_splits_do_not_depend_on_the_seed_or_on_the_order_of_cells(joint):
    with mudata.set_options(pull_on_update=False):
        other = mudata.MuData({name: joint[name][::-1].copy() for name in ("rna", "atac")})
    parts = {}
    for part in ("dev", "test"):
        tasks = [make_task(joint, "rna", "atac", part=part, seed=s) for s in (0, 1)]
        tasks.append(make_task(other, "rna", "atac", part=part))
        cells = [list(task.source_test.obs_names) for task in tasks]
        assert cells[0] == cells[1] == cells[2]
        parts[part] = tasks[0]
    dev, test = set(parts["dev"].source_test.obs_names), set(parts["test"].source_test.obs_names)
    assert not dev & test
    assert not test & set(parts["dev"].train_pairs[0].obs_names)
    assert dev < set(parts["test"].train_pairs[0].obs_names)


def test_published_split_is_kept(joint):
    split = np.array(["train"] * 150 + ["test"] * 60 + ["extra"] * 30)
    with mudata.set_options(pull_on_update=False):
        published = mudata.MuData({"rna": joint["rna"].copy(), "atac": joint["atac"].copy()})
    published["rna"].obs["split"] = split
    task = make_task(published, "rna", "atac")
    assert set(task.source_test.obs_names) == set(published["rna"].obs_names[150:210])
    assert set(task.train_pairs[0].obs_names) == set(published["rna"].obs_names[:150])


def test_fewer_anchors_are_a_subset_of_more(joint):
    few, many = (set(make_task(joint, "rna", "atac", n_anchors=k, seed=2).anchors["source_id"]) for k in (3, 20))
    assert few < many


def test_transductive_scores_leave_the_anchors_out(joint):
    task = make_task(joint, "rna", "atac", regime="shared", transductive=True, n_anchors=40)
    assert task.mdata["rna"].n_obs == 240
    assert task.source_test.n_obs == 200
    assert not set(task.anchors["source_id"]) & set(task.source_test.obs_names)


def test_the_truth_scores_perfectly_and_in_any_order(joint):
    task = make_task(joint, "rna", "atac", labels="type", condition="time")
    result = score(task, truth_prediction(task))
    for name in ("foscttm", "foscttm_euclidean", "foscttm_within_label", "foscttm_within_condition", "mse"):
        assert result[name] == pytest.approx(0, abs=0.01)
    assert result["knn_accuracy@10"] == result["knn_accuracy_cmae@10"] == 1
    assert result["pearson_per_cell"] == pytest.approx(1)
    assert result.per_cell["foscttm"].shape == (60,)
    assert all(result[name] == pytest.approx(np.nanmean(cells)) for name, cells in result.per_cell.items())
    backwards = score(task, truth_prediction(task)[::-1].copy())
    assert backwards.values == pytest.approx(result.values, nan_ok=True)


def test_prediction_may_be_a_matrix_with_some_features(joint):
    task = make_task(joint, "rna", "atac")
    full = truth_prediction(task)
    some = full[:, [5, 3, 40, 41, 42, 60]]
    result = score(task, (sp.csr_matrix(some.X), some.var_names))
    assert 0 < result["foscttm"] < 0.45
    assert result["mse"] == 0


def test_wrong_predictions_are_refused(joint):
    task = make_task(joint, "rna", "atac")
    good = truth_prediction(task)
    with pytest.raises(InputError, match="must hold exactly those"):
        score(task, good[1:].copy())
    with pytest.raises(FeatureError, match="not in 'atac'"):
        score(task, (good.X, [f"gene{i}" for i in range(80)]))
    with pytest.raises(InputError, match="expected 60 cells x 80"):
        score(task, (good.X[1:], good.var_names))
    with pytest.raises(InputError, match="the evaluation cells have"):
        score_points(task, np.zeros((60, 2)))


def test_wrong_tasks_are_refused(joint):
    with pytest.raises(AnchorError, match="n_anchors=500"):
        make_task(joint, "rna", "atac", n_anchors=500)
    with pytest.raises(ConfigError, match="regime='paired'"):
        make_task(joint, "rna", "atac", regime="paired")
    with pytest.raises(ConfigError, match="part='train'"):
        make_task(joint, "rna", "atac", part="train")
    with pytest.raises(ConfigError, match="shared"):
        make_task(joint, "rna", "atac", transductive=True)
    with pytest.raises(ConfigError, match="kinds"):
        make_task(joint, "rna", "atac", kinds={"rna": "log"})


def test_blind_methods_pass_the_leak_test(joint):
    assert leak_test(mean_of_pool, make_task(joint, "rna", "atac"))


def test_methods_that_read_names_are_caught(joint):
    def by_name(mdata, anchors, source_test):
        target = mdata["atac"]
        return target[np.sort(target.obs_names)][: source_test.n_obs].X.toarray()

    assert not leak_test(by_name, make_task(joint, "rna", "atac"))


def test_leak_test_keeps_arrays_conditions_and_anchors(joint):
    task = make_task(joint, "rna", "atac", n_anchors=6, condition="time")
    seen = []

    def record(mdata, anchors, source_test):
        seen.append(mdata)
        return mdata["atac"][anchors["target_id"]].X.toarray()

    assert leak_test(record, task)
    before, after = (mdata["atac"] for mdata in seen)
    assert (before.X != after.X).nnz == 0
    np.testing.assert_array_equal(before.obs["time"], after.obs["time"])
    assert np.mean(before.obs_names == after.obs_names) < 0.2
    assert set(before.obs_names) == set(after.obs_names)


def test_control_table(joint):
    task = make_task(joint, "rna", "atac", n_anchors=30, labels="type", condition="time")
    table = pd.DataFrame({name: s.values for name, s in control_table(task).items()}).T
    at_random = [score_points(task, CONTROLS["chance"](task.control_data, seed))["foscttm"] for seed in range(10)]
    assert np.mean(at_random) == pytest.approx(0.5, abs=0.05)
    assert table.loc["reference", "foscttm"] < table.loc["ridge", "foscttm"] + 0.02
    assert table.loc["ridge", "foscttm"] < table.loc["shuffled_anchors", "foscttm"]
    assert table.loc["labels_only", "label_transfer_accuracy"] > 0.6
    assert table.loc["condition_mean", "foscttm_within_condition"] == pytest.approx(0.5)


def test_unpaired_label_controls_use_labels_of_the_right_cells(joint):
    task = make_task(joint, "rna", "atac", labels="type")
    data = task.control_data
    expected = joint["atac"].obs.loc[original(task), "type"]
    assert [label or "" for label in data.labels_y] == [label or "" for label in expected.fillna("")]


def test_bias_is_what_centring_hides(joint):
    task = make_task(joint, "rna", "atac")
    truth = task.truth_points
    assert score_points(task, truth)["bias"] == 0
    shifted = score_points(task, truth + 3.0)
    assert shifted["bias"] == pytest.approx(3)
    assert shifted["foscttm"] == score_points(task, truth)["foscttm"]
    with_shift = truth_prediction(task)
    with_shift.X = with_shift.X + 0.5 * task.space.directions[:, 0] * task.space.scale[0]
    expected = 0.5 / np.sqrt(task.space.n_components)
    assert score(task, with_shift)["bias"] == pytest.approx(expected, rel=1e-3)


def test_a_constant_prediction_ties_exactly(joint):
    task = make_task(joint, "rna", "atac", labels="type")
    constant = np.tile(np.random.default_rng(0).normal(size=80), (task.truth.n_obs, 1))
    for level in (1.0, 1e6):
        result = score(task, (level * constant, task.truth.var_names))
        assert (result.per_cell["foscttm"] == 0.5).all()
        assert result["foscttm_within_label"] == pytest.approx(0.5, abs=1e-12)


def test_values_that_are_no_counts_have_no_library_size(joint):
    values, names = np.random.default_rng(0).normal(-1, 1, (240, 12)), [f"x{j}" for j in range(12)]
    signed = AnnData(values, obs=joint["atac"].obs.copy(), var=pd.DataFrame(index=names))
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData({"rna": joint["rna"].copy(), "atac": signed})
    table = control_table(make_task(mdata, "rna", "atac"))
    assert not {"depth", "depth_reversed"} & set(table)
    assert "foscttm_depth_regressed" not in table["chance"].values
    assert {"depth", "depth_reversed"} <= set(control_table(make_task(joint, "rna", "atac")))


@pytest.mark.parametrize("side", ["neither", "evaluation", "half"])
def test_labels_may_be_missing_anywhere(joint, side):
    task = make_task(joint, "rna", "atac", labels="type", condition="type")
    labels = task.cell_labels.copy()
    test = labels.index.isin(task.source_test.obs_names)
    labels[{"neither": test | True, "evaluation": test, "half": np.arange(len(test)) % 2 == 0}[side]] = np.nan
    task = replace(task, cell_labels=labels, labels=labels[task.source_test.obs_names].to_numpy(dtype=object))
    found = control_table(task)
    assert ("label_oracle" in found) == (side == "half")
    assert ("labels_only" in found) == (side != "neither")
    assert np.isfinite(found["condition_mean"]["foscttm"])


def test_depth_alone_scores_on_snare_cortex(real_dataset):
    task = make_task(real_dataset("snare_cortex"), "rna", "atac", n_anchors=10)
    from celltransfer.metrics.controls import chance, depth

    matched, random = (score_points(task, control(task.control_data)) for control in (depth, chance))
    assert 0.37 < matched["foscttm"] < 0.42
    assert matched["foscttm_depth_regressed"] == pytest.approx(0.5, abs=0.03)
    assert random["foscttm"] == pytest.approx(0.5, abs=0.03)


def test_ridge_on_pairs_of_pbmc10k_cite(real_dataset):
    from celltransfer.metrics.controls import ridge_on_anchors

    task = make_task(real_dataset("pbmc10k_cite"), "rna", "protein", n_anchors=200)
    assert score_points(task, ridge_on_anchors(task.control_data))["foscttm"] < 0.1
