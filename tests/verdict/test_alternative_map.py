"""The adversarial twin: found where laws are symmetric and anchors do not object, and nowhere else."""

import numpy as np
import pytest
from celltransfer.errors import InputError
from celltransfer.verdict.alternative_map import find_twin


def isotropic(n, rng):
    return rng.normal(size=(n, 5))


def lopsided(n, rng):
    """Five clusters of different sizes in no symmetric order."""
    centres = np.array([[0, 0, 0, 0], [4, 0, 0, 0], [0, 3, 0, 0], [1, 1, 5, 0], [2, -3, 1, 2.0]])
    share = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
    return centres[rng.choice(5, n, p=share)] + 0.6 * rng.normal(size=(n, 4)) - share @ centres


def mirrored(n, rng):
    """Two clusters, mirror images."""
    cells = 0.5 * rng.normal(size=(n, 3))
    cells[:, 0] += 3 * rng.choice([-1, 1], n)
    return cells


def independent(n, rng):
    """Independent coordinates of different laws: no turn keeps them, but any does once they are made Gaussian."""
    two = np.where(rng.random(n) < 0.3, 2.0, -0.86) + 0.2 * rng.normal(size=n)
    return np.column_stack([rng.exponential(size=n) - 1, rng.uniform(-1.7, 1.7, n), two])


def twin_of(draw, k=0, narrow=1.0, noise=0.2, seed=0):
    """The twin of the right map (times `narrow`), with k anchors."""
    rng = np.random.default_rng(seed)
    f, y = draw(500, rng), draw(500, rng)
    anchors = (f[:k], f[:k] + noise * rng.normal(size=(k, f.shape[1])))
    return find_twin(narrow * f, y, narrow * anchors[0], anchors[1], seed=seed)


@pytest.mark.parametrize("draw", [isotropic, mirrored, independent])
def test_symmetric_laws_have_twins_without_anchors(draw):
    twin = twin_of(draw)
    assert twin.disagreement > 0.4
    assert twin.high > 0.5
    assert twin.low <= twin.disagreement <= twin.high
    assert twin.twin_distance < twin.distance + 0.05


@pytest.mark.parametrize("narrow", [1.0, 0.3])
def test_a_lopsided_law_has_none(narrow):
    assert twin_of(lopsided, narrow=narrow).high < 0.1


@pytest.mark.parametrize("draw", [isotropic, mirrored, independent])
def test_anchors_rule_twins_out(draw):
    assert twin_of(draw, k=20).disagreement < 0.1


def test_more_anchors_leave_less_room():
    found = [twin_of(isotropic, k=k).disagreement for k in (0, 1, 3, 10)]
    assert found[0] > 0.7
    assert found[1] > 0.3
    assert found == sorted(found, reverse=True)


def test_a_constant_map_has_no_twin_that_differs():
    rng = np.random.default_rng(0)
    twin = find_twin(np.ones((100, 3)), rng.normal(size=(100, 3)))
    assert twin.disagreement == 0.0


def test_one_feature_can_be_flipped_only_where_its_law_can():
    rng = np.random.default_rng(0)
    even, uneven = rng.normal(size=(2, 500, 1)), rng.exponential(size=(2, 500, 1))
    assert find_twin(*even).disagreement > 0.5
    assert find_twin(*uneven).disagreement < 0.1


def test_the_same_seed_finds_the_same_twin():
    assert twin_of(isotropic, k=1) == twin_of(isotropic, k=1)


def test_shapes_are_checked():
    with pytest.raises(InputError, match="in one space"):
        find_twin(np.zeros((10, 3)), np.zeros((10, 2)))
