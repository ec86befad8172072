"""Dynamic optimal neural translation: transport in small steps, of least energy among those that reach the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam, Optimizer

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConfigError
from celltransfer.losses.adversarial import critic_losses, generator_loss
from celltransfer.losses.discrepancy import mmd, sinkhorn_divergence
from celltransfer.nn.blocks import Discriminator, update_average
from celltransfer.pp.transforms import moments
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators import holdout
from celltransfer.translators.base import register
from celltransfer.translators.dont.attribute_costs import cost_weights_from
from celltransfer.translators.dont.initial_map import place
from celltransfer.translators.dont.networks import PlacedTransport
from celltransfer.translators.dont.options import DISCREPANCIES, check
from celltransfer.translators.dont.steps import ResidualTransport, kinetic
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.train.loop import Trainer
    from celltransfer.translators.base import Arrays

# Held-out cells are reached if no further than this many sampling errors, or this share of a typical distance.
ERRORS, NEAR = 3.0, 0.02
# Starts whose singular values spread wider than this are not inverted.
LARGEST_CONDITION = 1e4
# Fewer held-out cells a side than this do not tell whether cells have arrived.
FEWEST_TOLD = 40
# Cells that the round trip is tried on, cells a side that costs are taken from, and cells moved at a time.
TRIED, LABELLED, BLOCK = 500, 2000, 8192


@register
class Dont(TrainedTranslator):
    r"""Residual steps of least transport cost among those that carry source cells onto target cells.

    .. math::
        \lambda_i \, \Delta t \sum_j E \sum_k c_k |v_{j,k}(\phi_j)|^p
        + D(\phi_K \# p, q) + \lambda_a E_a |\phi_K - y|^2,
        \qquad \phi_{j+1} = \phi_j + \Delta t \, v_j(\phi_j)

    with :math:`\lambda_i` falling linearly over the steps of training to a small floor, so that matching, D, is a
    constraint in the end and the cost decides among the maps that match. Whether they do match is tested in the fit and
    said in the result. Everything is per feature, in target features centred and divided by one number.

    Transport moves within one space. Where source and target have the same features it starts at the cells themselves;
    elsewhere at an affine map into the target's features (see `start`), and what is optimal is optimal from there on:
    a wrong start is not put right by matching.

    The intermediate points are a path from source to target (`path`), and the steps can be undone one by one
    (`inverse`) where the start has an inverse; training confines them so that undoing converges.

    Reference: dynamic optimal neural translation, equations 6 and 7, algorithm 1.

    Parameters
    ----------
    discrepancy
        D: ``"mmd"`` with Gaussian kernels; ``"sinkhorn"`` divergence, for a few dimensions, as on batches in many it
        draws cells to their centre; or ``"gan"`` with a spectrally normalised discriminator. Within conditions where
        they are given.
    start
        How source cells are laid into the target's space: ``"identity"``, ``"regression"`` on anchors, means of
        conditions or feature links, ``"moments"`` in addition given the target's covariance, or ``"auto"``; see
        `celltransfer.translators.dont.initial_map.place`.
    p
        Exponent of the cost, above 1.
    cost_weights
        c, one positive number for every target feature (component); ``None``: all 1.
    cost_attribute
        Obs column, with `celltransfer.fit`: features that a sparse classifier of it uses cost `cost_floor`, so that
        the attribute may change (`celltransfer.translators.cost_weights_from`).
    cost_floor
        Cost of those features.
    weight_cost, least_cost
        The first multiplier (``None``: 1 beside the Sinkhorn divergence, 0.1 beside others), and the last as a share
        of it.
    weight_anchor
        Weight of the anchors' mean squared error.
    steps, hidden, gain
        Number of steps, widths of the hidden layers of each, and what its first weights are scaled by: small starts
        near no motion at all.
    lipschitz
        Bound of :math:`\Delta t \, Lip(v_j)`, below 1 for steps that can be undone; ``None``: none.
    epsilon
        Regularisation of the Sinkhorn divergence, in units of the mean cost between two batches.
    hidden_discriminator
        Widths of the discriminator's hidden layers.
    lr, lr_discriminator, decay
        Learning rates of Adam, and decay of the moving average.
    """

    name = "dont"
    uses_conditions = True
    uses_links = True
    uses_attribute = True
    matches_distributions = True
    scheduled = True  # the cost falls over a share of the steps
    tests_alignment = True
    has_path = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 400, "batch_size": 256, "check_every": 50}

    module_: PlacedTransport

    def __init__(
        self,
        *,
        discrepancy: str = "mmd",
        start: str = "auto",
        p: float = 2.0,
        cost_weights: Sequence[float] | None = None,
        cost_attribute: str | None = None,
        cost_floor: float = 0.01,
        weight_cost: float | None = None,
        least_cost: float = 0.01,
        weight_anchor: float = 0.1,
        steps: int = 6,
        hidden: Sequence[int] = (128,),
        gain: float = 0.1,
        lipschitz: float | None = 0.9,
        epsilon: float = 0.05,
        hidden_discriminator: Sequence[int] = (128, 128),
        lr: float = 2e-3,
        lr_discriminator: float = 2e-3,
        decay: float = 0.99,
    ) -> None:
        self.discrepancy, self.start, self.p = discrepancy, start, p
        self.cost_weights, self.cost_attribute, self.cost_floor = cost_weights, cost_attribute, cost_floor
        self.weight_cost, self.least_cost, self.weight_anchor = weight_cost, least_cost, weight_anchor
        self.steps, self.hidden, self.gain, self.lipschitz = steps, hidden, gain, lipschitz
        self.epsilon, self.hidden_discriminator = epsilon, hidden_discriminator
        self.lr, self.lr_discriminator, self.decay = lr, lr_discriminator, decay

    def path(self, x: Matrix, times: Sequence[float]) -> np.ndarray:
        """Points on the way at `times`, 0 (the start) to 1 (the translation), shape (times, cells, D), float32.

        Parameters
        ----------
        x
            Source cells, shape (cells, d).
        times
            Any, between 0 and 1; the path is straight between steps.

        Raises
        ------
        ConfigError
            `times` is empty, or one of them is not between 0 and 1.
        """
        self._codes_of(x, None)
        return self._in_time(self.module_.way, x, times, self.n_features_out_)

    def path_back(self, y: Matrix, times: Sequence[float]) -> np.ndarray:
        """The way back of target cells, shape (times, cells, d), float32: points of `path` in the source's features.

        At 0 the target cells as an affine map lays them into the source's features (themselves, where source and
        target share theirs), at 1 `inverse`.

        Raises
        ------
        ConfigError
            There is no inverse, or a time is not between 0 and 1.
        FeatureError
            The cells do not have the target's features.
        InputError
            Steps cannot be undone for these cells.
        """
        self.check_invertible()
        self._codes_of(y, None, backward=True)
        return self._in_time(self.module_.way_back, y, times, self.n_features_in_)

    def refit_config(self) -> dict[str, Any]:
        """The same, with the weights of the cost that this fit took from its attribute."""
        config = self.get_config()
        if self.cost_attribute is not None:
            config |= {"cost_attribute": None, "cost_weights": self.module_.costs.tolist()}
        return config

    def build(self) -> PlacedTransport:
        """Networks from the configuration and the feature counts."""
        d, out = self.n_features_in_, self.n_features_out_
        return PlacedTransport(ResidualTransport(out, self.steps, self.hidden, self.gain), d=d, out=out)

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build, lay source cells into the target's space, weigh the cost, and hold cells out to judge by."""
        self.module_ = net = self.build()
        if self.discrepancy == "gan":
            net.discriminator = _confined(
                Discriminator(pair.y.shape[1], self.hidden_discriminator, self.n_conditions_, separate=True)
            )
        self._set_scales(pair)
        net.costs.copy_(torch.as_tensor(self._weights(pair, generator.initial_seed())))
        self._confine()
        net.average.load_state_dict(net.transport.state_dict())
        net.to(generator.device)
        rows = holdout.split(pair, np.random.default_rng(generator.initial_seed()))
        self.held_out_ = rows.held_x, rows.held_y
        self._held = holdout.HeldOut(pair, rows, net.source, net.target, generator.device)
        return rows.train_x, rows.train_y

    def players(self) -> dict[str, Optimizer]:
        """The discriminator, if there is one, and transport."""
        net = self.module_
        players: dict[str, Optimizer] = {}
        if net.discriminator is not None:
            players["discriminator"] = Adam(
                net.discriminator.parameters(), lr=self.lr_discriminator, betas=(0.5, 0.999)
            )
        return players | {"transport": Adam(net.transport.parameters(), lr=self.lr, betas=(0.5, 0.999))}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Equation 7 on a batch, and the anchors' error."""
        net, codes = self.module_, batch.condition if self.n_conditions_ else None
        z, w = net.source(batch.x), net.target(batch.y)
        if player == "discriminator":
            assert net.discriminator is not None
            with torch.no_grad():
                fake = net.transport(z)
            return critic_losses(net.discriminator, w, fake, codes)
        points, velocities = net.transport.path(z)
        losses = {
            "match": self._distance(points[-1], w, codes),
            "cost": self.multiplier(step) * kinetic(velocities, net.costs, self.p),
        }
        if len(batch.xa) and self.weight_anchor:
            miss = net.transport(net.source(batch.xa)) - net.target(batch.ya)
            losses["anchor"] = self.weight_anchor * miss.square().mean()
        return losses

    def multiplier(self, step: int) -> float:
        """Weight of the cost: falls linearly to its floor, which it has for the last tenth of the steps."""
        left = max(0.0, 1 - step / max(0.9 * self.max_steps_, 1))
        first = DISCREPANCIES[self.discrepancy] if self.weight_cost is None else self.weight_cost
        return first * max(left, self.least_cost)

    def after_step(self, step: int) -> None:
        """Confine the steps and move the average, which follows fast at first."""
        self._confine()
        update_average(self.module_.average, self.module_.transport, min(self.decay, (1 + step) / (10 + step)))

    def remarks(self, result: FitResult) -> list[str]:
        """Where transport started, what it cost, whether it arrived, and whether it can be undone."""
        net, said = self.module_, [self._reason]
        if self._held.enough:
            said.append(self._arrival(result))
        bound = net.average.lipschitz()
        result.history["lipschitz"] = [(result.n_steps, bound)]
        net.undone.fill_(bound < 1)
        if self._held.enough:
            said.append(self._return(result, bound))
        return said

    def explain(self, cause: str) -> str:
        """What keeps transport from the target."""
        if cause == "unlike supports":
            return "Some cells of one side have no counterpart on the other, which no transport without loss mends."
        if _rank(self.module_.weight) < self.n_features_out_:
            return (
                "The start keeps fewer dimensions of the cells than the target has, and transport adds none: "
                "start='moments' with more source components, or fewer target components."
            )
        other = "mmd" if self.discrepancy == "gan" else "gan"
        return (
            "Train longer (max_steps), loosen `lipschitz`, or lower `least_cost`; "
            f"discrepancy={other!r} may see what {self.discrepancy!r} does not."
        )

    def release(self) -> None:
        """Drop the discriminator and the held-out cells."""
        if "module_" in self.__dict__:
            self.module_.discriminator = None
        for name in ("_held", "_reason"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The end of the path."""
        net = self.module_
        return net.features(net.average(net.source(x)))

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        check(self, pair)
        result = super()._fit(pair, seed=seed, trainer=trainer)
        # All the schedule asks for: its end is where training is meant to end, if the cells have arrived.
        if result.status is Status.MAX_STEPS and result.history.get("arrived", [(0, 0.0)])[-1][1]:
            result.status = Status.CONVERGED
        self._look_back()
        return result

    def _load_state(self, state: Arrays) -> None:
        super()._load_state(state)
        self._look_back()

    def _look_back(self) -> None:
        """Whether there is an inverse: steps can be undone, and the start neither adds nor drops a direction."""
        self.invertible = bool(self.module_.undone) and _has_inverse(self.module_.weight)  # type: ignore[misc]

    def _in_time(
        self, way: Callable[[Tensor, Sequence[float]], Tensor], cells: Matrix, times: Sequence[float], width: int
    ) -> np.ndarray:
        """Points of blocks of cells, shape (times, n, width)."""
        if not len(times) or not all(0 <= t <= 1 for t in times):
            raise ConfigError(f"times={list(times)!r}; expected numbers between 0 and 1.")
        out = np.empty((len(times), cells.shape[0], width), np.float32)
        for first in range(0, cells.shape[0], BLOCK):
            rows = slice(first, first + BLOCK)
            block = torch.as_tensor(dense(cells[rows]), device=self.module_.mean.device)
            out[:, rows] = way(block, times).cpu().numpy()
        return out

    @torch.no_grad()
    def _inverse(self, y: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        net = self.module_
        return net.lift(net.undo(torch.as_tensor(y, device=net.mean.device))).cpu().numpy()

    def _set_scales(self, pair: ModalityPair) -> None:
        """Centre and scale of the target's features, and the start in them."""
        net, (mean, deviation) = self.module_, moments(pair.y)
        start = place(pair, self.start)
        scale = max(float(np.square(deviation).mean()), 1e-12) ** 0.5
        net.mean.copy_(torch.as_tensor(mean))
        net.scale.fill_(scale)
        net.weight.copy_(torch.as_tensor(start.weight / scale))
        net.offset.copy_(torch.as_tensor((start.offset - mean) / scale))
        self._reason = start.reason

    def _weights(self, pair: ModalityPair, seed: int) -> np.ndarray:
        """Weights of the cost, given or from the attribute."""
        net = self.module_
        if self.cost_weights is not None:
            return np.asarray(self.cost_weights, float)
        if self.cost_attribute is None:
            return np.ones(self.n_features_out_)
        assert pair.attribute_x is not None
        assert pair.attribute_y is not None
        rng, cells, codes = np.random.default_rng(seed), [], []
        for matrix, own, place_ in ((pair.x, pair.attribute_x, net.source), (pair.y, pair.attribute_y, net.target)):
            rows = np.sort(rng.permutation(np.flatnonzero(own >= 0))[:LABELLED])
            cells.append(place_(torch.as_tensor(dense(matrix[rows]))).numpy())
            codes.append(own[rows])
        weights = cost_weights_from(np.concatenate(cells), np.concatenate(codes), floor=self.cost_floor, seed=seed)
        cheap = int((weights < 1).sum())
        self._reason += f" {cheap} of {len(weights)} target features tell {self.cost_attribute!r} and move cheaply."
        return weights

    def _distance(self, moved: Tensor, w: Tensor, codes: Tensor | None) -> Tensor:
        """D, or its mean over conditions; for a GAN the loss of the one who is to deceive."""
        net = self.module_
        if net.discriminator is not None:
            return generator_loss(net.discriminator(moved, codes))
        measure: Callable[[Tensor, Tensor], Tensor] = mmd
        if self.discrepancy == "sinkhorn":
            measure = lambda a, b: sinkhorn_divergence(a, b, self.epsilon)  # noqa: E731
        if codes is None:
            return measure(moved, w)
        groups = [codes == code for code in codes.unique()]
        terms = [own.sum() / len(codes) * measure(moved[own], w[own]) for own in groups if own.sum() > 1]
        return torch.stack(terms).sum() if terms else moved.sum() * 0

    def _confine(self) -> None:
        if self.lipschitz is not None:
            self.module_.transport.confine(self.lipschitz)

    @torch.no_grad()
    def _arrival(self, result: FitResult) -> str:
        """How far held-out cells are from held-out target cells, before and after; and the cost of getting there."""
        net, n = self.module_, result.n_steps
        before, after = self._held.distance(lambda z: z), self._held.distance(net.average)
        typical = (2 * self.n_features_out_) ** 0.5
        error = self._held.sampling_error(torch.Generator(net.mean.device).manual_seed(0))
        near = after <= max(ERRORS * error, NEAR * typical)
        cost = float(kinetic(net.average.path(self._held.source_cells(TRIED))[1], torch.ones_like(net.costs)))
        figures = {"held_out_before": before, "held_out": after, "transport_cost": cost}
        untold = self._untold(n) if near else ""
        if not untold:
            figures["arrived"] = float(near)
        result.history |= {name: [(n, value)] for name, value in figures.items()}
        where = (
            f"Held-out cells end {after:.3f} from held-out target cells (energy distance; {before:.3f} at the start)"
        )
        if untold:
            return f"{where}. {untold}"
        if near:
            return f"{where}, within what sampling explains; mean squared way {cost:.3f} per feature."
        multiplier = self.multiplier(max(n - 1, 0))
        return f"{where}: they have NOT arrived. The cost still weighed {multiplier:.3g} when training ended."

    def _untold(self, n: int) -> str:
        """Why cells that seem near after `n` steps need not have arrived; empty if they have."""
        if n < 1 or self.multiplier(n - 1) > self.multiplier(self.max_steps_):
            return "The cost had not yet fallen to its floor, so training is not over: raise max_steps."
        if self._held.n_cells < FEWEST_TOLD:
            return (
                f"Whether they have arrived cannot be told from {self._held.n_cells} held-out cells, fewer than "
                f"{FEWEST_TOLD}."
            )
        return ""

    def _return(self, result: FitResult, bound: float) -> str:
        """How well steps are undone."""
        net = self.module_
        z = self._held.source_cells(TRIED)
        with torch.no_grad():
            found = net.average.back(net.average(z))
        error = float((found.points - z).square().mean().sqrt())
        if np.isfinite(error):
            result.history["round_trip"] = [(result.n_steps, error)]
        told = f"Steps are undone to {error:.1g} (root mean square, in {found.iterations} iterations a step or fewer)"
        net.undone.fill_(found.arrived)
        if not found.arrived:
            missed = f"misses by {error:.2g}" if np.isfinite(error) else "does not end"
            told = f"Steps cannot all be undone: the round trip {missed}, so there is no inverse"
        return f"{told}; dt Lip(v) is at most {bound:.2f}."


def _confined(network: nn.Module) -> nn.Module:
    """The network with spectral norm 1 of every linear layer."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            spectral_norm(layer)
    return network


def _rank(weight: Tensor) -> int:
    """Directions that a start keeps."""
    values = torch.linalg.svdvals(weight.cpu().double())
    return int((values > values.max() / LARGEST_CONDITION).sum())


def _has_inverse(weight: Tensor) -> bool:
    """Whether a start is square and drops no direction."""
    return weight.shape[0] == weight.shape[1] == _rank(weight)
