"""The alignment of fits: in the verdict, in the model, in files, as warnings; and translation in both directions."""

import warnings

import celltransfer as ct
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.errors import ConfigError, ModalityError, VerdictWarning
from celltransfer.verdict.alignment import Alignment
from mudata import MuData

RECIPES = {"a": "none", "b": "none"}
FAST = {"source": "a", "target": "b", "method": "lrmf", "density": "gaussian", "recipes": RECIPES}


def panels(n=700, seed=0, d=3, bend=False, k=0):
    """Cells of two modalities that are affine images of one another, k of them co-assayed; bent: not affine."""
    rng = np.random.default_rng(seed)
    mix, shift = rng.normal(size=(d, d)) + 2 * np.eye(d), rng.normal(size=d)
    a, latent = rng.gamma(3.0, size=(n, d)), rng.gamma(3.0, size=(n, d))
    latent[:k] = a[:k]
    b = latent @ mix + shift
    if bend:
        b[:, 0] = np.where(rng.random(n) < 0.5, -15, 15) + 0.1 * b[:, 0]
    names_a = [f"both{i}" if i < k else f"a{i}" for i in range(n)]
    names_b = [f"both{i}" if i < k else f"b{i}" for i in range(n)]
    sides = {}
    for name, x, names in (("a", a, names_a), ("b", b, names_b)):
        sides[name] = AnnData(x.astype(np.float32))
        sides[name].obs_names = names
        sides[name].var_names = [f"{name}_feature{i}" for i in range(d)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuData(sides)


@pytest.fixture(scope="module")
def aligned():
    mdata = panels(k=20)
    return ct.fit(mdata, **FAST), mdata


@pytest.fixture(scope="module")
def unlike():
    mdata = panels(bend=True)
    with pytest.warns(VerdictWarning, match=r"failed.*not aligned.*capacity is what lacks"):
        model = ct.fit(mdata, anchors=0, **FAST)
    return model, mdata


def test_like_cells_are_aligned_and_nothing_is_warned_of(aligned):
    model, _ = aligned
    assert model.alignment_.level == "aligned"
    assert model.verdict_.level == "identified"
    assert not model.doubtful
    assert model.verdict_.evidence["alignment_auc"] == pytest.approx(model.alignment_.evidence["auc"])


def test_without_anchors_a_match_is_no_proof():
    mdata = panels()
    with pytest.warns(VerdictWarning, match="does not tell the right map from others that match as well"):
        model = ct.fit(mdata, anchors=0, **FAST)
    assert model.alignment_.level == "aligned"
    assert model.verdict_.level == "ambiguous"


def test_cells_that_stay_unlike_fail_the_fit(unlike):
    model, _ = unlike
    assert model.verdict_.level == "failed"
    assert model.alignment_.level == "not aligned"
    assert model.doubtful


def test_alignment_is_in_files_and_translations(unlike, tmp_path):
    model, mdata = unlike
    model.save(tmp_path / "model")
    with pytest.warns(VerdictWarning, match="not aligned"):
        again = ct.load(tmp_path / "model")
    assert again.alignment_ == model.alignment_
    out = again.translate(mdata, copy=True)
    assert out["b_from_a"].uns["celltransfer"]["alignment"] == "not aligned"
    out.write_h5mu(tmp_path / "out.h5mu")


def test_without_a_verdict_nothing_is_tested():
    with pytest.warns(VerdictWarning):
        model = ct.fit(panels(), anchors=0, verdict=False, **FAST)
    assert model.alignment_ is None


@pytest.mark.parametrize("method", ["ridge", "chance"])
def test_any_method_can_be_tested(method):
    mdata = panels(k=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerdictWarning)
        model = ct.fit(mdata, source="a", target="b", method=method, recipes=RECIPES)
    assert model.alignment_ is None
    found = ct.alignment(model, mdata)
    assert isinstance(found, Alignment)
    assert found.evidence["cells_translated"] + found.evidence["cells_target"] < 1400 - 20 + 1
    # The source is an affine image of the target, which ridge finds; chance draws target cells.
    assert found.level == "aligned"


def test_new_cells_are_what_is_tested(aligned):
    model, mdata = aligned
    new = panels(seed=0, n=300)
    new.mod["a"].obs_names = [f"new_a{i}" for i in range(300)]
    new.mod["b"].obs_names = [f"new_b{i}" for i in range(300)]
    new.mod["a"].X = new["a"].X + 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new.update()
    found = ct.alignment(model, new)
    assert found.level == "not aligned"
    assert found.evidence["held_translated"] == 300


def test_cells_the_fit_saw_do_not_prove_that_others_are_alike(aligned):
    model, mdata = aligned
    assert [len(model.held_out_cells[name]) for name in ("a", "b")] == [136, 136]
    found = ct.alignment(model, mdata)
    assert found.level == "cannot be told"
    assert "cells it saw were compared too" in found.reasons[-1]


def test_interrupting_the_test_keeps_the_fit(monkeypatch):
    from celltransfer.verdict import translated

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(translated, "of_fit", interrupted)
    with pytest.warns(VerdictWarning, match="Interrupted"):
        model = ct.fit(panels(k=20), **FAST)
    assert model.verdict_.level == "ambiguous"


def test_the_backward_model_shares_the_doubt(unlike):
    model, _ = unlike
    assert model.backward.doubtful
    assert "forward direction" in model.backward.verdict_.reasons[0]


def test_a_missing_modality_is_named(aligned):
    model, mdata = aligned
    with pytest.raises(ModalityError, match="'b'"):
        ct.alignment(model, MuData({"a": mdata["a"]}))


def test_backward_translation_is_written_and_undoes_the_forward_one(aligned):
    model, mdata = aligned
    out = model.translate(mdata, copy=True)
    back = model.translate(out["b_from_a"], direction="backward")
    np.testing.assert_allclose(back.X, mdata["a"].X, rtol=1e-3, atol=1e-3)
    model.translate(out, direction="backward")
    written = out["a_from_b"]
    assert list(written.var_names) == list(mdata["a"].var_names)
    assert written.uns["celltransfer"]["source"] == "b"
    assert written.obs["translation_support"].between(0, 1).all()


def test_backward_survives_saving(aligned, tmp_path):
    model, mdata = aligned
    model.save(tmp_path / "model")
    again = ct.load(tmp_path / "model").backward
    np.testing.assert_allclose(again.translate(mdata["b"]).X, model.backward.translate(mdata["b"]).X, atol=1e-5)
    assert again.translate(mdata["b"]).obs["translation_support"].notna().all()
    with pytest.raises(ConfigError, match="save the model"):
        again.save(tmp_path / "backward")
    assert not (tmp_path / "backward").exists()


def test_backward_of_backward_is_forward(aligned):
    model, mdata = aligned
    assert model.backward.backward is model
    np.testing.assert_allclose(
        model.backward.translator.inverse(mdata["a"].X), model.translator.translate(mdata["a"].X), atol=1e-4
    )


def test_the_backward_model_is_reported_on(aligned):
    model, mdata = aligned
    report = ct.report(model.backward, mdata)
    assert "b -> a" in str(report)


def test_methods_without_an_inverse_say_so():
    mdata = panels(k=20)
    model = ct.fit(mdata, source="a", target="b", method="ridge", recipes=RECIPES)
    with pytest.raises(ConfigError, match="no inverse"):
        model.translate(mdata, direction="backward")
    with pytest.raises(ConfigError, match="direction='back'"):
        model.translate(mdata, direction="back")
    assert "a_from_b" not in mdata.mod


def test_recipes_are_brought_to_one_width():
    rng = np.random.default_rng(0)
    mdata = panels(d=3)
    counts = AnnData(sp.csr_matrix(rng.poisson(1.0, size=(700, 40)).astype(np.float32)))
    counts.obs_names = mdata["a"].obs_names
    counts.var_names = [f"gene{i}" for i in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = MuData({"rna": counts, "b": mdata["b"]})
        how = FAST | {"source": "rna", "recipes": {"b": "none"}}
        model = ct.fit(wide, anchors=0, **how)
    assert [model.recipes[name].n_features_out_ for name in ("rna", "b")] == [3, 3]
    assert model.recipes["rna"].get_config()["n_components"] == 3


def test_conditions_are_ignored_with_a_warning():
    mdata = panels()
    for name in ("a", "b"):
        mdata.mod[name].obs["batch"] = np.where(np.arange(700) % 2, "x", "y")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerdictWarning)
        with pytest.warns(ct.errors.CelltransferWarning, match="fits without conditions"):
            ct.fit(mdata, anchors=0, conditions="batch", **FAST)
