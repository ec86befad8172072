"""One modality under two conditions: shared features, transport between them, and the cells on their way."""

import warnings

import celltransfer as ct
import numpy as np
import pytest
import torch
from anndata import concat
from celltransfer.data.cells import attribute_codes
from celltransfer.errors import (
    CelltransferWarning,
    ConditionError,
    ConfigError,
    FeatureError,
    InputError,
    VerdictWarning,
)
from celltransfer.pp.shared import fit_recipes, is_shared
from celltransfer.train.loop import Trainer

torch.set_num_threads(1)
SHORT = Trainer(max_steps=8, batch_size=64, device="cpu", progress=False)


@pytest.fixture(scope="module")
def rna():
    return ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=0)["rna"]


@pytest.fixture(scope="module")
def cells(rna):
    return ct.pp.conditions(rna, "condition", "control", "treated")


@pytest.fixture(scope="module")
def model(cells):
    return fitted(cells)


def fitted(cells, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerdictWarning)
        options = {"recipes": "rna", "anchors": 0, "method": "dont", "trainer": SHORT, "verdict": False} | how
        return ct.fit(cells, **options)


def test_conditions_become_modalities(rna, cells):
    assert list(cells.mod) == ["control", "treated"]
    for name in cells.mod:
        assert set(cells[name].obs["condition"]) == {name}
    assert cells["control"].n_obs + cells["treated"].n_obs == rna.n_obs
    numbered = rna.copy()
    numbered.obs["time"] = np.where(rna.obs["condition"] == "control", 0.0, 3.0)
    assert list(ct.pp.conditions(numbered, "time", 0, "3").mod) == ["0", "3"]


@pytest.mark.parametrize(
    ("args", "match"),
    [(("dose", 0, 1), "no column 'dose'"), (("condition", "control", "x"), "'control', 'treated'"),
     (("condition", "control", "control"), "both 'control'")],
)  # fmt: skip
def test_conditions_that_are_not_there_are_refused(rna, args, match):
    with pytest.raises(ConditionError, match=match):
        ct.pp.conditions(rna, *args)


def test_one_recipe_is_fitted_once_on_the_cells_of_both(rna, cells, model):
    recipe = model.recipes["control"]
    assert recipe is model.recipes["treated"]
    assert recipe.n_cells_fit_ == rna.n_obs
    with pytest.warns(CelltransferWarning, match="recipes='rna' fits one for both"):
        apart = fit_recipes({"control": "rna", "treated": "rna"}, dict(cells.mod))
    assert not is_shared(*apart.values())


def test_the_same_features_get_one_recipe_where_none_is_named(cells):
    found = fit_recipes(None, dict(cells.mod))
    assert found["control"] is found["treated"]
    numbered = {name: adata.copy() for name, adata in cells.mod.items()}
    for adata in numbered.values():
        adata.var_names = [str(i) for i in range(adata.n_vars)]
    assert not is_shared(*fit_recipes(None, numbered).values())


def test_one_recipe_for_different_features_is_refused(cells):
    short = {"control": cells["control"], "treated": cells["treated"][:, :50]}
    with pytest.raises(FeatureError, match="differ in 10"):
        fit_recipes("rna", short)
    with pytest.raises(ConfigError, match="no recipe 'bogus'"):
        fit_recipes("bogus", short)


def test_cells_on_disk_are_fitted_like_those_in_memory(rna, cells, model, tmp_path):
    import mudata
    from anndata import read_h5ad

    rna.write(tmp_path / "rna.h5ad")
    parts = ct.pp.conditions(read_h5ad(tmp_path / "rna.h5ad", backed="r"), "condition", "control", "treated")
    np.testing.assert_array_equal(parts["treated"].obs_names, cells["treated"].obs_names)
    cells.write(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    again = fitted(backed)
    np.testing.assert_allclose(again.latent(cells["control"]), model.latent(cells["control"]), atol=1e-3)


def test_a_muddled_request_for_conditions_says_what_is_wrong(rna, cells):
    with pytest.raises(InputError, match="pass one modality"):
        ct.pp.conditions(cells, "condition", "control", "treated")
    named = rna.copy()
    named.obs["dose"] = np.where(rna.obs["condition"] == "control", "0", "a/b")
    with pytest.raises(ConditionError, match="because of the '/'"):
        ct.pp.conditions(named, "dose", "0", "a/b")


def test_cells_on_their_way_keep_their_own_columns_and_have_names(rna, model):
    some = model.recipes["control"]
    own = rna[:4].copy()
    own.obs["time"] = own.obs["cell"] = "mine"
    found = model.interpolate(own, 2)
    assert set(found.obs["time"]) == set(found.obs["cell"]) == {"mine"}
    assert found.obs_names.is_unique
    assert list(found.obs["source_cell"][:4]) == list(rna.obs_names[:4])
    assert found.n_vars == len(some.feature_names_)


def test_two_cells_of_one_name_are_refused(rna, model):
    with pytest.warns(UserWarning, match="not unique"):
        twice = concat([rna[:4], rna[:4]])
    for call in (
        lambda: model.interpolate(twice, 2),
        lambda: ct.pp.conditions(twice, "condition", "control", "treated"),
    ):
        with pytest.raises(InputError, match=f"The AnnData has 4 duplicated barcodes, the first {rna.obs_names[0]!r}"):
            call()


def test_rows_of_one_name_are_translated_one_by_one(rna, model):
    with pytest.warns(UserWarning, match="not unique"):
        twice = concat([rna[:4], rna[:4]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = model.translate(twice)
    np.testing.assert_array_equal(found.X[:4], found.X[4:])


def test_missing_features_are_refused_or_zero(rna, model):
    short = rna[:5, 2:].copy()
    with pytest.raises(FeatureError):
        model.interpolate(short, 1)
    zero = rna[:5].copy()
    zero.X = np.concatenate([np.zeros((5, 2)), zero.X.toarray()[:, 2:]], axis=1).astype(np.float32)
    np.testing.assert_allclose(
        model.interpolate(short, 1, on_missing="zero").X, model.interpolate(zero, 1).X, atol=1e-5
    )


def test_features_named_twice_are_refused(rna, model):
    names = list(rna.var_names[[3, 1, 3]])
    for call in (model.interpolate, model.translate):
        with pytest.raises(FeatureError, match=f"names {names[0]!r} twice"):
            call(rna[:5], features=names)


@pytest.mark.parametrize("categorical", [False, True])
def test_conditions_of_float32_and_of_booleans(rna, categorical):
    treated = (rna.obs["condition"] == "treated").to_numpy()
    cells = rna.copy()
    cells.obs["dose"], cells.obs["flag"] = np.where(treated, 0.1, 0.3).astype(np.float32), treated
    if categorical:
        cells.obs = cells.obs.astype({"dose": "category", "flag": "category"})
    for low in (0.1, "0.1", np.float32(0.1), float(np.float32(0.1)), "1e-1"):
        assert list(ct.pp.conditions(cells, "dose", low, 0.3).mod) == ["0.1", "0.3"]
    assert list(ct.pp.conditions(cells, "flag", "false", True).mod) == ["False", "True"]


def test_cells_without_a_condition_are_left_out_with_a_warning(rna):
    cells = rna.copy()
    cells.obs["condition"] = cells.obs["condition"].astype(object).where(np.arange(300) > 6, None)
    with pytest.warns(CelltransferWarning, match=r"7 of 300 cells have no value in obs\['condition'\]"):
        parts = ct.pp.conditions(cells, "condition", "control", "treated")
    assert sum(part.n_obs for part in parts.mod.values()) == 293


def test_cells_on_their_way(cells, model):
    found = model.interpolate(cells, steps=4)
    n = cells["control"].n_obs
    assert found.n_obs == 5 * n
    np.testing.assert_allclose(found.obs["transport_time"].to_numpy().reshape(5, n)[:, 0], [0, 0.25, 0.5, 0.75, 1])
    assert list(found.obs["source_cell"][:n]) == list(cells["control"].obs_names)
    assert found.obs_names.is_unique
    ends = found[:n].obsm["X_translated"], found[-n:].obsm["X_translated"]
    np.testing.assert_allclose(ends[0], model.recipes["control"].transform(cells["control"]), atol=1e-4)
    np.testing.assert_allclose(ends[1], model.latent(cells["control"]), atol=1e-4)
    genes = list(found.var_names[:3])
    some = model.interpolate(cells["control"][:7], 1, features=genes)
    assert some.shape == (14, 3)
    np.testing.assert_allclose(some.X[7:], found[-n:, genes].X[:7], atol=1e-4)


def test_the_path_survives_saving(cells, model, tmp_path):
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerdictWarning)
        again = ct.load(tmp_path / "model")
    assert is_shared(*again.recipes.values())
    np.testing.assert_array_equal(again.interpolate(cells, 2).X, model.interpolate(cells, 2).X)


def test_there_is_a_way_back_and_the_evidence_says_how_good(cells):
    model = fitted(cells, verdict=True)
    assert model.verdict_.evidence["round_trip"] < 1e-3
    back = model.backward.latent(cells["treated"])
    np.testing.assert_allclose(
        model.translator.translate(back), model.recipes["treated"].transform(cells["treated"]), atol=1e-2
    )


def test_methods_without_a_path_say_which_has_one(cells):
    model = fitted(cells, method="cyclegan")
    with pytest.raises(ConfigError, match='"dont"'):
        model.interpolate(cells)


def test_times_are_what_they_are_written_as(cells, model):
    times = model.interpolate(cells["control"][:2], 5).obs["transport_time"]
    assert sorted(set(times)) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_the_way_back_is_the_way_from_its_other_end(cells, model):
    treated = cells["treated"][:7]
    back = model.backward.interpolate(treated, 2)
    assert list(back.obs["transport_time"]) == [0.0] * 7 + [0.5] * 7 + [1.0] * 7
    there = model.backward.latent(treated)
    forth = model.translator.path(there, [1.0, 0.5, 0.0])
    np.testing.assert_allclose(back.obsm["X_translated"].reshape(forth.shape), forth, atol=1e-3)
    np.testing.assert_allclose(back.obsm["X_translated"][-7:], there, atol=1e-4)
    assert list(back.var_names) == list(cells["control"].var_names)


def test_methods_without_a_way_back_say_so(cells):
    model = fitted(cells, method="lrmf")
    with pytest.raises(ConfigError, match="no path back"):
        model.backward.interpolate(cells)


def test_without_partners_no_accuracy_is_estimated(cells):
    model = fitted(cells, verdict=True)
    told = model.verdict_
    assert told.level in ("ambiguous", "failed")
    assert "no cell is known on both sides" in told.reasons[0]
    assert not [name for name in told.evidence if name.startswith(("foscttm", "knn", "self_rank"))]
    assert told.evidence["refit_disagreement"] >= 0
    assert not model.confidence_.known
    assert "translation_confidence" not in model.translate(cells["control"]).obs


def test_a_rare_value_of_the_attribute_neither_stops_the_fit_nor_its_verdict(rna):
    cells = ct.pp.conditions(rna, "condition", "control", "treated")
    for adata, few in zip(cells.mod.values(), (3, 1), strict=True):
        adata.obs["side"] = (["rare"] * few + ["a", "b"] * adata.n_obs)[: adata.n_obs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        assert fitted(cells, cost_attribute="side", verdict=True).verdict_.evidence


def test_a_refit_that_fails_leaves_the_fit_unjudged(cells, monkeypatch):
    from celltransfer.translators.dont.dont import Dont

    once = []

    def fails(self, pair, *, seed, trainer, fit=Dont._fit):
        if once:
            raise InputError("Too few cells.")
        once.append(pair)
        return fit(self, pair, seed=seed, trainer=trainer)

    monkeypatch.setattr(Dont, "_fit", fails)
    model = fitted(cells, verdict=True)
    assert "not judged, as a refit to some of its data failed. Too few cells." in model.verdict_.reasons[0]


def test_arrays_of_weights_can_be_saved(cells, tmp_path):
    width = fitted(cells).recipes["control"].n_features_out_
    fitted(cells, cost_weights=np.ones(width)).save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerdictWarning)
        assert ct.load(tmp_path / "model").translator.cost_weights == [1.0] * width


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_steps_are_whole(cells, model, steps):
    with pytest.raises(ConfigError, match="steps="):
        model.interpolate(cells, steps)


def test_an_attribute_of_obs_makes_the_cost(cells):
    model = fitted(cells, cost_attribute="cell_type")
    costs = model.translator.module_.costs.numpy()
    assert 0 < (costs < 1).sum() < len(costs)
    codes = attribute_codes(
        cells, ["control", "treated"], "cell_type", {n: np.ones(cells[n].n_obs, bool) for n in cells.mod}
    )
    assert [len(own) for own in codes] == [cells[name].n_obs for name in cells.mod]
    assert model.translator.get_config()["cost_attribute"] == "cell_type"


def test_recipes_that_give_the_same_features_share_them(cells):
    """Two recipes that learn nothing, one for each modality."""
    train = cells.obs_names[:-3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        model = fitted(cells, recipes={"control": "none", "treated": "none"}, train=list(train))
        logs = fitted(cells, recipes={"control": "none", "treated": "protein"}, start="moments")
    assert "the features they share" in model.result_.notes[0]
    assert is_shared(*model.recipes.values())
    assert not is_shared(*logs.recipes.values())
