"""Feature links in the methods that use them, and in the fit, the file and the command that hand them on."""

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import CelltransferWarning, FeatureError, InputError
from celltransfer.metrics.scores import foscttm
from celltransfer.translators import get, make
from celltransfer.translators.matching.transport import Clouds


def planted(k, n=500, d=6):
    """Cells of two unpaired clouds that are their own mirror images, k pairs, the true map, and where cells belong."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(d + 2, d + 2)))[0][:d] * 1.7
    scales = np.linspace(2, 0.7, d)
    x, other = (rng.laplace(size=(n, d)) * scales for _ in range(2))
    other[:k] = x[:k]
    return x, other @ turn, np.column_stack([np.arange(k)] * 2), turn, x @ turn


def test_links_orient_what_shapes_leave_open():
    x, y, anchors, turn, truth = planted(0, n=250)
    rough = turn + np.random.default_rng(1).normal(size=turn.shape)
    with_links, without = (
        foscttm(make("consensus", n_starts=3).fit(x, y, anchors, links=links).translate(x), truth)
        for links in (rough, None)
    )
    assert without > 0.1
    assert with_links < 0.03
    assert with_links < foscttm(x @ rough, truth)


def test_links_that_contradict_the_anchors_and_the_shapes_do_little_harm():
    x, y, anchors, turn, truth = planted(20)
    wrong = turn[np.random.default_rng(2).permutation(len(turn))]
    found = make("consensus", n_starts=3).fit(x, y, anchors, links=wrong).translate(x)
    assert foscttm(x @ wrong, truth) > 0.3
    assert foscttm(found, truth) < 0.06


def test_auto_hands_links_on_to_its_members():
    x, y, anchors, turn, truth = planted(0, n=200)
    fitted = make("auto", methods=["consensus"]).fit(x, y, anchors, links=turn)
    assert foscttm(fitted.translate(x), truth) < 0.05


def test_sparse_links_are_the_same_links():
    x, y, anchors, turn, _ = planted(5, n=100)
    clouds = [
        Clouds.of(ModalityPair(x, y, anchors, links=links), (0, 0), 0.1, np.random.default_rng(0))
        for links in (turn, sp.csr_matrix(turn))
    ]
    np.testing.assert_allclose(clouds[0].links, clouds[1].links, atol=1e-6)
    assert np.linalg.norm(clouds[0].links) == pytest.approx(1)


def test_links_that_say_nothing_are_none():
    x, y, anchors, turn, _ = planted(5, n=100)
    pair = ModalityPair(x, y, anchors, links=0 * turn)
    assert Clouds.of(pair, (0, 0), 0.1, np.random.default_rng(0)).links is None


def test_links_of_another_shape_are_refused():
    x, y, anchors, turn, _ = planted(5, n=100)
    with pytest.raises(InputError, match=r"links have shape \(8, 6\); expected \(6, 8\)"):
        make("consensus").fit(x, y, anchors, links=turn.T)


def test_methods_without_links_fit_the_same():
    x, y, anchors, turn, _ = planted(5, n=100)
    assert not get("ridge").uses_links
    same = (make("ridge").fit(x, y, anchors, links=links).translate(x) for links in (turn, None))
    np.testing.assert_array_equal(*same)


@pytest.fixture
def linked(cells):
    """A MuData, and links of every peak to some gene."""
    genes, peaks = cells["rna"].var_names, cells["atac"].var_names
    return cells, pd.DataFrame({"source": np.resize(genes, len(peaks)), "target": peaks})


def test_a_fit_with_links_keeps_them_in_its_file(linked, tmp_path):
    cells, links = linked
    model = ct.fit(cells, train="train", anchors=5, links=links, method="consensus", n_starts=1, verdict=False)
    assert model.links.shape == (model.translator.n_features_in_, model.translator.n_features_out_)
    model.save(tmp_path / "m")
    with pytest.warns(CelltransferWarning):
        again = ct.load(tmp_path / "m")
    np.testing.assert_array_equal(again.links.toarray(), model.links)


def test_a_fit_says_that_its_method_ignores_links(linked):
    cells, links = linked
    with pytest.warns(CelltransferWarning, match="ignores feature links"):
        ct.fit(cells, train="train", links=links, method="ridge", verdict=False)


def test_a_fit_refuses_links_between_other_features(linked):
    cells, links = linked
    with pytest.raises(FeatureError, match="None of 90 links joins"):
        ct.fit(cells, train="train", links=links.assign(source="nobody"))


def test_the_command_reads_links_from_a_table(linked, tmp_path):
    from celltransfer.cli import app
    from typer.testing import CliRunner

    cells, links = linked
    cells.write(tmp_path / "cells.h5mu")
    links.to_csv(tmp_path / "links.csv", index=False)
    options = "--anchors 5 --train train --method consensus -O n_starts=0".split()
    files = [str(tmp_path / "cells.h5mu"), "--model", str(tmp_path / "m"), "--links", str(tmp_path / "links.csv")]
    result = CliRunner().invoke(app, ["fit", *files, *options])
    assert result.exit_code == 0, result.output
    with pytest.warns(CelltransferWarning):
        assert ct.load(tmp_path / "m").links is not None
