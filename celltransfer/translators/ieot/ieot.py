"""Semi-supervised inverse entropic OT: the conditional law of the target cell from a few pairs and all cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import Matrix, dense
from celltransfer.errors import ConfigError, InputError
from celltransfer.pp.transforms import moments
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators.base import Arrays, register
from celltransfer.translators.conditional import ConditionalTranslator
from celltransfer.translators.ieot import settings as ieot_settings
from celltransfer.translators.ieot.loss import semi_supervised
from celltransfer.translators.ieot.mixture import TiltedMixture
from celltransfer.translators.ieot.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import ModalityPair

# How much of a feature's own scale is taken out: source features keep theirs, so that leading components count most;
# target features are brought halfway to one scale.
SOURCE_POWER, TARGET_POWER = 0.0, 0.5
TOWERS = ("linear", "residual", "mlp")
# Weight of the square of the mean direction of networks. A gate that mixes linear directions can build a part of a
# constant one as well; the penalty bounds that, and centring them cost more than it gave.
CENTRING = 10.0
# Added to Adam's denominator: the mixture starts at a stationary point, where gradients are rounding and have no sign.
EPSILON = ieot_settings.EPSILON
# Nats per target feature by which the loss may move between checks when a fit has converged.
SETTLED = 0.01


class ScaledLaw(nn.Module):
    """A `TiltedMixture` on scaled features, and the scales.

    Attributes
    ----------
    law
        Density of scaled target features given scaled source features.
    mean_x, factor_x, mean_y, factor_y
        Scaled features are (value - mean) * factor. Source cells have a mean per condition, the first row of all: what
        depends on the condition alone belongs to the potential, and directions would take it from the anchors.
    chosen
        lambda and penalty of the fit.
    """

    mean_x: Tensor
    factor_x: Tensor
    mean_y: Tensor
    factor_y: Tensor
    chosen: Tensor

    def __init__(self, law: TiltedMixture, d: int, out: int, n_conditions: int = 0) -> None:
        super().__init__()
        self.law = law
        self.register_buffer("mean_x", torch.zeros(1 + n_conditions, d))
        self.register_buffer("mean_y", torch.zeros(out))
        self.register_buffer("chosen", torch.zeros(2))
        for name, width in (("x", d), ("y", out)):
            self.register_buffer(f"factor_{name}", torch.ones(width))

    def set_scales(self, pair: ModalityPair) -> None:
        """Centre features, and take part of their scales out."""
        for name, matrix, power in (("x", pair.x, SOURCE_POWER), ("y", pair.y, TARGET_POWER)):
            mean, sd = moments(matrix)
            positive = sd[sd > 0]
            typical = float(positive.mean()) if len(positive) else 1.0
            relative = np.where(sd > 0, sd / typical, 1.0)
            getattr(self, f"mean_{name}").copy_(torch.as_tensor(mean))
            getattr(self, f"factor_{name}").copy_(torch.as_tensor(relative**-power / typical))
        # Of the target, whose moments came last; a feature that does not vary has a little variance.
        self.law.floor.mul_(torch.as_tensor(np.maximum((sd / typical * relative**-power) ** 2, 1e-4)))
        if pair.condition_x is not None:
            for code in np.unique(pair.condition_x):
                own = moments(pair.x[np.asarray(pair.condition_x) == code])[0]
                self.mean_x[code + 1].copy_(torch.as_tensor(own))

    def source(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Scale source features, centred within their condition."""
        return (x - (self.mean_x[:1] if condition is None else self.mean_x[condition + 1])) * self.factor_x

    def target(self, y: Tensor) -> Tensor:
        """Scale target features."""
        return (y - self.mean_y) * self.factor_y

    def unscaled(self, y: Tensor) -> Tensor:
        """Inverse of `target`."""
        return y / self.factor_y + self.mean_y


@register
class IEOT(ConditionalTranslator):
    r"""Inverse entropic optimal transport: the conditional law of the target cell, in closed form.

    .. math:: \pi(y|x) = e^{f(y) - c(x, y)} / Z(x)

    The potential f is a Gaussian mixture that starts at the target cells; the cost c tilts it by directions that are
    linear in x and start at zero. So a source cell is translated to the target cells, reweighted and shifted, and
    without evidence to all of them. See `mixture.TiltedMixture` for the law and `loss.semi_supervised` for the
    loss, and for why directions are linear and have no bias.

    What the options leave open is chosen by the likelihood of left-out anchors, and said in ``result_.notes``.

    Where conditions are known, the potential is one per condition, which unpaired cells determine, and directions tell
    cells of one condition apart. So a cell is translated to the target cells of its condition even without any anchor.

    Reference: inverse entropic optimal transport, equations 14, 17 to 20, Propositions 3.1 and 3.2.

    Parameters
    ----------
    n_potential, n_cost
        Components N of the potential and M of the cost.
    towers
        ``"linear"``, ``"residual"`` (linear plus a network that starts at zero) or ``"mlp"``.
    hidden
        Widths of the hidden layers of the latter two.
    weight_unpaired
        lambda of the loss: 0 is the likelihood of the anchors, 1 the loss of the paper.
    penalty
        Ridge penalty on the weights of the towers, divided by the number of anchors.
    potential
        ``"cells"``: lambda weighs terms for the cost alone, and the potential learns from all cells; or ``"joint"``.
    floor
        Smallest variance of a component, as a share of the variance of each feature.
    lr
        Learning rate of Adam; it declines to 0 over the second half of the steps.
    optimizers
        ``"one"``, on the sum; or ``"two"``, the paper's: one steps on the anchors' term and one on the unpaired ones,
        both on all parameters, which throws the relative size of the terms away. For comparison only.
    """

    name = "ieot"
    uses_conditions = True
    scheduled = True  # the learning rate declines over the second half of the steps
    needs_condition = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 400, "batch_size": 256, "check_every": 50}

    module_: ScaledLaw
    settings_: Settings

    def __init__(
        self,
        *,
        n_potential: int | None = None,
        n_cost: int = 1,
        towers: str = "linear",
        hidden: Sequence[int] = (64,),
        weight_unpaired: float | None = None,
        penalty: float | None = None,
        potential: str = "cells",
        floor: float = 0.05,
        lr: float = 0.02,
        optimizers: str = "one",
    ) -> None:
        self.n_potential, self.n_cost = n_potential, n_cost
        self.towers, self.hidden = towers, hidden
        self.weight_unpaired, self.penalty = weight_unpaired, penalty
        self.potential, self.floor = potential, floor
        self.lr, self.optimizers = lr, optimizers

    def log_prob(self, x: Matrix, y: Matrix, condition: np.ndarray | None = None) -> np.ndarray:
        """Log density of target cells given source cells, rows that belong together, shape (cells,), in nats.

        Of the features as they are given, not of scaled ones.
        """
        rows = iter(np.array_split(dense(y), range(2048, x.shape[0], 2048)))

        def density(block: Tensor, codes: Tensor | None) -> Tensor:
            module = self.module_
            own = torch.as_tensor(next(rows), device=block.device)
            scaled = module.law.log_prob(module.source(block, codes), module.target(own), codes)
            return scaled + module.factor_y.log().sum()

        return np.concatenate(list(self._blocks(density, x, condition, 2048)))

    def responsibilities(self, x: Matrix, condition: np.ndarray | None = None) -> np.ndarray:
        """Weights of the components of the law of each cell, shape (cells, M, N); they sum to 1."""

        def weigh(block: Tensor, codes: Tensor | None) -> Tensor:
            return self.module_.law.responsibilities(self.module_.source(block, codes), codes)

        return np.concatenate(list(self._blocks(weigh, x, condition, 2048)))

    def build(self) -> ScaledLaw:
        """Networks from the configuration and the settings."""
        law = TiltedMixture(
            self.n_features_in_,
            self.n_features_out_,
            self.settings_.n_potential,
            self.n_cost,
            towers=self.towers,
            hidden=self.hidden,
            n_conditions=self.n_conditions_,
            floor=self.floor,
        )
        return ScaledLaw(law, self.n_features_in_, self.n_features_out_, self.n_conditions_)

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Choose the settings, build the law and start it at the target cells."""
        self.check_options()
        if pair.n_target < 2:
            raise InputError("There is one target cell; a conditional law takes two or more.")
        if pair.condition_x is not None and pair.condition_y is not None:
            shared_conditions(np.asarray(pair.condition_x), np.asarray(pair.condition_y))
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
        self.settings_ = self._resumed() or ieot_settings.choose(self, pair, rng)
        self.module_ = self.build()
        self.module_.set_scales(pair)
        self.module_.chosen.copy_(torch.tensor(self.settings_[1:3]))
        self.module_.law.set_potential(*ieot_settings.mixture(self.module_, pair, rng, self.settings_.n_potential))
        self._k, self._anchored = max(pair.n_anchors, 1), pair.n_anchors > 0
        if not self._anchored:  # nothing but noise would move directions
            self.module_.law.direction.requires_grad_(False)
        rows_x, rows_y = np.arange(pair.n_source), np.arange(pair.n_target)
        free_x, free_y = (np.setdiff1d(r, a) for r, a in zip((rows_x, rows_y), pair.anchors.T, strict=True))
        # Batches hold cells that are no anchors, as the loss adds those; or all, where too few others are left.
        self._shares = pair.n_anchors / pair.n_source, pair.n_anchors / pair.n_target
        if self.optimizers == "two" or not _enough(pair, free_x, free_y):
            self._shares = (0.0, 0.0)
            return rows_x, rows_y
        return free_x, free_y

    def players(self) -> dict[str, Optimizer]:
        """One Adam on the sum; or two, each with a term of its own."""
        parameters = [p for p in self.module_.parameters() if p.requires_grad]
        names = ["law"] if self.optimizers == "one" else ["anchors", "cells"]
        self._optimizers = {name: Adam(parameters, lr=self.lr, eps=EPSILON) for name in names}
        return dict(self._optimizers)

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss and the penalties; or one term of the paper's loss."""
        law, codes, codes_a = self.module_.law, batch.condition, batch.condition_a
        x, anchor_x = self.module_.source(batch.x, codes), self.module_.source(batch.xa, codes_a)
        y, anchor_y = self.module_.target(batch.y), self.module_.target(batch.ya)
        if player == "anchors":
            return {"anchors": law.cost(anchor_x, anchor_y).mean() if len(anchor_x) else 0.0 * squared_weights(law)}
        if player == "cells":
            return {"cells": law.log_z(x, codes).mean() - law.potential(y, codes).mean()}
        for optimizer in self._optimizers.values():
            optimizer.param_groups[0]["lr"] = self.lr * min(1.0, 2 * (1 - step / self.max_steps_))
        loss = semi_supervised(
            law,
            x,
            y,
            anchor_x,
            anchor_y,
            weight_unpaired=self.settings_.weight_unpaired,
            condition=codes,
            condition_anchor=codes_a,
            share_x=self._shares[0],
            share_y=self._shares[1],
            joint=self.potential == "joint",
        )
        return {"loss": loss} | penalties(law, x, self.settings_.penalty / self._k)

    def remarks(self, result: FitResult) -> list[str]:
        """The settings that left-out anchors chose, and what the fit rests on where there were none."""
        if result.status is Status.MAX_STEPS and _settled(result, self.n_features_out_):
            result.status = Status.CONVERGED
        found = [] if self.settings_.reason is None else [self.settings_.reason]
        if not self._anchored:
            found.append(
                "Without anchors only conditions tell source cells apart; within one all have one translation."
            )
        return found

    def release(self) -> None:
        """Drop what only training needed."""
        for name in ("_optimizers", "_shares", "_k", "_anchored"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """The conditional mean."""
        module = self.module_
        return module.unscaled(module.law.moments(module.source(x, condition), condition)[0])

    def law_sample(self, x: Tensor, n: int, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Exact draws from the mixture."""
        module = self.module_
        return module.unscaled(module.law.sample(module.source(x, condition), n, condition, generator))

    def law_covariance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Exact covariance of the mixture."""
        module, factor = self.module_, self.module_.factor_y
        return module.law.covariance(module.source(x, condition), condition) / (factor[:, None] * factor)

    def law_variance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Exact variances of the mixture."""
        module = self.module_
        return module.law.moments(module.source(x, condition), condition)[1] / module.factor_y**2

    def check_options(self) -> None:
        """Raise on options that mean nothing."""
        for name, known in (("towers", TOWERS), ("optimizers", ("one", "two")), ("potential", ("cells", "joint"))):
            if getattr(self, name) not in known:
                said = ", ".join(map(repr, known))
                raise ConfigError(f"{name}={getattr(self, name)!r}; method='ieot' knows {said}.")
        for name, whole, least, most in (
            ("n_potential", True, 1, np.inf),
            ("n_cost", True, 1, np.inf),
            ("weight_unpaired", False, 0, 1),
            ("penalty", False, 0, np.inf),
            ("floor", False, 0, 1),
            ("lr", False, 0, np.inf),
        ):
            value = getattr(self, name)
            if value is None and name in ("n_potential", "weight_unpaired", "penalty"):
                continue
            kind: Any = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most or value == np.inf:
                wanted = "whole number" if whole else "number"
                raise ConfigError(f"{name}={value!r}; expected a {wanted} from {least} to {most}.")
        if self.floor == 0:
            raise ConfigError("floor=0; expected a share above 0: without one, densities have no bound.")

    def _load_state(self, state: Arrays) -> None:
        self.settings_ = _settings_of({name: torch.as_tensor(value) for name, value in state.items()})
        super()._load_state(state)

    def _resumed(self) -> Settings | None:
        """The settings of a checkpoint that the fit is resumed from."""
        return None if self.resumed_ is None else _settings_of(self.resumed_)


def _settings_of(state: dict[str, Tensor]) -> Settings:
    """The settings behind the state of a `ScaledLaw`."""
    weight, penalty = state["chosen"].tolist()
    return Settings(len(state["law.centres"]), weight, penalty)


def _enough(pair: ModalityPair, rows_x: np.ndarray, rows_y: np.ndarray) -> bool:
    """Whether both sides have these rows, and some of every condition that both have."""
    if pair.condition_x is None or pair.condition_y is None:
        return min(len(rows_x), len(rows_y)) > 0
    left = set(np.asarray(pair.condition_x)[rows_x]) & set(np.asarray(pair.condition_y)[rows_y])
    return set(pair.shared_conditions) <= left


def penalties(law: TiltedMixture, x: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
    """Ridge penalty on the towers and, where it is not zero, one on the mean of the directions over cells `x`."""
    found = {"penalty": weight * squared_weights(law)}
    if not law.centred:
        # Means of two halves: the square of one mean would penalise the spread of directions over a batch, too.
        found["centring"] = CENTRING * (mean_direction(law, x[::2]) * mean_direction(law, x[1::2])).sum()
    return found


def squared_weights(law: TiltedMixture) -> Tensor:
    """Sum of squares of the towers' weights, biases left out."""
    towers = [law.direction] if law.gate is None else [law.direction, law.gate]
    weights = [p for tower in towers for name, p in tower.named_parameters() if name.endswith("weight")]
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def mean_direction(law: TiltedMixture, x: Tensor) -> Tensor:
    """Mean over source cells of the direction that the gate mixes, shape (D,)."""
    a, log_v = law.directions(x)
    return (log_v.exp()[:, :, None] * a).sum(dim=1).mean(dim=0)


def _settled(result: FitResult, n_features: int) -> bool:
    """Whether the mean loss no longer moved at the full learning rate, in the two checks before it declines."""
    path = [value for step, value in result.history.get("loss", []) if step <= result.n_steps / 2]
    return len(path) > 1 and abs(path[-1] - path[-2]) <= SETTLED * n_features
