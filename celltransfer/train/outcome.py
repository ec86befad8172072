"""FitResult: how a fit ended, as a value. Verdict: whether to believe it, with the evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How the training loop ended."""

    SOLVED = "solved"
    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    MAX_TIME = "max_time"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Status.SOLVED: "Closed form or deterministic solver; nothing to do.",
    Status.CONVERGED: "The monitored criterion stopped improving; nothing to do.",
    Status.MAX_STEPS: "The step limit came before convergence: raise `max_steps` if the losses still move.",
    Status.MAX_TIME: "The time limit came before convergence: raise `max_seconds` or use a GPU.",
    Status.DIVERGED: "A loss became NaN or infinite: lower the learning rate, or check the features for outliers.",
    Status.INTERRUPTED: "Interrupted by the user; resume from the checkpoint or fit again.",
}


@dataclass
class Verdict:
    """Whether to believe a translation, and why.

    Attributes
    ----------
    level
        ``"identified"`` (evidence for the right map), ``"ambiguous"`` (the evidence does not tell right from wrong)
        or ``"failed"`` (evidence against).
    reasons
        One sentence per finding.
    evidence
        The figures behind the reasons, plain numbers only.
    """

    level: str
    reasons: list[str] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and ``uns``."""
        return asdict(self)


@dataclass
class FitResult:
    """What `fit` leaves behind beside the fitted parameters; plain types only.

    Attributes
    ----------
    status
        How training ended; ``status.advice`` says what to do.
    n_steps, seconds
        Optimiser steps and wall time in seconds.
    history
        Named losses and monitors; each a list of (step, value) pairs.
    seed
        The seed the fit ran with.
    device
        Where it ran, for example ``"cpu"``.
    n_source, n_target, n_anchors
        Cells and anchor pairs that training saw.
    versions
        Versions of the packages that matter.
    notes
        What the method decided on the way and the user should know, one sentence each.
    verdict
        Whether to believe the fit; ``None`` until the diagnostics ran.
    alignment
        Whether the translated cells are like target cells (`celltransfer.metrics.Alignment`, as plain types), for
        methods whose fit is there to make them so; ``None`` for others.
    """

    status: Status
    n_steps: int = 0
    seconds: float = 0.0
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    n_source: int = 0
    n_target: int = 0
    n_anchors: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    alignment: dict[str, Any] | None = None

    @property
    def advice(self) -> str:
        """What to do about how training ended."""
        return self.status.advice

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self) | {"status": self.status.value}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitResult:
        """Inverse of `to_dict`."""
        verdict = values.get("verdict")
        history = {k: [(int(s), float(v)) for s, v in rows] for k, rows in values.get("history", {}).items()}
        known = values | {
            "status": Status(values["status"]),
            "verdict": Verdict(**verdict) if verdict else None,
            "history": history,
        }
        return cls(**known)
