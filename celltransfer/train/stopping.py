"""When to stop: no improvement of a monitored figure for some checks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Remembers the best value (lower is better) and how many checks ago it was seen.

    Attributes
    ----------
    patience
        Checks without improvement after which `exhausted` is true; ``None``: never.
    best
        Lowest value so far.
    since
        Checks since then.
    """

    patience: int | None
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
