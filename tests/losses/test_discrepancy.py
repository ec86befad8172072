"""Distances of samples: closed forms, what they are zero for, and their gradients."""

import numpy as np
import ot
import pytest
import torch
from celltransfer.losses.discrepancy import mmd, sinkhorn_divergence


def draw(n, d, seed, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sinkhorn_comes_to_the_squared_wasserstein_distance_per_coordinate():
    a, b = draw(80, 2, 0), draw(90, 2, 1, shift=2.0, scale=1.5)
    exact = ot.emd2([], [], ot.dist(a.numpy(), b.numpy())) / 2
    assert float(sinkhorn_divergence(a, b, 0.005, 0.95)) == pytest.approx(exact, rel=0.03)


def test_sinkhorn_of_a_shift_is_its_square_whatever_the_regularisation():
    a = draw(60, 3, 0)
    for epsilon in (0.02, 0.2, 1.0):
        found = float(sinkhorn_divergence(a, a + 2.0, epsilon, 0.9))
        assert found == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("measure", [sinkhorn_divergence, mmd])
def test_order_does_not_matter_and_difference_is_seen(measure):
    a, b = draw(100, 2, 0), draw(100, 2, 1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert float(measure(a[order], b)) == pytest.approx(float(measure(a, b)), abs=1e-9)
    assert float(measure(a, b + 1)) > float(measure(a, b)) + 0.01


def test_equal_samples_have_no_sinkhorn_divergence():
    a = draw(50, 3, 0)
    assert float(sinkhorn_divergence(a, a.clone())) == pytest.approx(0, abs=1e-9)


def test_gradient_of_sinkhorn_is_that_of_finite_differences():
    a, b = draw(12, 2, 0), draw(15, 2, 1, shift=1.0)
    a.requires_grad_(True)
    how = {"epsilon": 0.3, "scaling": 0.95}
    # The unit of the regularisation is held fixed in the gradient, so it is held fixed here: by rescaling epsilon.
    unit = float((torch.cdist(a, b) ** 2).mean())
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(a, b, **how), a)
    step = torch.zeros_like(a)
    step[3, 1] = 1e-4
    with torch.no_grad():
        values = []
        for moved in (a + step, a - step):
            epsilon = 0.3 * unit / float((torch.cdist(moved, b) ** 2).mean())
            values.append(float(sinkhorn_divergence(moved, b, epsilon, 0.95)))
    assert float(gradient[3, 1]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-2)


def test_mmd_is_unbiased_and_has_a_gradient_towards_the_other_sample():
    values = [float(mmd(draw(50, 2, 2 * s), draw(50, 2, 2 * s + 1))) for s in range(40)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
    a = draw(50, 2, 0).requires_grad_(True)
    (gradient,) = torch.autograd.grad(mmd(a, draw(50, 2, 1, shift=2.0)), a)
    assert float(gradient.sum()) < 0
