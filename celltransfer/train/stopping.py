"""When to stop: no improvement of a monitored figure for some checks, time that has run out, Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType


@dataclass
class EarlyStopping:
    """Remembers the best value (lower is better) and how many checks ago it was seen.

    Attributes
    ----------
    patience
        Checks without improvement after which `exhausted` is true; ``None`` or infinity: never.
    best
        Lowest value so far.
    since
        Checks since then.
    """

    patience: float | None
    best: float = math.inf
    since: int = 0

    def update(self, value: float) -> bool:
        """Take in one value; whether it is the best so far."""
        improved = value < self.best
        self.best = value if improved else self.best
        self.since = 0 if improved else self.since + 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.since >= self.patience


class Clock:
    """One time limit for several things done one after the other; starts when it is made.

    Parameters
    ----------
    seconds
        Wall time for all of them; ``None``: no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._start, self._seconds = time.perf_counter(), seconds

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def left(self) -> float:
        """Seconds left, not below 0; infinity without a limit."""
        return math.inf if self._seconds is None else max(0.0, self._seconds - self.elapsed())

    def share(self, parts: int) -> float | None:
        """Time for the next of `parts` equal parts that are still to do; ``None`` without a limit."""
        return None if self._seconds is None else self.left() / parts


class Interruption:
    """Ctrl-C as a flag, `seen`, to look at between steps, so that no step is left half done.

    A second Ctrl-C raises `KeyboardInterrupt` at once, as does any where Python's own handler is not in place.
    """

    def __init__(self) -> None:
        self.seen = False
        self._installed = False

    def __enter__(self) -> Interruption:
        in_main = threading.current_thread() is threading.main_thread()
        self._installed = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
