"""Counterfactual cells and latents, written back."""

import celltransfer as ct
import mudata
import numpy as np
import pandas as pd
import pytest
from celltransfer.errors import (
    CelltransferWarning,
    ConditionError,
    ConfigError,
    FeatureError,
    InputError,
    ModalityError,
)
from celltransfer.train.loop import Trainer
from mudata import MuData

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
    assert set(made.obs["hours"]) == {"3"}
    assert list(made.obs["hours_from"]) == list(mdata[modality].obs["hours"])
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


def test_latents_are_written_whole_or_not_at_all(model):
    mdata = cells()
    mdata.mod["atac"] = mdata["atac"][:, :5].copy()
    with pytest.raises(FeatureError):
        model.add_latents(mdata)
    assert not any(key.startswith("X_") for name in mdata.mod for key in mdata[name].obsm)


def test_without_content_only_style_is_written():
    options = {"n_content": 0, "n_style": 2, "map": "linear"}
    mdata = cells()
    model = ct.fit(mdata, source="rna", target="atac", method="sparse_mixing", verdict=False, trainer=STEPS, **options)
    with pytest.warns(CelltransferWarning, match="only style"):
        model.add_latents(mdata)
    assert "X_style" in mdata["rna"].obsm
    assert "X_content" not in mdata["rna"].obsm


def test_several_columns_and_levels_with_a_slash_and_conditions_of_one_modality():
    mdata = cells()
    mdata["rna"].obs["dose"] = pd.Categorical(np.where(np.arange(160) % 4 < 2, "1/2", "a|b"))
    mdata["atac"].obs["dose"] = mdata["rna"].obs["dose"]
    keys = ["hours", "dose"]
    fit = {
        "source": "rna",
        "target": "atac",
        "anchors": 20,
        "method": "sparse_mixing",
        "verdict": False,
        "trainer": STEPS,
    }
    model = ct.fit(mdata, conditions=keys, n_content=2, n_style=1, map="linear", **fit)
    model.counterfactual(mdata, condition=(3, "1/2"))
    made = mdata["rna_at_3|1_2"].obs
    assert set(made["dose"]) == {"1/2"}
    assert set(made["dose_from"]) == {"1/2", "a|b"}
    for same in (("0", "a|b"), r"0.0|a\|b"):
        model.counterfactual(mdata, condition=same, key_added="other")
        assert set(mdata["other"].obs["dose"]) == {"a|b"}
    for strange in ("0", ("0",), ("0", "a|b", "c"), 0):
        with pytest.raises(ConditionError, match="the model knows"):
            model.counterfactual(mdata, condition=strange)
    rna = np.where(np.arange(160) < 100, mdata["rna"].obs["hours"], "9")
    alone = ct.datasets.simulate(n_obs=160, n_genes=30, n_peaks=40, seed=0)
    alone["rna"].obs["hours"], alone["atac"].obs["hours"] = rna, np.where(np.arange(160) % 2, "0", "3")
    pairs = pd.DataFrame(dict.fromkeys(("source_id", "target_id"), alone["rna"].obs_names[:20]))
    with pytest.warns(CelltransferWarning, match="'9' occur in one modality only"):
        model = ct.fit(alone, conditions="hours", n_content=2, n_style=1, map="linear", **fit | {"anchors": pairs})
    assert any("Only one modality has cells of the conditions 9" in note for note in model.result_.notes)
    with pytest.raises(ConditionError, match="Only one modality had cells of '9'"):
        model.counterfactual(alone, condition=9)
    model.translate(alone)


def test_a_loaded_model_gives_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    one, other = cells(), cells()
    model.counterfactual(one, condition=0)
    ct.load(tmp_path / "model").counterfactual(other, condition=0)
    np.testing.assert_array_equal(one["rna_at_0"].X, other["rna_at_0"].X)


@pytest.mark.parametrize(
    ("dtype", "to", "absent"),
    [
        ("float32", 0.3, 0.1),
        ("float64", 0.3, 0.1),
        ("category", 0.3, 0.1),
        ("string", "0.3", "0.1"),
        ("int8", 0, 1),
        ("bool", True, False),
    ],
)
def test_the_condition_keeps_its_type(dtype, to, absent):
    """Moved to a condition that some of the cells have, and to one that none has."""
    mdata, values = cells(), np.where(np.arange(160) % 2, to, absent)
    for name in mdata.mod:
        column = pd.Series(values, index=mdata[name].obs_names)
        mdata[name].obs["dose"] = (
            pd.Categorical(column.astype("float32")) if dtype == "category" else column.astype(dtype)
        )
    how = {"n_content": 1, "n_style": 1, "map": "linear", "anchors": 20, "verdict": False, "trainer": STEPS}
    model = ct.fit(mdata, source="rna", target="atac", method="sparse_mixing", conditions="dose", **how)
    assert model.levels == tuple(sorted(map(str, (to, absent))))
    one = MuData({"rna": mdata["rna"][values == to].copy()})
    for value in (to, str(to).lower(), absent):
        model.counterfactual(one, condition=value, key_added="made")
        made = one["made"].obs
        assert {str(np.float32(v)) if isinstance(v, float) else str(v) for v in made["dose"]} == {
            str(absent) if value == absent else str(to)
        }
        assert list(made["dose_from"]) == list(one["rna"].obs["dose"])
        if value != absent or dtype not in ("bool", "category"):
            assert made["dose"].dtype == one["rna"].obs["dose"].dtype


def test_no_counterfactual_is_called_identified(model, monkeypatch):
    monkeypatch.setattr(model.translator.result_.verdict, "level", "identified")
    mdata = cells()
    model.counterfactual(mdata, condition=3)
    told = mdata["rna_at_3"].uns["celltransfer"]
    assert told["verdict"] == "ambiguous"
    assert "No cell is seen under two conditions" in told["reasons"]
    assert told["evidence"] == {}


def test_missing_features(model):
    """Refused, or zero."""
    mdata = cells()
    mdata.mod["rna"] = mdata["rna"][:, 2:].copy()
    for call in (
        lambda **how: model.counterfactual(mdata, condition=3, **how),
        lambda **how: model.add_latents(mdata, **how),
    ):
        with pytest.raises(FeatureError):
            call()
        call(on_missing="zero")
    zero = cells()
    x = zero["rna"].X.toarray()
    x[:, :2] = 0
    zero["rna"].X = x
    model.add_latents(zero)
    model.counterfactual(zero, condition=3)
    np.testing.assert_allclose(mdata["rna_at_3"].X, zero["rna_at_3"].X, atol=1e-5)
    np.testing.assert_allclose(mdata["rna"].obsm["X_style"], zero["rna"].obsm["X_style"], atol=1e-5)


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
