"""Whether to believe a fit, from the anchors and the two clouds of cells alone: no hidden pair is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student_t

from celltransfer.data.pair import ModalityPair, dense
from celltransfer.train.outcome import Status, Verdict

if TYPE_CHECKING:
    from celltransfer.translators.base import Translator

# A translation whose FOSCTTM is above this is wrong for most cells; chance is 0.5.
USABLE_FOSCTTM = 0.35
# Fewer left-out anchors than this cannot tell anything; up to about five, only near-perfect ranks can.
MIN_ANCHORS = 3
# Standard deviation per anchor that the interval assumes at least: that of ranks by chance.
MIN_SPREAD = 0.2
MAX_CELLS = 2000
# Target features that ranks are taken in: those with most variance, as many as the scoring space has dimensions.
N_LEADING = 20

Refit = Callable[[ModalityPair, int], "Translator"]


def judge(translator: Translator, pair: ModalityPair, refit: Refit, *, seed: int = 0, max_folds: int = 4) -> Verdict:
    """Judge a fitted `translator` by what it had no chance to memorise.

    Anchors are left out in `max_folds` groups and the translator is refitted without them. Each left-out anchor is
    ranked as in FOSCTTM: the share of target cells nearer to its translation than its true partner, and the share of
    translated source cells nearer to the partner than its own translation. The mean over anchors estimates the
    FOSCTTM of the whole translation. Its 95 % interval is Student's, with a spread of at least 0.2 per anchor (what
    ranks have by chance): a bootstrap of three values would never leave their range. Where conditions are known,
    anchors are ranked within their condition too, because a condition's mean passes for a translation otherwise.

    Parameters
    ----------
    translator
        The fitted translator.
    pair
        What it was fitted on.
    refit
        Fits the same method on a pair with fewer anchors, given the number of the fold.
    seed
        Seed of folds and subsamples.
    max_folds
        Number of refits at most.

    Returns
    -------
    Verdict
        ``"identified"`` if the interval lies below 0.35 (and, with conditions, that within them below 0.5),
        ``"failed"`` if it lies above or training diverged, ``"ambiguous"`` otherwise. Evidence:
        ``foscttm_estimate``, ``foscttm_low``, ``foscttm_high``, ``held_out_anchors``, the same with
        ``_within_condition``, and ``variance_ratio`` (spread of the translated cells over that of the target cells:
        near 0 where everything is translated to one place).
    """
    status = translator.result_.status
    if status is Status.DIVERGED:
        return Verdict("failed", [f"Training diverged. {status.advice}"])
    rng = np.random.default_rng([seed, 7])
    view = _subsample(pair, rng)
    translated = translator.translate(view.x, view.condition_x).astype(np.float64)
    if not np.isfinite(translated).all():
        return Verdict("failed", ["The translation holds NaN or infinite values."])
    evidence: dict[str, float] = {"held_out_anchors": 0.0}
    evidence["variance_ratio"] = float(translated.var(axis=0).sum() / max(dense(view.y).var(axis=0).sum(), 1e-300))
    if pair.n_anchors < MIN_ANCHORS:
        return Verdict("ambiguous", [_too_few(pair.n_anchors)], evidence)
    ranks = held_out_ranks(pair, refit, rng, max_folds)
    evidence["held_out_anchors"] = float(len(ranks))
    for suffix, column in (("", 0), ("_within_condition", 1)):
        if np.isfinite(ranks[:, column]).all():
            evidence |= {f"foscttm_{name}{suffix}": value for name, value in interval(ranks[:, column]).items()}
    return Verdict(*_conclude(evidence), evidence)


def interval(ranks: np.ndarray) -> dict[str, float]:
    """Mean of per-anchor ranks, shape (k,), and its 95 % interval by Student's t, clipped to [0, 1]."""
    k = len(ranks)
    half = float(student_t.ppf(0.975, k - 1)) * max(float(ranks.std(ddof=1)), MIN_SPREAD) / float(np.sqrt(k))
    mean = float(ranks.mean())
    return {"estimate": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 1.0)}


def held_out_ranks(pair: ModalityPair, refit: Refit, rng: np.random.Generator, max_folds: int = 4) -> np.ndarray:
    """FOSCTTM-like ranks of every anchor under a fit that did not see it: among all cells, and within its condition.

    Shape (k, 2); chance 0.5, best 0. The second column is NaN without conditions.
    """
    k = pair.n_anchors
    order = rng.permutation(k)
    ranks = np.empty((k, 2))
    for fold, held in enumerate(np.array_split(order, min(k, max_folds))):
        kept = np.setdiff1d(np.arange(k), held)
        fitted = refit(replace(pair, anchors=pair.anchors[kept]), fold)
        ranks[held] = _anchor_ranks(fitted, pair, held, rng)
    return ranks


def _anchor_ranks(fitted: Translator, pair: ModalityPair, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean of both directions' ranks of the held-out anchors, overall and within condition, shape (len(held), 2).

    Cosine on the leading target features, standardised; translations are centred by their own mean. That is how
    `celltransfer.report` scores, as far as it can be done in the features of the fit.
    """
    view = _subsample(pair, rng)
    ax, ay = pair.anchors[held, 0], pair.anchors[held, 1]
    codes = None if pair.condition_x is None else pair.condition_x[ax]
    cells = dense(view.y).astype(np.float64)
    translated = fitted.translate(view.x, view.condition_x).astype(np.float64)
    sd = cells.std(axis=0)
    leading = np.argsort(-sd, kind="stable")[:N_LEADING]
    scale = np.maximum(sd[leading], 1e-12)

    def place(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return _unit((points - centre.mean(axis=0))[:, leading] / scale)

    mine, partner = place(fitted.translate(pair.x[ax], codes), translated), place(dense(pair.y[ay]), cells)
    near = (mine * partner).sum(axis=1, keepdims=True)
    to_targets, to_translated = mine @ place(cells, cells).T, partner @ place(translated, translated).T
    overall = (_share_nearer(to_targets, near) + _share_nearer(to_translated, near)) / 2
    if codes is None:
        return np.column_stack([overall, np.full(len(held), np.nan)])
    within = [
        _share_nearer(similarity, near, among == codes[:, None])
        for similarity, among in ((to_targets, view.condition_y), (to_translated, view.condition_x))
    ]
    return np.column_stack([overall, (within[0] + within[1]) / 2])


def _share_nearer(similarity: np.ndarray, near: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Share of similarities above `near`, of those in `among`; ties count half, so a constant translation gets 0.5."""
    # Rounding decides nothing: differences below it are ties.
    gap = similarity - near
    closer = (gap > 1e-6) + 0.5 * (np.abs(gap) <= 1e-6)
    if among is None:
        return closer.mean(axis=1)
    return (closer * among).sum(axis=1) / np.maximum(among.sum(axis=1), 1)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows that are zero up to rounding stay zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-6, rows / np.maximum(norm, 1e-6), 0.0)


def _subsample(pair: ModalityPair, rng: np.random.Generator) -> ModalityPair:
    """At most `MAX_CELLS` cells a side, without the anchors."""
    rows, codes = [], []
    for side, (n, labels) in enumerate(((pair.n_source, pair.condition_x), (pair.n_target, pair.condition_y))):
        free = np.setdiff1d(np.arange(n), pair.anchors[:, side])
        free = free if len(free) else np.arange(n)
        chosen = rng.choice(free, size=min(len(free), MAX_CELLS), replace=False)
        rows.append(chosen)
        codes.append(None if labels is None else labels[chosen])
    return ModalityPair(pair.x[rows[0]], pair.y[rows[1]], condition_x=codes[0], condition_y=codes[1])


def _too_few(k: int) -> str:
    return (
        f"{k} anchor pair{'s' if k != 1 else ''} cannot be cross-validated (at least {MIN_ANCHORS} are needed): "
        "nothing in the data tells this map from a wrong one that matches the target cells as well."
    )


def _conclude(evidence: dict[str, float]) -> tuple[str, list[str]]:
    low, high, mean = (evidence[f"foscttm_{name}"] for name in ("low", "high", "estimate"))
    found = (
        f"Left-out anchors give an estimated FOSCTTM of {mean:.2f} (95 % interval {low:.2f} to {high:.2f}, "
        f"{evidence['held_out_anchors']:.0f} anchors; 0 is perfect, 0.5 is chance)."
    )
    if low > USABLE_FOSCTTM:
        chance = " It is no better than chance." if high >= 0.5 else ""
        return "failed", [f"{found}{chance} Do not use this translation; try another method or more anchors."]
    if high >= USABLE_FOSCTTM:
        return "ambiguous", [f"{found} That does not tell a usable translation from a wrong one; more anchors would."]
    inside = evidence.get("foscttm_high_within_condition")
    if inside is not None and inside >= 0.5:
        return "ambiguous", [
            f"{found} Within a condition the interval reaches {inside:.2f}: what is found may be the condition alone."
        ]
    return "identified", [found]
