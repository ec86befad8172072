"""One modality under two conditions: shared features, transport between them, and the cells on their way."""

import warnings

import celltransfer as ct
import numpy as np
import pytest
import torch
from celltransfer.data.cells import attribute_codes
from celltransfer.errors import ConditionError, ConfigError, FeatureError, VerdictWarning
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
    apart = fit_recipes({"control": "rna", "treated": "rna"}, dict(cells.mod))
    assert not is_shared(*apart.values())


def test_one_recipe_for_different_features_is_refused(cells):
    short = {"control": cells["control"], "treated": cells["treated"][:, :50]}
    with pytest.raises(FeatureError, match="differ in 10"):
        fit_recipes("rna", short)


def test_cells_on_their_way(cells, model):
    found = model.interpolate(cells, steps=4)
    n = cells["control"].n_obs
    assert found.n_obs == 5 * n
    np.testing.assert_allclose(found.obs["time"].to_numpy().reshape(5, n)[:, 0], [0, 0.25, 0.5, 0.75, 1])
    assert list(found.obs["cell"][:n]) == list(cells["control"].obs_names)
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
