"""The tables of a report, from the scores of single cells and single features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import binom

from celltransfer.metrics import scores
from celltransfer.metrics.bootstrap import intervals, resampled_means
from celltransfer.reporting.words import CEILING, TRANSLATION, USE_LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celltransfer.data.pair import Matrix
    from celltransfer.metrics.protocol import Scores, Task

# A ceiling this close to chance gives no scale to measure against.
NO_CEILING = 0.45
# FOSCTTM of a map that knows nothing, and cells of a group from which on an interval that reaches it says something.
CHANCE, MIN_GROUP = 0.5, 30
# The scores that say how well each direction works.
DIRECTED = [
    "foscttm",
    "foscttm_source_to_target",
    "foscttm_target_to_source",
    "knn_accuracy@10",
    "knn_accuracy_target_to_source@10",
    "knn_accuracy@50",
    "knn_accuracy_target_to_source@50",
]
# A confidence whose rank correlation with the error is below this is of no use for single cells.
MIN_CORRELATION = 0.1
COVERAGE = np.round(np.arange(1.0, 0.0, -0.05), 2)
_N_BOOT = 2000
# Keeps the order of equally confident cells unrelated to other draws of the same seed.
_TIES = 43


def overall(mine: Scores, ceiling: Scores, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Each direction's scores with interval, chance, ceiling and the share of the ceiling that is reached.

    One row per score. The interval of the share resamples the cells of translation and ceiling together. The share
    is NaN where the ceiling is no better than chance, by its interval, its FOSCTTM above 0.45, or a control of the
    `table` of all methods beats it.
    """
    n = len(mine.per_cell["foscttm"])
    per_cell = [side.per_cell[name][None] for side in (mine, ceiling) for name in DIRECTED]
    means = resampled_means(per_cell, _N_BOOT, seed).reshape(2, len(DIRECTED), -1)
    rows = {name: _row(name, mine[name], ceiling[name], means[0, i], means[1, i], n) for i, name in enumerate(DIRECTED)}
    found = pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")
    beaten = [not beat_ceiling(table, name).empty for name in found.index]
    found.loc[beaten, ["share", "share_low", "share_high"]] = np.nan
    return found


def beat_ceiling(table: pd.DataFrame, score: str) -> pd.Series:
    """The controls that saw neither hidden pairs nor labels and are better than the ceiling, best first."""
    if CEILING not in table.index or score not in table:
        return pd.Series(dtype=float)
    sign = 1 if score.startswith("foscttm") else -1
    controls = table[score].drop([TRANSLATION, *USE_LABELS], errors="ignore").astype(float)
    return controls[sign * controls < sign * controls[CEILING]].sort_values(ascending=sign > 0)


def _row(name: str, mine: float, best: float, means: np.ndarray, best_means: np.ndarray, n: int) -> dict[str, float]:
    is_rank = name.startswith("foscttm")
    chance = 0.5 if is_rank else min(int(name.partition("@")[2]) / n, 1.0)
    low, high = np.quantile(means, [0.025, 0.975])
    found = {"translation": mine, "low": float(low), "high": float(high), "chance": chance, "ceiling": best}
    better = (best_means - chance) * (-1 if is_rank else 1)
    if np.quantile(better, 0.025) <= 0 or (is_rank and best > NO_CEILING):
        return found | dict.fromkeys(["share", "share_low", "share_high"], float("nan"))
    gain = (means - chance) * (-1 if is_rank else 1)
    shares = np.quantile(gain[better > 0] / better[better > 0], [0.025, 0.975])
    share = scores.reference_share(mine, chance, best)
    return found | {"share": share, "share_low": float(shares[0]), "share_high": float(shares[1])}


def by_group(
    groups: Mapping[str, np.ndarray], mine: Scores, ceiling: Scores, points: np.ndarray, truth: np.ndarray, seed: int
) -> pd.DataFrame:
    """Scores by group: among all cells, and within the group, with the ceiling's beside them.

    Parameters
    ----------
    groups
        Values by the name of the grouping, shape (n,); cells without one are left out.
    mine, ceiling
        Scores of translation and ceiling.
    points, truth
        Translated and true cells in the scoring space, shape (n, d).

    Returns
    -------
    pandas.DataFrame
        Index (grouping, group), groups by size. ``foscttm`` ranks the group's cells among all cells, and
        ``foscttm_within`` among those of the group, where chance is 0.5 too.
    """
    rows = {}
    for grouping, values in groups.items():
        within = scores.foscttm_within_per_cell(points, truth, values)
        for group in pd.Series(values, dtype=object).value_counts().sort_index(key=_as_text, kind="stable").index:
            chosen = np.asarray(pd.Series(values, dtype=object) == group)
            rows[grouping, str(group)] = _group(chosen, mine, ceiling, within, seed)
    if not rows:
        return pd.DataFrame()
    index = pd.MultiIndex.from_tuples(rows, names=["grouping", "group"])
    table = pd.DataFrame(list(rows.values()), index=index)
    return table.sort_values("n", ascending=False, kind="stable").loc[list(groups)].dropna(axis=1, how="all")


def groupings(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The parts of `by_group`, each with its name."""
    return [] if table.empty else [(str(name), part) for name, part in table.groupby(level=0, sort=False)]


def lost_within(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """``foscttm_within`` of the groups where it is worse than chance by its interval, and of those no better than it.

    Of groups with fewer than 30 cells an interval that reaches chance says nothing, and they are left out.
    """
    if "foscttm_within" not in table:
        return pd.Series(dtype=float), pd.Series(dtype=float)
    found = table[table["n"] >= MIN_GROUP].droplevel(0)
    low, high = found["foscttm_within_low"], found["foscttm_within_high"]
    within = found["foscttm_within"]
    return within[low > CHANCE], within[(low <= CHANCE) & (high >= CHANCE)]


def _as_text(index: pd.Index) -> pd.Index:
    return index.astype(str)


def _group(chosen: np.ndarray, mine: Scores, ceiling: Scores, within: np.ndarray, seed: int) -> dict[str, float]:
    parts = {name: mine.per_cell[name][chosen] for name in DIRECTED}
    parts |= {"foscttm_within": within[chosen]}
    if "label_transfer_accuracy" in mine.per_cell:
        parts["label_transfer_accuracy"] = mine.per_cell["label_transfer_accuracy"][chosen]
    known = {name: values for name, values in parts.items() if np.isfinite(values).any()}
    found: dict[str, float] = {"n": int(chosen.sum())}
    for name, interval in intervals(known, seed=seed).items():
        bounds = (interval.low, interval.high) if interval.n_cells > 1 else (np.nan, np.nan)
        found |= {name: interval.mean, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    found["foscttm_ceiling"] = float(ceiling.per_cell["foscttm"][chosen].mean())
    return found


def by_feature(names: pd.Index, mine: Scores, predicted: np.ndarray, truth: Matrix) -> pd.DataFrame:
    """Correlation over cells, mean and spread of every predicted feature, best correlated first.

    Parameters
    ----------
    names
        The predicted features.
    predicted, truth
        Translated and true values on the normalised scale, shape (n, p); the truth dense or sparse.

    Returns
    -------
    pandas.DataFrame
        ``pearson`` and ``spearman`` are NaN where the measured feature does not vary over the scored cells, and 0
        where the translated one alone does not.
    """
    mean_true, sd_true = _moments(truth)
    mean, sd = _moments(predicted)
    table = pd.DataFrame(
        {name: mine.per_feature[f"{name}_per_feature"] for name in ("pearson", "spearman")}
        | {"mean_measured": mean_true, "mean_translated": mean, "sd_measured": sd_true, "sd_translated": sd}
        | {"detected": _share_nonzero(truth)},
        index=names.rename("feature"),
    )
    table.loc[sd_true == 0, ["pearson", "spearman"]] = np.nan
    return table.sort_values("pearson", ascending=False, kind="stable")


def _moments(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, shapes (p,); sparse stays sparse, and blocks are in double."""
    if sp.issparse(matrix):
        wide = matrix.astype(np.float64)
        mean = np.asarray(wide.mean(axis=0)).ravel()
        square = np.asarray(wide.multiply(wide).mean(axis=0)).ravel()
        return mean, np.sqrt(np.maximum(square - mean**2, 0))
    found = [
        (part.mean(axis=0), part.std(axis=0))
        for columns in scores.blocks(matrix.shape[1], 8 * matrix.shape[0])
        for part in [np.asarray(matrix[:, columns], dtype=np.float64)]
    ]
    mean, sd = (np.concatenate(part) for part in zip(*found, strict=True))
    return mean, np.where(sd > 1e-9 * np.abs(mean), sd, 0.0)


def _share_nonzero(matrix: Matrix) -> np.ndarray:
    found: Any = matrix != 0
    return np.asarray(found.sum(axis=0)).ravel() / matrix.shape[0]


def by_cell(
    task: Task, mine: Scores, points: np.ndarray, obs: pd.DataFrame, groups: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Every scored cell: partner, groups, error, what the translation says of itself, and the first two dimensions.

    `points` are translated cells in the scoring space, shape (n, d); of `obs`, the columns ``translation_...`` are
    kept. ``partner_rank`` is the place of the true partner among all scored target cells, from the nearest (1).
    """
    errors = {name: mine.per_cell[name] for name in DIRECTED[:3] + ["pearson_per_cell", "mse"] if name in mine.per_cell}
    stated = {name: obs[name].to_numpy() for name in obs if str(name).startswith("translation_")}
    places: dict[str, Any] = {}
    for name, side in (("measured", task.truth_points), ("translated", points)):
        places |= {f"{name}_{axis + 1}": side[:, axis] for axis in range(min(2, side.shape[1]))}
    rank = 1 + mine.per_cell["foscttm_source_to_target"] * (len(points) - 1)
    columns = {"target_id": task.truth.obs_names.to_numpy(), **groups, **errors, "partner_rank": rank}
    return pd.DataFrame(columns | stated | places, index=task.source_test.obs_names.rename("source_id"))


def confidences(cells: pd.DataFrame) -> list[str]:
    """The columns of `by_cell` that say how far to trust each cell, and differ between cells."""
    own = cells[[name for name in cells if str(name).startswith("translation_")]].select_dtypes("number")
    return [str(name) for name in own if own[name].nunique() > 1]


def risk(cells: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Risk-coverage curves: mean error of the cells that are left when the least confident are rejected.

    Returns
    -------
    pandas.DataFrame
        One row per share of cells kept (``coverage``), one column per confidence, and ``best possible``, which
        rejects by the error itself. The error is each cell's FOSCTTM among all scored cells, so that rejecting at
        random changes nothing.
    """
    shuffled = cells.sample(frac=1, random_state=seed + _TIES)
    curves = {name: _kept_error(shuffled, shuffled[name]) for name in confidences(cells)}
    if not curves:
        return pd.DataFrame()
    curves["best possible"] = _kept_error(shuffled, -shuffled["foscttm"])
    return pd.DataFrame(curves, index=pd.Index(COVERAGE, name="coverage"))


def _kept_error(cells: pd.DataFrame, confidence: pd.Series) -> np.ndarray:
    """Mean error of the most confident cells, for each share kept; cells without a confidence go first."""
    order = np.argsort(-confidence.fillna(-np.inf).to_numpy(dtype=float), kind="stable")
    total = np.cumsum(cells["foscttm"].to_numpy()[order])
    kept = np.maximum(1, np.round(COVERAGE * len(cells)).astype(int))
    return total[kept - 1] / kept


def rank_correlation(cells: pd.DataFrame, confidence: str) -> float:
    """Spearman's correlation of a confidence with minus the error: 1 ranks all cells right, 0 none."""
    return float(cells[confidence].corr(-cells["foscttm"], method="spearman"))


def ranks_errors(cells: pd.DataFrame, confidence: str) -> bool:
    """Whether a confidence ranks the cells by their error: with a correlation of 0.1, and beyond what chance gives."""
    return rank_correlation(cells, confidence) >= max(MIN_CORRELATION, 1.96 / np.sqrt(max(len(cells) - 1, 1)))


def evidence(found: Mapping[str, float], truth: Mapping[str, float]) -> pd.DataFrame:
    """The verdict's evidence, estimates first: their intervals and, where the `truth` is known, the measured score.

    Any ``x_estimate`` is taken for an estimate of the score ``x``, with the interval ``x_low`` to ``x_high``. ``held``
    says whether the interval holds what was measured, and ``in_level`` whether the level of the verdict rests on the
    figure.
    """
    bounds: dict[str, tuple[str, str] | None] = {}
    for key in found:  # an interval belongs to the first figure that it fits
        pair = _bounds(key, found)
        bounds[key] = None if pair in bounds.values() else pair
    limits = {limit for pair in bounds.values() for limit in pair or ()}
    rows: dict[str, dict[str, Any]] = {}
    for key in sorted(found.keys() - limits, key=lambda key: ("_estimate" not in key, list(found).index(key))):
        score = key.replace("_estimate", "")
        rows[score] = {"value": found[key], "in_level": _in_level(key, found)}
        if bounds[key]:
            rows[score] |= dict(zip(("low", "high"), (found[limit] for limit in bounds[key] or ()), strict=True))
        if "_estimate" in key:
            rows[score]["measured"] = true = truth.get(score, float("nan"))
            low, high = (rows[score].get(end, float("nan")) for end in ("low", "high"))
            rows[score]["held"] = None if np.isnan([true, low, high]).any() else bool(low <= true <= high)
    columns = ["value", "low", "high", "measured", "held", "in_level"]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis("evidence")


def _in_level(key: str, found: Mapping[str, float]) -> bool:
    """Whether the level rests on a figure; on the test of alignment where no anchor could be left out."""
    if key.startswith("alignment_"):
        return not found.get("held_out_anchors", 0)
    named = ("n_anchors", "self_rank", "twin_disagreement", "held_out_anchors")
    return key in named or key.startswith(("foscttm_", "held_out_rank", "held_out_sd"))


def _bounds(key: str, found: Mapping[str, float]) -> tuple[str, str] | None:
    """The keys of the interval around a figure: of x_estimate_y, x_low_y; of x_y, x_y_low or x_low."""
    stems = [key.replace("_estimate", "{}")] if "_estimate" in key else [f"{key}{{}}", f"{key.rpartition('_')[0]}{{}}"]
    pairs = [(stem.format("_low"), stem.format("_high")) for stem in stems]
    return next(((low, high) for low, high in pairs if low in found and high in found and key not in (low, high)), None)


def measured(
    table: pd.DataFrame, cells: pd.DataFrame, translation: str, n_candidates: float | None
) -> dict[str, float]:
    """The translation's scores, to hold estimates against.

    kNN accuracy falls as there are more cells to mistake for the partner. So ``knn_accuracy`` (of 10) and
    ``knn_accuracy@50`` are its expectation among `n_candidates` of the scored cells, the partner included, where that
    number is known.
    """
    if table.empty:
        return {}
    found = {str(name): float(table[name][translation]) for name in table}
    for key, k in (("knn_accuracy", 10), ("knn_accuracy@50", 50)):
        name = f"knn_accuracy@{k}"
        if n_candidates and "foscttm_source_to_target" in cells:
            nearer = cells["foscttm_source_to_target"].to_numpy()
            found[key] = float(np.mean(binom.cdf(k - 1, round(n_candidates) - 1, nearer)))
        elif name in found:
            found[key] = found[name]
    return found
