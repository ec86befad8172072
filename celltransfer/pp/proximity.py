"""Feature links from positions on the genome."""

from __future__ import annotations

import numpy as np
import pandas as pd

from celltransfer.errors import ConfigError, FeatureError

_COLUMNS = ("chrom", "start", "end")


def links_by_distance(source: pd.DataFrame, target: pd.DataFrame, *, max_distance: int = 2000) -> pd.DataFrame:
    """Link features that lie near each other on the genome, such as genes and peaks; for ``celltransfer.fit(links=)``.

    Parameters
    ----------
    source, target
        `var` of both modalities, or any table with feature names as index and columns ``chrom``, ``start`` and ``end``
        (end not included). Features without a position are left out.
    max_distance
        Bases between the nearest ends of two linked features, at most; 0 for those that overlap or touch.

    Returns
    -------
    pandas.DataFrame
        Columns ``source`` and ``target`` (names) and ``distance`` (bases, 0 where they overlap), one row per link.

    Raises
    ------
    FeatureError
        A table lacks a column.

    Examples
    --------
    >>> import pandas as pd
    >>> genes = pd.DataFrame({"chrom": ["chr1"], "start": [10_000], "end": [15_000]}, index=["Xkr4"])
    >>> peaks = pd.DataFrame({"chrom": "chr1", "start": [8_600, 90_000], "end": [9_100, 90_500]}, index=["a", "b"])
    >>> links_by_distance(genes, peaks)
      source target  distance
    0   Xkr4      a       900
    """
    if max_distance < 0:
        raise ConfigError(f"max_distance={max_distance}; expected 0 or more bases.")
    sides = [_positions(table, side) for table, side in ((source, "source"), (target, "target"))]
    shared = sides[0]["chrom"][sides[0]["chrom"].isin(sides[1]["chrom"])].unique()
    found = ([side[side["chrom"] == chrom] for side in sides] for chrom in shared)
    parts = [_near(one, other, max_distance) for one, other in found]
    empty = pd.DataFrame({"source": [], "target": [], "distance": []})
    return pd.concat(parts, ignore_index=True) if parts else empty


def _positions(table: pd.DataFrame, side: str) -> pd.DataFrame:
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise FeatureError(f"The {side} table lacks the column {missing[0]!r}; positions are {', '.join(_COLUMNS)}.")
    known = table[list(_COLUMNS)].dropna()
    return known.astype({"chrom": str, "start": np.int64, "end": np.int64}).sort_values("start")


def _near(source: pd.DataFrame, target: pd.DataFrame, reach: int) -> pd.DataFrame:
    """Links within one chromosome; both tables sorted by start."""
    starts, ends = source["start"].to_numpy(), source["end"].to_numpy()
    first = np.searchsorted(target["start"], starts - reach - (target["end"] - target["start"]).max(), side="left")
    last = np.searchsorted(target["start"], ends + reach, side="right")
    rows = np.repeat(np.arange(len(source)), last - first)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(last - first) - last, last - first)
    gap = np.maximum(target["start"].to_numpy()[columns] - ends[rows], starts[rows] - target["end"].to_numpy()[columns])
    near = gap <= reach
    rows, columns, gap = rows[near], columns[near], np.maximum(gap[near], 0)
    return pd.DataFrame({"source": source.index[rows], "target": target.index[columns], "distance": gap})
