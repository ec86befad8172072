"""ct.fit and TransferModel on MuData as users have them: good, partly paired, and broken."""

import copy
import json
import random

import celltransfer as ct
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from celltransfer.datasets.unpairing import unpair
from celltransfer.errors import (
    AnchorError,
    CelltransferWarning,
    ConditionError,
    ConfigError,
    FeatureError,
    InputError,
    VerdictWarning,
)
from celltransfer.metrics.scores import foscttm
from mudata import MuData

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


def snapshot(mdata):
    """Everything in a MuData, deep, so that any change shows."""
    return copy.deepcopy(
        {
            name: (a.X.toarray() if sp.issparse(a.X) else a.X, a.obs, a.var, sorted(a.layers), sorted(a.obsm), a.uns)
            for name, a in mdata.mod.items()
        }
        | {"obs": mdata.obs, "uns": mdata.uns}
    )


def assert_unchanged(before, mdata):
    after = snapshot(mdata)
    assert before.keys() == after.keys()
    for name in mdata.mod:
        np.testing.assert_array_equal(before[name][0], after[name][0])
        pd.testing.assert_frame_equal(before[name][1], after[name][1])
        pd.testing.assert_frame_equal(before[name][2], after[name][2])
        assert before[name][3:5] == after[name][3:5]
    pd.testing.assert_frame_equal(before["obs"], after["obs"])
    assert list(before["uns"]) == list(after["uns"])


def test_fit_alone_translates_the_first_modality_to_the_second(cells, caplog):
    with caplog.at_level("INFO", logger="celltransfer"):
        model = ct.fit(cells, method="ridge", train="train", verdict=False)
    assert (model.source, model.target) == ("rna", "atac")
    assert "Translating rna -> atac" in caplog.text
    assert len(model.anchors) == 150


@pytest.mark.parametrize(("source", "target"), [("rna", "atac"), ("atac", "rna")])
def test_both_directions_learn_from_many_anchors(cells, source, target):
    model = ct.fit(cells, source=source, target=target, train="train", method="ridge")
    model.translate(cells)
    key = f"{target}_from_{source}"
    test = cells.obs_names[cells.obs["split"] == "test"]
    predicted = model.recipes[target].transform(cells[target][test])
    translated = cells[key][test].obsm["X_translated"]
    assert foscttm(translated, predicted) < 0.3
    assert cells[key].var_names.equals(model.recipes[target].feature_names_)
    assert cells[key].obs_names.equals(cells[source].obs_names)


def test_fit_and_copy_leave_the_input_alone(cells):
    before = snapshot(cells)
    model = ct.fit(cells, train="train", anchors=20, method="ridge")
    out = model.translate(cells, copy=True)
    assert_unchanged(before, cells)
    assert list(out.mod) == ["rna", "atac", "atac_from_rna"]
    assert list(cells.mod) == ["rna", "atac"]


def test_translate_writes_what_it_says(cells, model):
    before = snapshot(cells)
    assert model.translate(cells) is None
    new = cells["atac_from_rna"]
    assert new.X.dtype == np.float32
    assert np.isfinite(new.X).all()
    assert (new.X >= 0).all()
    assert new.layers["counts"].shape == new.shape
    assert new.obsm["X_translated"].shape[0] == new.n_obs
    assert new.obs["translation_support"].between(0, 1).all()
    assert new.uns["celltransfer"]["method"] == "ridge"
    assert set(new.var.columns) == set(cells["atac"].var.columns)
    for name in ("rna", "atac"):
        np.testing.assert_array_equal(before[name][0], cells[name].X.toarray())


def test_h5mu_round_trip_of_a_translation(cells, model, tmp_path):
    model.translate(cells, key_added="predicted")
    cells.write_h5mu(tmp_path / "cells.h5mu")
    again = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again["predicted"].X, cells["predicted"].X)
    stored = again["predicted"].uns["celltransfer"]
    assert stored["verdict"] == model.verdict_.level
    assert json.loads(stored["config"]) == model.translator.get_config()
    assert list(stored["anchors_source"]) == list(model.anchors["source_id"])


def test_the_same_seed_gives_the_same_translation_and_leaves_global_randomness_alone(cells):
    ct.fit(cells, train="train", anchors=10, method="jacobian", trainer=ct.train.Trainer(max_steps=1))  # imports
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    runs = [
        ct.fit(cells, train="train", anchors=10, method="jacobian", seed=3, trainer=ct.train.Trainer(max_steps=30))
        for _ in range(2)
    ]
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    latents = [run.latent(cells["rna"]) for run in runs]
    np.testing.assert_array_equal(*latents)


def test_names_of_unpaired_target_cells_carry_nothing(full):
    """Permute the names of all non-anchor target cells and keep the arrays: the fit is bit-identical."""
    cells = unpair(full, 20, seed=0)
    table = pd.DataFrame({"source_id": cells["rna"].obs_names, "target_id": cells["rna"].obs_names})
    both = cells["rna"].obs_names.intersection(cells["atac"].obs_names)
    table = table[table.source_id.isin(both) & cells["rna"].obs["train"].to_numpy()]
    atac = cells["atac"].copy()
    names = atac.obs_names.to_numpy(dtype=object).copy()
    free = ~atac.obs_names.isin(table.target_id) & atac.obs["train"].to_numpy()
    names[free] = np.random.default_rng(1).permutation(names[free])
    atac.obs_names = names
    renamed = MuData({"rna": cells["rna"].copy(), "atac": atac})
    options = {"anchors": table, "method": "jacobian", "verdict": False, "trainer": ct.train.Trainer(max_steps=20)}
    latents = [
        ct.fit(data, train=pd.Series(True, index=data.obs_names), **options).latent(cells["rna"])
        for data in (cells, renamed)
    ]
    np.testing.assert_array_equal(*latents)


def test_hidden_pairs_are_not_anchors(full):
    """Co-assayed cells that are not anchors are in training as unpaired cells; only anchors become pairs."""
    model = ct.fit(full, anchors=7, method="ridge", seed=1)
    assert model.result_.n_anchors == 7
    assert model.result_.n_source == model.result_.n_target == full.n_obs


def test_training_sees_training_cells_only(cells):
    """Garbage in the test cells changes nothing."""
    clean = ct.fit(cells, train="train", anchors=20, method="ridge", verdict=False)
    dirty = cells.copy()
    for name in ("rna", "atac"):
        test = ~dirty[name].obs["train"].to_numpy()
        x = dirty[name].X.tolil()
        x[test] = 7
        dirty[name].X = x.tocsr().astype(np.float32)
    again = ct.fit(dirty, train="train", anchors=20, method="ridge", verdict=False)
    np.testing.assert_array_equal(clean.latent(cells["rna"]), again.latent(cells["rna"]))


def test_new_cells_with_reordered_features(cells, model):
    adata = cells["rna"][:20].copy()
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    a, b = model.translate(adata), model.translate(shuffled)
    assert isinstance(a, AnnData)
    np.testing.assert_allclose(a.X, b.X, atol=1e-5)


def test_missing_features_are_an_error_or_a_stated_policy(cells, model):
    adata = cells["rna"][:, 5:].copy()
    with pytest.raises(FeatureError, match="5 of the 60"):
        model.translate(adata)
    assert np.isfinite(model.translate(adata, on_missing="zero").X).all()
    with pytest.raises(FeatureError, match="5 of the 60"):
        model.translate(adata)


def test_some_features_only(cells, model):
    wanted = list(cells["atac"].var_names[[5, 2]])
    part, whole = model.translate(cells["rna"], features=wanted), model.translate(cells["rna"])
    np.testing.assert_allclose(part.X, whole[:, wanted].X, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(part.layers["counts"], whole[:, wanted].layers["counts"], rtol=1e-5, atol=1e-6)
    with pytest.raises(FeatureError, match="'nope'"):
        model.translate(cells["rna"], features=["nope"])


def test_blocks_give_the_same_as_all_at_once(cells, model):
    a = model.translate(cells["rna"], batch_size=17)
    b = model.translate(cells["rna"])
    np.testing.assert_allclose(a.X, b.X, atol=1e-5)


def test_a_result_that_does_not_fit_is_refused_before_it_is_computed(cells, model, monkeypatch):
    monkeypatch.setattr("celltransfer.data.writeback._available_memory", lambda: 100)
    with pytest.raises(InputError, match="Pass features="):
        model.translate(cells["rna"])


def test_counts_take_memory_only_where_the_recipe_knows_them(cells, monkeypatch):
    model = ct.fit(cells, train="train", anchors=20, method="ridge", recipes={"atac": "none"}, verdict=False)
    one_matrix = 4 * cells["rna"].n_obs * cells["atac"].n_vars
    monkeypatch.setattr("celltransfer.data.writeback._available_memory", lambda: one_matrix)
    assert "counts" not in model.translate(cells["rna"]).layers
    monkeypatch.setattr("celltransfer.data.writeback._available_memory", lambda: one_matrix - 1)
    with pytest.raises(InputError, match="Pass features="):
        model.translate(cells["rna"])


def test_a_few_features_take_the_memory_of_a_few_features(cells, model, monkeypatch):
    seen = []
    recipe = type(model.recipes["atac"])
    original = recipe.inverse_transform

    def spy(self, z, features=None):
        out = original(self, z, features)
        seen.append(out.shape)
        return out

    monkeypatch.setattr(recipe, "inverse_transform", spy)
    monkeypatch.setattr("celltransfer.model.model.BLOCK_BYTES", 4 * 100)
    part = model.translate(cells["rna"], features=list(cells["atac"].var_names[[5, 2]]))
    assert part.shape == (cells["rna"].n_obs, 2)
    assert {shape[1] for shape in seen} == {2}
    assert max(shape[0] for shape in seen) == 50


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size(cells, model, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        model.translate(cells["rna"], batch_size=batch_size)


def test_no_shared_feature_is_never_zero_filled(cells, model):
    adata = cells["rna"].copy()
    adata.var_names = [f"ENSG{i:05d}" for i in range(adata.n_vars)]
    with pytest.raises(FeatureError, match="none of the 60"):
        model.translate(adata, on_missing="zero")


def test_translating_twice_replaces_only_our_own(cells, model):
    model.translate(cells)
    model.translate(cells)
    assert list(cells.mod) == ["rna", "atac", "atac_from_rna"]
    again = ct.fit(cells, train="train", anchors=20, method="ridge", verdict=False)
    assert (again.source, again.target) == ("rna", "atac")


def test_conditions_are_matched_and_needed_again(cells):
    model = ct.fit(cells, train="train", anchors=20, method="condition_mean", conditions="condition")
    out = model.translate(cells, copy=True)["atac_from_rna"]
    assert len(np.unique(out.obsm["X_translated"], axis=0)) == cells.obs["condition"].nunique()
    bare = cells["rna"].copy()
    del bare.obs["condition"]
    with pytest.raises(ConditionError, match="'condition'"):
        model.translate(bare)
    strange = cells["rna"].copy()
    strange.obs["condition"] = "never seen"
    with pytest.raises(ConditionError, match="'never seen', unknown"):
        model.translate(strange)


def test_cells_of_a_new_condition_are_translated_where_conditions_only_guided_the_fit(cells):
    model = ct.fit(
        cells,
        method="jacobian",
        train="train",
        anchors=10,
        conditions="condition",
        trainer=ct.train.Trainer(max_steps=5),
        verdict=False,
    )
    strange = cells["rna"].copy()
    strange.obs["condition"] = "never seen"
    assert np.isfinite(model.translate(strange).X).all()


def test_conditions_that_change_nothing_are_said(cells):
    with pytest.warns(CelltransferWarning, match="fits without conditions"):
        ct.fit(cells, train="train", anchors=10, method="ridge", conditions="condition", verdict=False)


def test_conditions_without_overlap(cells):
    cells["rna"].obs["side"], cells["atac"].obs["side"] = "left", "right"
    with pytest.raises(ConditionError, match="No value of"):
        ct.fit(cells, train="train", anchors=10, method="condition_mean", conditions="side")
    cells["rna"].obs["side"] = ["left"] + ["right"] * (cells["rna"].n_obs - 1)
    with pytest.warns(CelltransferWarning, match="'left' occur in one modality only"):
        ct.fit(cells, anchors=10, method="condition_mean", conditions="side", verdict=False)


def test_the_scanpy_style_door(cells, model):
    assert ct.tl.translate(cells, model, key_added="predicted") is None
    assert "predicted" in cells.mod
    assert "other" in ct.tl.translate(cells, model, key_added="other", copy=True).mod


def test_verdict_warns_and_is_kept(cells):
    with pytest.warns(VerdictWarning, match="cannot be cross-validated"):
        model = ct.fit(cells, train="train", anchors=1, method="ridge")
    assert model.verdict_.level == "ambiguous"
    model = ct.fit(cells, train="train", method="ridge")
    assert model.verdict_.level == "identified"


def test_recipes_by_name_and_by_object(cells):
    recipe = ct.pp.atac(n_components=10)
    model = ct.fit(
        cells, train="train", anchors=20, method="ridge", recipes={"rna": "rna", "atac": recipe}, verdict=False
    )
    assert model.recipes["atac"].n_features_out_ <= 10
    assert not hasattr(recipe, "n_features_out_")
    assert model.recipes["rna"].transform(cells["rna"]).shape[0] == cells["rna"].n_obs


def test_stacked_views_are_fine_to_fit_and_refused_to_write(cells, model):
    view = cells[cells.obs["train"].to_numpy()]
    fitted = ct.fit(view, anchors=20, method="ridge", verdict=False)
    assert fitted.result_.n_source == view["rna"].n_obs
    with pytest.raises(InputError, match="is a view"):
        model.translate(view)
    assert "atac_from_rna" in model.translate(view, copy=True).mod


def test_backed_files(cells, model, tmp_path):
    cells.write_h5mu(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    fitted = ct.fit(backed, train="train", anchors=150, method="ridge", verdict=False)
    np.testing.assert_allclose(fitted.latent(backed["rna"]), model.latent(cells["rna"]), atol=1e-4)
    with pytest.raises(InputError, match="backed by a file"):
        model.translate(backed)
    np.testing.assert_allclose(model.translate(backed["rna"]).X, model.translate(cells["rna"]).X, atol=1e-4)


def test_anchors_outside_train(cells):
    test = cells.obs_names[cells.obs["split"] == "test"][:3]
    with pytest.raises(AnchorError, match="not training cells of 'rna'"):
        ct.fit(cells, train="train", anchors=list(test), method="ridge")


def test_different_barcodes_through_a_table(full):
    cells = unpair(full, 150, seed=0)
    both = cells["rna"].obs_names[cells["rna"].obs_names.isin(cells["atac"].obs_names) & cells["rna"].obs["train"]]
    atac = cells["atac"].copy()
    atac.obs_names = "atac_" + atac.obs_names
    apart = MuData({"rna": cells["rna"].copy(), "atac": atac})
    table = pd.DataFrame({"source_id": both, "target_id": "atac_" + both})
    by_table = ct.fit(apart, train="train", anchors=table, method="ridge", verdict=False)
    by_name = ct.fit(cells, train="train", anchors=list(both), method="ridge", verdict=False)
    np.testing.assert_array_equal(by_table.latent(cells["rna"]), by_name.latent(cells["rna"]))


def test_a_fit_that_fell_back_to_ridge_says_so(cells):
    """The adversarial method returns ridge where matching does not help; nobody should have to find that out."""
    limits = ct.train.Trainer(max_steps=2)
    model = ct.fit(cells, train="train", anchors=40, method="jacobian", seed=0, trainer=limits)
    assert model.result_.status.value == "solved"
    assert "this is the ridge solution" in repr(model)
    assert "this is the ridge solution" in ct.report(model, cells).to_markdown()
    assert "this is the ridge solution" in model.provenance()["notes"]


def test_a_fit_says_which_symmetry_its_anchors_leave_open(monkeypatch, cells):

    from celltransfer.verdict import symmetries

    asked = []
    monkeypatch.setattr(symmetries, "ambiguity", lambda x, rows, seed: asked.append(len(rows)) or "A flip is open.")
    short = ct.train.Trainer(max_steps=2, progress=False)
    model = ct.fit(cells, train="train", anchors=4, trainer=short, verdict=False)
    assert "A flip is open." in model.result_.notes
    assert "A flip is open." in model.verdict_.reasons
    for settled in ({"anchors": 4, "method": "ridge"}, {"anchors": 20}, {"anchors": 0}):
        model = ct.fit(cells, train="train", **{"trainer": short, "verdict": False} | settled)
        assert not model.result_.notes or "flip" not in model.result_.notes[-1]
    assert asked == [4]
