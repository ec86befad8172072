import math

import pytest
import torch
from celltransfer.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from celltransfer.losses.discrepancy import energy_distance
from celltransfer.nn.blocks import Discriminator

LOGITS = torch.tensor([-30.0, -1.5, 0.0, 0.7, 40.0], dtype=torch.float64)


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


def test_undecided_discriminator():
    zero = torch.zeros(5)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(generator_loss(zero)) == pytest.approx(math.log(2))
    assert float(discriminator_loss(zero, zero, "least_squares")) == pytest.approx(0.5)
    assert float(generator_loss(zero, "least_squares")) == pytest.approx(0.5)


def test_non_saturating_gradients():
    """sigmoid(D) - 1 on what shall be called real, sigmoid(D) on what shall not, over the batch."""
    n, share = len(LOGITS), torch.sigmoid(LOGITS)
    assert torch.allclose(gradient(lambda real: discriminator_loss(real, LOGITS), LOGITS), (share - 1) / n)
    assert torch.allclose(gradient(lambda fake: discriminator_loss(LOGITS, fake), LOGITS), share / n)
    assert torch.allclose(gradient(generator_loss, LOGITS), (share - 1) / n)


def test_least_squares_gradients():
    n, kind = len(LOGITS), "least_squares"
    assert torch.allclose(gradient(lambda real: discriminator_loss(real, LOGITS, kind), LOGITS), (LOGITS - 1) / n)
    assert torch.allclose(gradient(lambda fake: discriminator_loss(LOGITS, fake, kind), LOGITS), LOGITS / n)
    assert torch.allclose(gradient(lambda fake: generator_loss(fake, kind), LOGITS), (LOGITS - 1) / n)


def test_a_sure_discriminator_still_moves_the_generator():
    """What non-saturating means: the slope is -1 where the discriminator is certain, and the value stays finite."""
    certain = torch.full((4,), -1e4)
    assert float(generator_loss(certain)) == pytest.approx(1e4)
    assert torch.allclose(gradient(generator_loss, certain), torch.tensor(-0.25))


def test_batches_of_different_size_weigh_the_same():
    few, many = torch.tensor([0.3, -0.2]), torch.tensor([0.3, -0.2]).repeat(50)
    for kind in ("non_saturating", "least_squares"):
        assert float(discriminator_loss(few, many, kind)) == pytest.approx(float(discriminator_loss(few, few, kind)))


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty = r1_penalty(lambda y: y @ w, torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))
    assert penalty.item() == pytest.approx(12.5)
    penalty.backward()
    assert torch.allclose(w.grad, w.detach())


def test_r1_of_a_quadratic_discriminator():
    """D(y) = a |y|^2 / 2 has gradient a y: the penalty is a^2 E|y|^2 / 2, and its slope in a is a E|y|^2."""
    a = torch.tensor(1.5, requires_grad=True)
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    penalty = r1_penalty(lambda rows: a * rows.square().sum(dim=1) / 2, y)
    penalty.backward()
    size = float(y.square().sum(dim=1).mean())
    assert penalty.item() == pytest.approx(1.5**2 * size / 2)
    assert float(a.grad) == pytest.approx(1.5 * size)


def test_r1_reaches_every_weight_of_a_network_and_leaves_the_cells_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        discriminator = Discriminator(3, (5,)).double()
    y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    r1_penalty(discriminator, y).backward()
    assert y.grad is None
    names = [name for name, _ in discriminator.named_parameters()]
    parameters = tuple(discriminator.parameters())

    def penalty(*values):
        named = dict(zip(names, values, strict=True))
        return r1_penalty(lambda rows: torch.func.functional_call(discriminator, named, rows), y)

    assert torch.autograd.gradcheck(penalty, parameters)


def test_energy_distance_is_zero_for_equal_laws_and_grows_with_shift():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 800, 3, generator=g)
    values = [float(energy_distance(a, b + shift)) for shift in (0.0, 0.5, 1.0)]
    assert abs(values[0]) < 0.01
    assert values[0] < values[1] < values[2]
    assert float(energy_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))) == pytest.approx(2.0)
