"""Scores of conditional laws: closed forms, what is unbiased, and what they see that marginal scores do not."""

import numpy as np
import pytest
from celltransfer.errors import InputError
from celltransfer.experiments.suites import laws

N, CELLS = 400, 6


def normal(mean, sd=1.0, n=N, d=2, seed=0):
    """Samples (n, cells, d) about one mean per cell."""
    return np.asarray(mean)[None] + sd * np.random.default_rng(seed).normal(size=(n, len(mean), d))


MEANS = np.random.default_rng(9).normal(size=(CELLS, 2), scale=3)


def test_energy_distance_is_around_zero_for_the_truth_and_grows_with_the_shift():
    truth = normal(MEANS, seed=1)
    same = np.mean([laws.energy_distance(normal(MEANS, n=50, seed=s), truth).mean() for s in range(2, 12)])
    assert abs(same) < 0.01
    near, far = (laws.energy_distance(normal(MEANS + shift, seed=3), truth).mean() for shift in (0.5, 2.0))
    assert 0.05 < near < far


def test_the_right_marginal_law_of_the_wrong_cells_scores_badly():
    truth, other = normal(MEANS, seed=1), normal(MEANS[::-1], seed=2)
    assert laws.energy_distance(other, truth).mean() > 1
    assert laws.frechet_distance(other, truth).mean() > 1


def test_frechet_distance_is_the_closed_form_for_diagonal_gaussians():
    """|m - m'|^2 + sum (s - s')^2."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40_000, 1, 3)) * [1, 2, 0.5]
    b = rng.normal(size=(40_000, 1, 3)) * [2, 1, 0.5] + [1, 0, 0]
    assert laws.frechet_distance(a, b)[0] == pytest.approx(1 + 1 + 1, rel=0.03)
    assert laws.frechet_distance(a, a)[0] == pytest.approx(0, abs=1e-8)


def test_frechet_distance_agrees_with_roots_of_matrices_also_where_covariances_are_singular():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    a, b = rng.normal(size=(30, 1, 4)) @ mix, rng.normal(size=(25, 1, 4))
    s, t = np.cov(a[:, 0].T), np.cov(b[:, 0].T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert laws.frechet_distance(a, b)[0] == pytest.approx(expected)
    one = np.repeat(a[:1], 30, axis=0)  # a regression: no spread at all
    gap = np.square(one[0] - b.mean(0)).sum()
    assert laws.frechet_distance(one, b)[0] == pytest.approx(gap + np.trace(t))


def test_truths_of_different_numbers_of_samples():
    truth = normal(MEANS, seed=1)
    ragged = [truth[: 50 + i, i] for i in range(CELLS)]
    samples = normal(MEANS, seed=2)
    for score in (laws.energy_distance, laws.frechet_distance):
        np.testing.assert_allclose(score(samples, ragged)[2], score(samples[:, [2]], truth[:52, [2]])[0])


def test_another_number_of_cells_is_refused():
    with pytest.raises(InputError, match="as many"):
        laws.energy_distance(normal(MEANS), normal(MEANS[:-1]))


def test_energy_score_is_least_for_the_true_spread():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3000, 2))
    scores = {sd: laws.energy_score(normal(0 * y, sd, n=30, seed=1), y).mean() for sd in (0.3, 1.0, 2.0)}
    assert scores[1.0] < min(scores[0.3], scores[2.0])
    one = laws.energy_score(y[None] + 1, y)
    np.testing.assert_allclose(one, np.sqrt(2))


def test_modes_count_as_found_only_where_all_of_them_have_their_share():
    modes = np.stack([MEANS + [10, 0], MEANS - [10, 0]])
    both = np.concatenate([normal(modes[0], 0.1, 85), normal(modes[1], 0.1, 15)])
    assert laws.modes_found(both, modes, 1.0).all()
    assert not laws.modes_found(both, modes, 1.0, least=0.2).any()
    assert not laws.modes_found(normal(modes[0], 0.1), modes, 1.0).any()
    assert not laws.modes_found(normal(MEANS, 0.1), modes, 1.0).any()  # the mean of the modes is none of them
    radii = np.ones((2, CELLS))
    radii[1, 0] = 0.001
    assert laws.modes_found(both, modes, radii).tolist() == [False] + [True] * (CELLS - 1)
