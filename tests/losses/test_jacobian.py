import pytest
import torch
from celltransfer.losses.jacobian import exact_l1, linear_proximal_step, probe_l1, sparse_probes
from celltransfer.nn.blocks import MLP


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(n_in=3, n_out=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(n_in, n_out, (16,), "tanh")


def test_exact_is_the_jacobian_autograd_finds():
    f, x = network(), torch.randn(5, 3, generator=generator())
    rows = torch.stack([torch.autograd.functional.jacobian(lambda row: f(row[None])[0], point) for point in x])
    assert torch.allclose(exact_l1(f, x), rows.abs().sum(dim=(1, 2)).mean() / 3)


def test_exact_is_differentiable_twice():
    f, x = network().double(), torch.randn(4, 3, generator=generator()).double()
    weight = f[0].weight
    (gradient,) = torch.autograd.grad(exact_l1(f, x), weight)
    with torch.no_grad():
        h = torch.zeros_like(weight)
        h[0, 0] = 1e-6
        before = exact_l1(f, x)
        weight += h
        assert float((exact_l1(f, x) - before) / 1e-6) == pytest.approx(float(gradient[0, 0]), rel=1e-3)


@pytest.mark.parametrize("step", [None, 1e-2])
def test_probe_with_one_coordinate_is_unbiased(step):
    f, x = network(6, 4), torch.randn(64, 6, generator=generator())
    estimate = probe_l1(f, x, n_probes=2000, s=1, step=step, generator=generator())
    assert float(estimate) == pytest.approx(float(exact_l1(f, x)), rel=0.02)


def test_probe_is_biased_low_where_rows_meet_the_mask_twice():
    w, x = torch.ones(4, 10), torch.zeros(8, 10)
    estimate = probe_l1(lambda rows: rows @ w.T, x, n_probes=2000, s=4, generator=generator())
    assert float(estimate) == pytest.approx(10 / 4**0.5, rel=0.05)


def test_probe_variance_falls_with_the_mask():
    w = torch.eye(20)
    spread = [
        torch.stack(
            [probe_l1(lambda r: r @ w, torch.zeros(4, 20), s=s, generator=generator(i)) for i in range(60)]
        ).std()
        for s in (1, 5)
    ]
    assert spread[1] < 0.7 * spread[0]


def test_probes_have_exactly_s_coordinates():
    z = sparse_probes((3, 7, 20), 5, generator(), torch.device("cpu"))
    assert ((z != 0).sum(dim=-1) == 5).all()


@pytest.mark.parametrize("s", [1, 2, 3])
def test_support_size_follows_the_hypergeometric_law(s):
    """E||J z||_0 = sum_i (1 - C(d - c_i, s) / C(d, s)), between its two bounds."""
    from math import comb

    d, supports = 6, [1, 2, 4]
    j = torch.zeros(3, d)
    for row, size in enumerate(supports):
        j[row, :size] = 1.0
    z = sparse_probes((1, 20000, d), s, generator(), torch.device("cpu"))[0]
    measured = float(((z @ j.T) != 0).sum(dim=1).float().mean())
    expected = sum(1 - comb(d - c, s) / comb(d, s) for c in supports)
    assert measured == pytest.approx(expected, rel=0.03)
    upper = s / d * sum(supports)
    assert (
        upper - s * (s - 1) / (2 * d * (d - 1)) * sum(c * (c - 1) for c in supports) <= expected + 1e-9 <= upper + 2e-9
    )


def test_proximal_steps_leave_exact_zeros_and_solve_the_lasso():
    truth = torch.tensor([[2.0, 0.0, 0.0, -1.0]])
    x = torch.randn(4000, 4, generator=generator())
    weight = torch.nn.Parameter(torch.ones(1, 4))
    adam = torch.optim.Adam([weight], lr=0.01, betas=(0.0, 0.99))
    for _ in range(1500):
        adam.zero_grad()
        (x @ weight.T - x @ truth.T).square().mean().mul(0.5).backward()
        adam.step()
        linear_proximal_step(weight, adam, 0.1)
    assert (weight[0, 1:3] == 0).all()
    assert torch.allclose(weight[0, [0, 3]], torch.tensor([1.9, -0.9]), atol=0.05)


def test_both_norms_are_in_float32_under_autocast():
    f, x = network(), torch.randn(5, 3, generator=generator())
    plain = exact_l1(f, x), probe_l1(f, x, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact_l1(f, x), probe_l1(f, x, generator=generator())
    assert mixed == plain
