"""The judge of the verdict: what the evidence said, without any hidden pair, against what the hidden pairs say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from celltransfer.errors import InputError
from celltransfer.markdown import markdown_table
from celltransfer.verdict.estimate import USABLE_FOSCTTM

if TYPE_CHECKING:
    from collections.abc import Iterable

LEVELS = ("identified", "ambiguous", "failed")
ESTIMATE = "evidence_foscttm_estimate"
# Score, its estimate's name before and after the side of the interval, and its number of neighbours.
_INTERVALS = (
    ("foscttm", "foscttm", "", 0),
    ("knn_accuracy@10", "knn_accuracy", "", 10),
    ("knn_accuracy@50", "knn_accuracy", "@50", 50),
)
_COLUMNS = ["runs", "pooled", "trivial", "within data set", "within data set and k", "worst without one", "AUROC"]
_COLUMNS += ["AUROC, trivial", "worst AUROC without one"]


def report(rows: pd.DataFrame, by: str = "method") -> str:
    """All of it as Markdown; `by` is a column to split by."""
    own = judged(rows)
    if by not in own:
        raise InputError(f"The results have no column {by!r}; split by method, dataset or k.")
    if own.empty:
        raise InputError("The results hold no verdict.")
    parts = [
        f"{len(own)} runs with a verdict, {own['dataset'].nunique()} data sets. Usable: FOSCTTM at most .35.",
        *_block("Verdict against truth:", confusion(rows)),
        *_block(f"The same by {by}:", confusion(rows, by)),
        *_block(
            "Evidence and true FOSCTTM, Spearman's correlations, and AUROC for FOSCTTM above .35:", predictors(rows)
        ),
        *_block("The estimate of FOSCTTM, by " + by + ":", estimates(rows, by)),
        *_block("Share of runs whose truth lies in the 95 % interval:", coverage(rows, by)),
    ]
    return "\n".join(parts) + "\n"


def judge_again(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the estimates and levels that the installed version concludes from their evidence.

    Rows without evidence of what the fit expects of itself, and those of methods whose level rests on a test of
    alignment, stay as they are.
    """
    from celltransfer.verdict.estimate import conclude, estimate

    again = rows.copy()
    if "evidence_self_rank" not in rows:
        return again
    concluded = rows["evidence_self_rank"].notna() & (rows["status"] == "ok")
    if "alignment" in rows:
        concluded &= rows["alignment"].isna()
    for index, row in rows[concluded].iterrows():
        known = row.filter(like="evidence_").dropna()
        evidence = {str(name).removeprefix("evidence_"): float(value) for name, value in known.items()}
        evidence |= estimate(evidence)
        for name, value in evidence.items():
            again.loc[index, f"evidence_{name}"] = value
        again.loc[index, "verdict"] = conclude(evidence)[0]
    return again


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a verdict and a true score."""
    if "verdict" not in rows:
        raise InputError("The results hold no verdict.")
    return rows[(rows["status"] == "ok") & rows["verdict"].isin(LEVELS) & rows["foscttm"].notna()]


def confusion(rows: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Number of runs by level of the verdict and truth: usable where FOSCTTM is at most .35.

    `by` is a column (``"method"``, ``"dataset"``, ``"k"``) to split by.
    """
    own = judged(rows)
    truth = np.where(own["foscttm"] <= USABLE_FOSCTTM, "usable", "not usable")
    groups = [own[by], own["verdict"]] if by else [own["verdict"]]
    table = pd.crosstab(groups, truth).reindex(columns=["usable", "not usable"], fill_value=0)
    if by is None:
        return table.reindex([level for level in LEVELS if level in table.index]).rename_axis("verdict")
    table.index = pd.Index([f"{name}: {level}" for name, level in table.index], name=f"{by}: verdict")
    return table


def predictors(rows: pd.DataFrame, columns: list[str] | None = None) -> pd.DataFrame:
    """How well each piece of evidence orders runs by their true FOSCTTM, and tells those above .35.

    Columns: Spearman's correlation over all runs; that of the **trivial** predictor, the data set's own median, on the
    same runs; the mean correlation within data sets, and within data sets and numbers of anchors, weighted by runs;
    the lowest correlation when one data set is left out; and the area under the ROC curve for FOSCTTM above .35, the
    trivial predictor's, and the lowest when one data set is left out. The sign of evidence is the one that fits all
    runs, so correlations are those of an oracle of one bit, except for the estimates of FOSCTTM.
    """
    own = judged(rows)
    names = columns or [str(name) for name in own if str(name).startswith("evidence_") and own[name].notna().sum() > 3]
    lines = {name: _ordering(own, name) for name in names}
    table = pd.DataFrame.from_dict(lines, orient="index", columns=_COLUMNS).sort_values("AUROC", ascending=False)
    table = table.loc[sorted(table.index, key=lambda name: name != ESTIMATE)]
    table.index = pd.Index([name.removeprefix("evidence_") for name in table.index])
    return table.astype({"runs": int}).rename_axis("evidence")


def estimates(rows: pd.DataFrame, by: str = "method") -> pd.DataFrame:
    """`predictors` of the estimate of FOSCTTM alone, for each value of a column."""
    own = judged(rows)
    if ESTIMATE not in own:
        return pd.DataFrame()
    lines = {name: _ordering(part, ESTIMATE) for name, part in own.groupby(by, sort=False)}
    table = pd.DataFrame.from_dict(lines, orient="index", columns=_COLUMNS)
    return table[table["runs"] > 0].astype({"runs": int}).rename_axis(by)


def coverage(rows: pd.DataFrame, by: str = "method") -> pd.DataFrame:
    """Share of runs whose true score lies in the 95 % interval that the evidence gave, and the interval's mean width.

    For FOSCTTM and kNN accuracy; `by` is a column to split by. Intervals of kNN accuracy are stated for the nearest
    among ``reference_cells``; they are brought to the number of cells scored by the power law that goes with it.
    """
    own, found = judged(rows), {}
    for truth, start, end, count in _INTERVALS:
        names = [f"evidence_{start}_{side}{end}" for side in ("low", "high")]
        if not {*names, truth} <= set(own):
            continue
        power = 1.0
        if count:
            power = np.log(count / own["n"]) / np.log(count / own["evidence_reference_cells"])
        low, high = (own[name] ** power for name in names)
        both = own.assign(inside=(low <= own[truth]) & (own[truth] <= high), width=high - low)[low.notna()]
        groups = both.groupby(by, sort=False)
        found[truth] = groups.agg(runs=("inside", "size"), inside=("inside", "mean"), width=("width", "mean"))
    if not found:
        return pd.DataFrame()
    return pd.concat({f"{n} {c}": t[c] for n, t in found.items() for c in t}, axis=1).rename_axis(by)


def _ordering(rows: pd.DataFrame, name: str) -> list[float]:
    own = rows[rows[name].notna()]
    own = own.assign(guess=own[name], trivial=own.groupby("dataset")["foscttm"].transform("median"))
    if name != ESTIMATE and spearman(own) < 0:
        own["guess"] *= -1
    without = [own[own["dataset"] != dataset] for dataset in own["dataset"].unique()]
    areas = auroc(own, "guess"), auroc(own, "trivial"), _least(auroc(part, "guess") for part in without)
    return [
        len(own),
        spearman(own),
        spearman(own, "trivial"),
        _within(own, ["dataset"]),
        _within(own, ["dataset", "k"]),
        _least(spearman(part) for part in without),
        *areas,
    ]


def spearman(rows: pd.DataFrame, column: str = "guess") -> float:
    """Rank correlation of a column with the true FOSCTTM; NaN where few or equal values do not tell."""
    if len(rows) < 4 or rows[column].nunique() < 2 or rows["foscttm"].nunique() < 2:
        return float("nan")
    return float(spearmanr(rows[column], rows["foscttm"]).statistic)


def _within(rows: pd.DataFrame, by: list[str]) -> float:
    """Mean of the groups' correlations, weighted by their runs; groups that cannot tell are left out."""
    found = [(spearman(part), len(part)) for _, part in rows.groupby(by)]
    found = [(value, n) for value, n in found if np.isfinite(value)]
    if not found:
        return float("nan")
    values, runs = zip(*found, strict=True)
    return float(np.average(values, weights=runs))


def auroc(rows: pd.DataFrame, column: str) -> float:
    """Chance that a run above .35 has the higher value than one below; ties count half."""
    bad = rows["foscttm"] > USABLE_FOSCTTM
    if bad.all() or not bad.any():
        return float("nan")
    ranks = rows[column].rank()
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    return float((ranks[bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def _least(values: Iterable[float]) -> float:
    found = [value for value in values if np.isfinite(value)]
    return min(found) if found else float("nan")


def _block(text: str, table: pd.DataFrame) -> list[str]:
    return ["", text, "", *markdown_table(table)] if len(table) else []
