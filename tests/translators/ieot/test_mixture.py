"""The closed forms of the tilted mixture against numerical integration, in one and two dimensions."""

import numpy as np
import pytest
import torch
from celltransfer.translators.ieot.mixture import TiltedMixture

N_IN = 3


def made(n_out: int, towers: str = "linear", n_potential: int = 3, n_cost: int = 2, n_conditions: int = 0):
    """A model with random parameters in double precision."""
    torch.manual_seed(7)
    model = TiltedMixture(
        N_IN, n_out, n_potential, n_cost, towers=towers, hidden=(8,), n_conditions=n_conditions
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        model.log_variances.copy_(0.3 * torch.randn_like(model.log_variances) - 1)
    return model


def cells(n: int) -> torch.Tensor:
    return torch.randn(n, N_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def grid(n_out: int) -> tuple[torch.Tensor, float]:
    """Points of a grid that covers the mass, and the volume of a cell of it."""
    axis = torch.linspace(-12, 12, 4001 if n_out == 1 else 301, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * n_out).reshape(-1, n_out)
    return points, float((axis[1] - axis[0]) ** n_out)


def on_grid(model: TiltedMixture, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Log of exp(f - c) of one source cell at every point."""
    rows = x.expand(len(points), -1)
    return model.potential(points) - model.cost(rows, points)


@pytest.mark.parametrize("towers", ["linear", "residual", "mlp"])
@pytest.mark.parametrize("n_out", [1, 2])
@torch.no_grad()
def test_closed_forms_are_the_integrals_they_stand_for(n_out, towers):
    model, (points, volume) = made(n_out, towers), grid(n_out)
    x = cells(4)
    mean, variance = model.moments(x)
    covariance = model.covariance(x)
    for i in range(len(x)):
        density = on_grid(model, x[i : i + 1], points).exp()
        z = density.sum() * volume
        assert float(model.log_z(x[i : i + 1])) == pytest.approx(float(z.log()), abs=1e-6)
        law = density * volume / z
        expected = law @ points
        spread = (points - expected).T @ (law[:, None] * (points - expected))
        np.testing.assert_allclose(mean[i], expected, atol=1e-6)
        np.testing.assert_allclose(covariance[i], spread, atol=1e-6)
        np.testing.assert_allclose(variance[i], spread.diagonal(), atol=1e-6)


@torch.no_grad()
def test_log_prob_is_the_mixture_of_proposition_3_2():
    model, x, y = made(2), cells(5), torch.randn(5, 2, dtype=torch.float64)
    a, _ = model.directions(x)
    r, b, var = model.responsibilities(x), model.centres, model.variances
    law = torch.distributions.Normal(b + var * a[:, :, None], var.sqrt())  # (batch, M, N, D)
    density = (r.log() + law.log_prob(y[:, None, None]).sum(-1)).flatten(1).logsumexp(-1)
    np.testing.assert_allclose(model.log_prob(x, y), density, atol=1e-10)
    np.testing.assert_allclose(r.sum((1, 2)), 1, atol=1e-12)


@torch.no_grad()
def test_samples_have_the_law_of_the_closed_form():
    model, x = made(2), cells(3)
    drawn = model.sample(x, 40_000, generator=torch.Generator().manual_seed(0))
    mean, variance = model.moments(x)
    assert drawn.shape == (40_000, 3, 2)
    error = (variance / 40_000).sqrt()
    assert (((drawn.mean(0) - mean) / error).abs() < 4.5).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.05)
    for i in range(3):
        np.testing.assert_allclose(torch.cov(drawn[:, i].T), model.covariance(x)[i], atol=0.06)


@torch.no_grad()
def test_samples_repeat_with_the_generator():
    model, x = made(2), cells(3)
    first, again = (model.sample(x, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
@torch.no_grad()
def test_regularisation_drops_out(epsilon):
    """(a, B, eps) of the paper's formulas is (a / eps, eps B, 1): log z and the components agree."""
    model, x = made(2), cells(4)
    a, log_v = model.directions(x)  # a / eps in the paper's terms
    ours_b, ours_var = model.centres, model.variances  # eps B
    paper_a, paper_var = epsilon * a, ours_var / epsilon
    exponent = (paper_a**2) @ paper_var.T + 2 * paper_a @ ours_b.T
    log_z = model.log_weights()[:, None] + log_v[:, :, None] + exponent / (2 * epsilon)
    np.testing.assert_allclose(log_z.flatten(1).logsumexp(-1), model.log_z(x), atol=1e-10)
    mean = (model.responsibilities(x)[..., None] * (ours_b + paper_var * paper_a[:, :, None])).sum((1, 2))
    np.testing.assert_allclose(mean, model.moments(x)[0], atol=1e-10)


@pytest.mark.parametrize("towers", ["linear", "residual", "mlp"])
@torch.no_grad()
def test_the_law_starts_at_the_potential_for_every_source_cell(towers):
    torch.manual_seed(0)
    model = TiltedMixture(N_IN, 2, 4, 3, towers=towers).double()
    model.set_potential(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.randn(4, 2), torch.rand(4, 2) + 0.1)
    x, y = cells(6), torch.randn(6, 2, dtype=torch.float64)
    np.testing.assert_allclose(model.log_prob(x, y), model.potential(y), atol=1e-8)
    np.testing.assert_allclose(model.log_z(x), 0, atol=1e-8)


def test_gates_differ_at_the_start_so_that_components_can_part():
    torch.manual_seed(0)
    model, x = TiltedMixture(N_IN, 2, 4, 3).double(), cells(6)
    model.log_prob(x, torch.randn(6, 2, dtype=torch.float64)).sum().backward()
    slope = model.direction[-1].weight.grad.reshape(3, 2, N_IN)
    assert not torch.allclose(slope[0], slope[1])


@pytest.mark.parametrize("towers", ["linear", "residual"])
def test_gradients_of_all_parameters(towers):
    model, x, y = made(2, towers, n_conditions=2), cells(4), torch.randn(4, 2, dtype=torch.float64)
    condition = torch.tensor([0, 1, 1, -1])
    names, values = zip(*model.named_parameters(), strict=True)

    def value(*parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(
            _LogProb(model), {f"model.{n}": p for n, p in state.items()}, (x, y, condition)
        )

    assert torch.autograd.gradcheck(value, values)


class _LogProb(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y, condition):
        return self.model.log_prob(x, y, condition)


@torch.no_grad()
def test_conditions_change_the_weights_and_unknown_ones_have_those_of_all_cells():
    model, x = made(2, n_conditions=2), cells(3)
    first, second = (
        model.moments(x, torch.zeros(3, dtype=torch.long))[0],
        model.moments(x, torch.ones(3, dtype=torch.long))[0],
    )
    assert not torch.allclose(first, second)
    unknown = model.moments(x, torch.full((3,), -1))[0]
    np.testing.assert_allclose(unknown, model.moments(x)[0])
    model.shares.copy_(torch.tensor([1.0 - 1e-9, 1e-9]))  # nearly all cells have the first
    np.testing.assert_allclose(model.moments(x)[0], first, atol=1e-6)


@torch.no_grad()
def test_closed_forms_hold_with_conditions():
    model, (points, volume), x = made(1, n_conditions=2), grid(1), cells(3)
    for code in (0, 1):
        codes = torch.full((3,), code)
        mean, variance = model.moments(x, codes)
        for i in range(3):
            rows = x[i : i + 1].expand(len(points), -1)
            density = (model.potential(points, codes[:1].expand(len(points))) - model.cost(rows, points)).exp()
            z = density.sum() * volume
            assert float(model.log_z(x[i : i + 1], codes[:1])) == pytest.approx(float(z.log()), abs=1e-6)
            expected = float((density * volume / z) @ points)
            assert float(mean[i]) == pytest.approx(expected, abs=1e-6)
            assert float(variance[i]) == pytest.approx(
                float((density * volume / z) @ (points - expected) ** 2), abs=1e-6
            )


@torch.no_grad()
def test_variances_keep_the_floor():
    model = TiltedMixture(N_IN, 2, 2, floor=0.1)
    model.log_variances.fill_(-60)
    assert (model.variances >= 0.1).all()
    model.set_potential(torch.tensor([0.5, 0.5]), torch.zeros(2, 2), torch.full((2, 2), 1e-9))
    assert torch.isfinite(model.log_variances).all()


def test_no_array_has_all_four_axes():
    """The largest array of a step is (batch, M, D) or (batch, M, N), whatever their product."""
    model, largest = TiltedMixture(N_IN, 50, 40, 4), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(t.numel() for t in ([out] if torch.is_tensor(out) else out) if torch.is_tensor(t))]
            )
            return out

    x, y = torch.randn(64, N_IN), torch.randn(64, 50)
    with Watch():
        model.log_prob(x, y).sum().backward()
        model.moments(x)
    assert largest <= 64 * 4 * 50
