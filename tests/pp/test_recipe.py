"""Recipes from AnnData to features and back: contract, leaks, saving, real data."""

from __future__ import annotations

import json
import pickle
import sys

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.data.pair import dense
from celltransfer.errors import ConfigError, FeatureError, ModalityError, ModelFormatError, NotFittedError
from celltransfer.pp import Recipe
from celltransfer.pp.kinds import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st


def counts(n=90, p=60, seed=0, make=sp.csr_matrix, rate=1.0):
    rng = np.random.default_rng(seed)
    programme = rng.gamma(0.5, 1.0, (3, p))
    x = rng.poisson(rate * rng.gamma(3.0, 0.3, (n, 1)) * (rng.dirichlet([0.4] * 3, n) @ programme)).astype(np.float32)
    x[1], x[:, 2] = 0, 0
    var = pd.DataFrame(
        {
            "chrom": pd.Categorical(np.where(np.arange(p) % 2, "chr1", "chr2")),
            "start": np.arange(p),
            "score": np.where(np.arange(p) % 5, np.arange(p) / 3, np.nan),
            "named": np.arange(p) % 3 == 0,
            "symbol": [f"s{i}" for i in range(p)],
            "mixed": [(i,) for i in range(p)],
        },
        index=[f"f{i}" for i in range(p)],
    )
    return AnnData(make(x), pd.DataFrame(index=[f"cell{i}" for i in range(n)]), var)


def values(kind, **kwargs):
    adata = counts(**kwargs)
    if kind == "methylation":
        adata.X = (adata.X > 0).astype(np.float32)
    return adata


def full(x):
    return x.toarray() if sp.issparse(x) else x


RECIPES = [
    ct.pp.rna(n_components=8),
    ct.pp.rna(n_top_features=20, n_components=8, scale=True),
    ct.pp.rna(n_components=None),
    ct.pp.rna(n_components=None, whiten=False),
    ct.pp.atac(n_components=8),
    ct.pp.atac(n_components=8, flavor="signac", binarize=True, n_top_features=30, whiten=False),
    ct.pp.atac(n_components=None, whiten=False),
    ct.pp.protein(),
    ct.pp.protein(axis="feature", n_components=None),
    ct.pp.methylation(n_components=None),
    ct.pp.none(),
    ct.pp.none(whiten=True, n_components=5),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=repr)


def fitted(recipe, adata):
    return recipe.unfitted().fit(adata)


@every_recipe
def test_shapes_and_names(recipe):
    adata = values(recipe.kind)
    recipe = fitted(recipe, adata)
    y, z = recipe.normalize(adata), recipe.transform(adata)
    assert y.shape == (90, len(recipe.feature_names_))
    assert z.shape == (90, recipe.n_features_out_)
    assert y.dtype == z.dtype == np.float32
    assert recipe.n_cells_fit_ == 90
    assert list(recipe.var_.index) == list(recipe.feature_names_)
    back = recipe.inverse_transform(z)
    assert back.shape == y.shape
    assert back.dtype == np.float32
    assert np.isfinite(full(z)).all()
    assert recipe.normalize(adata, features="all").shape == adata.shape


@every_recipe
def test_input_is_not_changed_nor_shared(recipe):
    adata = values(recipe.kind)
    before = pickle.dumps(adata)
    recipe = fitted(recipe, adata)
    for result in (recipe.normalize(adata), recipe.normalize(adata, features="all"), recipe.transform(adata)):
        if sp.issparse(result):
            result.indices[:] = 0
            result.data[:] = -1
        else:
            result[:] = -1
    recipe.inverse_transform(np.zeros((3, recipe.n_features_out_), np.float32))
    assert pickle.dumps(adata) == before


@every_recipe
def test_inverse_does_not_change_its_input(recipe):
    recipe = fitted(recipe, values(recipe.kind))
    z = np.full((3, recipe.n_features_out_), -5, np.float32)
    recipe.inverse_transform(z)
    assert (z == -5).all()


@every_recipe
def test_a_cell_does_not_depend_on_the_cells_beside_it(recipe):
    adata = values(recipe.kind)
    recipe = fitted(recipe, adata[:60].copy())
    alone, together = recipe.transform(adata[70:72].copy()), recipe.transform(adata[60:].copy())
    np.testing.assert_allclose(full(alone), full(together)[10:12], rtol=1e-5, atol=1e-5)


@every_recipe
def test_saved_recipe_is_bit_identical(recipe):
    adata = values(recipe.kind)
    recipe = fitted(recipe, adata)
    state = recipe.get_state()
    assert all(array.dtype.kind in "iufb" for array in state.values())
    again = Recipe.from_state(json.loads(json.dumps(recipe.get_config())), {k: v.copy() for k, v in state.items()})
    z = recipe.transform(adata)
    assert np.array_equal(full(again.transform(adata)), full(z))
    assert np.array_equal(again.inverse_transform(z), recipe.inverse_transform(z))
    ours, theirs = recipe.to_counts(recipe.normalize(adata)), again.to_counts(again.normalize(adata))
    assert (ours is None and theirs is None) or np.array_equal(ours, theirs)
    pd.testing.assert_frame_equal(again.var_, recipe.var_)
    assert again.feature_names_.equals(recipe.feature_names_)
    assert (again.n_features_out_, again.n_cells_fit_) == (recipe.n_features_out_, recipe.n_cells_fit_)


def test_state_goes_through_safetensors():
    from safetensors.numpy import load, save

    adata = counts()
    recipe = ct.pp.atac(n_components=8).fit(adata)
    again = Recipe.from_state(recipe.get_config(), load(save(recipe.get_state())))
    assert np.array_equal(again.transform(adata), recipe.transform(adata))


@pytest.mark.parametrize(
    "recipe",
    [ct.pp.rna(n_components=None), ct.pp.protein(), ct.pp.methylation(n_components=None), ct.pp.none(whiten=True)],
    ids=repr,
)
def test_inverse_is_exact_without_reduction(recipe):
    adata = values(recipe.kind, p=40)
    recipe = fitted(recipe, adata)
    np.testing.assert_allclose(
        recipe.inverse_transform(recipe.transform(adata)), full(recipe.normalize(adata)), rtol=1e-4, atol=1e-4
    )


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=25)
def test_features_of_the_inverse_are_the_features(seed, scale):
    adata = AnnData(np.random.default_rng(seed).normal(size=(40, 12)).astype(np.float32))
    recipe = ct.pp.none(n_components=4, whiten=scale, seed=seed).fit(adata)
    z = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
    back = AnnData(recipe.inverse_transform(z))
    np.testing.assert_allclose(recipe.transform(back), z, atol=1e-4)


@pytest.mark.parametrize(
    "recipe",
    [
        *(ct.pp.rna(n_components=5, whiten=w, scale=w) for w in (True, False)),
        ct.pp.rna(n_components=None, whiten=True),
        ct.pp.atac(n_components=5),
        ct.pp.atac(n_components=None, flavor="signac"),
        ct.pp.protein(axis="feature"),
        ct.pp.protein(n_components=4),
        ct.pp.none(),
    ],
    ids=repr,
)
def test_some_columns_of_the_inverse_are_those_of_the_whole(recipe):
    adata = counts()
    z = recipe.fit(adata).transform(adata)
    columns = np.array([7, 0, 31])
    whole, part = recipe.inverse_transform(z), recipe.inverse_transform(z, columns)
    np.testing.assert_allclose(part, whole[:, columns], rtol=1e-5, atol=1e-5)
    expected, found = recipe.to_counts(whole), recipe.to_counts(part, columns)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected[:, columns], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "low", "high"), [("rna", 0, np.inf), ("protein", 0, np.inf), ("methylation", 0, 1)])
def test_inverse_stays_on_the_scale(kind, low, high):
    recipe = Recipe(kind).fit(values(kind))
    wild = np.random.default_rng(0).normal(scale=30, size=(20, recipe.n_features_out_)).astype(np.float32)
    back = recipe.inverse_transform(wild)
    assert back.min() >= low
    assert back.max() <= high


def test_empty_cells_and_features():
    for recipe in (ct.pp.rna(n_components=5), ct.pp.atac(n_components=5)):
        adata = counts()
        recipe.fit(adata)
        assert "f2" not in recipe.feature_names_
        assert not full(recipe.normalize(adata))[1].any()
        assert np.isfinite(recipe.transform(adata)).all()


def test_variable_genes_are_scanpys():
    sc = pytest.importorskip("scanpy")
    adata = counts(n=300, p=200)
    theirs = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    sc.pp.highly_variable_genes(theirs, n_top_genes=50, flavor="seurat")
    recipe = ct.pp.rna(n_top_features=50, n_components=5).fit(adata)
    assert list(recipe.feature_names_) == list(theirs.var_names[theirs.var["highly_variable"]])


def test_size_factors_use_genes_that_are_not_selected():
    adata = counts(n=300, p=200)
    some = ct.pp.rna(n_top_features=50, n_components=None, whiten=False).fit(adata)
    every = ct.pp.rna(n_top_features=None, n_components=None, whiten=False).fit(adata)
    columns = every.feature_names_.get_indexer(some.feature_names_)
    assert np.array_equal(some.normalize(adata).toarray(), every.normalize(adata).toarray()[:, columns])


def test_most_open_peaks_are_kept():
    adata = counts()
    recipe = ct.pp.atac(n_top_features=10, n_components=None).fit(adata)
    cells = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    assert cells[adata.var_names.get_indexer(recipe.feature_names_)].min() >= np.sort(cells)[-10]


def test_depth_component_of_atac_is_left_out():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(2, 0.5, (400, 1)) * rng.gamma(1, 0.2, 300)).astype(np.float32)
    adata = AnnData(sp.csr_matrix(x))
    recipe = ct.pp.atac(n_components=10).fit(adata)
    depth = np.log(np.maximum(x.sum(axis=1), 1))
    strength = [abs(np.corrcoef(z, depth)[0, 1]) for z in recipe.transform(adata).T]
    assert recipe.n_features_out_ < 10
    assert max(strength) < 0.75
    assert ct.pp.atac(n_components=10, depth_threshold=None).fit(adata).n_features_out_ == 10


def test_whitened_components_have_unit_variance():
    adata = counts()
    z = ct.pp.rna(n_components=6, whiten=True).fit(adata).transform(adata)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)


def test_components_are_clipped_to_what_the_data_allow(caplog):
    with caplog.at_level("INFO", logger="celltransfer"):
        recipe = ct.pp.rna().fit(counts(n=20))
    assert recipe.n_features_out_ <= 19
    assert "n_components=50" in caplog.text


def test_few_proteins_are_not_reduced_and_many_are():
    assert ct.pp.protein().fit(counts(p=30)).n_features_out_ == 30
    assert ct.pp.protein().fit(counts(p=60)).n_features_out_ <= 50


def test_sparse_stays_sparse_without_reduction():
    adata = counts()
    assert sp.issparse(ct.pp.rna(n_components=None).fit(adata).transform(adata))
    assert sp.issparse(ct.pp.none().fit(adata).transform(adata))
    assert not sp.issparse(ct.pp.none(whiten=True).fit(adata).transform(adata))


def test_none_returns_the_values():
    adata = AnnData(np.random.default_rng(0).normal(size=(10, 4)))
    assert np.array_equal(ct.pp.none().fit(adata).transform(adata), adata.X.astype(np.float32))
    assert ct.pp.none().fit(adata).to_counts(adata.X) is None


def test_var_keeps_plain_columns_and_their_types():
    recipe = ct.pp.rna(n_components=5).fit(counts())
    var = Recipe.from_state(recipe.get_config(), recipe.get_state()).var_
    assert list(var.columns) == ["chrom", "start", "score", "named", "symbol"]
    assert isinstance(var["chrom"].dtype, pd.CategoricalDtype)
    assert var["start"].dtype == np.int64
    assert var["named"].dtype == bool
    assert np.isnan(var["score"].to_numpy()).any()


def test_refit_forgets():
    recipe = ct.pp.rna(n_components=5).fit(counts(p=30))
    recipe.fit(counts(p=60))
    assert recipe.get_state().keys() == ct.pp.rna(n_components=5).fit(counts(p=60)).get_state().keys()
    assert recipe.normalize(counts(p=60), features="all").shape == (90, 60)


@every_recipe
def test_unfitted_recipe_says_so(recipe):
    for call in (recipe.transform, recipe.normalize):
        with pytest.raises(NotFittedError, match="not fitted"):
            call(values(recipe.kind))
    with pytest.raises(NotFittedError):
        recipe.get_state()


@pytest.mark.parametrize("kind", KINDS)
def test_function_and_name_have_the_same_defaults(kind):
    assert getattr(ct.pp, kind)().get_config() == Recipe(kind).get_config()
    assert repr(getattr(ct.pp, kind)()) == f"Recipe({kind!r})"


def test_options_are_checked():
    for make in (
        lambda: Recipe("lipid"),
        lambda: Recipe("rna", axis="cell"),
        lambda: ct.pp.rna(layer="counts", use_rep="X_pca"),
        lambda: ct.pp.rna(n_components=0),
        lambda: ct.pp.rna(n_top_features=0),
        lambda: ct.pp.rna(on_missing="ignore"),
        lambda: ct.pp.atac(flavor="lsi"),
        lambda: ct.pp.protein(axis=0),
    ):
        with pytest.raises(ConfigError):
            make()


def test_too_little_to_fit():
    with pytest.raises(ModalityError, match="two cells"):
        ct.pp.rna().fit(counts()[:1])
    with pytest.raises(ModalityError, match="no count"):
        ct.pp.rna().fit(AnnData(np.zeros((5, 4), np.float32)))


def test_wrong_widths_are_errors():
    recipe = ct.pp.rna(n_components=5).fit(counts())
    with pytest.raises(FeatureError, match=r"\(cells, 5\)"):
        recipe.inverse_transform(np.zeros((3, 6), np.float32))
    with pytest.raises(FeatureError):
        recipe.to_counts(np.zeros((3, 6), np.float32))


def test_foreign_state_is_an_error():
    state = ct.pp.none().fit(counts()).get_state()
    with pytest.raises(ModelFormatError, match="does not fit"):
        Recipe.from_state(Recipe("rna").get_config(), state)


def test_import_is_light():
    import subprocess

    code = "import sys, celltransfer.pp; print([m for m in ('scanpy', 'torch', 'muon') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_root())
    assert out.stdout.strip() == "[]"


def _root():
    from pathlib import Path

    return Path(ct.__file__).parents[1]


@pytest.mark.filterwarnings("ignore::celltransfer.errors.CelltransferWarning")  # scgem's RNA is qPCR, not counts
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("a549_scicar", {"rna": "rna", "atac": "atac"}),
        ("pbmc10k_cite", {"rna": "rna", "protein": "protein"}),
        ("scgem", {"rna": "none", "methylation": "methylation"}),
    ],
)
def test_real_modalities(name, kinds, real_dataset):
    mdata = real_dataset(name)
    for modality, kind in kinds.items():
        adata = mdata[modality]
        train = adata[: adata.n_obs * 3 // 4]
        recipe = ct.pp.resolve("auto", modality, adata).fit(train)
        assert recipe.kind == kind
        z = dense(recipe.transform(adata))
        assert np.isfinite(z).all()
        np.testing.assert_allclose(dense(recipe.transform(train)), z[: train.n_obs], atol=1e-4)
        assert np.isfinite(recipe.inverse_transform(z[:50])).all()
        if kind == "atac":
            assert 0 in recipe.get_state()["latent0.dropped"]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.kind in ("rna", "atac", "protein")], ids=repr)
def test_spread_goes_back_as_draws_do(recipe):
    """Variances of features are those of draws that are sent back without clipping, for some features or all."""
    adata = values(recipe.kind)
    fitted = recipe.unfitted().fit(adata)
    d, rng = fitted.n_features_out_, np.random.default_rng(0)
    root = rng.normal(size=(d, d)) / d
    covariance = (root @ root.T).astype(np.float32)
    z = np.zeros((1, d), dtype=np.float32)
    unit = _unclipped(fitted, np.eye(d, dtype=np.float32)) - _unclipped(fitted, z)  # (d, p), the linear part
    expected = np.einsum("ip,ij,jp->p", unit, covariance if fitted.reduces else np.diag(covariance.diagonal()), unit)
    spread = covariance[None] if fitted.reduces else covariance.diagonal()[None]
    np.testing.assert_allclose(fitted.inverse_variance(spread)[0], expected, rtol=1e-3, atol=1e-6)
    some = np.array([5, 1])
    np.testing.assert_allclose(fitted.inverse_variance(spread, some)[0], expected[some], rtol=1e-3, atol=1e-6)


def _unclipped(fitted, z):
    for step in reversed(fitted._latent):
        z = step.inverse(z)
    return z
