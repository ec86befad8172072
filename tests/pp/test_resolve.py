"""Which recipe a modality gets."""

from __future__ import annotations

import logging

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.errors import CelltransferWarning, ConfigError, CountsError, InputError


def cells(real=False, feature_types=None, p=12):
    x = np.random.default_rng(0).poisson(2.0, (20, p)).astype(np.float32)
    var = pd.DataFrame(index=[f"f{i}" for i in range(p)])
    if feature_types:
        var["feature_types"] = pd.Categorical([feature_types] * p)
    return AnnData(sp.csr_matrix(np.log1p(x) if real else x), var=var)


@pytest.mark.parametrize(
    ("modality", "feature_types", "kind"),
    [
        ("rna", None, "rna"),
        ("GEX", None, "rna"),
        ("rna_fixed", None, "rna"),
        ("atac", None, "atac"),
        ("peaks", "Gene Expression", "atac"),
        ("prot", None, "protein"),
        ("protein", None, "protein"),
        ("ADT", None, "protein"),
        ("x", "Gene Expression", "rna"),
        ("x", "Peaks", "atac"),
        ("x", "Antibody Capture", "protein"),
        ("x", "Custom", "rna"),
        ("x", None, "rna"),
    ],
)
def test_auto(modality, feature_types, kind, caplog):
    with caplog.at_level(logging.INFO, logger="celltransfer"):
        recipe = ct.pp.resolve("auto", modality, cells(feature_types=feature_types))
    assert recipe.kind == kind
    assert f"recipe {kind!r}" in caplog.text


def test_auto_methylation():
    adata = cells()
    adata.X = (adata.X > 0).astype(np.float32)
    assert ct.pp.resolve("auto", "methylation", adata).kind == "methylation"
    with pytest.warns(CelltransferWarning, match="its name suggested 'methylation'"):
        assert ct.pp.resolve("auto", "met", cells()).kind == "none"


@pytest.mark.parametrize("modality", ["rna", "atac", "protein"])
def test_auto_falls_back_to_standardised_values_and_says_so(modality):
    adata = cells(real=True)
    with pytest.warns(CelltransferWarning, match="raw counts.*Pass recipes= to decide"):
        recipe = ct.pp.resolve("auto", modality, adata)
    assert recipe.kind == "none"
    z = recipe.fit(adata).transform(adata)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("broken", ["NaN", "names"])
@pytest.mark.filterwarnings("error::celltransfer.errors.CelltransferWarning")
def test_auto_leaves_what_no_recipe_takes_to_the_error(broken):
    adata = cells()
    if broken == "NaN":
        adata.X[0, 0] = np.nan
    else:
        adata.var_names = ["f0", "f0", *adata.var_names[2:]]
    with pytest.raises(InputError, match={"NaN": "holds nan", "names": "duplicated feature names"}[broken]):
        ct.pp.resolve("auto", "rna", adata).fit(adata)


def test_auto_without_a_telling_name_goes_by_the_values(caplog):
    adata = cells(real=True)
    with caplog.at_level(logging.INFO, logger="celltransfer"):
        recipe = ct.pp.resolve("auto", "x", adata)
    assert recipe.kind == "none"
    assert "raw counts" in caplog.text
    z = recipe.fit(adata).transform(adata)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)


def test_auto_reduces_many_real_values():
    adata = cells(real=True, p=80)
    assert ct.pp.resolve("auto", "x", adata).fit(adata).n_features_out_ < 80


def test_a_name_is_taken_at_its_word():
    adata = cells(real=True)
    with pytest.raises(CountsError, match=r"mdata\['rna'\]"):
        ct.pp.resolve("rna", "rna", adata).fit(adata)
    with pytest.raises(ConfigError, match="lipid"):
        ct.pp.resolve("lipid", "rna", adata)


def test_a_given_recipe_is_copied_unfitted():
    mine = ct.pp.rna(n_components=3).fit(cells())
    copy = ct.pp.resolve(mine, "gex", cells())
    copy.fit(cells(p=9))
    assert len(mine.feature_names_) == 12
    assert mine.get_config() == {**copy.get_config(), "modality": None}
