"""Two methods on the same cells and seeds: paired differences with a bootstrap over both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.experiments.claims import read
from celltransfer.experiments.grid.methods import CONTROL_PREFIX
from celltransfer.experiments.grid.rows import higher_is_better, per_cell, scored
from celltransfer.metrics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

# Stands for the method with the best mean of all others, problem by problem.
BEST = "best"
OTHERS = (BEST, "ridge", "pls", "fgw")
TOLERANCE = 0.01
_BEST = " (best other)"
_WORDS = {
    "better": "better than",
    "worse": "worse than",
    "not below": "not below",
    "cannot be told": "not to be told from",
}


def compare(rows: pd.DataFrame, first: str, others: Sequence[str] = OTHERS, score: str = "foscttm") -> pd.DataFrame:
    """Hold one method against others, per data set, regime and number of anchors.

    Parameters
    ----------
    rows
        Results with scores per cell beside them, see `celltransfer.experiments.grid.load`.
    first, others
        Names of methods. ``"best"`` is the other method with the best mean over seeds, a choice that favours it;
        ridge and PLS are the controls of that name where they were not run as methods.
    score
        ``"foscttm"``, ``"knn_accuracy@10"`` or ``"knn_accuracy@50"``.

    Returns
    -------
    pandas.DataFrame
        Means, the paired difference (first - other) with its 95 % interval over cells and seeds, and what it says:
        ``"better"`` or ``"worse"`` where the interval excludes 0, ``"not below"`` where it excludes that the first is
        worse by more than .01, ``"cannot be told"`` otherwise.
    """
    lines = []
    for (dataset, regime, k), own in rows.groupby(["dataset", "regime", "k"], sort=False):
        own.attrs = rows.attrs
        for other in (name for name in others if name != first):
            name = _named(own, first, other, score)
            line = None if name is None else _difference(own, first, name, score)
            if line is not None:
                label = f"{name}{_BEST}" if other == BEST else name
                lines.append({"dataset": dataset, "regime": regime, "k": k, "against": label} | line)
    columns = ["dataset", "regime", "k", "against", "first", "other", "difference", "low", "high", "seeds", "says"]
    return pd.DataFrame(lines, columns=columns).rename(columns={"first": first})


def sentences(table: pd.DataFrame, first: str) -> list[str]:
    """The same in words, one line per data set, regime and number of anchors."""
    lines = []
    for (dataset, regime, k), own in table.groupby(["dataset", "regime", "k"], sort=False):
        named = own["against"].str.removesuffix(_BEST)
        said = [
            f"{_WORDS[row['says']]} {row['against']} "
            f"({row[first]:.3f} to {row['other']:.3f}; {row['low']:+.3f} to {row['high']:+.3f})"
            for _, row in own[~named.duplicated()].iterrows()
        ]
        lines.append(f"- {dataset}, {regime}, k = {k}: {first} is {'; '.join(said)}.")
    return lines


def _named(rows: pd.DataFrame, first: str, other: str, score: str) -> str | None:
    """The method that is meant, ``None`` where it has no scores."""
    methods = set(rows.loc[(rows["status"] == "ok") & rows[score].notna(), "method"])
    if other != BEST:
        return next((name for name in (other, CONTROL_PREFIX + other) if name in methods and name != first), None)
    seeds = set(scored(rows, first)["seed"])
    means = {
        name: own[score].mean()
        for name, own in rows[rows["status"] == "ok"].groupby("method")
        if name != first and not str(name).startswith(CONTROL_PREFIX) and seeds <= set(own["seed"])
    }
    means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if not means:
        return None
    return str(max(means, key=means.__getitem__) if higher_is_better(score) else min(means, key=means.__getitem__))


def _difference(rows: pd.DataFrame, first: str, other: str, score: str) -> dict[str, Any] | None:
    seeds = sorted(set(scored(rows, first)["seed"]) & set(scored(rows, other)["seed"]))
    one, two = (per_cell(rows, name, score, seeds) for name in (first, other))
    if not seeds or one is None or two is None or one.shape != two.shape:
        return None
    gap = bootstrap.difference(one, two)
    sign = -1 if higher_is_better(score) else 1
    low, high = sorted((sign * gap.low, sign * gap.high))  # of how much worse the first is
    told, within = read(low, high, sign=-1), read(low, high, TOLERANCE, sign=-1)
    says = "better" if told else "not below" if within else "worse" if told is False else "cannot be told"
    means = {"first": float(np.nanmean(one)), "other": float(np.nanmean(two))}
    return means | {"difference": gap.mean, "low": gap.low, "high": gap.high, "seeds": len(seeds), "says": says}
