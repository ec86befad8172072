"""The score test: a chi-square law for Gaussian cells, calibrated for all others, and it sees a shift."""

import numpy as np
import pytest
from celltransfer.errors import ConfigError, InputError
from celltransfer.verdict.shift import score_test
from scipy.stats import kstest


def test_statistic_is_the_multiplier_statistic_of_the_gaussian_family():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(60, 3)) * [1, 2, 1]
    both = np.vstack([a, b])
    factor = np.linalg.cholesky(np.cov(both.T, bias=True))
    z = np.linalg.solve(factor, (both - both.mean(axis=0)).T).T
    mean = z[:40].mean(axis=0) - z[40:].mean(axis=0)
    second = z[:40].T @ z[:40] / 40 - z[40:].T @ z[40:] / 60
    test = score_test(a, b)
    assert test.statistic == pytest.approx(24 * (mean @ mean + (second**2).sum() / 2))
    assert test.df == 9
    assert test.contributions.sum() == pytest.approx(test.statistic)
    assert test.contributions.argmax() == 1


def test_statistic_knows_neither_units_nor_rotations():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(70, 4)) + 0.2
    change = rng.normal(size=(4, 4))
    assert score_test(a @ change + 5, b @ change + 5).statistic == pytest.approx(score_test(a, b).statistic)


def test_chi_square_law_holds_for_gaussian_cells():
    rng = np.random.default_rng(2)
    p = [score_test(*rng.normal(size=(2, 200, 3)), n_permutations=1).p_chi2 for _ in range(200)]
    assert kstest(p, "uniform").pvalue > 0.01


def test_relabelling_is_calibrated_where_the_chi_square_law_is_not():
    rng = np.random.default_rng(3)
    tests = [score_test(*rng.standard_t(3, size=(2, 50, 8)), n_permutations=99) for _ in range(200)]
    assert kstest([test.p_value for test in tests], "uniform").pvalue > 0.01
    assert np.mean([test.p_chi2 < 0.05 for test in tests]) > 0.2


@pytest.mark.parametrize("change", [lambda x: x + [0.6, 0, 0, 0], lambda x: 0.7 * x])
def test_a_shift_and_a_spread_are_seen(change):
    rng = np.random.default_rng(4)
    p = [score_test(change(rng.normal(size=(300, 4))), rng.normal(size=(300, 4))).p_value for _ in range(20)]
    assert np.mean(np.array(p) < 0.01) >= 0.95


def test_more_features_than_cells_are_tested():
    rng = np.random.default_rng(5)
    b = rng.normal(size=(40, 200))
    assert score_test(rng.normal(size=(40, 200)) + 1, b).p_value < 0.01
    assert score_test(rng.normal(size=(40, 200)), b).p_value > 0.01


def test_equal_sets_have_statistic_zero():
    a = np.random.default_rng(6).normal(size=(30, 2))
    test = score_test(a, a)
    assert test.statistic == pytest.approx(0, abs=1e-9)
    assert test.p_value == 1
    assert isinstance(test.to_dict()["contributions"], list)


def test_what_cannot_be_tested_is_said():
    a = np.ones((10, 2))
    for first, second, match in ((a, a, "No feature varies"), (a, a[:2], "4 or more"), (a, a[:, :1], "same features")):
        with pytest.raises(InputError, match=match):
            score_test(first, second)
    with pytest.raises(InputError, match="NaN"):
        score_test(a, a * np.nan)
    with pytest.raises(ConfigError, match="no score test"):
        score_test(a, a, family="realnvp")
