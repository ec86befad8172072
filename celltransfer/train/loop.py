"""The one training loop: device, precision, progress, limits, early stopping, checkpoints. Knows no method."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from celltransfer import __version__
from celltransfer.errors import ConfigError, ModelFormatError
from celltransfer.settings import settings
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric
    from torch.optim import Optimizer

    from celltransfer.data.batches import Batch, Batches

CHECKPOINT = "checkpoint.pt"
_VERSIONED = ("torch", "lightning-fabric", "numpy")


class Task(Protocol):
    """What the loop trains: one module holding all networks, and one optimiser for each player."""

    module_: nn.Module
    generator_: torch.Generator

    def players(self) -> dict[str, Optimizer]:
        """Optimisers by player, in the order in which they step."""

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named losses of `player`, already weighted; the loop minimises their sum over the player's parameters."""

    def after_step(self, step: int) -> None:
        """Called when every player has stepped."""

    def monitor(self) -> float | None:
        """Figure to select the best state by, lower is better; ``None`` keeps the last state."""


@dataclass(frozen=True)
class Trainer:
    """Limits and device of a fit. ``None`` takes the method's own default.

    Attributes
    ----------
    max_steps
        Steps of all players.
    max_seconds
        Wall time in seconds.
    batch_size
        Unpaired cells a side in one batch.
    patience
        Checks without improvement after which training stops.
    check_every
        Steps between checks of the monitor.
    device
        ``"auto"`` takes ``settings.device``, else CUDA if there is one, else the CPU. ``"mps"`` only on demand.
    precision
        Precision of Fabric, for example ``"32-true"`` or ``"bf16-mixed"``.
    progress
        Show a progress bar; ``None`` follows ``settings.progress``.
    checkpoint_dir, checkpoint_every
        Where and every how many steps to save; a checkpoint is also written at the end.
    resume
        Continue from the checkpoint in `checkpoint_dir` if there is one. On the CPU the result is bit-identical to
        an uninterrupted run.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    batch_size: int | None = None
    patience: int | None = None
    check_every: int | None = None
    device: str = "auto"
    precision: str = "32-true"
    progress: bool | None = None
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def with_defaults(self, **defaults: Any) -> Trainer:
        """The same with fields that are ``None`` taken from `defaults`."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def resolve_device(self) -> torch.device:
        """The device that `device` stands for."""
        name = settings.device if self.device == "auto" else self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(
                f"device={name!r} is not a device; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device={name!r}, and this machine has no CUDA device; use device='cpu'.")
        return device

    def run(self, task: Task, batches: Batches) -> FitResult:
        """Train `task` on `batches` until a limit, convergence, divergence or Ctrl-C."""
        return _Run(self.with_defaults(max_steps=1000, check_every=100), task, batches).go()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and leave its global state as it was; for layers that draw their own weights."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Run:
    """State of one run of the loop."""

    def __init__(self, trainer: Trainer, task: Task, batches: Batches) -> None:
        self.trainer, self.task, self.batches = trainer, task, batches
        self.fabric = _fabric(trainer)
        self.optimizers = {name: self.fabric.setup_optimizers(opt) for name, opt in task.players().items()}
        self.parameters = {name: _parameters(opt) for name, opt in self.optimizers.items()}
        self.stopping = EarlyStopping(trainer.patience)
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.sums: dict[str, Tensor] = {}
        self.step, self.seconds, self.last_check = 0, 0.0, 0
        self.kept = self._snapshot()

    def go(self) -> FitResult:
        """Run, restore the state to keep, and say how it ended."""
        if self.trainer.resume:
            self._resume()
        if self.step == 0:
            self._score(self.task.monitor())
        start = time.perf_counter() - self.seconds
        with self._progress() as bar:
            try:
                status = self._loop(start, bar)
            except KeyboardInterrupt:
                status = Status.INTERRUPTED
        self.seconds = time.perf_counter() - start
        if status is not Status.DIVERGED:
            self._save()
        self._restore(status)
        return FitResult(
            status=status,
            n_steps=self.step,
            seconds=self.seconds,
            history=self.history,
            device=str(self.fabric.device),
            versions=_versions(),
        )

    def _loop(self, start: float, bar: Any) -> Status:
        trainer = self.trainer
        assert trainer.max_steps is not None
        assert trainer.check_every is not None
        while self.step < trainer.max_steps:
            self._advance()
            bar.update(1)
            if self.step % trainer.check_every == 0 or self.step == trainer.max_steps:
                if not self._check(bar):
                    return Status.DIVERGED
                if self.stopping.exhausted:
                    return Status.CONVERGED
            self.seconds = time.perf_counter() - start
            if trainer.checkpoint_every and self.step % trainer.checkpoint_every == 0:
                self._save()
            if trainer.max_seconds is not None and self.seconds >= trainer.max_seconds:
                return Status.MAX_TIME
        return Status.MAX_STEPS

    def _advance(self) -> None:
        """One step of every player."""
        batch = self.batches.draw()
        for player, optimizer in self.optimizers.items():
            with self.fabric.autocast():
                named = self.task.losses(player, batch, self.step)
                total = torch.stack(list(named.values())).sum()
            optimizer.zero_grad()
            # `inputs` keeps one player's loss from leaving gradients with another.
            self.fabric.backward(total, inputs=self.parameters[player])
            optimizer.step()
            for name, value in named.items():
                self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.task.after_step(self.step)
        self.step += 1

    def _check(self, bar: Any) -> bool:
        """Record mean losses and the monitor, keep the state if it is the best; whether all is finite."""
        since = max(1, self.step - self.last_check)
        means = {name: float(total) / since for name, total in self.sums.items()}
        self.sums, self.last_check = {}, self.step
        monitored = self.task.monitor()
        recorded = means if monitored is None else means | {"monitor": monitored}
        bar.set_postfix({name: f"{value:.3g}" for name, value in recorded.items()}, refresh=False)
        if not all(map(math.isfinite, recorded.values())) or not self._finite():
            return False
        for name, value in recorded.items():
            self.history.setdefault(name, []).append((self.step, value))
        self._score(monitored)
        return True

    def _score(self, monitored: float | None) -> None:
        if monitored is None or self.stopping.update(monitored):
            self.kept = self._snapshot()

    def _finite(self) -> bool:
        tensors = [p for group in self.parameters.values() for p in group]
        return all(bool(torch.isfinite(p).all()) for p in tensors)

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.task.module_.state_dict().items()}

    def _restore(self, status: Status) -> None:
        """Go back to the best state seen, or to the last finite one after divergence."""
        if status is Status.DIVERGED or math.isfinite(self.stopping.best):
            self.task.module_.load_state_dict(self.kept)

    def _progress(self) -> Any:
        shown = settings.progress if self.trainer.progress is None else self.trainer.progress
        if shown is None:
            shown = sys.stderr.isatty() or "ipykernel" in sys.modules
        # tqdm.auto warns in notebooks without widgets, which is no use where there is no bar.
        bar = import_module("tqdm.auto" if shown else "tqdm").tqdm
        return bar(total=self.trainer.max_steps, initial=self.step, disable=not shown, unit="step", leave=False)

    def _save(self) -> None:
        """Write the checkpoint; complete or not at all."""
        if self.trainer.checkpoint_dir is None:
            return
        folder = Path(self.trainer.checkpoint_dir)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{CHECKPOINT}.{os.getpid()}.part"
        torch.save(self._state(), unfinished)
        os.replace(unfinished, folder / CHECKPOINT)

    def _state(self) -> dict[str, Any]:
        return {
            "module": self.task.module_.state_dict(),
            "kept": self.kept,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "batches": self.batches.state_dict(),
            "generator": self.task.generator_.get_state(),
            "global_rng": torch.get_rng_state(),
            "best": self.stopping.best,
            "since": self.stopping.since,
            "history": self.history,
            "sums": self.sums,
            "step": self.step,
            "last_check": self.last_check,
            "seconds": self.seconds,
        }

    def _resume(self) -> None:
        if self.trainer.checkpoint_dir is None:
            raise ConfigError("resume=True needs checkpoint_dir, the folder the checkpoint was written to.")
        path = Path(self.trainer.checkpoint_dir) / CHECKPOINT
        if not path.exists():
            return
        try:
            self._load(torch.load(path, map_location=self.fabric.device, weights_only=True))
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelFormatError(
                f"The checkpoint {path} does not belong to this fit ({error}). Fit with the data and options it was "
                "written with, or choose another checkpoint_dir."
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.task.module_.load_state_dict(state["module"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.batches.load_state_dict(state["batches"])
        self.task.generator_.set_state(state["generator"].cpu())
        torch.set_rng_state(state["global_rng"].cpu())
        self.stopping.best, self.stopping.since = state["best"], state["since"]
        self.kept, self.history, self.sums = state["kept"], state["history"], state["sums"]
        self.step, self.last_check, self.seconds = state["step"], state["last_check"], state["seconds"]


def _fabric(trainer: Trainer) -> Fabric:
    """Fabric on one device; imported here, as its import takes seconds."""
    from lightning_fabric import Fabric

    device = trainer.resolve_device()
    devices: Any = 1 if device.type == "cpu" else [device.index or 0]
    return Fabric(accelerator=device.type, devices=devices, precision=trainer.precision)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _VERSIONED}
    return {"celltransfer": __version__, "python": platform.python_version(), **packages}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
