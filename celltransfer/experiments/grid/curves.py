"""The picture of the benchmark: a score over the number of anchors, between ceiling and chance, peers as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from celltransfer.errors import InputError
from celltransfer.experiments.grid.methods import CONTROL_PREFIX, OURS, peer_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^Dv*P"
_TITLES = {"foscttm": "FOSCTTM", "knn_accuracy@10": "kNN accuracy @10", "knn_accuracy@50": "kNN accuracy @50"}


def curves(
    rows: pd.DataFrame, methods: Sequence[str] | None = None, score: str = "foscttm", regime: str | None = None
) -> Figure:
    """One panel per data set and regime.

    Parameters
    ----------
    rows
        See `celltransfer.experiments.grid.load`.
    methods
        Drawn as lines, mean and standard deviation over seeds; ``None``: ours that are there. Peers that are not named
        are the band: from the best mean to the worst.
    score
        A column of the results.
    regime
        Draw this regime only.
    """
    if score not in rows:
        raise InputError(f"The results have no score {score!r}; choose a column such as foscttm.")
    good = rows[(rows["status"] == "ok") & rows[score].notna()]
    good = good if regime is None else good[good["regime"] == regime]
    lines = list(methods or [name for name in OURS if name in set(good["method"])])
    panels = list(good.groupby(["dataset", "regime"], sort=False))
    if not panels:
        raise InputError("The results hold no score to draw.")
    n_columns = min(len(panels), 3)
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4.1 * n_columns + 0.6, 3.3 * n_rows + 0.7), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    several = good["regime"].nunique() > 1
    for ax, ((dataset, where), own) in zip(axes, panels, strict=False):
        _panel(ax, own, lines, score)
        ax.set_title(f"{dataset} ({where})" if several else dataset, fontsize=10)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(len(handles), 7), frameon=False
    )
    figure.supylabel(_TITLES.get(score, score))
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, methods: list[str], score: str) -> None:
    ticks = sorted(rows["k"].unique())
    for control, label, style in (("reference", "ceiling: all pairs", "-"), ("chance", "chance", ":")):
        values = rows.loc[rows["method"] == CONTROL_PREFIX + control].groupby("k")[score].mean()
        if len(values):
            ax.axhline(values.mean(), color="0.35", ls=style, lw=1, label=label)
    peers = rows[rows["method"].isin(set(peer_names()) - set(methods))].groupby(["method", "k"])[score].mean()
    if len(peers):
        table = peers.unstack("k").reindex(columns=ticks)
        low, high = table.min(), table.max()
        ax.fill_between(range(len(ticks)), low, high, color="0.85", lw=0, label="peers, best to worst")
        alone = high.notna() & high.shift(1).isna() & high.shift(-1).isna()
        at = np.flatnonzero(alone)  # fill_between draws nothing where a neighbour is missing
        ax.vlines(at, low[alone], high[alone], color="0.85", lw=5)
    for i, method in enumerate(methods):
        line = rows[rows["method"] == method].groupby("k")[score].agg(["mean", "std"])
        if len(line):
            shifted = [ticks.index(k) + 0.04 * (i - (len(methods) - 1) / 2) for k in line.index]
            how: Any = {"color": _COLORS[i % len(_COLORS)], "marker": _MARKS[i % len(_MARKS)]}
            ax.errorbar(shifted, line["mean"], line["std"].fillna(0), ms=4, lw=1.5, capsize=2, label=method, **how)
    ax.set_xticks(range(len(ticks)), [str(k) for k in ticks])
    ax.set_xlabel("anchors")
    ax.spines[["top", "right"]].set_visible(False)
