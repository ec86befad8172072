"""Symmetries that are there are found, those that are not are not, and anchors are judged by what they break."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from celltransfer.errors import ConfigError, InputError
from celltransfer.metrics.scores import energy_distance
from celltransfer.verdict.symmetries import (
    Automorphism,
    ambiguity,
    breaks,
    choose,
    displacement,
    find,
    informativeness,
)

N = 2000


def _gaussian(rho: float = 0.6) -> np.ndarray:
    root = np.linalg.cholesky([[1.0, rho], [rho, 1.0]])
    return np.random.default_rng(0).standard_normal((N, 2)) @ root.T


def _two_clusters(share: float = 0.5) -> np.ndarray:
    """Two skewed clusters of one shape, which no turn of the plane maps onto each other, and a third one."""
    rng = np.random.default_rng(0)
    which = rng.choice(3, N, p=[0.7 * share, 0.7 * (1 - share), 0.3])
    shape = np.column_stack([rng.exponential(1.0, N), 0.5 * rng.standard_normal(N)])
    odd = 2 * rng.standard_normal((N, 2))
    return np.array([[0.0, 0.0], [8.0, 1.0], [3.0, 9.0]])[which] + np.where((which == 2)[:, None], odd, shape)


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    return _gaussian()


@pytest.fixture(scope="module")
def sparse_symmetries(gaussian: np.ndarray) -> list[Automorphism]:
    return find(gaussian, axes="features")


def test_correlated_gaussian_has_two_swaps_and_their_product_and_no_flip(
    sparse_symmetries: list[Automorphism],
) -> None:
    assert sorted(h.kind for h in sparse_symmetries) == ["point reflection", "swap", "swap"]
    sizes = sorted(h.size for h in sparse_symmetries)
    # E||Sx - x||^2 = 2 Var(x_1 - x_2) = 4 (1 - rho), over the variance 2; and the same with 1 + rho.
    np.testing.assert_allclose(sizes, [0.8, 3.2, 4.0], atol=0.1)


def test_swap_moves_cells_as_it_says(gaussian: np.ndarray, sparse_symmetries: list[Automorphism]) -> None:
    swap = min(sparse_symmetries, key=lambda h: h.size)
    np.testing.assert_allclose(swap(gaussian), gaussian[:, ::-1], atol=0.1)
    np.testing.assert_allclose(swap(swap(gaussian)), gaussian, atol=1e-5)
    on_diagonal, off = gaussian.mean(axis=0) + [[1.5, 1.5], [1.0, -1.0]]
    assert displacement(swap, on_diagonal[None])[0] < 0.1
    assert displacement(swap, off[None])[0] > 1


@pytest.mark.parametrize(
    ("anchor", "identified"), [((0.0, 0.0), 0), ((1.5, 1.5), 2), ((1.5, -1.5), 2), ((2.0, 0.2), 3)]
)
def test_an_anchor_near_a_fixed_set_breaks_nothing(
    gaussian: np.ndarray,
    sparse_symmetries: list[Automorphism],
    anchor: tuple[float, float],
    identified: int,
) -> None:
    point = gaussian.mean(axis=0)[None] + np.array(anchor)
    assert sum(breaks(h, point) for h in sparse_symmetries) == identified


def test_informativeness_predicts_which_map_wins(gaussian: np.ndarray, sparse_symmetries: list[Automorphism]) -> None:
    """f = 2 P x, one anchor with noise of a tenth of a standard deviation; maps f o h compete for it."""
    rng = np.random.default_rng(1)
    noisy = 2 * gaussian[:, ::-1] + 0.2 * rng.standard_normal(gaussian.shape)
    maps = [gaussian, *(h(gaussian) for h in sparse_symmetries)]
    misfit = [np.square(2 * points[:, ::-1] - noisy).sum(axis=1) for points in maps]
    right = np.argmin(misfit, axis=0) == 0
    broken = np.all([displacement(h, gaussian) >= h.threshold for h in sparse_symmetries], axis=0)
    assert right[broken].mean() > 0.97
    assert right[~broken].mean() < 0.9
    score = informativeness(sparse_symmetries, gaussian)
    ordered = right[np.argsort(score)]
    assert ordered[-N // 4 :].mean() > 0.98 > 0.9 > ordered[: N // 4].mean()


def test_ring_has_a_family_and_two_anchors_break_it() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, N)
    x = np.column_stack([np.cos(angle), np.sin(angle)]) * (1 + 0.1 * rng.standard_normal((N, 1)))
    found = find(x)
    assert {"point reflection", "flip", "swap"} <= {h.kind for h in found}
    assert len(found) >= 5
    alone = [all(breaks(h, x[[row]]) for h in found) for row in range(100)]
    assert not all(alone)
    assert all(breaks(h, np.array([[1.0, 0.1], [-0.5, 0.8]])) for h in found)


def test_threefold_rotation_and_mirrors() -> None:
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 3, N) * 2 * np.pi / 3 + 0.3
    x = 4 * np.column_stack([np.cos(angle), np.sin(angle)]) + 0.5 * rng.standard_normal((N, 2))
    found = find(x)
    rotation = next(h for h in found if h.kind == "rotation")
    np.testing.assert_allclose(rotation(rotation(rotation(x))), x, atol=1.5)
    # Each mirror leaves one blob in place: an anchor at a blob's centre leaves its mirror unbroken.
    blobs = 4 * np.column_stack(
        [np.cos([0.3 + i * 2 * np.pi / 3 for i in range(3)]), np.sin([0.3 + i * 2 * np.pi / 3 for i in range(3)])]
    )
    assert [sum(not breaks(h, blob[None]) for h in found) for blob in blobs] == [1, 1, 1]


def test_swap_of_like_clusters_is_found_and_is_not_linear() -> None:
    x = _two_clusters()
    swaps = [h for h in find(x) if h.kind == "cluster swap"]
    assert swaps
    h = min(swaps, key=lambda h: h.misfit)
    # Back again, but for the few cells that leave the cluster they are moved to.
    assert np.quantile(np.linalg.norm(h(h(x)) - x, axis=1), 0.95) < 1e-6
    assert (h.distance(x) == 0).mean() == pytest.approx(0.3, abs=0.1)
    assert energy_distance(h(x), x) < 0.05


def test_clusters_of_unlike_weight_are_not_swapped() -> None:
    assert not [h for h in find(_two_clusters(0.7)) if h.kind == "cluster swap" and h.match > 0]


def test_no_symmetry_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    centre, spread = np.array([[0.0, 0.0], [5.0, 1.0], [1.0, 4.0]]), np.array([1.0, 0.5, 0.7])
    which = rng.choice(3, N, p=[0.55, 0.15, 0.3])
    x = centre[which] + spread[which, None] * rng.standard_normal((N, 2)) * [1.0, 0.5]
    assert find(x) == []
    assert find(x, axes="features") == []
    assert np.isnan(informativeness([], x)).all()
    assert ambiguity(x, np.array([0])) is None


def test_what_is_found_leaves_the_law_as_it_is() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.laplace(size=(N, 3)) * [3, 2, 1], 0.05 * rng.standard_normal((N, 10))])
    found = find(x)
    assert found
    for h in found:
        assert h.size >= 0.05
        assert energy_distance(h(x[::2]), x[1::2]) < 0.05
        assert np.sqrt(np.mean(displacement(h, x) ** 2)) == pytest.approx(1, abs=0.02)


def test_noise_is_not_searched() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.exponential(1.0, N), 0.1 * rng.standard_normal((N, 5))])
    assert find(x) == []


def test_the_same_seed_finds_the_same_and_sparse_cells_are_read(gaussian: np.ndarray) -> None:
    first, second = find(gaussian, seed=3), find(sp.csr_matrix(gaussian.astype(np.float32)), seed=3)
    assert [h.label for h in first] == [h.label for h in second]
    points = sp.csr_matrix(gaussian[:5].astype(np.float32))
    np.testing.assert_allclose(displacement(first[0], gaussian[:5]), displacement(second[0], points), rtol=1e-3)


def test_units_do_not_matter(gaussian: np.ndarray) -> None:
    one, other = find(gaussian), find(1000 * gaussian + 5)
    assert [(h.kind, round(h.size, 3)) for h in one] == [(h.kind, round(h.size, 3)) for h in other]


def test_chosen_cells_break_what_is_open_and_are_no_duplicates(
    gaussian: np.ndarray, sparse_symmetries: list[Automorphism]
) -> None:
    first = choose(gaussian, 1, sparse_symmetries)
    assert all(breaks(h, gaussian[first]) for h in sparse_symmetries)
    rows = choose(gaussian, 6, sparse_symmetries)
    assert len(set(rows)) == 6
    gaps = np.linalg.norm(gaussian[rows][:, None] - gaussian[rows][None], axis=2) + 9 * np.eye(6)
    assert gaps.min() > 0.4


def test_choice_keeps_to_its_pool_and_leaves_given_anchors_alone(gaussian: np.ndarray) -> None:
    rows = choose(gaussian, 5, [], given=np.array([3, 4]), among=np.arange(50))
    assert set(rows) <= set(range(50)) - {3, 4}
    with pytest.raises(ConfigError, match="n=5"):
        choose(gaussian, 5, [], among=np.arange(4))


def test_chosen_cells_stand_for_the_others_better_than_random_ones() -> None:
    x = _two_clusters(0.9)
    rng = np.random.default_rng(0)

    def unexplained(rows: np.ndarray) -> float:
        return float(np.square(x[:, None] - x[rows][None]).sum(axis=2).min(axis=1).mean())

    random = np.mean([unexplained(rng.choice(N, 8, replace=False)) for _ in range(20)])
    assert unexplained(choose(x, 8, [])) < 0.7 * random


def test_warning_names_the_symmetry_and_the_way_out(gaussian: np.ndarray) -> None:
    centre = np.argsort(np.linalg.norm(gaussian - gaussian.mean(axis=0), axis=1))
    message = ambiguity(gaussian, centre[:1])
    assert message is not None
    assert "anchor lies" in message
    assert "anchors.suggest" in message
    assert ambiguity(gaussian, centre[:0]) is None
    assert ambiguity(gaussian, centre[-4:]) is None
    assert ambiguity(gaussian[:5], np.array([0])) is None


def test_bad_arguments_are_refused(gaussian: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="axes="):
        find(gaussian, axes="rows")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        find(gaussian[:3])


def test_constant_cells_have_no_symmetry() -> None:
    assert find(np.ones((50, 3))) == []
