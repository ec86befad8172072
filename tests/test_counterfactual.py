"""Counterfactual cells and latents, written back."""

import celltransfer as ct
import mudata
import numpy as np
import pytest
from celltransfer.errors import ConditionError, ConfigError, InputError, ModalityError
from celltransfer.train.loop import Trainer

STEPS = Trainer(max_steps=40, check_every=20, device="cpu", progress=False)


def cells():
    mdata = ct.datasets.simulate(n_obs=160, n_genes=30, n_peaks=40, seed=0)
    codes = np.where(np.arange(160) % 2, "0", "3")
    for name in mdata.mod:
        mdata[name].obs["hours"] = codes
    return mdata


@pytest.fixture(scope="module")
def model():
    options = {"n_content": 3, "n_style": 2, "map": "linear"}
    return ct.fit(
        cells(),
        source="rna",
        target="atac",
        anchors=20,
        method="sparse_mixing",
        conditions="hours",
        verdict=False,
        trainer=STEPS,
        **options,
    )


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_counterfactuals_are_written_beside_the_cells(model, modality):
    mdata = cells()
    before = mdata[modality].X.copy()
    model.counterfactual(mdata, condition=3, modality=modality)
    made = mdata[f"{modality}_at_3"]
    assert made.shape == mdata[modality].shape
    assert list(made.obs_names) == list(mdata[modality].obs_names)
    assert made.uns["celltransfer"]["counterfactual"] == "3"
    assert "counts" in made.layers
    # A cell that is under the condition already is itself.
    own = model.recipes[modality].transform(mdata[modality])
    same = (mdata[modality].obs["hours"] == "3").to_numpy()
    np.testing.assert_allclose(made.obsm["X_translated"][same], own[same], atol=1e-3)
    assert np.abs(made.obsm["X_translated"][~same] - own[~same]).max() > 0.01
    assert (mdata[modality].X != before).sum() == 0


def test_copy_and_file(model, tmp_path):
    mdata = cells()
    out = model.counterfactual(mdata, condition="0", key_added="early", counts=False, copy=True)
    assert "early" not in mdata.mod
    assert "counts" not in out["early"].layers
    out.write_h5mu(tmp_path / "cells.h5mu")
    again = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again["early"].X, out["early"].X)


def test_latents_of_both_modalities(model):
    mdata = cells()
    out = model.add_latents(mdata, key_added="Z", copy=True)
    for name in ("rna", "atac"):
        assert out[name].obsm["Z_content"].shape == (160, 3)
        assert out[name].obsm["Z_style"].shape == (160, 2)
        assert "Z_content" not in mdata[name].obsm
    model.add_latents(mdata)
    assert {"X_content", "X_style"} <= set(mdata["rna"].obsm)


def test_a_loaded_model_gives_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    one, other = cells(), cells()
    model.counterfactual(one, condition=0)
    ct.load(tmp_path / "model").counterfactual(other, condition=0)
    np.testing.assert_array_equal(one["rna_at_0"].X, other["rna_at_0"].X)


def test_refusals(model):
    mdata = cells()
    with pytest.raises(ConditionError, match="knows '0', '3'"):
        model.counterfactual(mdata, condition=1)
    with pytest.raises(ModalityError, match="protein"):
        model.counterfactual(mdata, condition=0, modality="protein")
    with pytest.raises(ConfigError, match="key_added"):
        model.add_latents(mdata, key_added="a/b")
    with pytest.raises(InputError, match="copy=True"):
        model.add_latents(mdata[:10])
    ridge = ct.fit(mdata, source="rna", target="atac", anchors=20, method="ridge", verdict=False)
    for call in (lambda: ridge.add_latents(mdata), lambda: ridge.counterfactual(mdata, condition=0)):
        with pytest.raises(ConfigError, match="sparse_mixing"):
            call()
    plain = ct.fit(mdata, source="rna", target="atac", anchors=20, method="sparse_mixing", verdict=False, trainer=STEPS)
    with pytest.raises(ConditionError, match="without conditions"):
        plain.counterfactual(mdata, condition=0)
