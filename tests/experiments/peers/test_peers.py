"""Peers: what they say about themselves, and that those which can run keep to the rules."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.errors import ConfigError, InputError
from celltransfer.experiments import peers
from celltransfer.experiments.peers import crossmodal
from celltransfer.experiments.peers.base import Matching, lent_to_numpy
from celltransfer.metrics import protocol

ALWAYS = ["pot_egw", "pot_fgw", "cmae"]
SECONDS = 2


@pytest.fixture(scope="module")
def mdata():
    return ct.datasets.simulate(n_obs=400, n_genes=60, n_peaks=80, rna_depth=2000, atac_depth=2000, seed=1)


@pytest.fixture(scope="module")
def task(mdata):
    return protocol.make_task(mdata, "rna", "atac", n_anchors=60, seed=0)


@pytest.fixture(scope="module")
def unpaired(mdata):
    return protocol.make_task(mdata, "rna", "atac", n_anchors=0, seed=0)


@pytest.fixture(scope="module")
def values(mdata):
    return protocol.make_task(mdata, "rna", "atac", n_anchors=60, kinds={"rna": "none", "atac": "none"})


def _check(task, prediction) -> None:
    matrix, names = prediction
    assert matrix.shape == (task.source_test.n_obs, len(names))
    assert np.isfinite(matrix).all()
    assert set(names) <= set(task.truth.var_names)


@pytest.mark.parametrize("name", peers.names())
def test_facts(name: str) -> None:
    facts = peers.about(name)
    assert {"title", "reference", "package", "licence", "transductive", "uses_anchors", "needs", "given"} == set(facts)
    assert all(isinstance(facts[key], bool) for key in ("transductive", "uses_anchors"))
    assert facts["package"] in peers.versions(name)


def test_unknown_peer() -> None:
    with pytest.raises(ConfigError, match="no peer 'magic'"):
        peers.missing("magic")


@pytest.mark.parametrize("name", ALWAYS)
def test_peers_without_extra_packages_are_there(name: str) -> None:
    assert peers.missing(name) is None


@pytest.mark.parametrize("name", peers.names())
def test_a_peer_translates_or_says_why_not(name: str, task) -> None:
    reason = peers.missing(name)
    if reason is not None:
        assert "pip install" in reason
        with pytest.raises(ConfigError, match="is not installed"):
            peers.translate(name, task, seed=0, max_seconds=1)
        return
    reason = peers.applies(name, task)
    if reason is not None:
        with pytest.raises(InputError, match="does not apply"):
            peers.translate(name, task, seed=0, max_seconds=1)
        return
    _check(task, peers.translate(name, task, seed=0, max_seconds=SECONDS))


def test_reasons(task, unpaired, values) -> None:
    assert "pairs" in peers.applies("pot_fgw", unpaired)
    assert peers.applies("pot_fgw", task) is None
    assert peers.applies("pot_egw", unpaired) is None
    assert "rna to protein" in peers.applies("totalvi", task)
    assert "pairs" in peers.applies("multivi", unpaired)
    assert "none and none" in peers.applies("multivi", values)


def test_feature_links_are_needed(task) -> None:
    mdata = task.mdata.copy()
    mdata.mod["atac"].var["linked_gene"] = "no such gene"
    assert "feature links" in peers.applies("scglue", replace(task, mdata=mdata))
    mdata.mod["atac"].var["linked_gene"] = list(mdata.mod["rna"].var_names[:1]) * mdata.mod["atac"].n_vars
    assert peers.applies("scglue", replace(task, mdata=mdata)) is None


def test_numpy_gets_back_what_it_lent() -> None:
    with lent_to_numpy(int=int, float64=None):
        assert vars(np)["int"] is int
        assert np.float64 is not None
    assert not hasattr(np, "int")


def test_guide_names_every_peer() -> None:
    guide = Path(__file__).parents[3] / "docs" / "peers.md"
    if not guide.is_file():
        pytest.skip("not run from a checkout")
    text = guide.read_text()
    for name in peers.names():
        facts = peers.about(name)
        assert f"`{name}`" in text
        assert all(str(facts[fact]) in text for fact in ("title", "reference", "needs", "given"))


def test_anchors_lead_beyond_chance(task) -> None:
    prediction = peers.translate("pot_fgw", task, seed=0, max_seconds=SECONDS)
    assert protocol.score(task, prediction, spearman=False)["foscttm"] < 0.4


def test_pairs_align_the_autoencoders(task, monkeypatch) -> None:
    # The published weight of the pairs, .1, and learning rate take much longer.
    monkeypatch.setattr(crossmodal, "WEIGHT_PAIRS", 10.0)
    monkeypatch.setattr(crossmodal, "LEARNING_RATE", 1e-3)
    monkeypatch.setattr(crossmodal, "MAX_EPOCHS", 60)
    prediction = peers.translate("cmae", task, seed=0, max_seconds=60)
    assert protocol.score(task, prediction, spearman=False)["foscttm"] < 0.4


def test_without_anchors_and_on_other_values(unpaired, values) -> None:
    _check(unpaired, peers.translate("cmae", unpaired, seed=0, max_seconds=1))
    _check(values, peers.translate("pot_fgw", values, seed=0, max_seconds=1))


@pytest.mark.parametrize("name", ["pot_egw", "pot_fgw", "cmae"])
def test_time_limit(name: str, task) -> None:
    start = time.perf_counter()
    peers.translate(name, task, seed=0, max_seconds=0.5)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["pot_fgw", "cmae"])
def test_blind_to_the_names_of_target_cells(name: str, task, monkeypatch) -> None:
    monkeypatch.setattr(crossmodal, "MAX_EPOCHS", 2)

    def translated(mdata, anchors, source_test):
        shown = replace(task, mdata=mdata, anchors=anchors, source_test=source_test)
        return peers.translate(name, shown, seed=0, max_seconds=60)[0]

    assert protocol.leak_test(translated, task)


def test_a_crowd_is_subsampled(task) -> None:
    match = Matching.of(task, 80, seed=0)
    assert len(match.x) == len(match.y) == 80
    paired = match.source.obs_names[: match.n_anchors], match.target.obs_names[: match.n_anchors]
    assert [list(names) for names in paired] == [list(task.anchors[c]) for c in ("source_id", "target_id")]
    matrix, _ = match.project(np.ones((80, 80)))
    assert len(matrix) == task.source_test.n_obs
    np.testing.assert_allclose(matrix, np.broadcast_to(match.values.mean(axis=0), matrix.shape), rtol=1e-4)


def test_global_generators_are_put_back(task) -> None:
    before = np.random.get_state()[1]  # noqa: NPY002
    peers.translate("pot_fgw", task, seed=0, max_seconds=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
