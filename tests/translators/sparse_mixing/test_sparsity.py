"""Sparse mixing: closed forms, and no gain from a scale of the latents."""

import math

import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.nn.blocks import MLP
from celltransfer.translators.sparse_mixing.sparsity import mixing_sparsity

WAYS = [("l1", "variance"), ("l1", "column"), ("l2", "variance")]


@pytest.fixture
def z():
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double) * torch.tensor(
        [0.5, 1.0, 2.0, 4.0]
    )


@pytest.fixture
def w():
    torch.manual_seed(1)
    return torch.randn(9, 4, dtype=torch.double)


def test_linear_decoders_in_closed_form(z, w):
    scaled = w * z.std(0)
    g = lambda v: v @ w.T  # noqa: E731
    assert float(mixing_sparsity(g, z)) == pytest.approx(float(scaled.abs().sum() / 9))
    assert float(mixing_sparsity(g, z, norm="l2")) == pytest.approx(float(scaled.square().sum() / 9))
    ratio = (w.abs().sum(0) / w.norm(dim=0)).mean() / 3
    assert float(mixing_sparsity(g, z, gauge="column")) == pytest.approx(float(ratio))


def test_column_gauge_at_its_ends(z):
    alike = torch.ones(9, 4, dtype=torch.double)
    single = torch.eye(9, dtype=torch.double)[:, :4]
    assert float(mixing_sparsity(lambda v: v @ alike.T, z, gauge="column")) == pytest.approx(1)
    assert float(mixing_sparsity(lambda v: v @ single.T, z, gauge="column")) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("norm", "gauge"), WAYS)
def test_scaling_a_latent_changes_nothing_and_has_no_gradient(z, norm, gauge):
    torch.manual_seed(0)
    g = MLP(4, 9, (8,), "silu").double()
    log_scale = torch.zeros(4, dtype=torch.double, requires_grad=True)

    def value(s):
        return mixing_sparsity(lambda v: g(v * (-s).exp()), z * s.exp(), norm=norm, gauge=gauge)

    other = torch.tensor([1.0, -2.0, 0.3, 3.0], dtype=torch.double)
    assert float(value(other)) == pytest.approx(float(value(log_scale)), rel=1e-6)
    (gradient,) = torch.autograd.grad(value(log_scale), log_scale)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("norm", "gauge"), WAYS)
@pytest.mark.parametrize("step", [None, 1e-3])
def test_random_columns_agree_with_all_of_them(z, w, norm, gauge, step):
    g = lambda v: v @ w.T  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    kinds = {"norm": norm, "gauge": gauge}
    found = [float(mixing_sparsity(g, z, n_probes=4, step=step, generator=generator, **kinds)) for _ in range(5)]
    # Four disjoint columns of four: the whole Jacobian.
    assert found == pytest.approx([float(mixing_sparsity(g, z, **kinds))] * 5, rel=1e-4)


def test_rotating_sparse_latents_costs_l1_and_not_l2():
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2)
    sparse, dense = (lambda v: v), (lambda v: v @ turn)
    assert mixing_sparsity(dense, z @ turn.T) > 1.3 * mixing_sparsity(sparse, z)
    assert float(mixing_sparsity(dense, z @ turn.T, norm="l2")) == pytest.approx(
        float(mixing_sparsity(sparse, z, norm="l2")), rel=1e-3
    )


def test_refusals(z):
    with pytest.raises(ConfigError, match="gauges variance and column"):
        mixing_sparsity(lambda v: v, z, norm="l2", gauge="column")
    with pytest.raises(ConfigError, match="generator"):
        mixing_sparsity(lambda v: v, z, n_probes=2)


@pytest.mark.parametrize("gauge", ["variance", "column"])
def test_one_cell_has_no_spread(gauge):
    with pytest.raises(ConfigError, match="2 cells or more"):
        mixing_sparsity(torch.nn.Linear(2, 3), torch.randn(1, 2), gauge=gauge)
