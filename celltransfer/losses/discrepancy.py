"""Distances between two samples, without training anything."""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance 2 E||a - b|| - E||a - a'|| - E||b - b'|| (Szekely & Rizzo 2013), unbiased; 0 for equal laws.

    Parameters
    ----------
    a, b
        Samples, shapes (n, D) and (m, D), n and m at least 2.
    """
    between = torch.cdist(a, b).mean()
    return 2 * between - _mean_distance(a) - _mean_distance(b)


def _mean_distance(a: Tensor) -> Tensor:
    n = len(a)
    return torch.pdist(a).mean() if n > 1 else a.new_zeros(())
