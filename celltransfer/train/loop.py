"""The one training loop: device, precision, progress, limits, early stopping, checkpoints. Knows no method."""

from __future__ import annotations

import math
import platform
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from celltransfer._version import __version__
from celltransfer.errors import ConfigError
from celltransfer.settings import settings
from celltransfer.train import checkpoint
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock, EarlyStopping, Interruption

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lightning_fabric import Fabric
    from torch.optim import Optimizer

    from celltransfer.data.batches import Batch, Batches

_VERSIONED = ("torch", "lightning-fabric", "numpy")
# Networks hold float32 parameters, so Fabric's other kinds would not do what they say.
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


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
        Wall time in seconds, of everything that is done in one call. `celltransfer.fit` gives half of it to the fit
        and half, in equal parts, to the refits for the verdict (all to the fit with ``verdict=False``). A fit divides
        its time equally among restarts, or guard trials and the fit proper. What one part leaves over goes to the
        next. Closed forms take the time they need.
    batch_size
        Unpaired cells a side in one batch.
    patience
        Checks without improvement after which training stops; ``math.inf``: never.
    check_every
        Steps between checks of the monitor.
    device
        ``"auto"`` takes ``settings.device``, else CUDA if there is one, else the CPU. ``"mps"`` only on demand.
    precision
        ``"32-true"``, or ``"bf16-mixed"`` or ``"16-mixed"`` for autocasting.
    progress
        Show a progress bar; ``None`` follows ``settings.progress``.
    checkpoint_dir, checkpoint_every
        Where and every how many steps to save; a checkpoint is also written at the end.
    resume
        Continue from the checkpoint in `checkpoint_dir` if there is one; a finished fit is returned without training.
        The checkpoint must come from the same data, seed and options. On the CPU the result is bit-identical to an
        uninterrupted run: Ctrl-C takes effect between steps, and the checkpoint holds the last whole step.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    batch_size: int | None = None
    patience: float | None = None
    check_every: int | None = None
    device: str = "auto"
    precision: str = "32-true"
    progress: bool | None = None
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name, smallest, whole in (
            ("max_steps", 0, True),
            ("max_seconds", 0, False),
            ("batch_size", 1, True),
            ("patience", 0, False),
            ("check_every", 1, True),
            ("checkpoint_every", 1, True),
        ):
            value = getattr(self, name)
            kind: Any = int if whole else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or value < smallest):
                wanted = "a whole number" if whole else "a number"
                raise ConfigError(f"Trainer({name}={value!r}); expected {wanted} of at least {smallest}, or None.")

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
        _check_device(device)
        return device

    def run(self, task: Task, batches: Batches, fingerprint: checkpoint.Fingerprint | None = None) -> FitResult:
        """Train `task` on `batches` until a limit, convergence, divergence or Ctrl-C.

        A checkpoint is marked with `fingerprint`, and resumed from only with the same.
        """
        trainer = self.with_defaults(max_steps=1000, check_every=100)
        return _Run(trainer, task, batches, fingerprint or {}).go()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and leave its global state as it was; for layers that draw their own weights."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Run:
    """State of one run of the loop."""

    def __init__(self, trainer: Trainer, task: Task, batches: Batches, fingerprint: checkpoint.Fingerprint) -> None:
        self.trainer, self.task, self.batches, self.fingerprint = trainer, task, batches, fingerprint
        self.fabric = _fabric(trainer)
        self.optimizers = {name: self.fabric.setup_optimizers(opt) for name, opt in task.players().items()}
        self.parameters = {name: _parameters(opt) for name, opt in self.optimizers.items()}
        self.stopping = EarlyStopping(trainer.patience)
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.sums: dict[str, Tensor] = {}
        self.step, self.last_check = 0, 0
        self.seconds_before = 0.0
        self.clock = Clock(trainer.max_seconds)
        self.kept = self._snapshot()

    def go(self) -> FitResult:
        """Run, restore the state to keep, and say how it ended."""
        if self.trainer.resume:
            self._resume()
        if self.step == 0:
            self._score_start()
        self.clock = Clock(self.trainer.max_seconds)
        with self._progress() as self.bar:
            status = self._interruptible()
        if status is not Status.DIVERGED and self.step > self.last_check and not self._check():
            status = Status.DIVERGED
        self._restore(status)
        return FitResult(
            status=status,
            n_steps=self.step,
            seconds=self._seconds(),
            history=self.history,
            device=str(self.fabric.device),
            versions=_versions(),
        )

    def _interruptible(self) -> Status:
        """The loop and its last checkpoint, under Ctrl-C."""
        try:
            with Interruption() as interruption:
                status = self._loop(interruption)
                if status is not Status.DIVERGED:
                    self._save()
        except KeyboardInterrupt:  # in the middle of a step: nothing to save that could be continued
            return Status.INTERRUPTED
        return Status.INTERRUPTED if interruption.seen else status

    def _loop(self, interruption: Interruption) -> Status:
        trainer = self.trainer
        assert trainer.max_steps is not None
        assert trainer.check_every is not None
        while self.step < trainer.max_steps and not self.stopping.exhausted:
            if interruption.seen:
                return Status.INTERRUPTED
            if self.clock.left() == 0:
                return Status.MAX_TIME
            self._advance()
            self.bar.update(1)
            if self.step % trainer.check_every == 0 and not self._check():
                return Status.DIVERGED
            if trainer.checkpoint_every and self.step % trainer.checkpoint_every == 0:
                self._save()
        return Status.CONVERGED if self.stopping.exhausted else Status.MAX_STEPS

    def _seconds(self) -> float:
        return self.seconds_before + self.clock.elapsed()

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

    def _check(self) -> bool:
        """Record mean losses and the monitor, keep the state if it is the best; whether all is finite."""
        since = max(1, self.step - self.last_check)
        means = {name: float(total) / since for name, total in self.sums.items()}
        self.sums, self.last_check = {}, self.step
        monitored = self.task.monitor()
        recorded = means if monitored is None else means | {"monitor": monitored}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in recorded.items()}, refresh=False)
        if not all(map(math.isfinite, recorded.values())) or not self._finite():
            return False
        for name, value in recorded.items():
            self.history.setdefault(name, []).append((self.step, value))
        self._score(monitored)
        return True

    def _score_start(self) -> None:
        """Let the state before the first step compete with those that follow, unless it has no figure."""
        monitored = self.task.monitor()
        if monitored is not None and math.isfinite(monitored):
            self.history["monitor"] = [(0, monitored)]
            self.stopping.update(monitored)

    def _score(self, monitored: float | None) -> None:
        """Keep the state if it is the best, or the last of those without a figure before any that has one."""
        improved = not math.isfinite(self.stopping.best) if monitored is None else self.stopping.update(monitored)
        if improved:
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
        if self.trainer.checkpoint_dir is not None:
            checkpoint.write(self.trainer.checkpoint_dir, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
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
            "seconds": self._seconds(),
        }

    def _resume(self) -> None:
        if self.trainer.checkpoint_dir is None:
            raise ConfigError("resume=True needs checkpoint_dir, the folder the checkpoint was written to.")
        state = checkpoint.read(self.trainer.checkpoint_dir, self.fingerprint, self.fabric.device)
        if state is None:
            return
        try:
            self._load(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.foreign(self.trainer.checkpoint_dir, str(error)) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.task.module_.load_state_dict(state["module"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.batches.load_state_dict(state["batches"])
        self.task.generator_.set_state(state["generator"].cpu())
        torch.set_rng_state(state["global_rng"].cpu())
        self.stopping.best, self.stopping.since = state["best"], state["since"]
        self.kept, self.history, self.sums = state["kept"], state["history"], state["sums"]
        self.step, self.last_check, self.seconds_before = state["step"], state["last_check"], state["seconds"]


def _fabric(trainer: Trainer) -> Fabric:
    """Fabric on one device; imported here, as its import takes seconds."""
    from lightning_fabric import Fabric

    device = trainer.resolve_device()
    devices: Any = 1 if device.type == "cpu" else [device.index or 0]
    if trainer.precision not in _PRECISIONS:
        raise ConfigError(f"precision={trainer.precision!r}; it is one of {', '.join(_PRECISIONS)}.")
    precision: Any = trainer.precision
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


def _check_device(device: torch.device) -> None:
    """Refuse a device that this machine lacks or the loop does not know."""
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={str(device)!r} is not supported; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device.type]
    beyond = device.type == "cuda" and here and (device.index or 0) >= torch.cuda.device_count()
    if not here or beyond:
        raise ConfigError(f"device={str(device)!r}, and this machine has no such device; use device='cpu' or 'auto'.")


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _VERSIONED}
    return {"celltransfer": __version__, "python": platform.python_version(), **packages}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
