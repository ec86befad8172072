"""How far to believe the translation of one cell rather than another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Translated cells that a new one is compared with.
NEIGHBOURS = 10


@dataclass(frozen=True, eq=False)
class Confidence:
    """The doubt about some translated cells, read off for others near to them.

    Attributes
    ----------
    translated
        Translated training cells in the target's features, shape (n, D), float32; none where nothing is known.
    doubt
        Expected rank of the true partner of each, as in FOSCTTM, shape (n,): 0 is certain, 0.5 says nothing.
    """

    translated: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    doubt: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return len(self.doubt) > 0

    def of(self, translated: np.ndarray) -> np.ndarray:
        """Confidence in each translation, shape (n, D) -> (n,), float32: 1 is certain, 0 is no better than chance."""
        from sklearn.neighbors import NearestNeighbors

        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.doubt))).fit(self.translated)
        rows = near.kneighbors(translated, return_distance=False)
        return np.clip(1 - 2 * self.doubt[rows].mean(axis=1), 0, 1).astype(np.float32)
