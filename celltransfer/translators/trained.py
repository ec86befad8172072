"""TrainedTranslator: what methods trained by gradient share. They own networks and losses, never a loop."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from celltransfer.data.batches import Batch, Batches
from celltransfer.train import checkpoint
from celltransfer.train.loop import Trainer, seeded
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Arrays, Translator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from celltransfer.data.pair import ModalityPair

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
    generator_, max_steps_, clock_, resumed_
        Source of randomness inside losses, the most steps the loop will take, the time limit that `configure` and the
        loop share, and the networks' state in the checkpoint that a fit is resumed from; present during a fit only.
    """

    training: ClassVar[dict[str, Any]] = {}

    module_: nn.Module
    n_conditions_: int
    generator_: torch.Generator
    max_steps_: int
    clock_: Clock
    resumed_: dict[str, Tensor] | None

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

    def final_figures(self) -> dict[str, float]:
        """Figures of the state that a run ended with, kept in its history; what `choose` needs. Only with restarts."""
        return {}

    def remarks(self, result: FitResult) -> list[str]:
        """What the user should know of a run that has ended, one sentence each."""
        return []

    def choose(self, results: Sequence[FitResult]) -> int:
        """Which of several restarts to keep: the one with the lowest monitor that did not diverge."""
        return min(
            range(len(results)), key=lambda i: (results[i].status is Status.DIVERGED, lowest_monitor(results[i]))
        )

    def release(self) -> None:
        """Drop what only training needed; called also when training failed, whatever of it is there."""

    def to(self: Self, device: str) -> Self:
        """Translate on `device` from now on; a loaded model is on the CPU."""
        self._check_fitted()
        self.module_.to(Trainer(device=device).resolve_device())
        return self

    def saved_state(self, pair: ModalityPair, seed: int, trainer: Trainer) -> dict[str, Tensor] | None:
        """The networks' state in the checkpoint that a fit of `pair` would be resumed from, on the CPU; or ``None``."""
        if not trainer.resume or trainer.checkpoint_dir is None:
            return None
        trainer = trainer.with_defaults(**self.training).with_defaults(batch_size=256)
        return _saved(trainer, self._fingerprint(pair, seed, trainer), torch.device("cpu"))

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        trainer = trainer or Trainer()
        restarts = max(1, getattr(self, "restarts", 1))
        if restarts == 1:
            return self._train(pair, seed, trainer)
        clock = Clock(trainer.max_seconds)
        runs: list[tuple[FitResult, nn.Module]] = []
        while len(runs) < restarts and not (runs and runs[-1][0].status is Status.INTERRUPTED):
            limited = replace(trainer, max_seconds=clock.share(restarts - len(runs)))
            runs.append(self._restart(pair, seed, limited, len(runs)))
        best, self.module_ = runs[self.choose([result for result, _ in runs])]
        best.history["restarts"] = [(i, lowest_monitor(result)) for i, (result, _) in enumerate(runs)]
        best.status = Status.INTERRUPTED if runs[-1][0].status is Status.INTERRUPTED else best.status
        best.seconds = clock.elapsed()
        return best

    def _restart(self, pair: ModalityPair, seed: int, trainer: Trainer, i: int) -> tuple[FitResult, nn.Module]:
        """Run number i of a fit, from a seed of its own: how it ended, and its networks."""
        if trainer.checkpoint_dir is not None:
            trainer = replace(trainer, checkpoint_dir=Path(trainer.checkpoint_dir) / f"restart{i}")
        own = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        return self._train(pair, own, trainer), self.module_

    def _train(self, pair: ModalityPair, seed: int, trainer: Trainer) -> FitResult:
        trainer = trainer.with_defaults(**self.training).with_defaults(batch_size=256, max_steps=1000)
        assert trainer.batch_size is not None
        assert trainer.max_steps is not None
        device = trainer.resolve_device()
        marks = self._fingerprint(pair, seed, trainer) if trainer.checkpoint_dir is not None else {}
        self.n_conditions_ = len(self.condition_codes_) if self.uses_conditions else 0
        with seeded(seed):
            self.generator_, self.max_steps_ = torch.Generator(device).manual_seed(seed), trainer.max_steps
            self.clock_, self.resumed_ = Clock(trainer.max_seconds), _saved(trainer, marks, device)
            try:
                rows_x, rows_y = self.configure(pair, self.generator_)
                left, before = replace(trainer, max_seconds=self.clock_.share(1)), self.clock_.elapsed()
                self.module_.to(device).train()
                batches = Batches(pair, trainer.batch_size, seed=seed, device=device, rows_x=rows_x, rows_y=rows_y)
                result = left.run(self, batches, marks)
                result.seconds += before
                self.module_.eval()
                result.notes += self.remarks(result)
                if getattr(self, "restarts", 1) > 1:
                    result.history |= {name: [(result.n_steps, v)] for name, v in self.final_figures().items()}
                return result
            finally:
                self.release()
                del self.generator_, self.max_steps_, self.clock_, self.resumed_

    def _fingerprint(self, pair: ModalityPair, seed: int, trainer: Trainer) -> dict[str, str]:
        named = {"method": self.name, "options": self.get_config(), "seed": seed}
        if self.scheduled:
            named["max_steps"] = trainer.max_steps
        return checkpoint.fingerprint(pair, **named, batch_size=trainer.batch_size, precision=trainer.precision)

    @torch.no_grad()
    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        device = next(self.module_.parameters()).device
        codes = None if condition is None else torch.as_tensor(condition, dtype=torch.long, device=device)
        return self.predict(torch.as_tensor(x, device=device), codes).cpu().numpy()

    def _state(self) -> Arrays:
        weights = {name: value.detach().cpu().numpy() for name, value in self.module_.state_dict().items()}
        return weights | {"n_conditions": np.array(self.n_conditions_)}

    def _load_state(self, state: Arrays) -> None:
        self.n_conditions_ = int(state.pop("n_conditions"))
        with seeded(0):
            self.module_ = self.build().eval()
        self.module_.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})


def _saved(trainer: Trainer, marks: dict[str, str], device: torch.device) -> dict[str, Tensor] | None:
    """The networks' state in the checkpoint to resume from; ``None`` without one."""
    if not trainer.resume or trainer.checkpoint_dir is None:
        return None
    state = checkpoint.read(trainer.checkpoint_dir, marks, device)
    return None if state is None else state["module"]


def lowest_monitor(result: FitResult) -> float:
    """The lowest value a run's monitor took; infinity if it has none."""
    return min((value for _, value in result.history.get("monitor", [])), default=float("inf"))
