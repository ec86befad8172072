"""Intervals by a paired bootstrap over cells and seeds together, and what "better" and "not below" mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from celltransfer.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHUNK = 250
# Keeps the resamples unrelated to other draws of the same seed.
_RESAMPLE = 21


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile interval.

    Attributes
    ----------
    mean, low, high
        Mean over cells and seeds, and the bounds around it.
    level
        Nominal coverage.
    n_seeds, n_cells
        What was resampled.
    """

    mean: float
    low: float
    high: float
    level: float
    n_seeds: int
    n_cells: int


def interval(values: np.ndarray, *, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval of the mean of per-cell scores.

    Seeds (rows) and cells (columns) are resampled independently of each other, the pigeonhole bootstrap of Owen
    2007 (Ann Appl Stat), so that a cell that is hard under every seed counts as one cell. With one seed the interval
    speaks for that seed only.

    Parameters
    ----------
    values
        Scores, shape (n_seeds, n_cells) or (n_cells,); column j is the same cell under every seed. NaN where a cell
        is not scored.
    level
        Nominal coverage, in (0, 1).
    n_boot
        Number of resamples.
    """
    return intervals({"": values}, level=level, n_boot=n_boot, seed=seed)[""]


def intervals(
    values: Mapping[str, np.ndarray], *, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """`interval` of several scores of the same cells and seeds, from the same resamples, which cost most of the time.

    Parameters as there; all scores must have one shape.
    """
    tables = {name: _table(scores) for name, scores in values.items()}
    if not 0 < level < 1:
        raise ConfigError(f"level={level}; expected a share between 0 and 1, such as 0.95.")
    if len({table.shape for table in tables.values()}) > 1:
        raise InputError("Scores have different shapes; one set of resamples needs the same cells and seeds in all.")
    found = {}
    means = resampled_means(list(tables.values()), n_boot, seed)
    for (name, table), mean in zip(tables.items(), means, strict=True):
        low, high = np.nanquantile(mean, [(1 - level) / 2, (1 + level) / 2])
        found[name] = Interval(float(np.nanmean(table)), float(low), float(high), level, *table.shape)
    return found


def difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> Interval:
    """`interval` of the paired difference a - b: same cells and same seeds on both sides."""
    if np.shape(a) != np.shape(b):
        raise InputError(f"A paired difference got shapes {np.shape(a)} and {np.shape(b)}; expected the same twice.")
    return interval(np.asarray(a, dtype=np.float64) - np.asarray(b), level=level, n_boot=n_boot, seed=seed)


def better(a: np.ndarray, b: np.ndarray, *, lower_is_better: bool = True, seed: int = 0) -> bool:
    """Whether the 95 % interval of the paired difference says that `a` beats `b`."""
    return _loss(a, b, lower_is_better, seed).high < 0


def not_below(
    a: np.ndarray, b: np.ndarray, *, tolerance: float = 0.01, lower_is_better: bool = True, seed: int = 0
) -> bool:
    """Whether the 95 % interval of the paired difference excludes that `a` is worse than `b` by over `tolerance`."""
    return _loss(a, b, lower_is_better, seed).high <= tolerance


def _loss(a: np.ndarray, b: np.ndarray, lower_is_better: bool, seed: int) -> Interval:
    """Interval of how much worse `a` is than `b`."""
    return difference(a, b, seed=seed) if lower_is_better else difference(b, a, seed=seed)


def resampled_means(tables: list[np.ndarray], n_boot: int, seed: int) -> np.ndarray:
    """Means under multinomial weights on rows and columns, shape (number of tables, n_boot), in chunks of resamples."""
    if not tables:
        return np.empty((0, n_boot))
    rng = np.random.default_rng([seed, _RESAMPLE])
    n_seeds, n_cells = tables[0].shape
    filled = [(np.nan_to_num(table), np.isfinite(table).astype(np.float64)) for table in tables]
    means = np.full((len(tables), n_boot), np.nan)
    for start in range(0, n_boot, _CHUNK):
        size = min(_CHUNK, n_boot - start)
        seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size).astype(np.float64)
        cells = rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=size).astype(np.float64)
        for out, (table, known) in zip(means[:, start : start + size], filled, strict=True):
            total, count = (np.einsum("bs,bs->b", seeds, cells @ part.T) for part in (table, known))
            np.divide(total, count, out=out, where=count > 0)
    return means


def _table(values: np.ndarray) -> np.ndarray:
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise InputError(f"Scores have shape {np.shape(values)}; expected (seeds, cells) or (cells,), not empty.")
    if np.isinf(table).any() or np.isnan(table).all():
        raise InputError("Scores are infinite, or NaN for every cell; there is nothing to average.")
    return table
