"""Inverse entropic optimal transport by energies: the gradient, the sampler, the chains, and what is recovered."""

import math

import numpy as np
import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators.ieot.energy import EnergyIEOT
from celltransfer.translators.ieot.energy_loss import langevin, surrogate
from celltransfer.translators.ieot.energy_networks import Chains, DistanceCost, JointCost
from torch import nn

GRID = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]


def trainer(steps, **kwargs):
    return Trainer(max_steps=steps, batch_size=64, device="cpu", progress=False, **kwargs)


class OneDimension:
    """A model of one feature whose normaliser is a sum over a grid, and cells to fit it to."""

    def __init__(self):
        torch.manual_seed(0)
        shapes = [nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, 1)).double() for n in (2, 1)]
        self.g, self.f_net = shapes
        self.parameters = [*self.g.parameters(), *self.f_net.parameters()]
        draw = torch.Generator().manual_seed(1)
        self.x, self.xa = (torch.randn(n, 1, generator=draw, dtype=torch.float64) for n in (7, 3))
        self.y, self.ya = (torch.randn(n, 1, generator=draw, dtype=torch.float64) for n in (9, 3))

    def c(self, x, y):
        return self.g(torch.cat([x, y], 1)).squeeze(1) + 0.5 * y.square().sum(1)

    def f(self, y):
        return self.f_net(y).squeeze(1)

    def on_grid(self, x):
        """f - c of every x at every point of the grid, shape (n, points)."""
        pairs = x.repeat_interleave(len(GRID), 0), GRID.repeat(len(x), 1)
        return (self.f(pairs[1]) - self.c(*pairs)).view(len(x), -1)

    def log_z(self, x):
        return torch.logsumexp(self.on_grid(x), 1) + math.log(float(GRID[1, 0] - GRID[0, 0]))

    def expected(self, x):
        """f - c under the model's own law, held fixed: (n,)."""
        free = self.on_grid(x)
        return (free.detach().softmax(1) * free).sum(1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_surrogate_has_the_gradient_of_the_exact_loss(weight):
    m = OneDimension()
    everyone = torch.cat([m.xa, m.x])
    likelihood = (m.c(m.xa, m.ya) - m.f(m.ya) + m.log_z(m.xa)).mean()
    unpaired = m.f(m.ya).mean() - m.f(m.y).mean() + m.log_z(everyone).mean() - m.log_z(m.xa).mean()
    exact = torch.autograd.grad(likelihood + weight * unpaired, m.parameters, allow_unused=True)
    terms = surrogate(
        m.c(m.xa, m.ya),
        m.f(m.ya),
        m.f(m.y),
        m.expected(m.xa),
        m.expected(m.x),
        weight_unpaired=weight,
        share=len(m.xa) / len(everyone),
    )
    found = torch.autograd.grad(sum(terms.values()), m.parameters)
    for a, b in zip(exact, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


def test_surrogate_with_sampled_expectations_agrees_with_a_normal_law():
    """c = k (t x - y)^2 / 2 and f = 0: Z does not depend on t, so neither does the samples' term on average."""
    t = torch.tensor(0.7, requires_grad=True)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, generator=draw)
    y = (t * x).detach() + torch.randn(100_000, generator=draw) / 2
    zero = torch.zeros(1)
    terms = surrogate(zero, zero, zero, zero, -2 * (t * x - y).square())
    assert abs(float(torch.autograd.grad(sum(terms.values()), t)[0])) < 0.03


def test_without_other_sources_the_samples_of_the_pairs_are_all():
    terms = surrogate(*(torch.ones(2) * v for v in (1.0, 2.0, 3.0, 5.0)), torch.ones(0), share=1.0)
    assert {name: float(v) for name, v in terms.items()} == {"pairs": 1.0, "targets": -3.0, "samples": 5.0}


def test_langevin_samples_a_normal_law():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    precision, mean = covariance.inverse(), torch.tensor([2.0, -1.0])
    draw = torch.Generator().manual_seed(0)
    y = langevin(
        lambda y: 0.5 * ((y - mean) @ precision * (y - mean)).sum(1),
        torch.zeros(20_000, 2),
        n_steps=250,
        step=0.05,
        noise=lambda: torch.randn(20_000, 2, generator=draw),
    )
    torch.testing.assert_close(y.mean(0), mean, atol=0.03, rtol=0)
    biased = torch.linalg.inv(precision - 0.05 / 4 * precision @ precision)
    torch.testing.assert_close(y.T.cov(), biased, atol=0.04, rtol=0)
    assert not y.requires_grad


def test_langevin_shortens_long_gradients():
    ends = langevin(
        lambda y: 1e6 * y.square().sum(1),
        torch.full((3, 4), 5.0),
        n_steps=1,
        step=0.1,
        noise=lambda: torch.zeros(3, 4),
        clip=2.0,
    )
    torch.testing.assert_close(ends, torch.full((3, 4), 4.9))


def test_langevin_leaves_no_gradient_with_the_networks():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        langevin(lambda y: net(y).squeeze(1), torch.zeros(3, 2), n_steps=2, step=0.1, noise=lambda: torch.zeros(3, 2))
    assert net.weight.grad is None


def test_chains_go_on_and_a_share_starts_anew():
    draw = torch.Generator().manual_seed(0)
    chains = Chains(torch.zeros(1000, 1), torch.zeros(1000, 2))
    places, x, y = chains.draw(1000, torch.ones(4, 1), lambda x: x.expand(-1, 2) * 7, 0.25, draw)
    assert sorted(places.tolist()) == list(range(1000))
    assert 0.2 < float(x.mean()) < 0.3
    torch.testing.assert_close(y, 7 * x.expand(-1, 2))
    chains.put(places, x, y + 1)
    torch.testing.assert_close(chains.y, 7 * chains.x.expand(-1, 2) + 1)
    _, again, kept = chains.draw(1000, torch.ones(4, 1), lambda x: x.expand(-1, 2), 0.0, draw)
    torch.testing.assert_close(kept, 7 * again.expand(-1, 2) + 1)


def test_costs_grow_with_the_square_of_y_and_are_zero_at_zero():
    far = torch.tensor([[100.0], [200.0]])
    costs = (DistanceCost(nn.Linear(1, 1), 1, most=20.0), JointCost(nn.Linear(2, 1), 1))
    for cost in costs:
        assert float(cost(cost.prepare(torch.ones(2, 1)), torch.zeros(2, 1)).detach().abs().max()) < 1e-6
        near, further = cost(cost.prepare(torch.zeros(2, 1)), far)
        assert 3.5 < further / near < 4.5


def linear_cells(n=400, k=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    weight = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3]])
    y = x @ weight + 0.3 * rng.normal(size=(n, 2)) + [4, -2]
    own = rng.normal(size=(n, 3))
    y_other = own @ weight + 0.3 * rng.normal(size=(n, 2)) + [4, -2]
    y_all = np.vstack([y[:k], y_other])
    return (x.astype(np.float32), y_all.astype(np.float32), np.column_stack([np.arange(k)] * 2)), x, y


def test_beats_the_mean_and_keeps_the_marginal_law():
    data, x, y = linear_cells()
    f = EnergyIEOT().fit(*data, seed=0, trainer=trainer(200))
    error = np.square(f.translate(x[50:]) - y[50:]).mean()
    assert error < 0.35 * y.var(axis=0).mean()
    drawn = f.sample(x, 2, seed=1)
    np.testing.assert_allclose(drawn.std(axis=(0, 1)), y.std(axis=0), rtol=0.2)
    assert f.result_.status is Status.MAX_STEPS
    assert f.result_.history["held_out"][0][1] < 0.1
    assert not f.result_.notes


def test_samples_agree_with_mean_and_spread():
    data, x, _ = linear_cells()
    f = EnergyIEOT().fit(*data, seed=0, trainer=trainer(50))
    cells = x[:5].astype(np.float32)
    drawn = f.sample(cells, 400, seed=3)
    assert drawn.shape == (400, 5, 2)
    np.testing.assert_allclose(drawn.mean(axis=0), f.translate(cells), atol=0.12)
    np.testing.assert_allclose(drawn.std(axis=0), f.std(cells), rtol=0.4)
    np.testing.assert_array_equal(f.sample(cells, 3, seed=1), f.sample(cells, 3, seed=1))
    assert not np.array_equal(f.sample(cells, 3, seed=1), f.sample(cells, 3, seed=2))


def test_a_translation_hangs_on_its_own_cell_alone():
    data, x, _ = linear_cells()
    f = EnergyIEOT().fit(*data, seed=0, trainer=trainer(5))
    cells = x[:6].astype(np.float32)
    np.testing.assert_allclose(f.translate(cells[::-1].copy())[::-1], f.translate(cells), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(f.translate(cells[2:3]), f.translate(cells)[2:3], rtol=1e-5, atol=1e-5)


def test_finds_both_modes_of_a_conditional_law():
    """Y = +-2 with a sign that x does not tell, shifted by x: the joint cost and many pairs."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(600, 1)).astype(np.float32)
    y = (x + 2 * rng.choice([-1, 1], size=x.shape) + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
    f = EnergyIEOT(cost="joint", hidden=(32, 32), hidden_potential=(32, 32), lr=1e-2, sample_steps=200)
    f.fit(x, y, np.column_stack([np.arange(600)] * 2), seed=0, trainer=trainer(400))
    at = np.array([[-0.6], [0.6]], np.float32)
    drawn = f.sample(at, 500, seed=0)[:, :, 0]
    for i in range(2):
        upper = drawn[:, i] > at[i]
        assert 0.3 < upper.mean() < 0.7
        assert abs(np.median(drawn[upper, i]) - (at[i, 0] + 2)) < 0.5
        assert abs(np.median(drawn[~upper, i]) - (at[i, 0] - 2)) < 0.5


def test_state_holds_no_chains():
    data, _, _ = linear_cells()
    f = EnergyIEOT().fit(*data, trainer=trainer(3))
    assert not [name for name in f.get_state() if "chains" in name]
    assert not [name for name in vars(f) if name in ("_held", "_origin", "_share", "generator_")]


def test_resumed_fit_is_the_same(tmp_path):
    data, x, _ = linear_cells(n=100)
    whole = EnergyIEOT(buffer=50).fit(*data, trainer=trainer(8, check_every=2))
    for steps in (4, 8):
        limits = trainer(steps, check_every=2, checkpoint_dir=tmp_path, resume=True)
        resumed = EnergyIEOT(buffer=50).fit(*data, trainer=limits)
    x = x.astype(np.float32)
    np.testing.assert_array_equal(resumed.translate(x), whole.translate(x))


def test_chains_that_run_away_end_the_fit():
    data, x, _ = linear_cells(n=100)
    f = EnergyIEOT(step=0.5, clip=1e9, lr=30.0, buffer=100).fit(*data, trainer=trainer(60, check_every=5))
    assert f.result_.status is Status.DIVERGED
    assert np.isfinite(f.translate(x.astype(np.float32))).all()


@pytest.mark.parametrize("cost", ["residual", "mlp", "joint"])
def test_other_costs(cost):
    data, x, _ = linear_cells(n=100)
    f = EnergyIEOT(cost=cost, hidden=(16,)).fit(*data, trainer=trainer(5))
    assert np.isfinite(f.translate(x.astype(np.float32))).all()


@pytest.mark.parametrize("options", [{"cost": "cubic"}, {"weight_unpaired": 2.0}, {"step": 0.0}])
def test_impossible_options_are_refused(options):
    data, _, _ = linear_cells(n=50)
    with pytest.raises(ConfigError, match=next(iter(options))):
        EnergyIEOT(**options).fit(*data, trainer=trainer(1))
