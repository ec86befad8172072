"""The log-likelihood-ratio objective against closed forms, and the affine optimum of the Gaussian family."""

import numpy as np
import pytest
import torch
from celltransfer.nn import flows
from celltransfer.translators.lrmf.loss import likelihood_ratio, moment_map, shared_pull
from scipy.linalg import sqrtm


def gaussian(mean, sd):
    density = flows.density("gaussian", 1)
    with torch.no_grad():
        density.mean.fill_(mean)
        density.log_diagonal.fill_(-np.log(sd))
    return density


def spd(seed, d=4):
    root = np.random.default_rng(seed).normal(size=(d, d))
    return root @ root.T + 0.1 * np.eye(d)


def test_loss_of_one_dimensional_gaussians_is_example_2_1():
    """Between sd 1 and sd 2 at one mean, with the best shared Gaussian, T the identity: log(2.5) - log 1 - log 2."""
    rng = np.random.default_rng(0)
    x, y = (torch.as_tensor(sd * rng.normal(size=(200_000, 1))).float() for sd in (1, 2))
    shared = gaussian(0.0, np.sqrt((1 + 4) / 2))
    with torch.no_grad():
        constant = sum(float(gaussian(0.0, sd).log_prob(cells).mean()) for sd, cells in ((1, x), (2, y)))
        loss = float(likelihood_ratio(flows.transform("affine", 1), shared, x, y)) + constant
    assert loss == pytest.approx(np.log(2.5) - np.log(1) - np.log(2), abs=0.01)


def test_loss_is_zero_at_the_solution_and_only_there():
    rng = np.random.default_rng(0)
    x, y = (torch.as_tensor(mean + sd * rng.normal(size=(100_000, 1))).float() for mean, sd in ((0, 1), (3, 2)))
    with torch.no_grad():
        constant = float(gaussian(0.0, 1.0).log_prob(x).mean() + gaussian(3.0, 2.0).log_prob(y).mean())
    t = flows.transform("scale_shift", 1)
    losses = []
    for scale, shift in ((2.0, 3.0), (1.0, 3.0), (2.0, 0.0), (4.0, 3.0)):
        with torch.no_grad():
            t.log_scale.fill_(np.log(scale))
            t.shift.fill_(shift)
            both = torch.cat([t(x)[0], y])
            shared = flows.density("gaussian", 1)
            shared.solve(both)
            losses.append(float(likelihood_ratio(t, shared, x, y)) + constant)
    assert losses[0] == pytest.approx(0, abs=0.01)
    assert min(losses[1:]) > 0.1


def test_gradients_reach_map_and_density():
    x, y = torch.randn(50, 3), 2 * torch.randn(40, 3) + 1
    t, shared = flows.transform("realnvp", 3, hidden=(8,)), flows.density("realnvp", 3, hidden=(8,))
    likelihood_ratio(t, shared, x, y).backward()
    for module in (t, shared):
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0


def test_moment_map_is_the_symmetric_closed_form():
    a, b = spd(0), spd(1)
    w, shift = moment_map(np.ones(4), a, np.arange(4.0), b)
    root = np.real(sqrtm(a))
    expected = np.linalg.inv(root) @ np.real(sqrtm(root @ b @ root)) @ np.linalg.inv(root)
    np.testing.assert_allclose(w, expected, atol=1e-8)
    np.testing.assert_allclose(w, w.T, atol=1e-8)
    np.testing.assert_allclose(shift, np.arange(4.0) - w @ np.ones(4))


def test_moment_map_in_one_dimension_is_example_2_1():
    w, shift = moment_map(np.array([1.0]), np.array([[4.0]]), np.array([5.0]), np.array([[9.0]]))
    assert (float(w[0, 0]), float(shift[0])) == pytest.approx((1.5, 5 - 1.5))


@pytest.mark.parametrize("k", [0, 1, 3, 10])
def test_moment_map_matches_moments_whatever_the_pairs(k):
    rng = np.random.default_rng(k)
    a, b = spd(2), spd(3)
    w, shift = moment_map(np.ones(4), a, np.zeros(4), b, (rng.normal(size=(k, 4)), rng.normal(size=(k, 4))))
    np.testing.assert_allclose(w @ a @ w.T, b, atol=1e-8)
    np.testing.assert_allclose(w @ np.ones(4) + shift, 0, atol=1e-8)


def test_pairs_identify_the_rotation_that_moments_leave_open():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    x = rng.normal(size=(5000, 4))
    y = x @ rotation.T
    moments = x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)
    with_pairs, _ = moment_map(*moments, (x[:6], y[:6]))
    without, _ = moment_map(*moments)
    np.testing.assert_allclose(with_pairs, rotation, atol=0.1)
    assert np.abs(without - rotation).max() > 0.3


def test_pull_vanishes_where_the_shared_density_is_two_bubbles():
    """Example 2.2: one component on either set leaves no gradient; the target's own density still pulls."""
    rng = np.random.default_rng(0)
    target = flows.density("gaussian", 1)

    class Bubbles(flows.Density):
        def log_prob(self, x):
            return torch.logsumexp(-0.5 * (x - torch.tensor([[0.0, 20.0]])) ** 2, dim=1)

    moved = torch.as_tensor(20 + rng.normal(size=(5000, 1))).float()
    assert shared_pull(Bubbles(), target, moved) < 0.01
    assert shared_pull(target, target, moved) == pytest.approx(1)
