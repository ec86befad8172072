"""Invertible maps and densities: inverses, determinants, normalisation, starts, and fits to known laws."""

import math

import numpy as np
import pytest
import torch
from celltransfer.errors import ConfigError, FeatureError
from celltransfer.nn import flows
from scipy.stats import multivariate_normal

MAPS = ["shift", "scale_shift", "affine", "realnvp", "spline", "continuous"]


def moved(family, d=3, scale=0.1):
    """A map that is not the identity any more."""
    torch.manual_seed(0)
    t = flows.transform(family, d, blocks=2, hidden=(8, 8))
    with torch.no_grad():
        for p in t.parameters():
            p.add_(scale * torch.randn_like(p))
    return t.eval()


@pytest.mark.parametrize("family", MAPS)
def test_maps_start_as_the_identity(family):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y, log_det = flows.transform(family, 3, hidden=(8, 8))(x)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros(20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MAPS)
def test_inverse_undoes_the_map(family):
    t, x = moved(family), torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    y = t(x)[0]
    assert (y - x).abs().max() > 0.01
    torch.testing.assert_close(t.inverse(y), x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", MAPS)
def test_log_determinant_is_that_of_the_jacobian(family):
    t, x = moved(family), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda row: t(row[None])[0][0], row) for row in x])
    torch.testing.assert_close(t(x)[1], torch.linalg.slogdet(jacobians).logabsdet, atol=1e-3, rtol=0)


def test_the_affine_map_is_symmetric_and_positive():
    matrix = moved("affine", scale=1.0).matrix()
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("family", ["gaussian", "realnvp", "spline", "continuous"])
def test_densities_integrate_to_one(family):
    torch.manual_seed(0)
    density = flows.density(family, 2, blocks=2, hidden=(8, 8)).eval()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(0.1 * torch.randn_like(p))
        axis = torch.linspace(-9, 9, 181)
        grid = torch.cartesian_prod(axis, axis)
        total = density.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("family", ["gaussian", "realnvp", "spline"])
def test_draws_follow_the_density(family):
    torch.manual_seed(0)
    density = flows.density(family, 2, blocks=2, hidden=(8, 8))
    cells = torch.randn(4000, 2) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]) + 3
    density.solve(cells)
    with torch.no_grad():
        draws = density.sample(20_000)
    torch.testing.assert_close(draws.mean(0), cells.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), torch.cov(cells.T), atol=0.2, rtol=0.05)


@pytest.mark.parametrize("family", ["gaussian", "realnvp", "spline", "continuous"])
def test_every_density_starts_as_the_gaussian_of_most_likelihood(family):
    torch.manual_seed(0)
    x = torch.randn(500, 3) @ torch.randn(3, 3) + 1
    density = flows.density(family, 3, hidden=(8, 8))
    density.solve(x)
    reference = multivariate_normal(x.mean(0).numpy(), np.cov(x.numpy().T, bias=True)).logpdf(x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(density.log_prob(x).numpy(), reference, atol=0.02)


def test_covariances_of_few_cells_can_be_inverted():
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    density = flows.density("gaussian", 20)
    density.solve(x)
    assert torch.isfinite(density.log_prob(x)).all()


def test_a_feature_that_does_not_vary_leaves_densities_finite():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 2.0
    density = flows.density("gaussian", 3)
    density.solve(x)
    assert torch.isfinite(density.log_prob(x)).all()


def test_fit_gains_on_the_gaussian_and_ends_in_its_best_state():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(np.where(rng.random((1000, 1)) < 0.5, -2, 2) + 0.3 * rng.normal(size=(1000, 2))).float()
    torch.manual_seed(0)
    density = flows.density("spline", 2, blocks=2, hidden=(16, 16))
    value = flows.fit_density(density, x[:800], x[800:], max_steps=200, batch_size=128, lr=5e-3)
    with torch.no_grad():
        assert value == pytest.approx(float(density.log_prob(x[800:]).mean()), abs=1e-5)
    gaussian = flows.fit_density(flows.density("gaussian", 2), x[:800], x[800:])
    assert value > gaussian + 0.3


def test_fit_stops_when_time_has_run_out_and_takes_no_step_back():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    looks = []
    density = flows.density("realnvp", 2, hidden=(8, 8))
    value = flows.fit_density(density, x[:200], x[200:], expired=lambda: looks.append(1) or True)
    assert len(looks) == 1
    density.solve(x[:200])
    assert math.isfinite(value)


def test_degrees_of_freedom():
    assert flows.n_parameters(flows.transform("affine", 4)) == 4 + 16
    assert flows.n_parameters(flows.transform("scale_shift", 4)) == 8
    assert flows.n_parameters(flows.transform("spline", 4, hidden=(8,))) < flows.n_parameters(
        flows.density("spline", 4, hidden=(16,))
    )


def test_unknown_families_and_too_few_features_are_refused():
    with pytest.raises(ConfigError, match=r"transform='planar'; it is one of shift"):
        flows.transform("planar", 3)
    with pytest.raises(ConfigError, match="density='planar'"):
        flows.density("planar", 3)
    with pytest.raises(FeatureError, match="couples features"):
        flows.density("realnvp", 1)
    with pytest.raises(ConfigError, match="side"):
        flows.transform("glow", 64, side=5)
