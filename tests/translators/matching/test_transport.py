"""Plans and maps in turn, on arrays."""

import numpy as np
import pytest
import scipy.sparse as sp
from celltransfer.data.pair import ModalityPair
from celltransfer.metrics.scores import foscttm
from celltransfer.translators.matching.transport import Clouds, Frame, match, plan
from celltransfer.translators.regression import linear_map, ridge

NO_PAIRS = np.empty((0, 2), np.int64)


def skewed(n, d, rng):
    """Cells of an asymmetric cloud: every direction has a variance and a skew of its own."""
    return rng.gamma(np.geomspace(0.3, 2, d), size=(n, d)) * np.linspace(4, 0.8, d)


def turned(d, out, rng):
    """A map that keeps lengths, shape (d, out)."""
    return np.linalg.qr(rng.normal(size=(out, out)))[0][:d]


def test_plans_have_uniform_marginals():
    rng = np.random.default_rng(0)
    coupled = plan(rng.normal(size=(60, 4)), rng.normal(size=(40, 4)), 0.1)
    assert (coupled >= 0).all()
    np.testing.assert_allclose(coupled.sum(axis=0), 1 / 40, rtol=0.01)
    np.testing.assert_allclose(coupled.sum(axis=1), 1 / 60, rtol=0.01)


def test_plans_couple_like_directions_more_sharply_with_less_entropy():
    x = np.random.default_rng(0).normal(size=(50, 6))
    sharp, blurred = (np.diag(plan(3 * x, x, epsilon)).sum() for epsilon in (0.05, 1.0))
    assert sharp > 0.9
    assert sharp > 2 * blurred


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_frames_lose_nothing_of_few_features(power):
    cells = skewed(200, 7, np.random.default_rng(0))
    frame = Frame.fit(cells, power)
    placed = frame.place(cells)
    np.testing.assert_allclose(frame.restore(placed), cells, atol=1e-4)
    np.testing.assert_allclose(placed.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(placed.std(axis=0), frame.sd, rtol=1e-3)


def test_frames_take_scales_out_by_their_power():
    cells = skewed(500, 5, np.random.default_rng(0)) * np.array([100, 10, 1, 1, 1])
    natural, halfway, equal = (Frame.fit(cells, power).sd for power in (0.0, 0.5, 1.0))
    assert natural.max() / natural.min() > halfway.max() / halfway.min() > equal.max() / equal.min()


def test_frames_of_thousands_of_sparse_features():
    rng = np.random.default_rng(0)
    cells = np.maximum(rng.normal(size=(300, 5)) @ rng.normal(size=(5, 3000)), 0).astype(np.float32)
    frame, same = (Frame.of(m, 0.0, np.random.default_rng(1)) for m in (sp.csr_matrix(cells), cells))
    np.testing.assert_array_equal(frame.forward, same.forward)
    assert frame.forward.shape == (3000, 64)
    lost = np.square(frame.restore(frame.place(cells)) - cells).sum() / np.square(cells - cells.mean(axis=0)).sum()
    assert lost < 0.1
    np.testing.assert_allclose(
        frame.mean_of(sp.csr_matrix(cells), np.arange(9)), frame.place(cells[:9]).mean(0), atol=1e-3
    )


def test_constant_features_have_one_place():
    frame = Frame.fit(np.ones((20, 3)), 0.5)
    np.testing.assert_allclose(frame.restore(frame.place(np.ones((2, 3)))), 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_matching_recovers_a_map_that_a_few_pairs_do_not(seed):
    rng = np.random.default_rng(seed)
    turn, k = turned(4, 6, rng), 3
    x, latent = skewed(1000, 4, rng), skewed(900, 4, rng)
    latent[:k] = x[:k]
    pair = ModalityPair(x.astype(np.float32), (latent @ turn).astype(np.float32), np.column_stack([np.arange(k)] * 2))
    clouds = Clouds.of(pair, (0.0, 0.0), 0.1, rng)
    start, _ = linear_map(ridge, clouds.anchors.x, clouds.anchors.y, clouds.frame_x.sd)
    matched = match(clouds, start, rng, size=500, n_iter=20, epsilon=(0.1, 0.03), penalty=0.1)
    truth, placed = clouds.frame_y.place(x @ turn)[k:], clouds.frame_x.place(x)[k:]
    assert foscttm(placed @ matched, truth) < min(foscttm(placed @ start, truth) / 3, 0.02)


def test_matching_stays_at_the_truth():
    rng = np.random.default_rng(1)
    turn = turned(5, 5, rng)
    pair = ModalityPair(skewed(900, 5, rng), skewed(900, 5, rng) @ turn, NO_PAIRS)
    clouds = Clouds.of(pair, (0.0, 0.0), 0.1, rng)
    truth = clouds.frame_x.back @ turn @ clouds.frame_y.forward
    matched = match(clouds, truth, rng, size=600, n_iter=10, epsilon=(0.05, 0.02), penalty=0.05)
    assert np.corrcoef(matched.ravel(), truth.ravel())[0, 1] > 0.95


def test_clouds_are_centred_within_conditions_that_both_sides_have():
    rng = np.random.default_rng(0)
    code_x, code_y = np.repeat([0, 1, 2], 50), np.repeat([0, 1, 3], 40)
    x, y = skewed(150, 4, rng) + 9 * code_x[:, None], skewed(120, 3, rng) - 5 * code_y[:, None]
    anchors = np.array([[0, 0], [50, 40]])
    clouds = Clouds.of(ModalityPair(x, y, anchors, code_x, code_y), (0.0, 0.0), 0.1, rng)
    assert [group.code for group in clouds.groups] == [0, 1]
    assert sum(group.share for group in clouds.groups) == pytest.approx(1)
    for group, batch in zip(clouds.groups, clouds.draw(10**4, rng), strict=True):
        assert set(code_x[group.x]) == set(code_y[group.y]) == {group.code}
        assert not np.isin(group.x, anchors[:, 0]).any()
        assert np.abs(batch.x.mean(axis=0)).max() < 0.3
        assert np.abs(batch.y.mean(axis=0)).max() < 0.3
    expected = clouds.frame_x.place(x[anchors[:, 0]]) - [group.mean_x for group in clouds.groups]
    np.testing.assert_allclose(clouds.anchors.x, expected, atol=1e-5)


def test_draws_of_both_sides_are_independent():
    """Batches must not walk both modalities in one order, which would hand matching the pairing."""
    x = np.arange(100.0)[:, None]
    clouds = Clouds.of(ModalityPair(x, x, NO_PAIRS), (0.0, 0.0), 0.1, np.random.default_rng(0))
    batches = [clouds.draw(50, np.random.default_rng(seed))[0] for seed in range(40)]
    together = [np.corrcoef(batch.x[:, 0], batch.y[:, 0])[0, 1] for batch in batches]
    assert abs(np.mean(together)) < 0.1
