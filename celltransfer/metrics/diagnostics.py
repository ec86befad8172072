"""Whether to believe a fit, from the anchors and the two clouds of cells alone: no hidden pair is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.pair import ModalityPair, dense
from celltransfer.metrics.scores import classifier_auc
from celltransfer.train.outcome import Status, Verdict

if TYPE_CHECKING:
    from celltransfer.translators.base import Translator

# A translation whose FOSCTTM is above this is wrong for most cells; chance is 0.5.
USABLE_FOSCTTM = 0.35
# Fewer held-out anchors than this give an interval as wide as the scale.
MIN_ANCHORS = 3
MAX_CELLS = 2000
# Target features that ranks are taken in: those with most variance, as many as the scoring space has dimensions.
N_LEADING = 20

Refit = Callable[[ModalityPair, int], "Translator"]


def judge(translator: Translator, pair: ModalityPair, refit: Refit, *, seed: int = 0, max_folds: int = 4) -> Verdict:
    """Judge a fitted `translator` by what it had no chance to memorise.

    Anchors are left out in `max_folds` groups and the translator is refitted without them. Each left-out anchor is
    ranked as in FOSCTTM: the share of target cells nearer to its translation than its true partner, and the share of
    translated source cells nearer to the partner than its own translation. The mean over anchors estimates the
    FOSCTTM of the whole translation; its 95 % interval comes from a bootstrap over anchors.

    Parameters
    ----------
    translator
        The fitted translator.
    pair
        What it was fitted on.
    refit
        Fits the same method on a pair with fewer anchors, given the number of the fold.
    seed
        Seed of folds, subsamples and bootstrap.
    max_folds
        Number of refits at most.

    Returns
    -------
    Verdict
        ``"identified"`` if the interval lies below 0.35, ``"failed"`` if it lies above or training diverged,
        ``"ambiguous"`` otherwise. Evidence: ``foscttm_estimate``, ``foscttm_low``, ``foscttm_high``,
        ``held_out_anchors``, ``two_sample_auc`` (0.5: the translated cells are indistinguishable from target cells).
    """
    status = translator.result_.status
    if status is Status.DIVERGED:
        return Verdict("failed", [f"Training diverged. {status.advice}"])
    rng = np.random.default_rng(seed)
    view = _subsample(pair, rng)
    translated = translator.translate(view.x, view.condition_x)
    if not np.isfinite(translated).all():
        return Verdict("failed", ["The translation holds NaN or infinite values."])
    evidence: dict[str, float] = {"held_out_anchors": 0.0}
    n = min(len(translated), view.n_target)
    evidence["two_sample_auc"] = classifier_auc(translated[:n], dense(view.y[:n]), seed=seed)
    if pair.n_anchors < MIN_ANCHORS:
        return Verdict("ambiguous", [_too_few(pair.n_anchors)], evidence)
    ranks = held_out_ranks(pair, refit, rng, max_folds)
    means = rng.choice(ranks, size=(2000, len(ranks))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    evidence |= {
        "foscttm_estimate": float(ranks.mean()),
        "foscttm_low": float(low),
        "foscttm_high": float(high),
        "held_out_anchors": float(len(ranks)),
    }
    return Verdict(*_conclude(evidence), evidence)


def held_out_ranks(pair: ModalityPair, refit: Refit, rng: np.random.Generator, max_folds: int = 4) -> np.ndarray:
    """FOSCTTM-like rank of every anchor under a fit that did not see it, shape (k,); chance 0.5, best 0."""
    k = pair.n_anchors
    order = rng.permutation(k)
    ranks = np.empty(k)
    for fold, held in enumerate(np.array_split(order, min(k, max_folds))):
        kept = np.setdiff1d(np.arange(k), held)
        fitted = refit(replace(pair, anchors=pair.anchors[kept]), fold)
        ranks[held] = _anchor_ranks(fitted, pair, held, rng)
    return ranks


def _anchor_ranks(fitted: Translator, pair: ModalityPair, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean of both directions' ranks of the held-out anchors among all other cells, shape (len(held),).

    Cosine on the leading target features, standardised; translations are centred by their own mean. That is how
    `celltransfer.report` scores, as far as it can be done in the features of the fit.
    """
    view = _subsample(pair, rng)
    ax, ay = pair.anchors[held, 0], pair.anchors[held, 1]
    codes = None if pair.condition_x is None else pair.condition_x[ax]
    cells, translated = dense(view.y), fitted.translate(view.x, view.condition_x)
    sd = cells.std(axis=0)
    leading = np.argsort(-sd, kind="stable")[:N_LEADING]
    scale = np.maximum(sd[leading], 1e-12)

    def place(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return _unit((points - centre.mean(axis=0))[:, leading] / scale)

    mine, partner = place(fitted.translate(pair.x[ax], codes), translated), place(dense(pair.y[ay]), cells)
    near = (mine * partner).sum(axis=1, keepdims=True)
    others = place(cells, cells), place(translated, translated)
    return (_share_nearer(mine @ others[0].T, near) + _share_nearer(partner @ others[1].T, near)) / 2


def _share_nearer(similarity: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Share of similarities above `near`; ties count half, so that a constant translation scores 0.5."""
    # float32 rounding decides nothing: differences below it are ties.
    gap = similarity - near
    return ((gap > 1e-6) + 0.5 * (np.abs(gap) <= 1e-6)).mean(axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


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
    low, high, mean = evidence["foscttm_low"], evidence["foscttm_high"], evidence["foscttm_estimate"]
    found = (
        f"Left-out anchors give an estimated FOSCTTM of {mean:.2f} (95 % interval {low:.2f} to {high:.2f}, "
        f"{evidence['held_out_anchors']:.0f} anchors; 0 is perfect, 0.5 is chance)."
    )
    if high < USABLE_FOSCTTM:
        return "identified", [found]
    if low > USABLE_FOSCTTM:
        chance = " It is no better than chance." if high >= 0.5 else ""
        return "failed", [f"{found}{chance} Do not use this translation; try another method or more anchors."]
    return "ambiguous", [f"{found} That does not tell a usable translation from a wrong one; more anchors would."]
