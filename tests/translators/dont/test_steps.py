"""Transport in residual steps: path, cost, confinement, and the way back."""

import numpy as np
import pytest
import torch
from celltransfer.translators.dont.steps import ARRIVED, ResidualTransport, along, kinetic


def made(gain=1.0, steps=4, d=3, seed=0):
    torch.manual_seed(seed)
    return ResidualTransport(d, steps, (16,), gain)


def test_small_gain_is_almost_no_motion_and_gain_sets_the_scale_of_velocities():
    z = torch.randn(200, 3)
    with torch.no_grad():
        assert float((made(0.01)(z) - z).abs().max()) < 1e-3
        sizes = [float(made(gain).path(z)[1][0].square().mean()) for gain in (0.5, 1.0)]
    assert sizes[1] / sizes[0] == pytest.approx(2.0**4, rel=1e-3)


def test_the_path_is_eulers():
    f, z = made(), torch.randn(5, 3)
    points, velocities = f.path(z)
    for before, after, v, velocity in zip(points, points[1:], velocities, f.velocities, strict=False):
        torch.testing.assert_close(v, velocity(before))
        torch.testing.assert_close(after, before + v / 4)


def test_between_steps_the_path_is_straight():
    points = [torch.zeros(2, 1), torch.ones(2, 1), torch.full((2, 1), 5.0)]
    assert [float(along(points, t)[0]) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 1, 3, 5]


def test_kinetic_energy_in_closed_form():
    velocities = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]])]
    weights = torch.tensor([1.0, 0.5])
    assert float(kinetic(velocities, weights)) == pytest.approx(0.5 * (1 + 0.5 * 4 + 9) / 2)
    assert float(kinetic(velocities, weights, 3.0)) == pytest.approx(0.5 * (1 + 0.5 * 8 + 27) / 2)


def test_confined_steps_are_undone_and_bounds_hold():
    f, z = made(gain=5.0), 2 * torch.randn(300, 3)
    assert f.lipschitz() > 1
    f.confine(0.9)
    assert f.lipschitz() <= 0.9 * (1 + 1e-5)
    for velocity in f.velocities:
        a, b = torch.randn(500, 3), torch.randn(500, 3)
        ratio = (velocity(a) - velocity(b)).norm(dim=1) / (a - b).norm(dim=1)
        assert float(ratio.max()) * f.dt <= 0.9
    found = f.back(f(z))
    torch.testing.assert_close(found.points, z, atol=1e-4, rtol=1e-4)
    assert found.iterations > 1


def test_confining_leaves_confined_steps_alone_and_averages_confined():
    f, g = made(gain=0.1), made(gain=5.0, seed=1)
    before = [p.clone() for p in f.parameters()]
    f.confine(0.9)
    assert all(torch.equal(p, q) for p, q in zip(before, f.parameters(), strict=True))
    g.confine(0.9)
    h = made(gain=5.0, seed=2)
    h.confine(0.9)
    with torch.no_grad():
        for p, q in zip(g.parameters(), h.parameters(), strict=True):
            p.lerp_(q, 0.3)
    assert g.lipschitz() <= 0.9 * (1 + 1e-5)


def test_steps_that_cannot_be_undone_say_so():
    f = made(gain=20.0)
    z = torch.randn(100, 3)
    found = f.back(f(z))
    assert not found.residual <= 10 * ARRIVED


def test_no_cells_are_no_trouble():
    assert made().back(torch.zeros(0, 3)).points.shape == (0, 3)
    assert np.isfinite(made().lipschitz())
