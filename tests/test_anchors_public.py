"""`ct.anchors` on MuData and AnnData: what it says, what it writes, what it leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from celltransfer.data.anchors import resolve_anchors
from celltransfer.errors import AnchorError, ConfigError, InputError, ModalityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mudata import MuData

KEY = "anchor_informativeness"


@pytest.fixture(scope="module")
def symmetric() -> AnnData:
    """Cells under an oval Gaussian, whose middle is row 0."""
    x = np.random.default_rng(0).standard_normal((600, 2)) * [2.0, 1.0]
    x[0] = x[1:].mean(axis=0)
    names = [f"cell{i}" for i in range(len(x))]
    return AnnData(x.astype(np.float32), obs=pd.DataFrame({"batch": "a"}, index=names))


def test_an_anchor_in_the_middle_settles_nothing_and_the_report_says_so(symmetric: AnnData) -> None:
    report = ct.anchors.assess(symmetric, anchors=["cell0"], recipe="none")
    assert not report.identifies
    assert not report.automorphisms["broken"].any()
    assert len(report.unbroken) == report.automorphisms["relevant"].sum() > 0
    assert report.scores["cell0"] < 0.05
    text = repr(report)
    assert "Left open" in text
    assert "does not prove" in text
    assert "<table" in report._repr_html_()


def test_suggested_anchors_settle_what_can_be_settled(symmetric: AnnData) -> None:
    cells = symmetric.copy()
    barcodes = ct.anchors.suggest(cells, n=5, recipe="none")
    report = ct.anchors.assess(cells, anchors=list(barcodes), recipe="none")
    assert report.identifies
    assert list(report.scores.index) == list(barcodes)
    assert "are broken" in repr(report)
    assert cells.obs[KEY].between(0, 1).all()
    assert cells.obs[KEY].iloc[0] == cells.obs[KEY].min()


def test_cells_without_symmetry_are_said_to_have_none() -> None:
    x = np.random.default_rng(0).exponential(size=(500, 1)).astype(np.float32)
    report = ct.anchors.assess(
        AnnData(x), anchors=pd.DataFrame({"source_id": ["3"], "target_id": ["3"]}), recipe="none"
    )
    assert report.identifies
    assert report.automorphisms.empty
    assert report.scores.isna().all()
    assert "no symmetry" in repr(report)
    assert "<table" not in report._repr_html_()


def test_every_form_of_anchors_is_read(simulated: MuData) -> None:
    names = list(simulated["rna"].obs_names[:4])
    mask = simulated.obs_names.isin(names)
    simulated.obs["chosen"] = mask
    table = pd.DataFrame({"source_id": names, "target_id": names})
    for anchors in (names, mask, pd.Series(mask, index=simulated.obs_names), "chosen", table):
        report = ct.anchors.assess(simulated, source="rna", anchors=anchors)
        assert sorted(report.scores.index) == sorted(names)
    drawn = ct.anchors.assess(simulated, source="rna", target="atac", anchors=3, seed=1)
    assert set(drawn.scores.index) == set(resolve_anchors(simulated, "rna", "atac", 3, seed=1).source_id)


def test_nothing_is_written_but_the_score(simulated: MuData) -> None:
    before = simulated["rna"].copy()
    assert ct.anchors.assess(simulated, source="rna", anchors=5).n_cells == 400
    copied, barcodes = ct.anchors.suggest(simulated, source="rna", n=3, copy=True)
    assert KEY not in simulated["rna"].obs
    assert KEY in copied["rna"].obs
    written = ct.anchors.suggest(simulated, source="rna", n=3)
    assert list(written) == list(barcodes)
    pd.testing.assert_frame_equal(simulated["rna"].obs.drop(columns=KEY), before.obs)
    assert (simulated["rna"].X != before.X).nnz == 0
    assert KEY not in simulated["atac"].obs


def test_suggestions_come_from_the_cells_allowed_and_not_from_those_given(simulated: MuData) -> None:
    among, given = list(simulated.obs_names[:30]), list(simulated.obs_names[:5])
    barcodes = ct.anchors.suggest(simulated, source="rna", n=6, among=among, given=given, key_added="score")
    assert set(barcodes) <= set(among) - set(given)
    assert "score" in simulated["rna"].obs


def test_bad_requests_are_refused(simulated: MuData, symmetric: AnnData) -> None:
    with pytest.raises(ConfigError, match="n=0"):
        ct.anchors.suggest(simulated, source="rna", n=0)
    with pytest.raises(ConfigError, match="can be chosen"):
        ct.anchors.suggest(simulated, source="rna", n=10, among=list(simulated.obs_names[:3]))
    with pytest.raises(InputError, match="view"):
        ct.anchors.suggest(symmetric[:100], recipe="none")
    with pytest.raises(AnchorError, match="pass anchors="):
        ct.anchors.assess(symmetric, recipe="none")
    with pytest.raises(AnchorError, match="nobody"):
        ct.anchors.assess(symmetric, anchors=["nobody"], recipe="none")
    with pytest.raises(ModalityError, match="one modality"):
        ct.anchors.assess(symmetric, target="atac", anchors=["cell0"])


def test_three_random_anchors_rarely_raise_the_alarm(real_dataset: Callable[[str], MuData]) -> None:
    from celltransfer.verdict.symmetries import WARN_SIZE, breaks, find

    cells = real_dataset("snare_cortex")["rna"]
    x = ct.pp.rna().fit(cells).transform(cells)
    found = [h for h in find(x) if h.size >= WARN_SIZE]
    rng = np.random.default_rng(0)
    alarms = [any(not breaks(h, x[rng.choice(len(x), 3, replace=False)]) for h in found) for _ in range(100)]
    assert np.mean(alarms) <= 0.1
