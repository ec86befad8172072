"""Flows on images: inverses, determinants, densities, starts and states."""

import copy

import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.nn.glow import GlowDensity, GlowTransform


def moved(module, scale=0.1):
    """All parameters away from where they start, in double precision."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.double().eval()


@pytest.fixture(params=[(4, 1, 1), (4, 3, 2), (8, 1, 3), (8, 2, 2)])
def shape(request):
    """Side, channels and scales."""
    return dict(zip(("side", "channels", "scales"), request.param, strict=True))


def test_both_directions_undo_each_other(shape):
    f = moved(GlowTransform(**shape, blocks=2, width=8))
    x = torch.randn(5, shape["channels"] * shape["side"] ** 2, dtype=torch.float64)
    y, log_det = f(x)
    assert y.shape == x.shape
    assert log_det.shape == (5,)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(f.inverse(y), x, atol=1e-8, rtol=0)
    torch.testing.assert_close(f(f.inverse(x))[0], x, atol=1e-8, rtol=0)


def test_log_determinants_are_those_of_the_jacobian():
    f = moved(GlowTransform(4, channels=2, scales=2, blocks=2, width=8))
    x = torch.randn(3, 32, dtype=torch.float64)
    truth = torch.stack([torch.autograd.functional.jacobian(lambda r: f(r[None])[0][0], row) for row in x])
    torch.testing.assert_close(f(x)[1], torch.linalg.slogdet(truth)[1])


def test_a_scale_of_two_by_two_pixels_has_a_density_that_integrates_to_one():
    density = moved(GlowDensity(2, scales=1, blocks=2, width=4), 0.05)
    points, total = torch.linspace(-6, 6, 25, dtype=torch.float64), 0.0
    plane = torch.cartesian_prod(points, points, points)
    with torch.no_grad():
        for first in points:
            total += density.log_prob(torch.cat([first.expand(len(plane), 1), plane], 1)).exp().sum().item()
    assert total * (points[1] - points[0]).item() ** 4 == pytest.approx(1, abs=1e-3)


def test_samples_have_the_density():
    """E[q / p] under p is 1 for any density q: a wide normal law here."""
    density = moved(GlowDensity(4, scales=2, blocks=2, width=8), 0.02)
    with torch.no_grad():
        x = density.sample(20_000)
        log_q = torch.distributions.Normal(0, 0.9).log_prob(x).sum(1)
        assert (log_q - density.log_prob(x)).exp().mean().item() == pytest.approx(1, abs=0.05)


def test_a_transform_starts_as_the_identity_exactly(shape):
    f, x = GlowTransform(**shape, width=8), torch.randn(7, shape["channels"] * shape["side"] ** 2)
    for mode in (f.train(), f.eval()):
        y, log_det = mode(x)
        assert torch.equal(y, x)
        assert not log_det.any()
        assert torch.equal(mode.inverse(x), x)


def test_a_density_starts_from_its_images():
    torch.manual_seed(0)
    density, x = GlowDensity(4, scales=2, blocks=2, width=8), 3 * torch.randn(500, 16) + torch.arange(16.0)
    density.solve(x)
    z = density.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(density.decode(z), x, atol=1e-4, rtol=1e-4)
    before = copy.deepcopy(density.state_dict())
    density.log_prob(x + 10)
    assert all(torch.equal(value, before[name]) for name, value in density.state_dict().items())


def test_pixels_that_never_change_do_not_blow_up():
    density, x = GlowDensity(4, scales=1, blocks=1, width=8), torch.zeros(10, 16)
    density.solve(x)
    assert density.log_prob(x).isfinite().all()


@pytest.mark.parametrize("kind", [GlowDensity, GlowTransform])
def test_a_state_goes_round(kind):
    torch.manual_seed(1)
    first, second, x = kind(4, scales=2, blocks=2, width=8), kind(4, scales=2, blocks=2, width=8), torch.randn(64, 16)
    call = (lambda m: m.log_prob(x)) if kind is GlowDensity else (lambda m: m(x)[0])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    second.load_state_dict(first.state_dict())
    assert torch.equal(call(first), call(second))
    torch.manual_seed(1)
    assert all(map(torch.equal, kind(4, scales=2).parameters(), _seeded(kind).parameters()))


def _seeded(kind):
    torch.manual_seed(1)
    return kind(4, scales=2)


def test_gradients_are_finite_and_reach_every_parameter():
    x = torch.randn(32, 64)
    f, density = GlowTransform(8, scales=2, blocks=2, width=8), GlowDensity(8, scales=2, blocks=2, width=8)
    for _ in range(2):  # behind the last layers of couplings, which start at zero, gradients come second
        y, log_det = f(x)
        (-log_det - density.log_prob(y)).mean().backward()
        with torch.no_grad():
            for parameter in [*f.parameters(), *density.parameters()]:
                assert parameter.grad.isfinite().all()
                parameter -= 1e-3 * parameter.grad
    assert all(p.grad.any() for p in [*f.parameters(), *density.parameters()] if p.shape != (4, 4))


def test_more_likely_after_training():
    torch.manual_seed(0)
    x = torch.randn(256, 1).tanh() + 0.1 * torch.randn(256, 16)
    density = GlowDensity(4, scales=2, blocks=2, width=16)
    density.solve(x)
    first = density.log_prob(x).mean().item()
    optimizer = torch.optim.Adam(density.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (-density.log_prob(x).mean()).backward()
        optimizer.step()
    assert density.log_prob(x).mean().item() > first + 3


@pytest.mark.parametrize("wrong", [{"side": 6}, {"blocks": 0}, {"scales": 4}])
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError):
        GlowDensity(**{"side": 8, "scales": 2, "blocks": 1} | wrong)
