"""TrainedTranslator: what methods trained by gradient share. They own networks and losses, never a loop."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from celltransfer.data.batches import Batch, Batches
from celltransfer.train.loop import Trainer, seeded
from celltransfer.translators.base import Arrays, Translator

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from celltransfer.data.pair import ModalityPair
    from celltransfer.train.outcome import FitResult

Self = TypeVar("Self", bound="TrainedTranslator")


class TrainedTranslator(Translator):
    """A translator whose parameters are found by gradient descent in `celltransfer.train.loop`.

    A subclass writes `build`, `players`, `losses` and `predict`, and where it needs them `configure`, `after_step`
    and `monitor`.

    Attributes
    ----------
    training
        The method's own defaults for fields of `Trainer`.
    module_
        One module that holds all networks.
    n_conditions_
        Number of conditions the networks were built for; 0 without conditions.
    generator_
        Source of randomness inside losses; present during a fit only.
    """

    training: ClassVar[dict[str, Any]] = {}

    module_: nn.Module
    n_conditions_: int
    generator_: torch.Generator

    @abstractmethod
    def build(self) -> nn.Module:
        """Networks from the configuration, `n_features_in_`, `n_features_out_` and `n_conditions_` alone."""

    @abstractmethod
    def players(self) -> dict[str, Optimizer]:
        """Optimisers by player, in the order in which they step."""

    @abstractmethod
    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named losses of `player`, already weighted; the loop minimises their sum."""

    @abstractmethod
    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Translate (batch, d) to (batch, D) with the networks as they are used after training."""

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build and initialise `module_` for `pair`; returns the rows of x and of y to draw unpaired cells from.

        Runs with torch's global generator seeded, so that layers may draw their own weights.
        """
        self.module_ = self.build()
        return np.arange(pair.n_source), np.arange(pair.n_target)

    def after_step(self, step: int) -> None:
        """Called when every player has stepped."""

    def monitor(self) -> float | None:
        """Figure to select the best state by, lower is better; ``None`` keeps the last state."""
        return None

    def release(self) -> None:
        """Drop what only training needed."""

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        restarts = max(1, getattr(self, "restarts", 1))
        if restarts == 1:
            return self._train(pair, seed, trainer or Trainer())
        start = time.perf_counter()
        runs = [self._restart(pair, seed, trainer or Trainer(), i, restarts) for i in range(restarts)]
        best, self.module_, result = min(runs, key=lambda run: run[0])
        result.history["restarts"] = [(i, monitor) for i, (monitor, _, _) in enumerate(runs)]
        result.seconds = time.perf_counter() - start
        return result

    def _restart(
        self, pair: ModalityPair, seed: int, trainer: Trainer, i: int, restarts: int
    ) -> tuple[float, nn.Module, FitResult]:
        """Run number i of a fit, from a seed of its own: its lowest monitor, its networks, and how it ended."""
        limits: dict[str, Any] = {"max_seconds": trainer.max_seconds and trainer.max_seconds / restarts}
        if trainer.checkpoint_dir is not None:
            limits["checkpoint_dir"] = Path(trainer.checkpoint_dir) / f"restart{i}"
        own = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        result = self._train(pair, own, replace(trainer, **limits))
        monitors = [value for _, value in result.history.get("monitor", [])]
        return min(monitors, default=float("inf")), self.module_, result

    def _train(self, pair: ModalityPair, seed: int, trainer: Trainer) -> FitResult:
        trainer = trainer.with_defaults(**self.training).with_defaults(batch_size=256)
        device = trainer.resolve_device()
        self.n_conditions_ = _n_conditions(pair) if self.uses_conditions else 0
        with seeded(seed):
            self.generator_ = torch.Generator(device).manual_seed(seed)
            rows_x, rows_y = self.configure(pair, self.generator_)
            self.module_.to(device).train()
            assert trainer.batch_size is not None
            batches = Batches(pair, trainer.batch_size, seed=seed, device=device, rows_x=rows_x, rows_y=rows_y)
            try:
                return trainer.run(self, batches)
            finally:
                self.module_.eval()
                self.release()
                del self.generator_

    @torch.no_grad()
    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        device = next(self.module_.parameters()).device
        codes = None if condition is None else torch.as_tensor(condition, dtype=torch.long, device=device)
        return self.predict(torch.as_tensor(x, device=device), codes).cpu().numpy()

    def _state(self) -> Arrays:
        weights = {name: value.detach().cpu().numpy().copy() for name, value in self.module_.state_dict().items()}
        return weights | {"n_conditions": np.array(self.n_conditions_)}

    def _load_state(self, state: Arrays) -> None:
        self.n_conditions_ = int(state.pop("n_conditions"))
        with seeded(0):
            self.module_ = self.build().eval()
        self.module_.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in state.items()})


def _n_conditions(pair: ModalityPair) -> int:
    if pair.condition_x is None or pair.condition_y is None:
        return 0
    return 1 + int(max(pair.condition_x.max(), pair.condition_y.max()))
