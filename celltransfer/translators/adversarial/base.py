"""AdversarialTranslator: a map matched to the target's distribution by a discriminator; parent of the GAN methods."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim import Adam, Optimizer

from celltransfer.errors import ConfigError
from celltransfer.losses.adversarial import critic_losses, generator_loss
from celltransfer.nn.blocks import MLP, Discriminator, Residual, update_average
from celltransfer.pp.transforms import moments
from celltransfer.translators import holdout
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import ModalityPair
    from celltransfer.train.outcome import FitResult


# Weights of the matching from a start that is good already, and from a random one.
REFINING, FINDING = 0.1, 1.0


class Networks(nn.Module):
    """All parameters: the map f on features of unit scale, its moving average, reconstructor, discriminators, scales.

    Attributes
    ----------
    f, average
        The map from source to target, and the moving average of its parameters, which translates after training.
    discriminator
        Of target cells against f(x).
    reconstructor
        Map back from target to source, or ``None``.
    critic
        Discriminator of source cells against the reconstructor's output, or ``None``.
    """

    mean_x: Tensor
    mean_y: Tensor
    scale: Tensor

    def __init__(
        self,
        f: nn.Module,
        discriminator: nn.Module,
        reconstructor: nn.Module | None,
        critic: nn.Module | None,
        *,
        d: int,
        out: int,
    ) -> None:
        super().__init__()
        self.f, self.average = f, copy.deepcopy(f).requires_grad_(False)
        self.discriminator, self.reconstructor, self.critic = discriminator, reconstructor, critic
        self.register_buffer("mean_x", torch.zeros(d))
        self.register_buffer("mean_y", torch.zeros(out))
        self.register_buffer("scale", torch.ones(2))

    def translate(self, x: Tensor) -> Tensor:
        """The moving average of f, which is zero wherever a linear f is: an average alone never gets there."""
        if not is_linear(self.f):
            return self.average(x)
        weight, bias = self.average.parameters()
        return linear(x, weight * (next(self.f.parameters()) != 0), bias)


class AdversarialTranslator(TrainedTranslator):
    """Discriminator and map in turns, on features of unit scale; the moving average of the map translates.

    Features are centred and divided by one number per modality, so that weights mean the same for all data; the
    relative scales of features are kept. The monitor is the energy distance between f(x) and y on cells held out of
    the matching, within conditions where they are given.

    A subclass's constructor stores the options named below; it may add terms to the map's loss by `map_losses`.
    """

    uses_conditions = True
    matches_distributions = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 500, "batch_size": 200, "check_every": 50, "patience": 6}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "map": ("linear", "residual", "mlp"),
        "gan": ("non_saturating", "least_squares"),
        "conditional": ("input", "separate"),
    }
    # The least value of options that are numbers.
    least: ClassVar[dict[str, float]] = {
        "weight_gan": 0,
        "r1": 0,
        "r1_every": 1,
        "lr": 0,
        "lr_discriminator": 0,
        "decay": 0,
        "weight_anchor": 0,
        "restarts": 1,
    }
    # Whether features are centred and scaled; not so where the map's output has bounds, such as pixels.
    standardised: ClassVar[bool] = True

    module_: Networks

    map: str
    hidden: Sequence[int]
    hidden_discriminator: Sequence[int]
    conditional: str
    gan: str
    weight_gan: float | None
    r1: float
    r1_every: int
    lr: float
    lr_discriminator: float
    decay: float

    @property
    def gan_weight(self) -> float:
        """Weight of the matching; where none is given, what refines a start or what has to find a map."""
        if self.weight_gan is not None:
            return self.weight_gan
        return REFINING if self._started else FINDING

    def make_map(self, n_in: int, n_out: int) -> nn.Module:
        """An untrained map (batch, n_in) -> (batch, n_out), row by row."""
        if self.map == "residual":
            return Residual(n_in, n_out, self.hidden)
        return MLP(n_in, n_out, () if self.map == "linear" else self.hidden)

    def make_discriminator(self, n_in: int) -> nn.Module:
        """An untrained discriminator (batch, n_in), codes (batch,) or ``None`` -> logits (batch,)."""
        return Discriminator(
            n_in, self.hidden_discriminator, self.n_conditions_, separate=self.conditional == "separate"
        )

    def needs_reconstructor(self) -> bool:
        """Whether there is a map back from target to source."""
        return False

    def needs_critic(self) -> bool:
        """Whether source cells are matched by the map back."""
        return False

    def map_losses(self, x: Tensor, fake: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms beside the matching of f; `x` and ``fake = f(x)`` are scaled, the batch is not."""
        return {}

    def start(self, pair: ModalityPair) -> bool:
        """Set the map's parameters before training; whether they are more than random now."""
        return False

    def build(self) -> Networks:
        """Networks from the configuration and the feature counts."""
        d, out = self.n_features_in_, self.n_features_out_
        reconstructor = self.make_map(out, d) if self.needs_reconstructor() else None
        critic = self.make_discriminator(d) if self.needs_critic() else None
        return Networks(self.make_map(d, out), self.make_discriminator(out), reconstructor, critic, d=d, out=out)

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build, set scales and the start, and hold cells out for the monitor."""
        self.module_ = self.build()
        rows = holdout.split(pair, np.random.default_rng(generator.initial_seed()))
        if self.standardised:
            self._standardise(pair)
        self._started, self._step = self.start(pair), 0
        self.module_.to(generator.device)
        held = holdout.HeldOut(pair, rows, self.scaled_source, self.scaled_target, generator.device)
        self._held = held if held.enough else None
        return rows.train_x, rows.train_y

    def players(self) -> dict[str, Optimizer]:
        """Discriminators first, then the map with its reconstructor."""
        net = self.module_
        maps = [*net.f.parameters(), *(net.reconstructor.parameters() if net.reconstructor else [])]
        self._adam = Adam(maps, lr=self.lr, betas=(0.0, 0.99))
        if not self.gan_weight:
            return {"translator": self._adam}
        critics = [*net.discriminator.parameters(), *(net.critic.parameters() if net.critic else [])]
        return {"discriminator": Adam(critics, lr=self.lr_discriminator, betas=(0.0, 0.99)), "translator": self._adam}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms of one player."""
        x, y = self.scaled_source(batch.x), self.scaled_target(batch.y)
        codes = batch.condition if self.n_conditions_ else None
        if player == "discriminator":
            return self._discriminator_losses(x, y, codes, step)
        fake = self.module_.f(x)
        losses = self.map_losses(x, fake, batch, step)
        if self.gan_weight:
            losses["gan"] = self.gan_weight * generator_loss(self.module_.discriminator(fake, codes), self.gan)
        return losses or {"none": fake.sum() * 0}

    def after_step(self, step: int) -> None:
        """Move the average; it follows fast at first."""
        self._step = step + 1
        update_average(self.module_.average, self.module_.f, min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def monitor(self) -> float | None:
        """Energy distance between translated and true target cells, both held out of the matching.

        A random map is no candidate, however near the target it happens to lie: ``None`` before the first step.
        """
        if self._held is None or (self._step == 0 and not self._started):
            return None
        return self._held.distance(self.module_.translate)

    def remarks(self, result: FitResult) -> list[str]:
        """Whether training came to nothing."""
        monitors = dict(result.history.get("monitor", []))
        if result.n_steps == 0 or 0 not in monitors or monitors[0] > min(monitors.values()):
            return []
        return ["No state of the training matched held-out cells better than the start did, so this is the start."]

    def release(self) -> None:
        """Drop held-out cells and the optimiser."""
        for name in ("_held", "_adam", "_started", "_step"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Translate with the moving average of f."""
        net = self.module_
        return net.translate(self.scaled_source(x)) * net.scale[1] + net.mean_y

    def scaled_source(self, x: Tensor) -> Tensor:
        """Source cells as f sees them."""
        return (x - self.module_.mean_x) / self.module_.scale[0]

    def scaled_target(self, y: Tensor) -> Tensor:
        """Target cells as the discriminator sees them."""
        return (y - self.module_.mean_y) / self.module_.scale[1]

    def anchor_error(self, f: Callable[[Tensor], Tensor], xa: Tensor, ya: Tensor) -> Tensor:
        """Mean squared miss of the anchors by `f`, over anchors and scaled target features."""
        return (f(self.scaled_source(xa)) - self.scaled_target(ya)).square().mean()

    def check_options(self) -> None:
        """Refuse values that are none of their option's choices, or too small."""
        for name, choices in self.choices.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r}; it is one of {', '.join(choices)}.")
        for name, least in self.least.items():
            value = getattr(self, name, None)
            if value is not None and not value >= least:
                raise ConfigError(f"{name}={value!r}; it is at least {least}.")

    def _discriminator_losses(self, x: Tensor, y: Tensor, codes: Tensor | None, step: int) -> dict[str, Tensor]:
        net = self.module_
        with torch.no_grad():
            fake = net.f(x)
            back = net.reconstructor(y) if net.reconstructor is not None and net.critic is not None else None
        r1 = self.r1 * self.r1_every if step % self.r1_every == 0 else 0.0
        losses = critic_losses(net.discriminator, y, fake, codes, kind=self.gan, r1=r1)
        if back is not None and net.critic is not None:
            other = critic_losses(net.critic, x, back, codes, kind=self.gan, r1=r1)
            losses |= {f"{name}_source": value for name, value in other.items()}
        return losses

    def _standardise(self, pair: ModalityPair) -> None:
        net = self.module_
        for i, (buffer, matrix) in enumerate(((net.mean_x, pair.x), (net.mean_y, pair.y))):
            mean, deviation = moments(matrix)
            buffer.copy_(torch.as_tensor(mean))
            net.scale[i] = max(float(np.square(deviation).mean()), 1e-12) ** 0.5


def is_linear(f: nn.Module) -> bool:
    """Whether a map is one linear layer."""
    return isinstance(f, MLP) and len(f) == 1
