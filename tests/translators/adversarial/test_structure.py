import math

import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.nn.blocks import MLP
from celltransfer.translators.adversarial.structure import FLOOR, diverse_influence, orthogonality

LOSSES = [orthogonality, diverse_influence]
WORST = math.log(1 / FLOOR) / 2


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value(loss, j):
    """Of a linear map with Jacobian j."""
    return float(loss(lambda rows: rows @ j.T.to(rows.dtype), torch.zeros(3, j.shape[1], dtype=j.dtype)))


def network(n_in, n_out):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(n_in, n_out, (16,), "tanh")


def rotation(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


# Orthogonal columns


@pytest.mark.parametrize("seed", range(5))
def test_square_value_is_the_gap_in_hadamards_inequality(seed):
    j = normal(6, 6, seed=seed).double()
    gap = float(j.norm(dim=0).log().sum() - torch.linalg.slogdet(j).logabsdet) / 6
    assert gap > 0
    assert value(orthogonality, j) == pytest.approx(gap, rel=1e-2)  # the floor takes its share near singularity


@pytest.mark.parametrize("shape", [(5, 5), (9, 5), (1, 1), (4, 1)])
def test_orthogonal_columns_of_any_length_cost_nothing(shape):
    columns = rotation(shape[0])[:, : shape[1]] * torch.logspace(-2, 2, shape[1])
    assert value(orthogonality, columns) == pytest.approx(0, abs=1e-5)


def test_mean_squared_cosine_of_tall_jacobians():
    """Two columns at 60 degrees: 1/4; three of which two are parallel: 1/3."""
    two = torch.tensor([[1.0, 0.5], [0.0, math.sqrt(0.75)], [0.0, 0.0]])
    three = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert value(orthogonality, two) == pytest.approx(0.25)
    assert value(orthogonality, three) == pytest.approx(1 / 3)
    assert value(orthogonality, torch.ones(5, 3)) == pytest.approx(1)


@pytest.mark.parametrize("n_out", [4, 7])
def test_scale_and_order_of_columns_do_not_matter(n_out):
    j = normal(n_out, 4)
    changed = (j * torch.tensor([0.1, -3.0, 20.0, 1.0]))[:, [2, 0, 3, 1]]
    assert value(orthogonality, changed) == pytest.approx(value(orthogonality, j), rel=1e-4)


def test_wide_jacobians_have_no_orthogonal_columns():
    with pytest.raises(ConfigError, match="5 columns in 3 dimensions"):
        value(orthogonality, normal(3, 5))


# Diverse influence


def test_one_input_per_output_is_the_best():
    scaled = torch.eye(4)[[2, 0, 3, 1]] * torch.tensor([1.0, -5.0, 0.1, 3.0])
    for j in (scaled, scaled.repeat(3, 1), scaled[:2]):
        assert value(diverse_influence, j) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (3, 6)])
def test_everything_else_costs_something(shape):
    for seed in range(5):
        assert value(diverse_influence, normal(*shape, seed=seed)) > 0.1


def test_square_value_in_closed_form():
    """-(log|det J| - sum_i log||J_i:||_1) / d."""
    j = normal(5, 5).double()
    expected = float(j.abs().sum(dim=1).log().sum() - torch.linalg.slogdet(j).logabsdet) / 5
    assert value(diverse_influence, j) == pytest.approx(expected, rel=1e-2)


def test_unequal_shares_of_the_outputs_cost_what_the_volume_says():
    """Inputs with 3 and 1 of 4 outputs: U^T U = diag(3, 1), against diag(2, 2)."""
    j = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    assert value(diverse_influence, j) == pytest.approx(-math.log(3 / 4) / 4, rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (3, 6)])
def test_shrinking_is_no_way_out(shape):
    j = normal(*shape)
    scales = torch.logspace(-3, 2, shape[0])[:, None]
    assert value(diverse_influence, j * scales) == pytest.approx(value(diverse_influence, j), rel=1e-4)


# Both


@pytest.mark.parametrize(
    ("loss", "n_in", "n_out"), [*((loss, 3, n) for loss in LOSSES for n in (3, 5)), (diverse_influence, 5, 3)]
)
def test_gradients(loss, n_in, n_out):
    f, x = network(n_in, n_out).double(), normal(4, n_in).double().requires_grad_()
    names = list(dict(f.named_parameters()))

    def of_parameters(x, *parameters):
        return loss(lambda rows: torch.func.functional_call(f, dict(zip(names, parameters, strict=True)), rows), x)

    assert torch.autograd.gradcheck(of_parameters, (x, *f.parameters()))


@pytest.mark.parametrize("shape", [(6, 6), (9, 6)])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rank", [0, 2])
def test_singular_starts_have_finite_values_and_gradients(loss, shape, rank):
    weight = (normal(shape[0], rank) @ normal(rank, shape[1], seed=1)).requires_grad_()
    cost = loss(lambda rows: rows @ weight.T, torch.zeros(2, shape[1]))
    cost.backward()
    assert 0 <= cost.item() < 1.01 * WORST
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_descent_reaches_zero(loss):
    """From a random matrix to orthogonal columns, and to one input per output."""
    weight = normal(4, 4).requires_grad_()
    adam = torch.optim.Adam([weight], lr=0.02)
    for _ in range(500):
        adam.zero_grad()
        loss(lambda rows: rows @ weight.T, torch.zeros(1, 4)).backward()
        adam.step()
    assert value(loss, weight.detach()) < 0.02


@pytest.mark.parametrize("loss", LOSSES)
def test_autocasting_does_not_reach_the_layers(loss):
    f, x = network(4, 4), normal(5, 4)
    plain = loss(f, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(f, x) == plain
