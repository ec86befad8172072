"""The verdict on likeness: right on sets that are known to be alike, to differ, or to be too small."""

import json

import numpy as np
import pytest
from celltransfer.errors import ConfigError, InputError
from celltransfer.verdict.alignment import Alignment, alignment
from celltransfer.verdict.two_sample import make_pool, measure
from scipy.stats import norm
from sklearn.datasets import make_moons


def distance(a, b, family="gaussian", seed=0):
    pool = make_pool(np.vstack([a, b]), np.ones(len(a) + len(b), dtype=bool), len(a) + len(b))
    return found(pool, len(a), family, seed).distance


def found(pool, n, family, seed=0):
    from celltransfer.verdict.two_sample import background

    rng, second = np.random.default_rng(seed), np.arange(n, len(pool.white))
    family, pool = background(pool, second, family, rng)
    return measure(pool, np.arange(n), second, family, rng)


def bimodal(n, rng, sd=0.1):
    return rng.choice([-1, 1], n) + sd * rng.normal(size=n)


def moons(n, seed):
    return make_moons(n, noise=0.1, random_state=seed)[0]


def clusters(n, d, rng, shares=(0.2,) * 5):
    centres = 1.5 * np.random.default_rng(7).normal(size=(5, d))
    return centres[rng.choice(5, n, p=shares)] + rng.normal(size=(n, d))


def test_gaussian_distance_is_the_closed_form():
    rng = np.random.default_rng(0)
    factor, gap = np.array([[1, 0.5], [0, 0.7]]), np.array([1.0, -0.5])
    a, b = rng.normal(size=(1500, 2)) @ factor + gap, rng.normal(size=(1500, 2))
    shared = (factor.T @ factor + np.eye(2)) / 2 + np.outer(gap, gap) / 4
    closed = np.linalg.slogdet(shared)[1] - np.linalg.slogdet(factor.T @ factor)[1] / 2
    assert distance(a, b) == pytest.approx(closed, abs=0.05)


def test_distance_of_a_flexible_map_into_a_weak_family():
    # Bimodal cells, moved two sd off a Gaussian target and made Gaussian on the way: L is -0.9, the distance 0.7.
    rng = np.random.default_rng(1)
    cells, b = bimodal(1500, rng), rng.normal(size=1500)
    uniform = (norm.cdf((cells + 1) / 0.1) + norm.cdf((cells - 1) / 0.1)) / 2
    a = norm.ppf(uniform) + 2
    entropy = np.log(2) + np.log(2 * np.pi * np.e * 0.01) / 2
    model_gap = np.log(2 * np.pi * np.e * 1.01) / 2 - entropy
    d = distance(a[:, None], b[:, None])
    assert d == pytest.approx(np.log(2), abs=0.08)
    assert d - model_gap == pytest.approx(-0.93, abs=0.1)
    assert alignment(a[:300, None], b[:300, None]).level == "not aligned"


def test_mixture_distance_is_twice_the_jensen_shannon_divergence():
    rng = np.random.default_rng(2)
    x = np.linspace(-10, 12, 20001)
    p, q = norm.pdf(x, 2), norm.pdf(x)
    kl = [np.trapezoid(side * np.log((side + 1e-300) / ((p + q) / 2 + 1e-300)), x) for side in (p, q)]
    a, b = rng.normal(size=(1500, 1)) + 2, rng.normal(size=(1500, 1))
    assert distance(a, b, "mixture") == pytest.approx(sum(kl), abs=0.05)


def test_mixture_distance_of_disjoint_sets_is_two_log_two():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(500, 3)) + 20, rng.normal(size=(500, 3))
    assert distance(a, b, "mixture") == pytest.approx(2 * np.log(2), abs=0.01)
    verdict = alignment(a, b)
    assert (verdict.level, verdict.cause) == ("not aligned", "disjoint")


def test_gaussian_distance_knows_neither_units_nor_rotations():
    rng = np.random.default_rng(4)
    a, b = clusters(300, 4, rng), rng.normal(size=(300, 4))
    change = rng.normal(size=(4, 4))
    assert distance(a @ change - 3, b @ change - 3) == pytest.approx(distance(a, b), abs=1e-6)


LIKE = {
    "gauss_1": lambda n, rng: rng.normal(size=(n, 1)),
    "moons": lambda n, rng: moons(n, int(rng.integers(2**31))),
    "clusters_20": lambda n, rng: clusters(n, 20, rng),
}


@pytest.mark.parametrize("law", LIKE)
def test_like_sets_are_aligned(law):
    levels = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        levels.append(alignment(LIKE[law](250, rng), LIKE[law](250, rng), seed=seed).level)
    assert levels.count("not aligned") == 0
    assert levels.count("aligned") >= 2


def ridge(n, rng):
    """Conditional means of noisy observations: right on average, and too narrow."""
    b = clusters(2 * n, 20, rng)
    x = b + rng.normal(size=b.shape)
    return (np.linalg.lstsq(x, b, rcond=None)[0].T @ x.T).T[:n], b[n:]


def unlike(name, n, rng):
    b = clusters(n, 20, rng)
    if name == "shift":
        return clusters(n, 20, rng) + 0.3 * b.std(axis=0), b
    if name == "scale":
        return 0.8 * clusters(n, 20, rng), b
    if name == "missing":
        return clusters(n, 20, rng, (0.25, 0.25, 0.25, 0.25, 0)), b
    if name == "copula":
        return np.stack([rng.permutation(column) for column in clusters(n, 20, rng).T], axis=1), b
    if name == "moments":
        b = moons(n, 0)
        return rng.multivariate_normal(b.mean(axis=0), np.cov(b.T), size=n), b
    return ridge(n, rng)


@pytest.mark.parametrize("name", ["shift", "scale", "missing", "copula", "moments", "ridge"])
def test_unlike_sets_are_not_aligned(name):
    verdict = alignment(*unlike(name, 500, np.random.default_rng(0)))
    assert verdict.level == "not aligned"
    assert verdict.cause in ("unlike supports", "unlike densities")


def test_cells_without_counterpart_are_told_from_cells_in_other_numbers():
    rng = np.random.default_rng(5)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])

    def draw(shares):
        return centres[rng.choice(3, 500, p=shares)] + rng.normal(size=(500, 2))

    b = draw([0.4, 0.3, 0.3])
    missing, fewer = alignment(draw([0.5, 0.5, 0]), b), alignment(draw([0.6, 0.3, 0.1]), b)
    assert (missing.level, missing.cause) == ("not aligned", "unlike supports")
    assert missing.evidence["covered_target"] == pytest.approx(0.7, abs=0.08)
    assert missing.evidence["covered_translated"] == pytest.approx(1, abs=0.05)
    assert (fewer.level, fewer.cause) == ("not aligned", "unlike densities")


def test_a_family_too_weak_to_see_the_difference_is_said():
    verdict = alignment(*unlike("moments", 500, np.random.default_rng(6)), family="gaussian")
    assert verdict.level == "not aligned"
    assert verdict.evidence["distance_p"] > 0.01
    assert any("too weak" in reason for reason in verdict.reasons)


def test_only_held_out_cells_are_judged():
    # The map has learnt its own cells by heart, and is off elsewhere.
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 600, 5))
    held = np.arange(600) < 200
    a[held] *= 0.5
    verdict = alignment(a, b, held_a=held, held_b=held)
    assert verdict.evidence["held_translated"] == verdict.evidence["held_target"] == 200
    assert verdict.level == "not aligned"


def test_material_differences_alone_count():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 4000, 1))
    verdict = alignment(a + 0.08, b, family="gaussian")
    assert verdict.level == "aligned"
    assert verdict.evidence["distance_share"] < 0.02


def test_few_cells_cannot_tell_likeness_but_can_tell_difference():
    rng = np.random.default_rng(9)
    b = rng.normal(size=(500, 5))
    few, some = alignment(rng.normal(size=(30, 5)), b), alignment(rng.normal(size=(60, 5)), b)
    assert few.level == some.level == "cannot be told"
    assert "about 200" in few.reasons[-1]
    assert "would tell" in some.reasons[-1]
    assert alignment(rng.normal(size=(60, 5)) + 2, b).level == "not aligned"


def test_copies_of_target_cells_are_alike():
    rng = np.random.default_rng(10)
    b = rng.normal(size=(300, 4))
    assert alignment(b, b).level == "aligned"
    assert alignment(b[rng.integers(300, size=300)], b).level != "not aligned"


def test_broken_and_constant_translations_are_not_aligned():
    b = np.random.default_rng(11).normal(size=(200, 3))
    broken = b.copy()
    broken[3, 1] = np.nan
    assert alignment(broken, b).level == "not aligned"
    assert "1 of 200" in alignment(broken, b).reasons[0]
    assert alignment(np.zeros_like(b), b).level == "not aligned"
    assert alignment(b, np.zeros_like(b)).level == "cannot be told"


def test_unequal_numbers_ties_and_features_beyond_cells_are_handled():
    rng = np.random.default_rng(12)
    assert alignment(rng.normal(size=(150, 3)), rng.normal(size=(5000, 3))).level == "aligned"
    assert alignment(rng.poisson(1, (300, 1)), rng.poisson(1, (300, 1))).level == "aligned"
    wide = rng.normal(size=(300, 400))
    assert alignment(rng.normal(size=(300, 400)), wide, n_splits=5).level != "not aligned"
    assert alignment(rng.normal(size=(300, 400)) + 0.3, wide, n_splits=5).level == "not aligned"


def test_input_that_cannot_be_compared_is_refused():
    b = np.random.default_rng(13).normal(size=(100, 3))
    with pytest.raises(InputError, match="same features"):
        alignment(b[:, :2], b)
    with pytest.raises(InputError, match="NaN"):
        alignment(b, np.where(b > 2, np.nan, b))
    with pytest.raises(InputError, match="mask"):
        alignment(b, b, held_a=np.ones(99, dtype=bool))
    with pytest.raises(ConfigError, match="family"):
        alignment(b, b, family="glow")
    with pytest.raises(ConfigError, match="n_splits"):
        alignment(b, b, n_splits=1)


def test_same_seed_same_verdict_through_json():
    rng = np.random.default_rng(14)
    a, b = rng.normal(size=(2, 120, 2))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    verdict = alignment(a, b, seed=3)
    assert verdict == alignment(a, b, seed=3)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert Alignment.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert all(type(value) is float for value in verdict.evidence.values())


@pytest.mark.slow
def test_flows_see_moons():
    b = moons(600, 0)
    verdict = alignment(moons(300, 1), b, family="realnvp", n_splits=3)
    assert verdict.level == "aligned"
    # What is finer than the resolution does not count, and what is left of these is too little for so few cells.
    gaussian = np.random.default_rng(0).multivariate_normal(b.mean(axis=0), np.cov(b.T), size=300)
    verdict = alignment(gaussian, b, family="realnvp", n_splits=3)
    assert verdict.level == "cannot be told"
    verdict = alignment(moons(300, 1) @ np.diag([1.0, -1.0]), b, family="realnvp", n_splits=3)
    assert verdict.level == "not aligned"
    assert verdict.evidence["distance_share"] > 0.03
