import math

import numpy as np
import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.losses.jacobian import (
    exact_l1,
    jacobian,
    linear_proximal_step,
    probe_l1,
    probe_support,
    sparse_probes,
)
from celltransfer.nn.blocks import MLP

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def network(n_in=3, n_out=3, activation="tanh"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(n_in, n_out, (16,), activation)


def linear_map(j):
    return lambda rows: rows @ j.T


def mean_probe(j, s, direction="gaussian", n=20000, seed=0):
    """Average of n independent probes of a fixed Jacobian."""
    x = torch.zeros(n, j.shape[1])
    return float(probe_l1(linear_map(j), x, n_probes=1, s=s, direction=direction, generator=generator(seed)))


# The full Jacobian


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 3), (5, 2), (2, 5)])
def test_exact_is_the_jacobian_autograd_finds(n_in, n_out, chunk):
    f, x = network(n_in, n_out), normal(5, n_in)
    rows = torch.stack([torch.autograd.functional.jacobian(lambda row: f(row[None])[0], point) for point in x])
    assert torch.allclose(jacobian(f, x, chunk=chunk), rows, atol=1e-6)
    assert torch.allclose(exact_l1(f, x, chunk=chunk), rows.abs().sum(dim=(1, 2)).mean() / n_out)


def test_unit_is_the_absolute_row_sum():
    j = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 5.0]])
    assert float(exact_l1(linear_map(j), torch.zeros(4, 3))) == pytest.approx((3 + 5) / 2)


# Gradients, against double-precision differences in every parameter and in x

LOSSES = {
    "exact": exact_l1,
    **{
        f"probe-{direction}-{step}": lambda f, x, direction=direction, step=step: probe_l1(
            f, x, n_probes=3, s=2, step=step, direction=direction, generator=generator()
        )
        for direction in ("gaussian", "binary")
        for step in (None, 0.1)
    },
}


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 4), (4, 3)])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss, n_in, n_out):
    f, x = network(n_in, n_out).double(), normal(4, n_in).double().requires_grad_()
    names = list(dict(f.named_parameters()))

    def value(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return LOSSES[loss](lambda rows: torch.func.functional_call(f, named, rows), x)

    assert torch.autograd.gradcheck(value, (x, *f.parameters()))


def test_detached_points_leave_the_gradient_to_the_map():
    f, x = network(), normal(4, 3).requires_grad_()
    (exact_l1(f, x.detach()) + probe_l1(f, x.detach(), generator=generator())).backward()
    assert x.grad is None
    assert f[0].weight.grad.abs().sum() > 0


# Precision


@pytest.mark.parametrize("loss", LOSSES)
def test_autocasting_does_not_reach_the_layers(loss):
    f, x = network(), normal(5, 3)
    plain = LOSSES[loss](f, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert f(x).dtype == torch.bfloat16
        assert LOSSES[loss](f, x) == plain
        assert LOSSES[loss](f, x.bfloat16()).dtype == torch.float32
    assert plain.dtype == torch.float32


# Directions


@pytest.mark.parametrize("direction", ["gaussian", "binary"])
@pytest.mark.parametrize("s", [1, 5, 13, 20])
def test_directions_have_exactly_s_coordinates(s, direction):
    z = sparse_probes((3, 7, 20), s, generator(), CPU, direction)
    assert z.shape == (3, 7, 20)
    assert ((z != 0).sum(dim=-1) == s).all()


def test_both_directions_share_their_places():
    gaussian, binary = (sparse_probes((4, 6, 9), 2, generator(), CPU, kind) for kind in ("gaussian", "binary"))
    assert torch.equal((gaussian != 0).float(), binary)


def test_every_mask_is_equally_likely_in_every_place_of_the_stack():
    z = sparse_probes((3, 30000, 4), 2, generator(), CPU, "binary")
    for masks in z:
        counts = torch.bincount((masks @ torch.tensor([1.0, 2.0, 4.0, 8.0])).long(), minlength=16)
        assert (counts > 0).sum() == 6
        assert torch.allclose(counts[counts > 0] / 30000, torch.tensor(1 / 6), atol=0.01)


def test_points_have_masks_of_their_own_and_disjoint_ones_while_they_last():
    z = sparse_probes((4, 50, 20), 5, generator(), CPU, "binary")
    assert torch.equal(z.sum(dim=0), torch.ones(50, 20))
    assert len(torch.unique(z[0], dim=0)) > 45


@pytest.mark.parametrize("s", [0, 5])
def test_size_of_a_direction_is_checked(s):
    with pytest.raises(ConfigError, match="1 to 4"):
        probe_l1(network(4, 4), normal(2, 4), s=s, generator=generator())


def test_kind_of_direction_is_checked():
    with pytest.raises(ConfigError, match="gaussian, binary"):
        probe_l1(network(), normal(2, 3), direction="uniform", generator=generator())


# Estimates


@pytest.mark.parametrize("direction", ["gaussian", "binary"])
@pytest.mark.parametrize("step", [None, 1e-2])
def test_probe_with_one_coordinate_is_unbiased(step, direction):
    f, x = network(6, 4), normal(64, 6)
    estimate = probe_l1(f, x, n_probes=2000, s=1, step=step, direction=direction, generator=generator())
    assert estimate.item() == pytest.approx(exact_l1(f, x).item(), rel=0.02)


def test_one_binary_coordinate_after_another_is_the_exact_norm():
    f, x = network(6, 4), normal(64, 6)
    estimate = probe_l1(f, x, n_probes=6, s=1, direction="binary", generator=generator())
    assert estimate.item() == pytest.approx(exact_l1(f, x).item(), rel=1e-5)


@pytest.mark.parametrize("s", [1, 3, 12])
def test_rows_that_meet_the_mask_once_are_counted_right(s):
    permutation = torch.eye(12)[torch.randperm(12, generator=generator())] * torch.arange(1.0, 13)
    for j in (torch.diag(torch.linspace(-3, 2, 12)), permutation):
        exact = float(j.abs().sum() / 12)
        assert mean_probe(j, s) == pytest.approx(exact, rel=0.03)
        assert mean_probe(j, s, "binary") == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("s", [1, 4, 10])
def test_bias_on_a_dense_jacobian_of_ones(s):
    """E||J z||_1 = D sqrt(2 s / pi) and ||J m||_1 = D s: a factor 1 / sqrt(s), and none."""
    j = torch.ones(4, 10)
    assert mean_probe(j, s) == pytest.approx(10 / math.sqrt(s), rel=0.02)
    assert mean_probe(j, s, "binary") == pytest.approx(10)


def test_bias_on_random_signs_and_on_entries_that_cancel():
    """A sum of 4 random signs is 0, 2 or 4 with probabilities 6, 8 and 2 of 16: 1.5 on average."""
    signs = torch.randint(2, (3000, 40), generator=generator()) * 2.0 - 1
    assert mean_probe(signs, 4, "binary", n=200) == pytest.approx(40 * 1.5 / 4, rel=0.02)
    assert mean_probe(signs, 4, n=200) == pytest.approx(40 / 2, rel=0.05)
    difference = torch.tensor([[1.0, -1.0]])
    assert mean_probe(difference, 2, "binary") == pytest.approx(0, abs=1e-6)
    assert mean_probe(difference, 2) == pytest.approx(math.sqrt(2), rel=0.03)


def test_probe_of_gaussian_entries_is_a_chi_mean():
    """E||J_i z|| given J is sqrt(2/pi) ||J_i m||_2, and the norm of s Gaussians has the mean of a chi law."""
    s, j = 9, normal(2000, 30)
    chi = math.sqrt(2) * math.exp(math.lgamma((s + 1) / 2) - math.lgamma(s / 2))
    expected = 30 / s * chi
    assert mean_probe(j, s, n=400) == pytest.approx(expected, rel=0.03)


def test_variance_falls_with_the_mask():
    spread = [
        np.std([mean_probe(torch.eye(20), s, n=4, seed=seed) for seed in range(60)], ddof=1).item() for s in (1, 5)
    ]
    assert spread[1] < 0.7 * spread[0]


def test_disjoint_masks_vary_less_than_independent_ones():
    j = torch.diag(torch.linspace(0, 2, 20))

    def estimates(n_probes, batch):
        return [
            float(
                probe_l1(
                    linear_map(j),
                    torch.zeros(batch, 20),
                    n_probes=n_probes,
                    s=2,
                    direction="binary",
                    generator=generator(seed),
                )
            )
            for seed in range(60)
        ]

    assert np.std(estimates(8, 1)) < 0.7 * np.std(estimates(1, 8))
    assert np.std(estimates(10, 1)) < 1e-6


@pytest.mark.parametrize("direction", ["gaussian", "binary"])
def test_differences_go_to_the_derivative_along_the_same_direction(direction):
    f, x = network(6, 4).double(), normal(16, 6).double()
    derivative, *differences = (
        probe_l1(f, x, s=3, step=step, direction=direction, generator=generator()).item()
        for step in (None, 1e-2, 1e-3, 1e-4)
    )
    errors = [abs(difference / derivative - 1) for difference in differences]
    assert errors[0] < 0.01
    assert errors[2] < 1e-4
    assert errors[0] > errors[1] > errors[2]


def test_same_generator_same_value_and_global_state_untouched():
    state = torch.get_rng_state()
    f, x = network(), normal(5, 3)
    assert probe_l1(f, x, generator=generator(3)) == probe_l1(f, x, generator=generator(3))
    assert torch.equal(torch.get_rng_state(), state)


# Proposition 4.1


def jacobian_with_support(row_sizes, d, seed=0):
    j, g = torch.zeros(len(row_sizes), d), generator(seed)
    for row, size in zip(j, row_sizes, strict=True):
        row[torch.randperm(d, generator=g)[:size]] = 1.0
    return j


@pytest.mark.parametrize(
    ("row_sizes", "d", "s"),
    [
        ([1, 2, 4], 6, 1),
        ([1, 2, 4], 6, 3),
        ([0, 3, 6], 6, 2),
        ([0, 1, 5, 6], 6, 6),
        ([1] * 40, 40, 7),
        ([2, 5, 30, 0, 100], 100, 10),
        ([100], 100, 1),
        ([0, 1], 1, 1),
    ],
)
def test_support_of_a_probe(row_sizes, d, s):
    value, lower, upper = probe_support(row_sizes, d, s)
    by_hand = sum(1 - math.comb(d - c, s) / math.comb(d, s) for c in row_sizes)
    z = sparse_probes((1, 20000, d), s, generator(), CPU)[0]
    measured = ((z @ jacobian_with_support(row_sizes, d).T).abs() > 1e-9).sum(dim=1).float().mean()
    assert value == pytest.approx(by_hand)
    assert value == pytest.approx(float(measured), rel=0.03)
    assert lower - 1e-9 <= value <= upper + 1e-9
    if s == 1:
        assert lower == pytest.approx(value)
        assert upper == pytest.approx(value)


def test_support_is_stable_in_a_million_dimensions():
    value, lower, upper = probe_support([1, 10, 10**6], 10**6, 3)
    assert value == pytest.approx(3e-6 + 3e-5 + 1, rel=1e-6)
    assert lower < value < upper
    assert probe_support([1], 10**6, 7)[0] == pytest.approx(7e-6, rel=1e-12)
    assert probe_support(torch.tensor([2, 3]), 10, 4) == probe_support([2, 3], 10, 4)


@pytest.mark.parametrize(("row_sizes", "s"), [([7], 2), ([-1], 2), ([2], 0), ([2], 7)])
def test_support_outside_the_matrix_is_refused(row_sizes, s):
    with pytest.raises(ConfigError, match="row sizes 0 to d"):
        probe_support(row_sizes, 6, s)


# Proximal steps


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.999)])
def test_proximal_steps_solve_the_lasso_of_a_separable_quadratic(betas):
    """min 1/2 sum c (w - a)^2 + lam |w|_1 has w = sign(a) max(|a| - lam / c, 0)."""
    a, c, strength = torch.tensor([[2.0, 0.05, -0.3, -1.0]]), torch.tensor([[1.0, 1.0, 2.0, 0.5]]), 0.1
    weight = torch.nn.Parameter(torch.ones(1, 4))
    adam = torch.optim.Adam([weight], lr=0.01, betas=betas)
    for _ in range(2000):
        adam.zero_grad()
        (0.5 * c * (weight - a).square()).sum().backward()
        adam.step()
        linear_proximal_step(weight, adam, strength)
    solution = a.sign() * (a.abs() - strength / c).clamp_min(0)
    assert weight[0, 1] == 0
    assert torch.allclose(weight, solution, atol=2e-3)


def test_proximal_steps_leave_exact_zeros_in_a_regression():
    truth, x = torch.tensor([[2.0, 0.0, 0.0, -1.0]]), normal(4000, 4)
    weight = torch.nn.Parameter(torch.ones(1, 4))
    adam = torch.optim.Adam([weight], lr=0.01, betas=(0.0, 0.99))
    for _ in range(1500):
        adam.zero_grad()
        (x @ weight.T - x @ truth.T).square().mean().mul(0.5).backward()
        adam.step()
        linear_proximal_step(weight, adam, 0.1)
    assert (weight[0, 1:3] == 0).all()
    assert torch.allclose(weight[0, [0, 3]], torch.tensor([1.9, -0.9]), atol=0.05)


def test_proximal_step_clears_weights_without_gradient_and_waits_for_the_first_step():
    weight = torch.nn.Parameter(torch.ones(1, 2))
    adam = torch.optim.Adam([weight], lr=0.01)
    linear_proximal_step(weight, adam, 0.1)
    assert torch.equal(weight, torch.ones(1, 2))
    (weight[0, 0] - 3).square().backward()
    adam.step()
    linear_proximal_step(weight, adam, 0.1)
    assert weight[0, 1] == 0
    assert weight[0, 0] > 0.9
