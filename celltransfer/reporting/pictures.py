"""The pictures of a report, each drawn from its tables, and what they say in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer import pl
from celltransfer.reporting import tables, words
from celltransfer.reporting.words import TRANSLATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from celltransfer.reporting.result import Report

# Groups in one picture, the largest of each grouping.
MAX_GROUPS = 20
MAX_DOTS = 3000
_BLUE, _ORANGE, _GREEN, _PINK = pl.COLORS[:4]
_GREY = "#7a7a7a"


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn when it is asked for, what is under it, and what it shows for those who do not see it."""

    figure: Callable[[], Figure]
    caption: str
    alt: str


def pictures(report: Report) -> dict[str, Picture]:
    """The pictures that this report has the figures for, by name."""
    if report.by_cell.empty:
        return {}
    makers = {
        "foscttm": _foscttm,
        "space": _space,
        "groups": _groups,
        "curve": _curve,
        "features": _features,
        "risk": _risk,
    }
    made = {name: maker(report) for name, maker in makers.items()}
    return {name: picture for name, picture in made.items() if picture is not None}


def _axes(width: float = 6.4, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = pl.blank(width, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bins(values: Any, low: float) -> list[float]:
    """Edges of bins up to 1, the fewer the fewer values there are."""
    return list(np.linspace(low, 1, 1 + int(np.clip(len(values) // 10, 20, 50))))


def _line(axes: Axes, at: Any, label: str, color: str, *, horizontal: bool = False) -> None:
    """A reference line, dashed."""
    draw = axes.axhline if horizontal else axes.axvline
    draw(at, color=color, lw=1.4, ls=(0, (4, 2)), label=label)


def _foscttm(report: Report) -> Picture:
    values = report.by_cell["foscttm"].to_numpy()
    row = report.overall.loc["foscttm"]

    def draw() -> Figure:
        figure, axes = _axes()
        axes.hist(values, bins=_bins(values, 0.0), color=_BLUE, alpha=0.85)
        _line(axes, 0.5, "chance: 0.500", _GREY)
        _line(axes, row["translation"], f"mean: {row['translation']:.3f}", _ORANGE)
        _line(axes, row["ceiling"], f"mean of the ceiling: {row['ceiling']:.3f}", _GREEN)
        axes.set(xlabel="FOSCTTM of the cell (0 is perfect)", ylabel="cells", xlim=(0, 1))
        axes.legend(frameon=False)
        return figure

    worse = float((values >= 0.5).mean())
    text = (
        f"FOSCTTM of each of the {len(values)} scored cells: half of them below {np.median(values):.3f}, {worse:.0%} "
        f"no better than chance; mean {row['translation']:.3f}, ceiling {row['ceiling']:.3f}."
    )
    return Picture(draw, text, f"Histogram. {text}")


def _space(report: Report) -> Picture | None:
    cells = report.by_cell
    columns = [f"{side}_{axis}" for side in ("measured", "translated") for axis in (1, 2)]
    if not set(columns) <= set(cells):
        return None
    if len(cells) > MAX_DOTS:
        cells = cells.sample(MAX_DOTS, random_state=0)
    layout = np.vstack([cells[columns[:2]].to_numpy(), cells[columns[2:]].to_numpy()])
    translated = np.repeat([False, True], len(cells))
    grouping = str(report.by_group.index[0][0]) if len(report.by_group) else None

    def draw() -> Figure:
        if grouping is None:
            figure = pl.blank(6.2, 4.4)
            pl.by_origin(figure.add_subplot(), layout, translated)
        else:
            figure = pl.blank(10.5, 4.2)
            values = pd.concat([cells[grouping]] * 2, ignore_index=True)
            pl.by_value(figure.subplots(1, 2), layout, translated, values, ("measured", "translated"))
        for axes in figure.axes:
            axes.set(xlabel="component 1", ylabel="component 2")
        return figure

    source, target = report.about["source"], report.about["target"]
    what = f", coloured by {grouping}" if grouping else ""
    text = (
        f"Measured {target} cells and their translations from {source} in the first two components of the scoring "
        f"space{what}. A good translation lies on the measured cells with the same colours in the same places. Here "
        f"the translated cells spread {_relative_spread(layout, translated):.2f} times as widely as the measured ones."
    )
    return Picture(draw, text, f"Scatter plot. {text}")


def _relative_spread(layout: np.ndarray, translated: np.ndarray) -> float:
    """Standard deviation of translated cells over that of measured ones."""
    mine, measured = (layout[side].var(axis=0).sum() for side in (translated, ~translated))
    return float(np.sqrt(mine / measured)) if measured > 0 else float("nan")


def _groups(report: Report) -> Picture | None:
    if report.by_group.empty:
        return None
    parts = [part.head(MAX_GROUPS) for _, part in tables.groupings(report.by_group)]
    rows = pd.concat(parts).reset_index()
    between = rows["grouping"].ne(rows["grouping"].shift()).cumsum() - 1

    def draw() -> Figure:
        places = np.arange(len(rows)) + between.to_numpy()
        figure, axes = _axes(7.4, 1.3 + 0.34 * (places[-1] + 1))
        for shift, name, color, label in (
            (-0.14, "foscttm", _BLUE, "among all cells"),
            (0.14, "foscttm_within", _ORANGE, "within the group"),
        ):
            if name in rows:
                _dots(axes, rows, places + shift, name, color, label)
        axes.scatter(rows["foscttm_ceiling"], places - 0.14, marker="|", s=90, color=_GREEN, label="ceiling", zorder=3)
        _line(axes, 0.5, "chance", _GREY)
        axes.set(xlabel="FOSCTTM with 95 % interval (0 is perfect)", xlim=(0, max(0.7, axes.get_xlim()[1])))
        axes.set_yticks(places, [f"{_clipped(g)} ({n:,})" for g, n in zip(rows["group"], rows["n"], strict=True)])
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure

    first = report.by_group.loc[report.by_group.index[0][0]]
    best, worst = first["foscttm"].idxmin(), first["foscttm"].idxmax()
    text = (
        f"FOSCTTM by group, among all cells and within the group. By {report.by_group.index[0][0]}: lowest for {best} "
        f"({first.loc[best, 'foscttm']:.3f}), highest for {worst} ({first.loc[worst, 'foscttm']:.3f})."
    )
    return Picture(draw, text, f"Dot plot. {text}")


def _dots(axes: Axes, rows: pd.DataFrame, places: np.ndarray, name: str, color: str, label: str) -> None:
    value = rows[name].to_numpy()
    low, high = (rows[f"{name}_{end}"].fillna(rows[name]).to_numpy() for end in ("low", "high"))
    arms = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
    axes.errorbar(value, places, xerr=arms, fmt="o", ms=4.5, lw=1.4, color=color, label=label)


def _clipped(name: str, width: int = 34) -> str:
    """A name that fits."""
    return pl.plain(name if len(name) <= width else f"{name[: width - 1]}\N{HORIZONTAL ELLIPSIS}")


def _curve(report: Report) -> Picture | None:
    if report.curve.empty:
        return None
    means = report.curve.groupby(["method", "n_anchors"])[["foscttm", "knn_accuracy@10"]].agg(["mean", "min", "max"])

    def draw() -> Figure:
        figure = pl.blank(10.5, 3.8)
        for axes, score in zip(figure.subplots(1, 2), ("foscttm", "knn_accuracy@10"), strict=True):
            for method, color in zip((TRANSLATION, words.CONTROLS["ridge"]), (_BLUE, _ORANGE), strict=True):
                if method in means.index:
                    found = means.loc[method][score]
                    axes.plot(found.index, found["mean"], "o-", color=color, ms=5, label=method, zorder=3)
                    axes.fill_between(found.index, found["min"], found["max"], color=color, alpha=0.18, lw=0)
            row = report.overall.loc[score]
            _line(axes, row["chance"], "chance", _GREY, horizontal=True)
            _line(axes, row["ceiling"], "ceiling: all pairs", _GREEN, horizontal=True)
            axes.set_xscale("symlog", linthresh=1)
            ks = sorted(report.curve["n_anchors"].unique())
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set(xlabel="anchors", ylim=(0, None), xlim=(min(ks) - 0.1 if min(ks) < 1 else 0.9 * min(ks), None))
            axes.set_ylabel("FOSCTTM (lower is better)" if score == "foscttm" else "true partner among the 10 nearest")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure

    mine = means.loc[TRANSLATION]["foscttm"]["mean"]
    figures = ", ".join(f"{value:.3f} with {k}" for k, value in mine.items())
    text = f"FOSCTTM and kNN accuracy over the number of anchors, mean and range over their draws. FOSCTTM: {figures}."
    return Picture(draw, text, f"Line plot. {text}")


def _features(report: Report) -> Picture | None:
    values = report.by_feature["pearson"].dropna() if len(report.by_feature) else pd.Series(dtype=float)
    if values.empty:
        return None

    def draw() -> Figure:
        figure, axes = _axes()
        low = min(-0.2, np.floor(10 * values.min()) / 10)
        axes.hist(values, bins=_bins(values, low), color=_BLUE, alpha=0.85)
        _line(axes, 0, "no correlation", _GREY)
        _line(axes, float(values.median()), f"median: {values.median():.3f}", _ORANGE)
        axes.set(xlabel="Pearson correlation over cells", ylabel="features", xlim=(low, 1))
        axes.legend(frameon=False)
        return figure

    text = (
        f"Correlation of translated and measured values of {len(values)} features: median {values.median():.3f}, "
        f"lowest {values.min():.3f}, highest {values.max():.3f}."
    )
    return Picture(draw, text, f"Histogram. {text}")


def _risk(report: Report) -> Picture | None:
    names = tables.confidences(report.by_cell)
    if report.risk.empty or not names:
        return None
    all_cells = float(report.risk[names[0]].iloc[0])

    def draw() -> Figure:
        figure, axes = _axes(7.4, 3.6)
        for name, color in zip(names, pl.COLORS, strict=False):
            axes.plot(
                report.risk.index, report.risk[name], lw=2, color=color, label=f"by {words.confidence_label(name)}"
            )
        axes.plot(report.risk.index, report.risk["best possible"], color=_GREY, lw=1.4, label="best possible")
        _line(axes, all_cells, "at random", _GREY, horizontal=True)
        axes.set(xlabel="share of cells kept", ylabel="FOSCTTM of the cells kept", xlim=(1, 0), ylim=(0, None))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure

    middle = report.risk.iloc[len(report.risk) // 2]
    half = ", ".join(f"{middle[name]:.3f} by {words.confidence_label(name)}" for name in names)
    text = (
        f"FOSCTTM of the cells kept as the least confident are rejected: {all_cells:.3f} for all cells; for the more "
        f"confident half {half}, at best {middle['best possible']:.3f}."
    )
    return Picture(draw, text, f"Line plot. {text}")
