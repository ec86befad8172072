"""Every way to hand over cells, and every way to hand over the wrong ones."""

from __future__ import annotations

import anndata as ad
import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.errors import CountsError, FeatureError, InputError, ModalityError
from celltransfer.pp import slots


def matrix(n=50, p=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 1.0, p) * rng.gamma(3.0, 0.3, (n, 1))).astype(np.float32)


def cells(x=None, **kwargs):
    x = matrix() if x is None else x
    names = [f"f{i}" for i in range(x.shape[1])]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])])
    return AnnData(x, obs=obs, var=pd.DataFrame(index=names), **kwargs)


FORMATS = {
    "dense": lambda x: x,
    "float64": lambda x: x.astype(np.float64),
    "int": lambda x: x.astype(np.int32),
    "fortran": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csr_int": lambda x: sp.csr_matrix(x.astype(np.int64)),
}


@pytest.mark.parametrize("kind", ["rna", "atac", "protein", "none"])
@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_storage_does_not_matter(kind, make):
    recipe = ct.pp.Recipe(kind, n_components=6, whiten=True)
    expected = recipe.fit(cells()).transform(cells())
    other = recipe.unfitted().fit(cells(make(matrix())))
    np.testing.assert_allclose(other.transform(cells(make(matrix()))), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(recipe.transform(cells(make(matrix()))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix, sp.csc_matrix])
def test_views(make):
    adata = cells(make(matrix()))
    recipe = ct.pp.rna(n_components=6).fit(adata[5:45])
    same = ct.pp.rna(n_components=6).fit(adata[5:45].copy())
    assert np.array_equal(recipe.transform(adata[::3]), same.transform(adata[::3].copy()))
    assert adata[5:45].is_view


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix, sp.csc_matrix])
def test_backed_files_are_read_in_blocks(make, tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "BLOCK", 7)
    adata = cells(make(matrix()), layers={"raw": make(matrix(seed=1))}, obsm={"X_pca": matrix(seed=2)})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for recipe in (ct.pp.rna(n_components=6), ct.pp.rna(layer="raw", n_components=6), ct.pp.none(use_rep="X_pca")):
        recipe.fit(adata)
        assert np.array_equal(recipe.unfitted().fit(backed).transform(backed), recipe.transform(adata))
        assert np.array_equal(recipe.transform(backed[4:20]), recipe.transform(adata[4:20]))
    assert backed.isbacked
    backed.file.close()


def test_duplicate_entries_are_summed_without_touching_the_input():
    x = sp.csr_matrix((np.ones(4, np.float32), np.array([1, 1, 0, 2]), np.array([0, 2, 4])), shape=(2, 3))
    adata = cells(x)
    assert adata.X.nnz == 4
    y = ct.pp.none().fit(adata).transform(adata)
    assert y.toarray().tolist() == [[0, 2, 0], [1, 0, 1]]
    assert adata.X.nnz == 4


def test_layers_and_representations():
    adata = cells(layers={"raw": matrix(seed=1)}, obsm={"X_pca": matrix(seed=2)[:, :5].astype(np.float64)})
    adata.obsm["frame"] = pd.DataFrame({"a": np.arange(50.0), "b": 1}, index=adata.obs_names)
    adata.obsm["sparse"] = sp.csr_matrix(matrix(seed=3))
    assert np.array_equal(ct.pp.none(layer="raw").fit(adata).transform(adata), matrix(seed=1))
    pca = ct.pp.none(use_rep="X_pca").fit(adata)
    assert list(pca.feature_names_) == [f"X_pca_{i}" for i in range(5)]
    assert pca.var_.shape == (5, 0)
    assert np.array_equal(pca.transform(adata), matrix(seed=2)[:, :5])
    assert list(ct.pp.none(use_rep="frame").fit(adata).feature_names_) == ["a", "b"]
    assert sp.issparse(ct.pp.none(use_rep="sparse").fit(adata).transform(adata))


def test_missing_slots_say_what_there_is():
    adata = cells(layers={"raw": matrix()})
    with pytest.raises(ModalityError, match=r"adata\.layers\['counts'\].*'raw'"):
        ct.pp.rna(layer="counts").fit(adata)
    with pytest.raises(ModalityError, match="nothing"):
        ct.pp.none(use_rep="X_pca").fit(adata)
    with pytest.raises(ModalityError, match="None"):
        ct.pp.none().fit(AnnData(obs=adata.obs, var=adata.var))


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
def test_features_are_matched_by_name(make):
    adata = cells(make(matrix()))
    shuffled = adata[:, np.random.default_rng(0).permutation(30)].copy()
    recipe = ct.pp.rna(n_components=6).fit(adata)
    np.testing.assert_allclose(recipe.transform(shuffled), recipe.transform(adata), rtol=1e-5, atol=1e-5)


def test_extra_features_are_left_out():
    wide = cells(matrix(p=40))
    narrow = wide[:, :30].copy()
    recipe = ct.pp.rna(n_components=6).fit(narrow)
    np.testing.assert_allclose(recipe.transform(wide), recipe.transform(narrow), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
@pytest.mark.parametrize("kind", ["rna", "atac", "protein", "none"])
def test_missing_features(make, kind):
    adata = cells(make(matrix()))
    recipe = ct.pp.Recipe(kind).fit(adata)
    gone = ["f3", "f7", "f8", "f20"]
    rest = adata[:, ~adata.var_names.isin(gone)][:, ::-1].copy()
    with pytest.raises(FeatureError, match="lacks 4 of the 30 features.*'f3', 'f7', 'f8'.*on_missing='zero'"):
        recipe.transform(rest)
    zeroed = adata.copy()
    x = matrix()
    x[:, [3, 7, 8, 20]] = 0
    zeroed.X = make(x)
    filled, expected = recipe.transform(rest, on_missing="zero"), recipe.transform(zeroed)
    filled, expected = (z.toarray() if sp.issparse(z) else z for z in (filled, expected))
    np.testing.assert_allclose(filled, expected, rtol=1e-4, atol=1e-5)


def test_no_feature_in_common_is_said_before_anything_about_missing_ones():
    recipe = ct.pp.rna().fit(cells())
    other = cells()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    with pytest.raises(FeatureError, match="None in common: another modality, or other identifiers"):
        recipe.transform(other)


def test_duplicated_names_are_errors():
    adata = cells()
    adata.var_names = ["f0", "f0", *adata.var_names[2:]]
    with pytest.raises(FeatureError, match="1 duplicated.*'f0'"):
        ct.pp.rna().fit(adata)


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.5])
@pytest.mark.parametrize("kind", ["rna", "atac", "protein"])
def test_values_that_are_not_counts(kind, value, make):
    x = matrix()
    recipe = ct.pp.Recipe(kind, modality="gex").fit(cells(make(x)))
    x[7, 4] = value
    for call in (recipe.unfitted().fit, recipe.transform):
        with pytest.raises(CountsError, match=rf"mdata\['gex'\]\.X` holds {value:g} for cell 'cell7', feature 'f4'"):
            call(cells(make(x)))


def test_log_normalised_values_are_pointed_at_layers_and_none():
    adata = cells(layers={"log": np.log1p(matrix())})
    with pytest.raises(CountsError, match=r"layers\['log'\].*layer=.*'none'"):
        ct.pp.rna(layer="log").fit(adata)


def test_methylation_values():
    fractions = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    ct.pp.methylation().fit(cells(fractions))
    for bad, word in ((np.nan, "impute"), (1.5, "percentages"), (-0.1, "M values")):
        fractions[3, 2] = bad
        with pytest.raises(InputError, match=f"cell3.*{word}"):
            ct.pp.methylation().fit(cells(fractions))


def test_nan_in_values_taken_as_they_are():
    x = matrix()
    x[2, 1] = np.nan
    with pytest.raises(InputError, match="nan for cell 'cell2'"):
        ct.pp.none().fit(cells(x))


def test_text_is_not_a_matrix_of_numbers():
    adata = cells(obsm={"frame": pd.DataFrame({"a": ["x"] * 50}, index=[f"cell{i}" for i in range(50)])})
    with pytest.raises(InputError, match="matrix of numbers"):
        ct.pp.none(use_rep="frame").fit(adata)


def test_offending_cell_is_named_in_later_blocks(monkeypatch):
    monkeypatch.setattr(slots, "BLOCK", 7)
    x = matrix()
    x[33, 4] = 0.5
    with pytest.raises(CountsError, match="cell33"):
        ct.pp.rna().fit(cells(sp.csr_matrix(x)))


def test_no_cells_give_no_rows():
    adata = cells()
    recipe = ct.pp.rna(n_components=6).fit(adata)
    assert recipe.transform(adata[:0]).shape == (0, 6)
