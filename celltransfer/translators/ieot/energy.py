"""Inverse entropic optimal transport with free networks for cost and potential, sampled by Langevin dynamics."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from celltransfer.data.pair import dense
from celltransfer.errors import ConfigError
from celltransfer.nn.blocks import MLP, Residual, update_average
from celltransfer.pp.transforms import moments
from celltransfer.translators import holdout
from celltransfer.translators.base import register
from celltransfer.translators.baselines import anchor_map
from celltransfer.translators.conditional import ConditionalTranslator
from celltransfer.translators.ieot.energy_loss import langevin, surrogate
from celltransfer.translators.ieot.energy_networks import LOWEST_PRECISION, Chains, DistanceCost, JointCost, Law
from celltransfer.translators.regression import ridge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import ModalityPair
    from celltransfer.train.outcome import FitResult

# Chains whose mean square, in units of the target's variance, is beyond this have run away.
RUNAWAY = 100.0
# Samples further from held-out cells than this share of a typical distance between cells are said to be so.
FAR = 0.05
# Chains that are sampled at a time, at most.
ROWS = 32768
# Samples from which variances are estimated.
SPREAD = 64


class Networks(nn.Module):
    """All parameters: the law of scaled cells, its moving average, the scales and, during a fit, the chains.

    Attributes
    ----------
    law, average
        The law, and the moving average of its parameters, which translates after training.
    chains
        Of sources that are anchors and, where there are any, of others.
    """

    chains: Any
    mean_x: Tensor
    mean_y: Tensor
    scale_x: Tensor
    scale_y: Tensor

    def __init__(self, law: Law, *, d: int, out: int) -> None:
        super().__init__()
        self.law, self.average = law, copy.deepcopy(law).requires_grad_(False)
        self.chains = nn.ModuleDict()
        for side, size in (("x", d), ("y", out)):
            self.register_buffer(f"mean_{side}", torch.zeros(size))
            self.register_buffer(f"scale_{side}", torch.ones(size))

    def source(self, x: Tensor) -> Tensor:
        """Source cells as the networks see them."""
        return (x - self.mean_x) / self.scale_x

    def target(self, y: Tensor) -> Tensor:
        """Target cells as the networks see them."""
        return (y - self.mean_y) / self.scale_y


@register
class EnergyIEOT(ConditionalTranslator):
    r"""Inverse entropic optimal transport with free networks: a whole conditional law, of any shape.

    .. math:: \pi(y | x) \propto \exp(f(y) - c(x, y))

    is fitted by the gradient in `energy_loss.surrogate`, with samples of the model from persistent chains of the
    unadjusted Langevin algorithm. The cost c learns from anchors which y belong to which x, the potential
    f from unpaired target cells what target cells look like. Every feature is centred and scaled to unit variance.

    `translate` gives the mean of samples; `sample` gives samples, `std` and `covariance` their spread. The moving
    average of the networks is sampled. A translation hangs on its own cell and the fit alone: all cells get the same
    noise, and every noise also with the opposite sign.

    Energy models are less stable than mixtures with a normaliser. The cost grows quadratically and the potential
    linearly, so that the law exists whatever the weights are; the cost has no part that hangs on x alone, which would
    leave the loss without a lower bound; gradients are clipped; values are penalised; chains that run away end the fit
    with status "diverged".

    Reference: semi-supervised inverse entropic optimal transport, appendix A; the sampler: Mokrov et al. 2024.

    Parameters
    ----------
    cost
        Half the squared distance, with a precision per feature, between y and a ``"linear"`` map, a ``"residual"``
        one (linear plus a network) or an ``"mlp"`` of x; or ``"joint"``: one network of x and y, which needs many
        anchors. The first two start at the ridge solution of the anchors.
    hidden, hidden_potential
        Widths of the hidden layers of the networks in the cost, and of the potential.
    weight_unpaired
        Weight of what unpaired cells say, from 0 (likelihood of the anchors) to 1 (the paper's loss).
    penalty
        Weight of the mean square of the potential, at target cells and samples.
    pull
        Weight of the mean squared distance, over source cells and features, to the ridge start, which keeps the
        networks from learning a handful of anchors by heart.
    n_steps, step
        Steps of Langevin dynamics for one step of training, and their size in units of the features' variance.
    clip
        Longest gradient of the energy, per root of the number of features.
    buffer, renew
        Persistent chains, and the share of them that starts anew in a step.
    jitter
        Standard deviation of noise added to true target cells.
    lr, decay
        Learning rate of Adam, betas (0, 0.99), and decay of the moving average.
    samples, sample_steps
        Chains per cell that a translation is the mean of, rounded up to an even number, and their steps.
    sample_seed
        Seed of the noise of translations.
    """

    name = "ieot_energy"
    min_anchors = 1
    matches_distributions = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 600, "batch_size": 128, "check_every": 50}
    choices: ClassVar[tuple[str, ...]] = ("linear", "residual", "mlp", "joint")

    module_: Networks

    def __init__(
        self,
        *,
        cost: str = "linear",
        hidden: Sequence[int] = (128, 128),
        hidden_potential: Sequence[int] = (128, 128),
        weight_unpaired: float = 0.5,
        penalty: float = 1e-3,
        pull: float = 1000.0,
        n_steps: int = 10,
        step: float = 0.05,
        clip: float = 10.0,
        buffer: int = 2000,
        renew: float = 0.05,
        jitter: float = 0.0,
        lr: float = 1e-3,
        decay: float = 0.99,
        samples: int = 8,
        sample_steps: int = 60,
        sample_seed: int = 0,
    ) -> None:
        self.cost, self.hidden, self.hidden_potential = cost, hidden, hidden_potential
        self.weight_unpaired, self.penalty, self.pull = weight_unpaired, penalty, pull
        self.n_steps, self.step, self.clip = n_steps, step, clip
        self.buffer, self.renew, self.jitter = buffer, renew, jitter
        self.lr, self.decay = lr, decay
        self.samples, self.sample_steps, self.sample_seed = samples, sample_steps, sample_seed

    def law_sample(self, x: Tensor, n: int, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Ends of `n` chains of their own for each cell, shape (n, batch, D)."""
        return self._blockwise(x, n, lambda rows: _normal((n, rows, self.n_features_out_), generator))

    def law_covariance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Covariance of samples, shape (batch, D, D)."""
        drawn = self._alike(x, SPREAD)
        centred = drawn - drawn.mean(0)
        return torch.einsum("nbi,nbj->bij", centred, centred) / (len(drawn) - 1)

    def law_variance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Variance of samples, shape (batch, D)."""
        return self._alike(x, SPREAD).var(0)

    def make_cost(self, d: int, out: int) -> nn.Module:
        """An untrained `Cost` of scaled cells."""
        if self.cost == "joint":
            return JointCost(MLP(d + out, 1, self.hidden, "silu"), out)
        if self.cost == "residual":
            return DistanceCost(Residual(d, out, self.hidden, "silu"), out, 1 / self.step)
        net = MLP(d, out, () if self.cost == "linear" else self.hidden, "silu")
        return DistanceCost(net, out, 1 / self.step)

    def make_potential(self, out: int) -> nn.Module:
        """An untrained potential of scaled target cells, (batch, D) -> (batch, 1), flat at first."""
        potential = MLP(out, 1, self.hidden_potential, "silu")
        nn.init.zeros_(potential[-1].weight)  # type: ignore[arg-type]
        return potential

    def scales(self, pair: ModalityPair) -> list[tuple[np.ndarray, np.ndarray]]:
        """Centre and scale of the features of both sides; here mean and standard deviation."""
        found = (moments(matrix) for matrix in (pair.x, pair.y))
        return [(mean, np.where(deviation > 0, deviation, 1.0)) for mean, deviation in found]

    def start(self, pair: ModalityPair) -> bool:
        """Set the cost's parameters before training; whether they are more than random now."""
        if self.cost not in ("linear", "residual"):
            return False
        net, cost = self.module_, self.module_.law.cost
        layer = cost.net.linear if isinstance(cost.net, Residual) else cost.net[0]
        weight, offset = (torch.as_tensor(a).float() for a in anchor_map(ridge, pair))
        with torch.no_grad():
            layer.weight.copy_((net.scale_x[:, None] * weight / net.scale_y).T)
            layer.bias.copy_(net.target(net.mean_x @ weight + offset))
            # The part of the target's variance that the map leaves.
            variance = (torch.as_tensor(moments(pair.y)[1]) / net.scale_y).square()
            explained = cost.net(net.source(torch.as_tensor(dense(pair.x)))).var(0)
            cost.log_precision.copy_(-(variance - explained).clamp_min(0.1).log())
        return True

    def build(self) -> Networks:
        """Networks from the configuration and the feature counts."""
        d, out = self.n_features_in_, self.n_features_out_
        return Networks(Law(self.make_cost(d, out), self.make_potential(out)), d=d, out=out)

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build, set scales and the start, hold cells out to judge samples by, and start the chains.

        Anchors have chains of their own, and are not drawn as other sources.
        """
        self._check_options()
        self.module_ = net = self.build()
        for side, (centre, scale) in zip("xy", self.scales(pair), strict=True):
            getattr(net, f"mean_{side}").copy_(torch.as_tensor(centre))
            getattr(net, f"scale_{side}").copy_(torch.as_tensor(scale))
        started = self.start(pair)
        net.average.load_state_dict(net.law.state_dict())
        net.to(generator.device)
        self._origin = copy.deepcopy(net.law.cost.net).requires_grad_(False) if started and self.pull else None
        rows = holdout.split(pair, np.random.default_rng(generator.initial_seed()))
        self._held = holdout.HeldOut(pair, rows, net.source, net.target, generator.device)
        others = np.setdiff1d(rows.train_x, pair.anchors[:, 0])
        self._share = pair.n_anchors / (pair.n_anchors + len(others))
        for name, own in (("anchors", pair.anchors[:, 0]), ("others", others)):
            if len(own):
                self._start_chains(name, pair, own, generator)
        return others, rows.train_y

    def players(self) -> dict[str, Optimizer]:
        """One, of cost and potential together: the relative size of the terms matters."""
        return {"law": Adam(self.module_.law.parameters(), lr=self.lr, betas=(0.0, 0.99))}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Terms of the surrogate, and penalties."""
        net, law = self.module_, self.module_.law
        xa, ya, y = net.source(batch.xa), self._jittered(net.target(batch.ya)), self._jittered(net.target(batch.y))
        others = net.source(batch.x)
        x, drawn, n_anchors = self._advance(xa, others)
        free = -law.energy(law.cost.prepare(x), drawn)
        f_targets = law.f(y)
        terms = surrogate(
            law.cost(law.cost.prepare(xa), ya),
            law.f(ya),
            f_targets,
            free[:n_anchors],
            free[n_anchors:],
            weight_unpaired=self.weight_unpaired,
            share=self._share,
        )
        terms["penalty"] = self.penalty * (f_targets.square().mean() + law.f(drawn).square().mean())
        if self._origin is not None:
            cells = torch.cat([xa, others])
            terms["pull"] = self.pull * (law.cost.net(cells) - self._origin(cells)).square().mean()
        return terms

    def after_step(self, step: int) -> None:
        """Move the average; it follows fast at first."""
        update_average(self.module_.average, self.module_.law, min(self.decay, (1 + step) / (10 + step)))

    def monitor(self) -> float | None:
        """Infinity, which ends the fit, where chains have run away; no figure otherwise, and the last state is kept."""
        chains = [chain.y for chain in self.module_.chains.values()]
        tame = all(bool(y.square().mean() < RUNAWAY) for y in chains)  # false for NaN, too
        return None if tame else float("inf")

    def remarks(self, result: FitResult) -> list[str]:
        """Whether samples are far from held-out target cells, and further than a normal law with their variances is."""
        if not self._held.enough:
            return []
        own = self._held.distance(lambda x: self._chains(x, lambda: self._noise((1, len(x), self.n_features_out_)))[0])
        normal = self._held.distance(lambda x: self._noise((len(x), self.n_features_out_)))
        result.history |= {"held_out": [(result.n_steps, own)], "held_out_normal": [(result.n_steps, normal)]}
        if own <= max(normal, FAR * (2 * self.n_features_out_) ** 0.5):
            return []
        return [
            f"Samples are further from held-out target cells (energy distance {own:.3f}) than a normal law that knows "
            f"nothing but means and variances ({normal:.3f}): do not trust them."
        ]

    def release(self) -> None:
        """Drop chains, held-out cells and the start."""
        if "module_" in self.__dict__:
            self.module_.chains = nn.ModuleDict()
        for name in ("_held", "_origin", "_share"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Mean of samples."""
        return self._alike(x, self.samples).mean(0)

    def _alike(self, x: Tensor, n: int) -> Tensor:
        """`n` samples, rounded up to an even number, with one noise for all cells and each noise also negated."""
        generator = torch.Generator(x.device)

        def noise(rows: int) -> Tensor:
            one = _normal(((n + 1) // 2, 1, self.n_features_out_), generator)
            return torch.cat([one, -one]).expand(-1, rows, -1)

        return self._blockwise(x, n, noise, lambda: generator.manual_seed(self.sample_seed))

    def _blockwise(
        self, x: Tensor, n: int, noise: Callable[[int], Tensor], begin: Callable[[], Any] = lambda: None
    ) -> Tensor:
        """Samples in the target's own units, shape (n, cells, D), some cells at a time."""
        net, drawn = self.module_, []
        for block in x.split(max(1, ROWS // n)):
            begin()
            drawn.append(self._chains(net.source(block), partial(noise, len(block))))
        return torch.cat(drawn, dim=1) * net.scale_y + net.mean_y

    def _chains(self, x: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """Samples of the averaged law for scaled cells, each by a chain of its own; of the shape of the noise."""
        law, first = self.module_.average, noise()
        with torch.no_grad():
            context = law.cost.prepare(x).repeat(len(first), 1)
            y = law.cost.start(context, first.flatten(0, 1))
        return self._langevin(law, context, y, self.sample_steps, lambda: noise().flatten(0, 1)).view(first.shape)

    def _langevin(self, law: Law, context: Tensor, y: Tensor, n_steps: int, noise: Callable[[], Tensor]) -> Tensor:
        return langevin(
            lambda at: law.energy(context, at), y, n_steps=n_steps, step=self.step, noise=noise, clip=self.clip
        )

    def _advance(self, xa: Tensor, others: Tensor) -> tuple[Tensor, Tensor, int]:
        """Some steps of chains of anchors and of others: sources, ends, and how many of the rows are anchors'."""
        net, n = self.module_, max(len(xa), len(others))
        fresh = {"anchors": xa, "others": others}
        with torch.no_grad():
            taken = {
                name: chain.draw(n, fresh[name], self._first, self.renew, self.generator_)
                for name, chain in net.chains.items()
            }
            x, y = (torch.cat([part[i] for part in taken.values()]) for i in (1, 2))
            context = net.law.cost.prepare(x)
        y = self._langevin(net.law, context, y, self.n_steps, lambda: self._noise(y.shape))
        sizes = [len(part[0]) for part in taken.values()]
        ends = zip(taken.items(), x.split(sizes), y.split(sizes), strict=True)
        for (name, (places, *_)), own_x, own_y in ends:
            net.chains[name].put(places, own_x, own_y)
        return x, y, sizes[0]

    def _first(self, x: Tensor) -> Tensor:
        """Where new chains of scaled sources start."""
        cost = self.module_.law.cost
        return cost.start(cost.prepare(x), self._noise((len(x), self.n_features_out_)))

    def _start_chains(self, name: str, pair: ModalityPair, rows: np.ndarray, generator: torch.Generator) -> None:
        drawn = np.random.default_rng([generator.initial_seed(), len(rows)]).choice(rows, self.buffer)
        x = self.module_.source(torch.as_tensor(dense(pair.x[drawn]), device=generator.device))
        with torch.no_grad():
            self.module_.chains[name] = Chains(x, self._first(x))

    def _jittered(self, y: Tensor) -> Tensor:
        return y + self.jitter * self._noise(y.shape) if self.jitter else y

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return _normal(shape, self.generator_)

    def _check_options(self) -> None:
        if self.cost not in self.choices:
            raise ConfigError(f"cost={self.cost!r}; it is one of {', '.join(self.choices)}.")
        if not 0 <= self.weight_unpaired <= 1:
            raise ConfigError(f"weight_unpaired={self.weight_unpaired!r}; it lies between 0 and 1.")
        if not 0 < self.step < 1 / LOWEST_PRECISION:
            raise ConfigError(f"step={self.step!r}; it lies between 0 and {1 / LOWEST_PRECISION:g}.")


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device)
