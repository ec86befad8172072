"""Confidence in single cells: it orders them by error, is kept with the model, and can mark cells."""

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.errors import ConfigError
from celltransfer.metrics import protocol
from celltransfer.model.confidence import Confidence
from scipy.stats import spearmanr

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


@pytest.fixture(scope="module")
def mdata():
    return ct.datasets.simulate(n_obs=1200, n_genes=100, n_peaks=150, rna_depth=1500, atac_depth=1000, seed=0)


@pytest.fixture(scope="module")
def model(mdata):
    return ct.fit(mdata, anchors=20, method="ridge")


def test_confidence_orders_cells_by_the_rank_of_their_partner(mdata):
    task = protocol.make_task(mdata, "rna", "atac", n_anchors=30, seed=0)
    fitted = ct.fit(task.mdata, source="rna", target="atac", anchors=task.anchors, method="ridge")
    out = fitted.translate_cells(task.source_test)
    ranks = protocol.score(task, out, spearman=False).per_cell["foscttm"]
    assert spearmanr(out.obs["translation_confidence"], ranks)[0] < -0.1


def test_reject_marks_cells_and_keeps_their_values(mdata, model):
    plain, marked = model.translate(mdata["rna"]), model.translate(mdata["rna"], reject=0.5)
    confidence = marked.obs["translation_confidence"]
    assert confidence.between(0, 1).all()
    np.testing.assert_array_equal(marked.obs["translation_rejected"], confidence < 0.5)
    assert marked.obs["translation_rejected"].dtype == bool
    np.testing.assert_array_equal(marked.X, plain.X)
    assert "translation_rejected" not in plain.obs


def test_more_is_rejected_at_a_higher_threshold(mdata, model):
    shares = [model.translate(mdata["rna"], reject=t).obs["translation_rejected"].mean() for t in (0, 0.5, 0.9, 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)


@pytest.mark.parametrize("reject", [-0.1, 1.5, "half", True])
def test_a_threshold_is_a_confidence(mdata, model, reject):
    with pytest.raises(ConfigError, match="reject="):
        model.translate(mdata["rna"], reject=reject)


def test_a_fit_that_was_not_judged_rejects_nothing(mdata):
    fitted = ct.fit(mdata, anchors=20, method="ridge", verdict=False)
    assert "translation_confidence" not in fitted.translate(mdata["rna"]).obs
    with pytest.raises(ConfigError, match="judged"):
        fitted.translate(mdata["rna"], reject=0.5)


def test_confidence_is_saved_with_the_model(mdata, model, tmp_path):
    model.save(tmp_path / "model")
    again = ct.load(tmp_path / "model").translate(mdata["rna"], reject=0.4)
    first = model.translate(mdata["rna"], reject=0.4)
    for column in ("translation_confidence", "translation_rejected"):
        np.testing.assert_array_equal(again.obs[column], first.obs[column])


def test_confidence_is_that_of_the_cells_nearby():
    translated = np.repeat([[0.0, 0.0], [10.0, 0.0]], 20, axis=0).astype(np.float32)
    known = Confidence(translated, np.repeat([0.1, 0.6], 20).astype(np.float32))
    np.testing.assert_allclose(known.of(np.array([[0.5, 0.0], [9.0, 1.0]], np.float32)), [0.8, 0.0], atol=1e-6)
    assert not Confidence().known
