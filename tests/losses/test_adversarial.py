import math

import pytest
import torch
from celltransfer.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from celltransfer.losses.discrepancy import energy_distance


def test_undecided_discriminator():
    zero = torch.zeros(5)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(generator_loss(zero)) == pytest.approx(math.log(2))
    assert float(discriminator_loss(zero, zero, "least_squares")) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["non_saturating", "least_squares"])
def test_losses_push_logits_apart_and_the_generator_up(kind):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    if kind == "non_saturating":
        assert (fake.grad > 0).all()
    logits = torch.zeros(3, requires_grad=True)
    generator_loss(logits, kind).backward()
    assert (logits.grad < 0).all()


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty = r1_penalty(lambda y: y @ w, torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))
    assert float(penalty) == pytest.approx(12.5)
    penalty.backward()
    assert torch.allclose(w.grad, w.detach())


def test_energy_distance_is_zero_for_equal_laws_and_grows_with_shift():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 800, 3, generator=g)
    values = [float(energy_distance(a, b + shift)) for shift in (0.0, 0.5, 1.0)]
    assert abs(values[0]) < 0.01
    assert values[0] < values[1] < values[2]
    assert float(energy_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))) == pytest.approx(2.0)
