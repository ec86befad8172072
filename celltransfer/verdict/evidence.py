"""Whether to believe a fit, from the anchors and the two clouds of cells alone: no hidden pair is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.data.pair import ModalityPair
from celltransfer.metrics import scores
from celltransfer.metrics.space import ScoringSpace, centred
from celltransfer.train.outcome import Status, Verdict
from celltransfer.verdict.alternative_map import find_twin, widening
from celltransfer.verdict.estimate import MIN_ANCHORS, conclude, estimate

if TYPE_CHECKING:
    from celltransfer.translators.base import Translator

# Cells a side that the fit is looked at with, and those that refits translate.
MAX_CELLS, REFIT_CELLS = 1000, 500
# Refits to halves of the cells, where anchors are too few to leave some out.
N_HALVES = 2
# Draws per refit of what a cell's true partner might be, and refits that are drawn from.
N_DRAWS, MAX_DRAWN = 2, 4
# What translated cells leave of a direction's variance is at least this share.
NOISE_FLOOR = 0.05
# Prior weight, in anchors, of the noise that variances imply, against that of left-out anchors.
NOISE_WEIGHT = 3.0

Refit = Callable[[ModalityPair, int], "Translator"]
Points = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Readout:
    """Where cells lie in a space that no method chose: the scoring space of the target's normalised scale.

    Attributes
    ----------
    cells
        From rows of target cells to where they lie, as measured, shape (n, q).
    place
        From features of a translation, shape (n, D), into the space, shape (n, q).
    depth
        From rows to log library sizes, of source and of target cells; where both are counts.
    """

    cells: Points
    place: Points
    depth: tuple[Points, Points] | None = None

    @classmethod
    def of_features(cls, pair: ModalityPair, n_components: int = 20) -> Readout:
        """The space of the target features themselves, for a pair of which nothing else is known."""
        space = ScoringSpace.fit(pair.y, n_components)
        return cls(lambda rows: space.transform(pair.y[rows]), space.transform)


@dataclass(frozen=True)
class Findings:
    """What `examine` found: the figures, and the doubt about every cell that it looked at.

    Attributes
    ----------
    evidence
        Named figures.
    translated
        Translated cells in the features of the target, shape (n, D).
    doubt
        Expected rank of the true partner of each, as in FOSCTTM, shape (n,): 0 is certain, 0.5 says nothing.
    """

    evidence: dict[str, float] = field(default_factory=dict)
    translated: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    doubt: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


def judge(
    translator: Translator,
    pair: ModalityPair,
    refit: Refit,
    *,
    seed: int = 0,
    max_folds: int = 4,
    readout: Readout | None = None,
) -> Verdict:
    """Judge a fitted `translator`; see `examine` for the evidence and `celltransfer.verdict.estimate` for what it says.

    Parameters
    ----------
    translator
        The fitted translator.
    pair
        What it was fitted on.
    refit
        Fits the same method on another pair, given the number of the fold.
    seed
        Seed of folds, subsamples and draws.
    max_folds
        Number of refits without anchors at most.
    readout
        The space that ranks are taken in; ``None``: that of the target features.

    Returns
    -------
    Verdict
        ``"identified"``, ``"ambiguous"`` or ``"failed"``, with reasons and evidence.
    """
    broken = broken_off(translator)
    if broken is not None:
        return broken
    return verdict_of(examine(translator, pair, refit, seed=seed, max_folds=max_folds, readout=readout))


def broken_off(translator: Translator) -> Verdict | None:
    """The verdict on a fit that left no map."""
    status = translator.result_.status
    return Verdict("failed", [f"Training diverged. {status.advice}"]) if status is Status.DIVERGED else None


def verdict_of(findings: Findings) -> Verdict:
    """What the findings amount to."""
    if not findings.evidence:
        return Verdict("failed", ["The translation holds NaN or infinite values."])
    evidence = findings.evidence | estimate(findings.evidence)
    return Verdict(*conclude(evidence), evidence)


def examine(
    translator: Translator,
    pair: ModalityPair,
    refit: Refit,
    *,
    seed: int = 0,
    max_folds: int = 4,
    readout: Readout | None = None,
) -> Findings:
    """Gather the evidence for and against a fit. Parameters as in `judge`.

    Returns
    -------
    Findings
        No evidence where a translation is not finite. Otherwise:

        ``held_out_anchors``, ``held_out_rank``, ``held_out_sd``: anchors that a refit did not see, and mean and
        standard deviation over them of their rank as in FOSCTTM: the share of target cells nearer to the translation
        than the true partner, and of translated source cells nearer to the partner than its own translation; the same
        ``_within_condition`` where conditions are known. At least three anchors are needed, and cells enough beside
        them: where anchors are most of fewer cells than twice the features, none is left out.

        ``refit_disagreement``: FOSCTTM of the fit's translations against those of the refits (without some of the
        anchors; with fewer than three, on halves of the cells with all anchors, or from other starts).

        ``self_rank``: FOSCTTM that the fit expects of itself, if the true partner of a cell is where a refit sends it,
        plus the variance that translations leave of the target cells'.

        ``twin_disagreement``, ``twin_low``, ``twin_high``, ``twin_distance``: see `verdict.alternative_map`.

        ``distance_ratio``, ``shape_ratio``: energy distance of translated to target cells, over that of a constant;
        and the same at the target cells' spread. ``variance_ratio``: spread of the translated over that of the target
        cells.

        ``depth_agreement``, ``depth_explained``: correlation of the source cells' library size with that of their
        translations, and the share of library size that target cells reveal.
    """
    rng = np.random.default_rng([seed, 7])
    readout = readout or Readout.of_features(pair)
    rows = _free(pair.n_source, pair.anchors[:, 0], rng), _free(pair.n_target, pair.anchors[:, 1], rng)
    codes = None if pair.condition_x is None else pair.condition_x[rows[0]]
    features = translator.translate(pair.x[rows[0]], codes)
    if not np.isfinite(features).all():
        return Findings()
    f, y = centred(readout.place(features)), readout.cells(rows[1])
    centre = readout.place(features).mean(axis=0)
    seen = _View(pair, readout, rows, f, y)
    left_out = pair.n_anchors >= max(MIN_ANCHORS, translator.min_anchors + 1) and not _anchors_span_cells(pair)
    refitted, ranks, missed = (
        _left_out(seen, refit, rng, max_folds, translator.left_out_)
        if left_out
        else (_repeats(seen, translator) or _halves(seen, refit, rng), None, None)
    )
    noise = _noise(f, y, missed)
    evidence = {"n_anchors": float(pair.n_anchors), "held_out_anchors": 0.0 if ranks is None else float(len(ranks))}
    evidence["reference_cells"] = float(len(y))
    if ranks is not None:
        evidence |= _summary(ranks, len(y))
    evidence |= _closeness(f, y)
    doubt, evidence["self_rank"] = _doubt(f, refitted, noise, rng)
    small = f[: len(refitted[0])] if refitted else f
    apart = [scores.foscttm(small, other) for other in refitted]
    evidence["refit_disagreement"] = float(np.mean(apart)) if apart else float("nan")
    anchors_at = readout.place(_translated(translator, pair, pair.anchors[:, 0])) - centre if pair.n_anchors else None
    twin = find_twin(f, y, anchors_at, _actual(pair, readout), noise=noise, seed=seed)
    evidence |= {"twin_disagreement": twin.disagreement, "twin_low": twin.low, "twin_high": twin.high}
    evidence |= {"twin_distance": twin.twin_distance, "distance": twin.distance}
    evidence |= _depth(seen)
    known = {name: float(value) for name, value in evidence.items() if np.isfinite(value)}
    return Findings(known, features[: len(doubt)], doubt)


@dataclass(frozen=True)
class _View:
    """What the fit is looked at with: rows of both sides, translated source cells (centred) and target cells."""

    pair: ModalityPair
    readout: Readout
    rows: tuple[np.ndarray, np.ndarray]
    f: np.ndarray
    y: np.ndarray

    @property
    def refit_rows(self) -> np.ndarray:
        """Source cells that refits translate: the first of them."""
        return self.rows[0][:REFIT_CELLS]


def _anchors_span_cells(pair: ModalityPair) -> bool:
    """Whether anchors are most of so few cells that features were fitted to them: left out, none is new.

    With no more cells than centred components, every cell is minus the sum of the others, and so is its partner: any
    linear map of the others finds it, in pure noise.
    """
    sides = (pair.n_source, pair.x.shape[1]), (pair.n_target, pair.y.shape[1])
    return any(n < 2 * width and pair.n_anchors > n / 2 for n, width in sides)


def _actual(pair: ModalityPair, readout: Readout) -> np.ndarray | None:
    """True target cells of the anchors, shape (k, q)."""
    return readout.cells(pair.anchors[:, 1]) if pair.n_anchors else None


def _translated(translator: Translator, pair: ModalityPair, rows: np.ndarray) -> np.ndarray:
    return translator.translate(pair.x[rows], None if pair.condition_x is None else pair.condition_x[rows])


def _free(n: int, anchors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `MAX_CELLS` rows, without the anchors where there are others."""
    free = np.setdiff1d(np.arange(n), anchors)
    # Too few other cells make no cloud.
    return rng.permutation(free if len(free) >= 10 else np.arange(n))[:MAX_CELLS]


def _left_out(
    seen: _View,
    refit: Refit,
    rng: np.random.Generator,
    max_folds: int,
    known: Sequence[tuple[Translator, np.ndarray]] | None = None,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Leave anchors out in groups: the refits' translations, each anchor's ranks (k, 3), and what it was missed by.

    Where fits without every group of anchors are `known`, with the anchors they lack, there are no others.
    """
    pair, place = seen.pair, seen.readout.place
    k, actual = pair.n_anchors, seen.readout.cells(pair.anchors[:, 1])
    ranks, missed, refitted = np.empty((k, 3)), np.empty((k, seen.y.shape[1])), []
    parts = [(None, held) for held in np.array_split(rng.permutation(k), min(k, max_folds))]
    for fold, (done, held) in enumerate(known or parts):
        fitted = done or refit(replace(pair, anchors=np.delete(pair.anchors, held, axis=0)), fold)
        raw = place(_translated(fitted, pair, seen.refit_rows))
        translated, centre = centred(raw), raw.mean(axis=0)
        mine = place(_translated(fitted, pair, pair.anchors[held, 0])) - centre
        partner = actual[held]
        ranks[held] = _anchor_ranks(seen, translated, mine, partner, held)
        missed[held] = mine - partner
        refitted.append(translated)
    return refitted, ranks, missed


def held_out_ranks(
    pair: ModalityPair, refit: Refit, rng: np.random.Generator, max_folds: int = 4, readout: Readout | None = None
) -> np.ndarray:
    """FOSCTTM-like ranks of every anchor under a fit that did not see it: among all cells, and within its condition.

    Shape (k, 3); chance 0.5, best 0. The second column is NaN without conditions; the third is the first's part of
    translations among target cells.
    """
    readout = readout or Readout.of_features(pair)
    rows = _free(pair.n_source, pair.anchors[:, 0], rng), _free(pair.n_target, pair.anchors[:, 1], rng)
    y = readout.cells(rows[1])
    return _left_out(_View(pair, readout, rows, y, y), refit, rng, max_folds)[1]


def _anchor_ranks(
    seen: _View, translated: np.ndarray, mine: np.ndarray, partner: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """Mean of both directions' ranks of the held-out anchors, overall, within condition, and forward, shape (h, 3)."""
    near = (_unit(mine) * _unit(partner)).sum(axis=1, keepdims=True)
    to_targets, to_translated = _unit(mine) @ _unit(seen.y).T, _unit(partner) @ _unit(translated).T
    forward = _share_nearer(to_targets, near)
    overall = (forward + _share_nearer(to_translated, near)) / 2
    pair = seen.pair
    if pair.condition_x is None or pair.condition_y is None:
        return np.column_stack([overall, np.full(len(held), np.nan), forward])
    own = pair.condition_x[pair.anchors[held, 0]][:, None]
    sides = (to_targets, pair.condition_y[seen.rows[1]]), (to_translated, pair.condition_x[seen.refit_rows])
    within = [_share_nearer(similarity, near, codes == own) for similarity, codes in sides]
    return np.column_stack([overall, (within[0] + within[1]) / 2, forward])


def _share_nearer(similarity: np.ndarray, near: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Share of similarities above `near`, of those in `among`; ties count half, so a constant translation gets 0.5."""
    # Rounding decides nothing: differences below it are ties.
    gap = similarity - near
    closer = (gap > 1e-6) + 0.5 * (np.abs(gap) <= 1e-6)
    if among is None:
        return closer.mean(axis=1)
    # Where there is nothing to be nearer, nothing is known.
    return np.where(among.any(axis=1), (closer * among).sum(axis=1) / np.maximum(among.sum(axis=1), 1), np.nan)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows that are zero up to rounding stay zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-6, rows / np.maximum(norm, 1e-6), 0.0)


def _summary(ranks: np.ndarray, n: int) -> dict[str, float]:
    """What the anchors' ranks among n cells, shape (k, 3), say together."""
    found = {"held_out_rank": float(ranks[:, 0].mean()), "held_out_sd": float(ranks[:, 0].std(ddof=1))}
    found |= {f"held_out_near@{count}": float((ranks[:, 2] * n < count).mean()) for count in (10, 50)}
    inside = ranks[np.isfinite(ranks[:, 1]), 1]
    if len(inside) >= MIN_ANCHORS:
        found |= {"held_out_rank_within_condition": float(inside.mean())}
        found |= {"held_out_sd_within_condition": float(inside.std(ddof=1))}
    return found


def _repeats(seen: _View, translator: Translator) -> list[np.ndarray]:
    """Translations by fits to the same cells that the translator made anyway."""
    place = seen.readout.place
    return [centred(place(_translated(each, seen.pair, seen.refit_rows))) for each in translator.repeats_ or []]


def _halves(seen: _View, refit: Refit, rng: np.random.Generator) -> list[np.ndarray]:
    """Translations by refits to disjoint halves of the cells, each with all anchors."""
    pair, found = seen.pair, []
    sides = [_split(n, pair.anchors[:, side], rng) for side, n in enumerate((pair.n_source, pair.n_target))]
    if min(len(half) for halves in sides for half in halves) < 10:
        return []
    for number in range(N_HALVES):
        rows = [halves[number] for halves in sides]
        anchors = np.column_stack([np.searchsorted(rows[side], pair.anchors[:, side]) for side in (0, 1)])
        fitted = refit(replace(pair, anchors=anchors, **_of_rows(pair, rows)), number)
        found.append(centred(seen.readout.place(_translated(fitted, pair, seen.refit_rows))))
    return found


def _of_rows(pair: ModalityPair, rows: list[np.ndarray]) -> dict[str, Any]:
    """What `pair` knows of some of its cells, by field."""
    fields = (("x", "condition_x", "attribute_x"), ("y", "condition_y", "attribute_y"))
    known = ((name, getattr(pair, name), own) for names, own in zip(fields, rows, strict=True) for name in names)
    return {name: None if values is None else values[own] for name, values, own in known}


def _split(n: int, anchors: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Two halves of n rows, sorted, with the anchors in both."""
    others = rng.permutation(np.setdiff1d(np.arange(n), anchors))
    return [np.sort(np.concatenate([anchors, half])) for half in np.array_split(others, N_HALVES)]


def _noise(f: np.ndarray, y: np.ndarray, missed: np.ndarray | None) -> np.ndarray:
    """Variance per direction by which translations miss their partners, shape (q,).

    What translated cells leave of the target cells' variance, as it would be for conditional means; left-out anchors,
    shape (k, q), correct it.
    """
    total = y.var(axis=0)
    implied = np.maximum(total - f.var(axis=0), NOISE_FLOOR * total)
    if missed is None:
        return implied
    k = len(missed)
    return np.asarray((k * np.square(missed).mean(axis=0) + NOISE_WEIGHT * implied) / (k + NOISE_WEIGHT))


def _doubt(
    f: np.ndarray, refitted: Sequence[np.ndarray], noise: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Expected rank of every cell's partner, shape (n,), and its mean; partners drawn about where refits send it."""
    centres = list(refitted[:MAX_DRAWN]) or [f[:REFIT_CELLS]]
    mine = f[: len(centres[0])]
    drawn = [
        scores.foscttm_per_cell(mine, centre + np.sqrt(noise) * rng.normal(size=centre.shape)).overall
        for centre in centres
        for _ in range(N_DRAWS)
    ]
    doubt = np.mean(drawn, axis=0)
    return doubt.astype(np.float32), float(doubt.mean())


def _closeness(f: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """How alike translated and target cells are."""
    constant = 2 * float(np.linalg.norm(y - y.mean(axis=0), axis=1).mean()) - _mean_distance(y)
    f, y = f - f.mean(axis=0), y - y.mean(axis=0)
    return {
        "variance_ratio": float(f.var(axis=0).sum() / max(y.var(axis=0).sum(), 1e-300)),
        "distance_ratio": scores.energy_distance(f, y) / max(constant, 1e-300),
        "shape_ratio": scores.energy_distance(f @ widening(f, y), y) / max(constant, 1e-300),
    }


def _mean_distance(y: np.ndarray) -> float:
    from scipy.spatial.distance import pdist

    return float(pdist(y).mean())


def _depth(seen: _View) -> dict[str, float]:
    """Whether deep source cells are translated to what deep target cells look like."""
    if seen.readout.depth is None:
        return {}
    dx, dy = (depth(rows) for depth, rows in zip(seen.readout.depth, seen.rows, strict=True))
    if min(dx.std(), dy.std(), seen.f.std()) < 1e-9:
        return {}
    y = seen.y - seen.y.mean(axis=0)
    weight = np.linalg.solve(y.T @ y + 0.01 * len(y) * np.eye(y.shape[1]), y.T @ (dy - dy.mean()))
    predicted = seen.f @ weight
    if predicted.std() < 1e-9:
        return {}
    return {
        "depth_agreement": float(np.corrcoef(predicted, dx)[0, 1]),
        "depth_explained": float(np.corrcoef(y @ weight, dy)[0, 1] ** 2),
    }
