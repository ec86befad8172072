"""Tables of what the benchmark found, as Markdown: methods by number of anchors, with controls, costs and failures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from celltransfer.errors import InputError
from celltransfer.experiments.grid.methods import CONTROL_PREFIX, OURS, peer_names
from celltransfer.experiments.grid.rows import higher_is_better
from celltransfer.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

SCORES = ("foscttm", "knn_accuracy@50")
_CONTROL_ORDER = ("reference", "label_oracle", "labels_only", "condition_mean", "depth", "depth_reversed")


def report(rows: pd.DataFrame, scores: Sequence[str] = SCORES, targets: pd.DataFrame | None = None) -> str:
    """All tables of a results file as Markdown: per data set, regime and part, one table per score.

    Parameters
    ----------
    rows
        See `celltransfer.experiments.grid.load`.
    scores
        Names of scores; columns of the results.
    targets
        Columns ``dataset``, ``k``, ``target`` and, where not the first score is meant in the disjoint regime, ``score``
        and ``regime``: figures to hold the methods against.
    """
    unknown = [name for name in scores if name not in rows]
    if unknown:
        raise InputError(f"The results have no score {unknown[0]!r}; choose a column such as foscttm.")
    lines: list[str] = []
    for (dataset, regime, _), own in rows.groupby(["dataset", "regime", "part"], sort=False):
        own.attrs = rows.attrs
        lines += ["", f"### {title(own)}", ""]
        for score in scores:
            if own[score].notna().any():
                wanted = None if targets is None else _targets(targets, str(dataset), str(regime), score, scores[0])
                arrow = "higher" if higher_is_better(score) else "lower"
                lines += [f"`{score}`, {arrow} is better:", "", *markdown_table(table(own, score, wanted)), ""]
        lines += gaps(own)
    return "\n".join([*lines, "", about(rows)]).strip() + "\n"


def title(rows: pd.DataFrame) -> str:
    """Data, direction, regime, cells and seeds of rows of one problem."""
    first, n = rows.iloc[0], rows["n"].dropna()
    cells = f"{int(n.max())} cells" if len(n) else "no cell"
    scored = "" if first["part"] == "test" else f" of the {first['part']} part"
    what = f"{first['dataset']}, {first['source']} to {first['target']}, {first['regime']} regime"
    n_seeds = rows["seed"].nunique()
    return f"{what}: {cells}{scored} scored, {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}"


def table(rows: pd.DataFrame, score: str, targets: pd.Series | None = None) -> pd.DataFrame:
    """Mean and standard deviation of one score over seeds, by method and number of anchors; the best in bold.

    Rows must be those of one problem. A number of seeds in brackets says that not all ended well.
    """
    good = rows[(rows["status"] == "ok") & rows[score].notna()]
    ks = sorted(rows["k"].unique())
    n_seeds = rows.groupby("k")["seed"].nunique()
    cells = good.groupby(["method", "k"])[score].agg(["mean", "std", "count"])
    text = pd.DataFrame("", index=ordered(rows["method"]), columns=ks, dtype=object)
    for method, k, mean, sd, count in cells.reset_index().itertuples(index=False):
        spread = f" ± {sd:.3f}" if count > 1 else ""
        share = f" ({count:.0f} of {n_seeds[k]})" if count < n_seeds[k] else ""
        text.loc[method, k] = f"{mean:.3f}{spread}{share}"
    for key, status in _without_score(rows, cells.index).items():
        text.loc[key] = status
    methods = cells[~cells.index.get_level_values("method").str.startswith(CONTROL_PREFIX)]
    for k, means in methods["mean"].unstack("k").items():
        best = means.idxmax() if higher_is_better(score) else means.idxmin()
        text.at[best, k] = f"**{str(text.at[best, k])}**"
    if targets is not None:
        text.loc["target"] = [f"{targets[k]:g}" if k in targets else "" for k in ks]
    text.columns = [f"k = {k}" for k in ks]
    cost = (
        good[~good["method"].str.startswith(CONTROL_PREFIX)]
        .groupby("method")
        .agg({"seconds": "median", "peak_mb": "max"})
        .reindex(text.index)
    )
    text["seconds"] = [f"{value:.1f}" if value == value else "" for value in cost["seconds"]]
    text["MB"] = [f"{value:.0f}" if value == value else "" for value in cost["peak_mb"]]
    text.index = pd.Index([_marked(name) for name in text.index], name="method")
    return text


def ordered(methods: pd.Series) -> list[str]:
    """Names of methods: ours, others, peers, and controls from the ceiling down to chance."""
    peers = peer_names()

    def place(name: str) -> tuple[int, int]:
        if name.startswith(CONTROL_PREFIX):
            plain = name.removeprefix(CONTROL_PREFIX)
            known = plain in _CONTROL_ORDER
            return 3, _CONTROL_ORDER.index(plain) if known else 99 + (plain == "chance")
        if name in peers:
            return 2, peers.index(name)
        return (0, OURS.index(name)) if name in OURS else (1, 0)

    names = [name for name in dict.fromkeys(methods) if name != "controls"]
    return sorted(names, key=place)


def gaps(rows: pd.DataFrame) -> list[str]:
    """One line per method and reason for which jobs have no score."""
    bad = rows[rows["status"] != "ok"]
    lines = []
    for (method, status, reason), own in bad.groupby(["method", "status", "reason"], sort=False):
        ks = ", ".join(str(k) for k in sorted(own["k"].unique()))
        jobs = "job" if len(own) == 1 else "jobs"
        lines.append(f"- `{method}` {status} ({len(own)} {jobs}, k = {ks}): {reason}")
    return lines


def about(rows: pd.DataFrame) -> str:
    """Versions, machine, and CPU time by method."""
    found = {item.lower(): item for text in rows["versions"] for item in str(text).split(", ") if item}
    versions = [found[name] for name in sorted(found)]
    machines = sorted(set(rows["machine"]) - {""})
    hours = (rows.groupby(_grouped(rows["method"]))["cpu_seconds"].sum() / 3600).sort_values(ascending=False)
    spent = ", ".join(f"{name} {value:.2f}" for name, value in hours.items())
    lines = [f"Seconds: median of fit and translation; MB: peak memory. Ran with {', '.join(versions)}."]
    load = f", load average {rows['load'].median():.1f}" if rows["load"].notna().any() else ""
    lines += [f"Machine: {'; '.join(machines)}{load}. CPU hours: {hours.sum():.2f} ({spent})."]
    if any(_transductive(name) for name in rows["method"].unique()):
        lines += ["† sees the source side of the scored cells in its fit."]
    return " ".join(lines)


def read_targets(path: str | Path) -> pd.DataFrame:
    """A table of targets, see `report`."""
    targets = pd.read_csv(Path(path))
    missing = [name for name in ("dataset", "k", "target") if name not in targets]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; targets need dataset, k and target.")
    return targets


def _targets(targets: pd.DataFrame, dataset: str, regime: str, score: str, first: str) -> pd.Series | None:
    scores = targets["score"].fillna(first) if "score" in targets else first
    regimes = targets["regime"].fillna("disjoint") if "regime" in targets else "disjoint"
    found = targets[(targets["dataset"] == dataset) & (scores == score) & (regimes == regime)]
    return found.set_index("k")["target"] if len(found) else None


def _without_score(rows: pd.DataFrame, scored: pd.Index) -> dict[tuple[str, int], str]:
    """How jobs without any score ended, by method and number of anchors."""
    bad = rows[(rows["status"] != "ok") & (rows["method"] != "controls")].groupby(["method", "k"])["status"].first()
    return {key: status for key, status in bad.items() if key not in scored}  # type: ignore[misc]


def _grouped(methods: pd.Series) -> pd.Series:
    return methods.where(~methods.str.startswith(CONTROL_PREFIX), "controls")


def _marked(name: str) -> str:
    return f"{name} †" if _transductive(name) else name


def _transductive(name: str) -> bool:
    from celltransfer.experiments import peers

    return name in peers.names() and bool(peers.about(name)["transductive"])
