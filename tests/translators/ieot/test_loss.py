"""The semi-supervised loss of inverse entropic OT: what it is at both ends, and what it is not."""

import numpy as np
import pytest
import torch
from celltransfer.translators.ieot.loss import semi_supervised
from celltransfer.translators.ieot.mixture import TiltedMixture


def made(n_out: int = 2, n_conditions: int = 0) -> TiltedMixture:
    torch.manual_seed(3)
    model = TiltedMixture(3, n_out, 4, 2, n_conditions=n_conditions).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return model


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, AX, AY = draw(30, 3), draw(20, 2, seed=1), draw(5, 3, seed=2), draw(5, 2, seed=3)


@torch.no_grad()
def test_without_unpaired_cells_it_is_the_likelihood_of_the_anchors():
    model = made()
    loss = semi_supervised(model, X, Y, AX, AY, weight_unpaired=0.0, joint=True)
    assert float(loss) == pytest.approx(-float(model.log_prob(AX, AY).mean()))


@torch.no_grad()
def test_at_one_it_is_the_loss_of_the_paper():
    model = made()
    paper = model.cost(AX, AY).mean() - model.potential(Y).mean() + model.log_z(X).mean()
    for joint in (False, True):
        assert float(semi_supervised(model, X, Y, AX, AY, weight_unpaired=1.0, joint=joint)) == pytest.approx(
            float(paper)
        )


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_every_weight_is_the_likelihood_where_the_cells_are_the_anchors(lam, joint):
    """In the population, braces vanish: here p, q and the anchors are one and the same sample."""
    model = made()
    loss = semi_supervised(model, AX, AY, AX, AY, weight_unpaired=lam, joint=joint)
    assert float(loss) == pytest.approx(-float(model.log_prob(AX, AY).mean()))


@torch.no_grad()
def test_the_share_of_the_anchors_is_the_mean_over_all_cells():
    """A batch of the other cells and the anchors with their share: the mean over both together."""
    model = made()
    everyone_x, everyone_y = torch.cat([X[:20], AX]), torch.cat([Y, AY])
    whole = semi_supervised(model, everyone_x, everyone_y, AX, AY, weight_unpaired=0.7)
    parts = semi_supervised(model, X[:20], Y, AX, AY, weight_unpaired=0.7, share_x=5 / 25, share_y=5 / 25)
    assert float(parts) == pytest.approx(float(whole))


@torch.no_grad()
def test_a_left_out_anchor_does_not_count():
    model = made()
    weights = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25], dtype=torch.float64)
    kept = [0, 1, 3, 4]
    left_out = semi_supervised(
        model, X, Y, AX, AY, weight_unpaired=0.5, share_x=0.2, share_y=0.1, anchor_weights=weights
    )
    removed = semi_supervised(model, X, Y, AX[kept], AY[kept], weight_unpaired=0.5, share_x=0.2, share_y=0.1)
    assert float(left_out) == pytest.approx(float(removed))


@torch.no_grad()
def test_without_anchors_only_the_marginals_speak():
    model = made()
    loss = semi_supervised(model, X, Y, AX[:0], AY[:0], weight_unpaired=0.5)
    assert float(loss) == pytest.approx(float(model.log_z(X).mean() - model.potential(Y).mean()))


def test_gradients_of_all_parameters():
    model = made(n_conditions=2)
    names, values = zip(*model.named_parameters(), strict=True)
    codes, codes_a = torch.arange(20) % 2, torch.arange(5) % 2

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            known = {"condition": codes, "condition_anchor": codes_a}
            return semi_supervised(self.model, X[:20], Y, AX, AY, weight_unpaired=0.6, share_x=0.1, joint=True, **known)

    whole = Loss()

    def value(*parameters):
        state = {f"model.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(whole, state, ())

    assert torch.autograd.gradcheck(value, values)


def slopes(model: TiltedMixture, lam: float, *, joint: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    semi_supervised(model, X, Y, AX, AY, weight_unpaired=lam, share_x=0.1, joint=joint).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_by_default_the_cost_descends_the_weighted_loss_and_the_potential_that_of_all_cells():
    model = made()
    found, weighted, paper = (
        slopes(model, 0.3, joint=False),
        slopes(model, 0.3, joint=True),
        slopes(model, 1.0, joint=True),
    )
    for name, slope in found.items():
        of_the_cost = name.startswith(("direction", "gate"))
        np.testing.assert_allclose(slope, (weighted if of_the_cost else paper)[name], atol=1e-12)
    assert not torch.allclose(weighted["centres"], paper["centres"])


def descend(loss, parameters, steps: int) -> list[float]:
    optimizer, found = torch.optim.Adam(parameters, lr=0.03), []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    return found


@pytest.mark.parametrize(("lam", "share"), [(1.0, 0.2), (0.5, 0.2), (0.0, 0.2)])
def test_a_cost_that_can_single_an_anchor_out_overshoots_by_the_weight_of_its_normaliser(lam, share):
    """Potential N(0, 1), an anchor that no cell is near: a minimises w a^2 / 2 - a y, so its mean is y / w."""
    torch.manual_seed(0)
    model = TiltedMixture(1, 1, 1, 1, towers="mlp", hidden=(32,), floor=0.02)
    model.set_potential(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1))
    anchor, y = torch.tensor([[8.0]]), torch.tensor([[0.5]])
    cells, others = 0.3 * torch.randn(100, 1), torch.randn(100, 1)

    def loss():
        return semi_supervised(model, cells, others, anchor, y, weight_unpaired=lam, share_x=share)

    descend(loss, list(model.direction.parameters()), 500)
    weight = (1 - lam) + lam * share
    assert float(model.moments(anchor)[0].detach()) == pytest.approx(0.5 / weight, rel=0.05)


def test_without_the_anchors_among_the_cells_the_papers_loss_has_no_bound():
    torch.manual_seed(0)
    model = TiltedMixture(1, 1, 1, 1, towers="mlp", hidden=(32,), floor=0.02)
    anchor, y = torch.tensor([[8.0]]), torch.tensor([[0.5]])
    cells, others = 0.3 * torch.randn(100, 1), torch.randn(100, 1)
    found = descend(
        lambda: semi_supervised(model, cells, others, anchor, y, weight_unpaired=1.0),
        list(model.direction.parameters()),
        600,
    )
    assert found[-1] < found[399] - 5 < found[199] - 10


def test_a_known_conditional_mixture_is_recovered():
    """y given x is a two-component mixture whose weights and centres move with x; 200 pairs, 4,000 cells a side."""
    torch.manual_seed(1)
    truth = TiltedMixture(1, 1, 2, 1, floor=0.05)
    with torch.no_grad():
        truth.set_potential(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.15))
        truth.direction[-1].weight.fill_(1.5)
        x, y = torch.randn(4000, 1), truth.sample(torch.randn(4000, 1), 1)[0]
        anchor_x = torch.randn(200, 1)
        anchor_y = truth.sample(anchor_x, 1)[0]
        test_x = torch.randn(5000, 1)
        test_y = truth.sample(test_x, 1)[0]
    model = TiltedMixture(1, 1, 2, 1, floor=0.05)
    model.set_potential(torch.tensor([0.5, 0.5]), torch.tensor([[-0.5], [0.5]]), torch.ones(2, 1))

    def excess() -> float:
        with torch.no_grad():
            return float((truth.log_prob(test_x, test_y) - model.log_prob(test_x, test_y)).mean())

    start = excess()
    descend(
        lambda: semi_supervised(model, x, y, anchor_x, anchor_y, weight_unpaired=0.3),
        list(model.parameters()),
        250,
    )
    assert excess() < 0.03 < 0.1 * start
    assert float(model.direction[-1].weight.detach()) == pytest.approx(1.5, abs=0.3)


def test_a_constant_direction_would_have_no_bound():
    """f(y) + <t, y> with the cost lowered as much is the same law, and the loss falls along t without end."""
    model, falls = made(), []
    with torch.no_grad():
        a_slope = (Y.mean(0) - AY.mean(0)) * 0.5
        for t in (0.0, 1.0, 10.0):
            shifted = _Tilted(model, t * a_slope)
            falls.append(float(semi_supervised(shifted, X, Y, AX, AY, weight_unpaired=0.5, joint=True)))
            np.testing.assert_allclose(shifted.log_prob(AX, AY), model.log_prob(AX, AY), atol=1e-9)
    slope = float((a_slope * 0.5 * (Y.mean(0) - AY.mean(0))).sum())
    np.testing.assert_allclose(np.diff(falls), [-slope, -9 * slope], rtol=1e-6)
    assert model.direction[-1].bias is None  # which is why directions have none


class _Tilted:
    """The same law: potential and cost both raised by <t, y>."""

    def __init__(self, model, t):
        self.model, self.t, self.log_z, self.log_prob = model, t, model.log_z, None
        self.log_prob = lambda x, y: self.potential(y) - self.cost(x, y) - self.log_z(x)

    def potential(self, y, condition=None):
        return self.model.potential(y, condition) + y @ self.t

    def cost(self, x, y):
        return self.model.cost(x, y) + y @ self.t
