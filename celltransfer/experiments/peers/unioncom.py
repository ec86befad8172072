"""UnionCom: matching of geodesic distances, then a joint embedding."""

from __future__ import annotations

import math
import sys
import time
from contextlib import contextmanager
from importlib import util
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.experiments.peers.base import Matching, Peer, Translated, lent_to_numpy, nearest_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

MAX_CELLS = 1000
# Of the package: iterations of the matching, epochs of the embedding.
MATCHING, EMBEDDING = 2000, 100
TRIAL = 5


class UnionCom(Peer):
    """Embed both modalities, and look up the nearest target cells."""

    title = "UnionCom"
    reference = "Cao et al. 2020"
    package = "unioncom"
    licence = "MIT"
    modules = ("unioncom", "umap")
    transductive = True
    uses_anchors = False
    needs = "any two modalities"
    given = (
        f"at most {MAX_CELLS:,} cells a side, fewer where time is short; 50 components; {MATCHING:,} iterations of "
        f"matching and {EMBEDDING} epochs of embedding, or as many as there is time for; mean of the 10 nearest target "
        "cells in the joint embedding. Two things that the package asks for, np.int (gone from numpy) and torchvision "
        "(never used), are lent to it while it runs"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Embed, look up."""
        size = 100 * round(2 * math.ceil(clock.left()) ** (1 / 3))
        match = Matching.of(task, min(MAX_CELLS, size), seed)
        with lent_to_numpy(int=int):
            start = time.perf_counter()
            _embed(match, seed, TRIAL, 1)
            # The trial also pays, once, for the geodesics: a pessimistic guess of the rate.
            rate = (time.perf_counter() - start) / (TRIAL + 1)
            share = min(1.0, 0.8 * clock.left() / (rate * (MATCHING + EMBEDDING)))
            x, y = _embed(match, seed, max(TRIAL, int(share * MATCHING)), max(1, int(share * EMBEDDING)))
        return match.extend(nearest_mean(x, y, match.values))


@contextmanager
def _spared(module: str, name: str) -> Iterator[None]:
    """An empty stand-in for a module that is imported and never used, where it is not installed."""
    absent = module not in sys.modules and util.find_spec(module) is None
    if absent:
        stand_in: Any = ModuleType(module)
        setattr(stand_in, name, None)
        sys.modules[module] = stand_in
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


def _embed(match: Matching, seed: int, matching: int, embedding: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of both sides in one space, (n, 32) and (m, 32)."""
    with _spared("torchvision", "models"):
        from unioncom.UnionCom import UnionCom as Model

    batch = min(100, len(match.x), len(match.y))
    model = Model(epoch_pd=matching, epoch_DNN=embedding, manual_seed=seed, batch_size=batch)
    x, y = model.fit_transform(dataset=[match.x.copy(), match.y.copy()])
    return np.nan_to_num(x), np.nan_to_num(y)
