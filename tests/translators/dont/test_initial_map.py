"""Where transport starts."""

import numpy as np
import pytest
from celltransfer.data.pair import ModalityPair
from celltransfer.translators.dont.initial_map import place


def cells(n=500, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.gamma(2.0, size=(n, d)) * [3.0, 2.0, 1.0, 0.5][:d]).astype(np.float32)


ROWS = np.column_stack([np.arange(30)] * 2)


def test_shared_features_start_at_the_cells_themselves():
    x = cells()
    start = place(ModalityPair(x, x, ROWS, shared=True), "auto")
    np.testing.assert_array_equal(x @ start.weight + start.offset, x)


def test_anchors_lay_cells_near_their_partners():
    x = cells()
    y = x @ np.random.default_rng(1).normal(size=(4, 3)) + 1
    start = place(ModalityPair(x, y, ROWS), "auto")
    assert np.square(x @ start.weight + start.offset - y).mean() < 0.01 * y.var(0).mean()
    assert "anchors" in start.reason


@pytest.mark.parametrize("widths", [(4, 4), (4, 2)])
def test_moments_are_matched_where_there_are_dimensions_enough(widths):
    x, y = cells(d=widths[0]), cells(d=widths[1], seed=1) @ np.random.default_rng(2).normal(size=(widths[1],) * 2)
    start = place(ModalityPair(x, y, ROWS[:2]), "moments")
    laid = x @ start.weight + start.offset
    np.testing.assert_allclose(laid.mean(0), y.mean(0), atol=1e-3)
    np.testing.assert_allclose(np.cov(laid.T), np.cov(y.T), rtol=0.05, atol=0.02)


def test_moments_turned_by_anchors_find_a_rotation():
    x = cells(1000)
    y = (x @ np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))[0]).astype(np.float32)
    start = place(ModalityPair(x, y, ROWS), "moments")
    assert np.square(x @ start.weight + start.offset - y).mean() < 0.02 * y.var(0).mean()


def test_without_anything_components_are_matched_by_order_and_skewness_and_that_is_said():
    x = cells(2000)
    y = (x * [1.0, -1.0, 1.0, -1.0]).astype(np.float32)[np.random.default_rng(0).permutation(2000)]
    start = place(ModalityPair(x, y), "auto")
    assert "guess" in start.reason
    assert np.square(x @ start.weight + start.offset - x * [1, -1, 1, -1]).mean() < 0.05 * x.var(0).mean()


@pytest.mark.parametrize("start", ["auto", "moments"])
def test_what_says_nothing_is_not_known(start):
    x, y = cells(), cells(seed=1)
    codes = np.arange(500) % 2
    alike = np.repeat(x[:250], 2, axis=0), np.repeat(y[:250], 2, axis=0)
    twins = x.copy()
    twins[1] = twins[0]
    for pair in (
        ModalityPair(x, y, links=np.zeros((4, 4), np.float32)),
        ModalityPair(*alike, condition_x=codes, condition_y=codes),
        ModalityPair(twins, y, ROWS[:2]),
    ):
        assert "guess" in place(pair, start).reason


def test_links_and_conditions_count():
    x, y = cells(), cells(seed=1)
    links = np.eye(4, dtype=np.float32)
    assert "links" in place(ModalityPair(x, y, links=links), "auto").reason
    codes = np.arange(500) % 3
    assert "conditions" in place(ModalityPair(x, y, condition_x=codes, condition_y=codes), "auto").reason
