import numpy as np
import pytest
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConditionError
from celltransfer.translators import make
from celltransfer.translators.baselines import anchor_and_condition_map, anchor_map
from celltransfer.translators.regression import ridge


def paired(n, seed=0, d=5, out=4, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x @ rng.normal(size=(d, out)) + noise * rng.normal(size=(n, out)) + 3


def every(n):
    return np.column_stack([np.arange(n), np.arange(n)])


def test_ridge_on_all_pairs_finds_a_linear_map():
    x, y = paired(300)
    np.testing.assert_allclose(make("ridge").fit(x, y, every(300)).translate(x), y, atol=0.5)


@pytest.mark.parametrize("method", ["ridge", "pls"])
def test_units_of_a_feature_do_not_matter(method):
    """Scales are seen, not assumed: all features in other units give the same translation."""
    x, y = paired(200)
    a = make(method).fit(x, y, every(15)).translate(x)
    b = make(method).fit(1000 * x, y, every(15)).translate(1000 * x)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_feature_that_does_not_vary_is_ignored():
    x, y = paired(200)
    wider = np.column_stack([x, np.full(200, 5.0)])
    a, b = (make("ridge").fit(v, y, every(15)) for v in (x, wider))
    np.testing.assert_allclose(a.translate(x), b.translate(wider), atol=1e-4)


def test_ridge_shrinks_noise_to_the_population_mean():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)), rng.normal(size=(500, 20)) + 7
    prediction = make("ridge").fit(x, y, every(12)).translate(x)
    assert np.square(prediction - y.mean(0)).mean() < 0.3


def test_one_anchor_gives_a_map_through_the_mean():
    x, y = paired(200)
    f = make("ridge").fit(x, y, np.array([[3, 3]]))
    towards = (f.translate(x[3:4]) - y.mean(0)) @ (y[3] - y.mean(0))
    assert towards > 0
    np.testing.assert_allclose(f.translate(x).mean(0), y.mean(0), atol=1.5)


def test_pls_finds_a_low_rank_map():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 10))
    y = x[:, :2] @ rng.normal(size=(2, 8))
    x = x * np.r_[3, 3, np.ones(8)]
    np.testing.assert_allclose(make("pls").fit(x, y, every(40)).translate(x), y, atol=0.3)


def test_condition_means():
    x, y = np.zeros((4, 2)), np.array([[0.0], [2.0], [10.0], [12.0]])
    codes = np.array([0, 0, 4, 4])
    f = make("condition_mean").fit(x, y, condition_x=codes, condition_y=codes)
    np.testing.assert_allclose(f.translate(x[:3], np.array([0, 4, 9]))[:, 0], [1, 11, 6])
    with pytest.raises(ConditionError, match="condition codes"):
        f.translate(x)


def test_chance_returns_target_cells_and_repeats_itself():
    x, y = paired(100)
    f = make("chance").fit(x, y, seed=1)
    drawn = f.translate(x)
    assert all((np.abs(y - row).sum(1) < 1e-4).any() for row in drawn)
    np.testing.assert_array_equal(f.translate(x[::-1])[::-1], drawn)
    assert len(np.unique(drawn[:, 0])) > 40


@pytest.mark.parametrize("method", ["ridge", "pls"])
@pytest.mark.parametrize("k", [10, 50])
def test_different_mixtures_of_cells_do_not_shift_the_translation(method, k):
    """Source 80/20 and target 20/80 of two types: the means of all cells are no partners, the anchors' are."""
    rng = np.random.default_rng(0)
    centres, truth = rng.normal(size=(2, 8)) * 4, rng.normal(size=(8, 5))

    def cells(share, n=600):
        return centres[(rng.random(n) < share).astype(int)] + rng.normal(size=(n, 8))

    x, other, test = cells(0.8), cells(0.2), cells(0.5)
    y = other @ truth + 0.1 * rng.normal(size=(600, 5))
    pairs = cells(0.5, k)
    x[:k], y[:k] = pairs, pairs @ truth
    error = np.square(make(method).fit(x, y, every(k)).translate(test) - test @ truth).mean()
    assert error < 0.1 * (test @ truth).var(axis=0).mean()


def test_condition_means_are_partners_that_need_no_pairing():
    """Three conditions in other shares on each side, no anchor: their means give the direction between them."""
    rng = np.random.default_rng(0)
    truth, centres = rng.normal(size=(6, 4)), 3 * rng.normal(size=(3, 6))
    codes_x, codes_y = rng.choice(3, 900, p=[0.6, 0.3, 0.1]), rng.choice(3, 900, p=[0.1, 0.3, 0.6])
    x = centres[codes_x] + rng.normal(size=(900, 6))
    y = (centres[codes_y] + rng.normal(size=(900, 6))) @ truth + 5
    pair = ModalityPair(x, y, condition_x=codes_x, condition_y=codes_y, conditions=("a", "b", "c"))
    weight, offset = anchor_and_condition_map(pair)
    np.testing.assert_allclose(centres @ weight + offset, centres @ truth + 5, atol=0.5)


def test_without_conditions_the_start_is_ridge_on_the_anchors():
    x, y = paired(100)
    pair = ModalityPair(x, y, every(9))
    for a, b in zip(anchor_and_condition_map(pair), anchor_map(ridge, pair), strict=True):
        np.testing.assert_array_equal(a, b)
