"""Domain flows: inverse, log-determinant, divergence in closed form; and which latents are style."""

import math

import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.translators.sparse_mixing.domains import DomainFlow, Latents, information

D, N = 3, 40


def flow(units, n_domains=4, seed=0):
    torch.manual_seed(seed)
    made = DomainFlow(n_domains, D, units).double()
    for p in made.parameters():
        p.data += 0.7 * torch.randn_like(p)
    return made


def latents_and_domains(scale=3.0):
    generator = torch.Generator().manual_seed(1)
    z = scale * torch.randn(N, D, generator=generator, dtype=torch.double)
    return z, torch.randint(4, (N,), generator=generator)


@pytest.mark.parametrize("units", [1, 2, 6])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_inverse_undoes_the_flow_also_far_out(units, scale):
    f, (z, u) = flow(units), latents_and_domains(scale)
    torch.testing.assert_close(f.inverse(f(z, u)[0], u), z, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("units", [1, 5])
def test_log_slopes_are_the_derivative_and_coordinates_do_not_mix(units):
    f, (z, u) = flow(units), latents_and_domains()
    j = torch.func.vmap(torch.func.jacfwd(lambda v, code: f(v[None], code[None])[0][0]))(z, u)
    torch.testing.assert_close(j.diagonal(dim1=1, dim2=2).log(), f(z, u)[1].expand(N, D))
    assert (j - j.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() == 0


def test_gradients_of_the_inverse_are_exact():
    f, u = flow(3), torch.tensor([0, 1, 3])
    e = torch.randn(3, D, dtype=torch.double, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: f.inverse(v, u), e)
    (given,) = torch.autograd.grad(f.inverse(e, u).sum(), f.shift)
    step = 1e-6
    f.shift.data[1, 0] += step
    above = f.inverse(e, u).detach().sum()
    f.shift.data[1, 0] -= 2 * step
    assert float((above - f.inverse(e, u).detach().sum()) / (2 * step)) == pytest.approx(float(given[1, 0]), rel=1e-5)


def test_density_integrates_to_one():
    f = flow(4)
    grid = torch.linspace(-60, 60, 20001, dtype=torch.double)
    z, u = grid[:, None].expand(-1, D), torch.full((len(grid),), 2)
    total = torch.trapezoid(f.log_prob(z, u).exp(), grid, dim=0)
    torch.testing.assert_close(total, torch.ones(D, dtype=torch.double), rtol=1e-4, atol=1e-4)


def test_starts_near_the_identity():
    z, u = latents_and_domains(1.0)
    assert (DomainFlow(4, D, 4).double()(z, u)[0] - z).abs().max() < 0.05


@pytest.mark.parametrize("units", [1, 4])
def test_solved_flows_standardise_every_domain(units):
    z, u = latents_and_domains()
    z = z * (1 + u[:, None]) + 5 * u[:, None]
    f = DomainFlow(5, D, units).double()
    f.solve(z, u)
    for code in range(4):
        e = f(z, u)[0][u == code]
        assert e.mean(0).abs().max() < 0.05
        torch.testing.assert_close(e.std(0), torch.ones(D, dtype=torch.double), atol=0.05, rtol=0)
    assert f.shift[4].abs().max() == 0


def laws(units, mask="fixed"):
    torch.manual_seed(0)
    law = Latents(1, 2, 4, units=units, mask=mask).double()
    for p in law.parameters():
        p.data += 0.4 * torch.randn_like(p)
    return law


def test_noise_and_latents_are_each_others_inverse_and_content_stays():
    law, (z, u) = laws(4), latents_and_domains(1.0)
    law.centre.fill_(0.3)
    law.spread.fill_(2.0)
    torch.testing.assert_close(law.from_noise(law.to_noise(z, u)[0], u), z)
    moved = law.moved(z, u, (u + 1) % 4)
    torch.testing.assert_close(moved[:, 0], z[:, 0])
    assert (moved[:, 1:] - z[:, 1:]).abs().max() > 0.1
    torch.testing.assert_close(law.to_noise(moved, (u + 1) % 4)[0], law.to_noise(z, u)[0])
    torch.testing.assert_close(law.moved(moved, (u + 1) % 4, u), z)


def test_divergence_by_draws_is_that_of_the_closed_form_where_the_flow_is_affine():
    law = laws(1)
    mean = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.double)
    log_sd, u = torch.tensor([[-0.5, 0.2, -1.0]], dtype=torch.double), torch.tensor([2])
    a, b = law.flow.log_scale[2].exp(), law.flow.shift[2]
    means, sds = a * mean + b, a * log_sd.exp()
    kl = 0.5 * (means**2 + sds**2 - 1) - sds.log()
    plain = 0.5 * (mean**2 + (2 * log_sd).exp() - 1) - log_sd
    expected = float(plain[0, 0] + kl[0, 1:].sum())
    assert float(law.divergence(mean, log_sd, mean, u)) == pytest.approx(expected)
    # The same affine map as a deep-sigmoid flow: all units equal.
    bent = Latents(1, 2, 4, units=3, mask="fixed").double()
    bent.flow.place.data.zero_()
    bent.flow.log_scale.data.copy_(law.flow.log_scale.data)
    bent.flow.shift.data.copy_(law.flow.shift.data)
    n = 200_000
    z = mean + log_sd.exp() * torch.randn(n, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    drawn = bent.divergence(mean.expand(n, -1), log_sd.expand(n, -1), z, u.expand(n))
    assert float(drawn.mean()) == pytest.approx(expected, abs=5 * float(drawn.std()) / math.sqrt(n))


def test_information_of_a_shift_and_of_a_scale():
    generator = torch.Generator().manual_seed(0)
    u = torch.arange(200_000) % 2
    z = torch.randn(len(u), 3, generator=generator)
    z[:, 1] += 2.0 * u
    z[:, 2] *= 1 + 2.0 * u
    said = information(z, u)
    expected = torch.tensor([0.0, 0.5 * math.log(2.0), 0.5 * (math.log(5.0) - math.log(9.0) / 2)])
    torch.testing.assert_close(said, expected, atol=0.01, rtol=0)


def test_sorting_makes_content_what_says_least_and_standardises_it():
    law = Latents(1, 2, 2, mask="sorted")
    assert law.style().all()
    u = torch.arange(4000) % 2
    z = 3 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) + 1
    z[:, 0] += 5 * u
    z[:, 2] *= 1 + 2 * u[:].float()
    law.sort(z, u)
    assert law.style().tolist() == [True, False, True]
    content = law.to_noise(z, u)[0][:, 1]
    assert abs(float(content.mean())) < 1e-3
    assert float(content.std()) == pytest.approx(1, abs=1e-3)


def test_learned_bits_are_bits_and_have_gradients():
    law = Latents(2, 2, 2, mask="learned")
    law.logits.data.copy_(torch.tensor([-1.0, 2.0, -0.1, 0.1]))
    assert law.style().tolist() == [False, True, False, True]
    assert set(law.mask().tolist()) == {0.0, 1.0}
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (gradient,) = torch.autograd.grad((weights * law.mask()).sum(), law.logits)
    p = law.logits.sigmoid()
    torch.testing.assert_close(gradient, weights * p * (1 - p))
    (penalty,) = torch.autograd.grad(law.share(), law.logits)
    assert (penalty > 0).all()


def test_a_flipped_bit_takes_up_the_law_of_where_the_latent_is_and_settled_bits_stay():
    law = Latents(2, 1, 2, mask="learned", units=3)
    u = torch.arange(4000) % 2
    z = 3 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) + 5
    law.logits.data[:] = torch.tensor([-1.0, 1.0, 1.0])
    assert law.flipped().tolist() == [True, False, False]
    law.follow(z, u)
    assert not law.flipped().any()
    e = law.to_noise(z, u)[0].detach()
    assert abs(float(e[:, 0].mean())) < 1e-3
    assert float(e[:, 0].std()) == pytest.approx(1, abs=1e-3)
    assert law.spread.tolist()[1:] == [1, 1]
    law.settle(z, u)
    law.logits.data[:] = -1.0
    assert law.style().tolist() == [False, True, True]
    assert not law.share().requires_grad


def test_nothing_is_known_where_every_domain_has_one_cell():
    assert information(torch.randn(3, 2), torch.arange(3)).tolist() == [0, 0]


def test_unknown_mask():
    with pytest.raises(ConfigError, match="sorted, fixed, learned"):
        Latents(1, 1, 2, mask="none")
