from __future__ import annotations

import numpy as np
import pytest
from celltransfer.errors import ConfigError, InputError
from celltransfer.metrics.bootstrap import better, difference, interval, intervals, not_below


def two_way(rng, n_seeds, n_cells, sd_seed=0.5, sd_cell=1.0, sd_noise=1.0):
    """Scores of mean zero with an effect of the seed, of the cell, and of both together."""
    seeds, cells = rng.normal(size=(n_seeds, 1)), rng.normal(size=(1, n_cells))
    return sd_seed * seeds + sd_cell * cells + sd_noise * rng.normal(size=(n_seeds, n_cells))


@pytest.mark.parametrize(
    ("n_seeds", "n_cells", "sd_seed", "lowest"), [(1, 60, 0.0, 0.9), (5, 60, 0.0, 0.9), (20, 60, 0.5, 0.88)]
)
def test_interval_covers_the_mean_as_often_as_it_says(n_seeds, n_cells, sd_seed, lowest):
    rng = np.random.default_rng(0)
    intervals = [interval(two_way(rng, n_seeds, n_cells, sd_seed), n_boot=400, seed=i) for i in range(300)]
    coverage = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert lowest <= coverage <= 0.995


def test_treating_seeds_as_cells_would_be_too_sure():
    values = two_way(np.random.default_rng(1), 10, 50, sd_cell=2.0, sd_noise=0.1, sd_seed=0.0)
    honest, naive = interval(values), interval(values.ravel())
    assert honest.high - honest.low > 2 * (naive.high - naive.low)


def test_pairing_removes_what_is_common():
    rng = np.random.default_rng(2)
    common = two_way(rng, 5, 100)
    a, b = common + 0.05 + 0.02 * rng.normal(size=common.shape), common
    paired = difference(a, b)
    assert 0.04 < paired.low < paired.mean < paired.high < 0.06
    assert interval(a).low < 0 < interval(a).high


def test_better_and_not_below_read_the_bound():
    rng = np.random.default_rng(3)
    b = rng.uniform(0.2, 0.4, size=(5, 200))
    noise = 0.01 * rng.normal(size=b.shape)
    assert better(b - 0.03 + noise, b)
    assert not better(b + noise, b)
    assert better(b + 0.03 + noise, b, lower_is_better=False)
    assert not_below(b + 0.004 + noise, b)
    assert not not_below(b + 0.012 + noise, b)
    assert not_below(b - 0.004 + noise, b, lower_is_better=False)


def test_cells_that_are_not_scored_have_no_say():
    values = np.array([[0.0, np.nan, 1.0, 0.5], [0.5, 1.0, np.nan, 0.0]])
    result = interval(values)
    assert result.mean == pytest.approx(0.5)
    assert np.isfinite([result.low, result.high]).all()
    assert (result.n_seeds, result.n_cells) == (2, 4)


def test_same_seed_same_interval():
    values = np.random.default_rng(4).normal(size=(3, 50))
    assert interval(values, seed=1) == interval(values, seed=1) != interval(values, seed=2)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="not empty"):
        interval(np.empty((0, 3)))
    with pytest.raises(InputError, match="NaN for every cell"):
        interval(np.full(3, np.nan))
    with pytest.raises(InputError, match="the same twice"):
        difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ConfigError, match="level=95"):
        interval(np.zeros(3), level=95)


def test_scores_share_resamples_and_keep_their_own_gaps():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 80))
    b[::3] = np.nan
    both = intervals({"a": a, "b": b}, seed=4)
    assert both == {"a": interval(a, seed=4), "b": interval(b, seed=4)}
    assert both["b"].mean == pytest.approx(np.nanmean(b))
    with pytest.raises(InputError, match="different shapes"):
        intervals({"a": a, "b": b[1:]})
    assert intervals({}) == {}
