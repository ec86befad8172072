import torch
from celltransfer.nn.blocks import MLP, Discriminator, Residual, update_average


def test_without_hidden_layers_an_mlp_is_linear():
    f = MLP(3, 2)
    a, b = torch.randn(2, 4, 3)
    assert torch.allclose(f(a + b) + f(torch.zeros(4, 3)), f(a) + f(b), atol=1e-5)


def test_residual_starts_at_its_linear_part():
    f, x = Residual(3, 5, (8,)), torch.randn(4, 3)
    assert torch.equal(f(x), f.linear(x))


def test_discriminator_sees_conditions():
    net, y = Discriminator(3, (8,), n_conditions=2), torch.randn(4, 3)
    first, second = (net(y, torch.full((4,), code)) for code in (0, 1))
    assert first.shape == (4,)
    assert not torch.allclose(first, second)


def test_average_moves_by_one_minus_decay():
    average, current = MLP(2, 2), MLP(2, 2)
    before = average[0].weight.detach().clone()
    update_average(average, current, 0.9)
    assert torch.allclose(average[0].weight, 0.9 * before + 0.1 * current[0].weight)
