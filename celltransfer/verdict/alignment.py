"""Whether translated cells and target cells are alike: the verdict that a loss of zero does not give."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from celltransfer.errors import ConfigError, InputError
from celltransfer.verdict.shift import score_test
from celltransfer.verdict.two_sample import FAMILIES, Gap, Pool, background, make_pool, measure

# What is finer than this, in the target's standard deviations of every principal component, is blurred.
RESOLUTION = 0.4
# What a difference must exceed to matter: with cells enough, any two samples differ.
MATERIAL_AUC = 0.04
MATERIAL_SHARE = 0.04
# A difference this large must be excluded before sets are called alike.
HIDDEN_AUC = 0.12
SIGNIFICANCE = 0.01
# Held-out cells of a set below which nothing is told, below which likeness is not, and that mostly do.
MIN_HELD = 40
LIKE_HELD = 100
ENOUGH_HELD = 200
MIN_SPLITS = 3
# Relative coverage below which cells lack a counterpart, and below which hardly any has one.
UNLIKE_SUPPORT = 0.9
DISJOINT_SUPPORT = 0.1
# Above this AUC sets do not just differ in numbers, whatever neighbours say; those see little in many dimensions.
PLAIN_AUC = 0.8
# The largest distance of a family that holds equal mixtures.
LARGEST_DISTANCE = 2 * float(np.log(2))
# Where the distance lies so many standard deviations below its null, the densities are no better than noise.
FAR_BELOW = 5.0


@dataclass(frozen=True)
class Alignment:
    """Whether two sets of cells are alike, and why. Result of `alignment`.

    Attributes
    ----------
    level
        ``"aligned"``, ``"not aligned"`` or ``"cannot be told"``.
    reasons
        One sentence per finding.
    evidence
        The figures behind them: ``distance`` (nats), ``distance_share`` (its excess over the null in units of 2 log 2),
        ``auc``, the relative coverages ``covered_translated`` and ``covered_target``, the mean of the null, its upper
        95 % limit and the p-value of distance and AUC (``_null``, ``_null_high``, ``_p``), the p-value ``score_p`` of
        the score test, and numbers of cells.
    family
        Density family that the distance is of.
    cause
        If not aligned: ``"disjoint"``, ``"unlike supports"`` (cells of one set without a counterpart in the other) or
        ``"unlike densities"`` (none of these). Otherwise empty.
    """

    level: str
    reasons: list[str] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)
    family: str = ""
    cause: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and ``uns``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Alignment:
        """Inverse of `to_dict`."""
        evidence = {name: float(value) for name, value in values["evidence"].items()}
        reasons = [str(reason) for reason in values["reasons"]]
        return cls(str(values["level"]), reasons, evidence, str(values["family"]), str(values["cause"]))


class _Null(NamedTuple):
    """Mean of a figure over the null's splits, its upper 95 % limit, and the p-value of what was found."""

    mean: float
    sd: float
    high: float
    p: float


def alignment(
    a: np.ndarray,
    b: np.ndarray,
    *,
    held_a: np.ndarray | None = None,
    held_b: np.ndarray | None = None,
    family: str = "auto",
    n_splits: int = 10,
    max_cells: int = 1000,
    resolution: float = RESOLUTION,
    seed: int = 0,
) -> Alignment:
    r"""Whether translated cells `a` and target cells `b` are alike, in three figures on held-out cells.

    A flexible map under a weak density family drives the training loss below zero while the sets differ. Here the
    log-likelihood-ratio distance is taken anew, with every density fitted to cells it is not evaluated on,

    .. math::
        d = E \log P(a; \theta_T) + E \log P(b; \theta_B) - E \log P(a; \theta_S) - E \log P(b; \theta_S),

    with :math:`\theta_S` that of an equal mixture of both. Where the family holds its own equal mixtures, d is twice
    the Jensen-Shannon divergence of its members, bounds that of the sets from below whatever the family, and is at most
    2 log 2. Beside it stand the AUC of the better of two classifiers (logistic regression on whitened values and
    squares, without and with the distances to nearest neighbours), which sees what a density family cannot, the score
    test of means and covariances, which sees a shift soonest, and the shares of cells inside the other set's support,
    relative to what likeness gives.

    Distance and AUC are compared with a null: the same code on `n_splits` splits of the target cells into sets of the
    same sizes, or, where there are too few target cells for that, of both sets together. The sets are ``"not aligned"``
    where a difference is both significant (p < 0.01; by Student's t for distance and AUC) and material (distance above
    the null by 4 % of 2 log 2, AUC by 0.04; either for the score test), and ``"aligned"`` only if an AUC 0.12 above the
    null is excluded too.

    Parameters
    ----------
    a
        Translated cells, shape (n, d). Cells of a set are taken to be independent: copies of a cell count as more
        evidence than they are.
    b
        Target cells, shape (m, d), same features.
    held_a, held_b
        Cells that the map was not fitted on, shapes (n,) and (m,): only these are evaluated, by fits to all others
        and three quarters of these. Without, every cell is evaluated, by a fit to three quarters of the cells.
    family
        ``"gaussian"`` (shrunk full covariance), ``"mixture"`` (of up to 16 Gaussians), ``"auto"`` (the better of these
        by the likelihood of held-out target cells), or a flow: ``"realnvp"``, ``"spline"``, ``"continuous"``. Flows
        take minutes: 6 fits for every split of the null.
    n_splits
        Splits of the null, 3 or more.
    max_cells
        Cells of a set that are used; more are drawn at random.
    resolution
        Gaussian noise of so many standard deviations of the target is added to every principal component of both sets,
        which blurs what is finer: densities tell a map that misplaces cells by a tenth of one from the truth, though it
        is as good for all that follows. 0: nothing is blurred.
    seed
        Seed of draws, folds and fits.

    Returns
    -------
    Alignment
        Level, reasons, figures, and the cause where the sets differ.

    Raises
    ------
    InputError
        If shapes do not match, or target cells hold missing values.

    References
    ----------
    Usman et al. 2020, Log-likelihood ratio minimizing flows; Lopez-Paz & Oquab 2017, Revisiting classifier two-sample
    tests; Kynkäänniemi et al. 2019, Improved precision and recall metric.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> target = rng.normal(size=(600, 3))
    >>> alignment(rng.normal(size=(300, 3)), target).level
    'aligned'
    >>> alignment(0.5 * rng.normal(size=(300, 3)), target).level
    'not aligned'
    """
    if family not in ("auto", *FAMILIES):
        raise ConfigError(f"family={family!r} is not known; choose one of auto, {', '.join(FAMILIES)}.")
    if n_splits < MIN_SPLITS or max_cells < MIN_HELD:
        raise ConfigError(
            f"n_splits={n_splits} and max_cells={max_cells}; expected {MIN_SPLITS} and {MIN_HELD} or more."
        )
    a, b = (np.asarray(side, dtype=np.float64) for side in (a, b))
    sides = (_held(a, held_a, "translated"), _held(b, held_b, "target"))
    _check(a, b)
    early = _degenerate(a, b) or _too_few(sides)
    if early is not None:
        return early
    rng = np.random.default_rng(seed)
    pool, first, second, of_null = _draw(a, b, sides, max_cells, resolution, rng)
    family, pool = background(pool, second, family, rng)
    found = measure(pool, first, second, family, rng)
    null = [measure(pool, *_relabel(pool, first, second, of_null, rng), family, rng) for _ in range(n_splits)]
    held = [pool.white[side[pool.held[side]]] for side in (first, second)]
    evidence = _evidence(found, null) | {
        "score_p": score_test(*held, seed=seed).p_value,
        "cells_translated": float(len(first)),
        "cells_target": float(len(second)),
        "held_translated": float(pool.held[first].sum()),
        "held_target": float(pool.held[second].sum()),
        "dimensions": float(pool.white.shape[1]),
    }
    spread = float(np.std([gap.distance for gap in null], ddof=1))
    return _conclude(evidence, family, spread)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise InputError(
            f"Translated cells have shape {a.shape} and target cells {b.shape}; expected (cells, features), the same "
            "features in both."
        )
    if not np.isfinite(b).all():
        raise InputError(f"The target cells hold {int((~np.isfinite(b)).sum())} NaN or infinite values; drop them.")


def _held(cells: np.ndarray, held: np.ndarray | None, name: str) -> np.ndarray:
    """Mask of the cells to evaluate."""
    if held is None:
        return np.ones(len(cells), dtype=bool)
    held = np.asarray(held)
    if held.shape != (len(cells),) or held.dtype != bool:
        raise InputError(
            f"The mask of held-out {name} cells is {held.dtype} of shape {held.shape}; expected bool, ({len(cells)},)."
        )
    return held


def _degenerate(a: np.ndarray, b: np.ndarray) -> Alignment | None:
    """The verdict where there is nothing to measure: broken, constant or copied cells."""
    broken = int((~np.isfinite(a)).any(axis=1).sum())
    if broken:
        reason = f"{broken} of {len(a)} translated cells hold NaN or infinite values."
        return Alignment("not aligned", [reason], {"broken_cells": float(broken)})
    if not np.ptp(b, axis=0).any():
        return Alignment("cannot be told", ["All target cells are the same; no translation can be told by them."])
    if not np.ptp(a, axis=0).any():
        reason = "All translated cells are the same, and target cells are not."
        return Alignment("not aligned", [reason], cause="unlike supports")
    return None


def _too_few(sides: tuple[np.ndarray, np.ndarray]) -> Alignment | None:
    n, m = (int(held.sum()) for held in sides)
    if min(n, m) >= MIN_HELD:
        return None
    reason = (
        f"There are {n} translated and {m} target cells to evaluate on, and fewer than {MIN_HELD} tell nothing; "
        f"about {ENOUGH_HELD} of each would do."
    )
    return Alignment("cannot be told", [reason], {"held_translated": float(n), "held_target": float(m)})


def _draw(
    a: np.ndarray,
    b: np.ndarray,
    sides: tuple[np.ndarray, np.ndarray],
    max_cells: int,
    resolution: float,
    rng: np.random.Generator,
) -> tuple[Pool, np.ndarray, np.ndarray, np.ndarray]:
    """The pool, its rows of the translated and of the target cells, and those that the null draws from."""
    held_a, held_b = sides
    chosen, others = [], []
    for held in sides:
        order = rng.permutation(len(held))
        evaluated, fitted = order[held[order]], order[~held[order]]
        n_held = min(len(evaluated), max(max_cells // 2, max_cells - len(fitted)))
        n_fit = min(len(fitted), max_cells - n_held)
        chosen.append(np.concatenate([evaluated[:n_held], fitted[:n_fit]]))
        others.append((evaluated[n_held:], fitted[n_fit:]))
    n_held = int(held_a[chosen[0]].sum())
    spare = (others[1][0][:n_held], others[1][1][: len(chosen[0]) - n_held])
    # Target cells alone, if they fill both sets; else both sets together, which are one if they are alike.
    enough = sum(map(len, spare)) == len(chosen[0])
    extra = np.concatenate(spare) if enough else np.empty(0, dtype=int)
    cells = np.vstack([a[chosen[0]], b[chosen[1]], b[extra]])
    held = np.concatenate([held_a[chosen[0]], held_b[chosen[1]], held_b[extra]])
    n, m = map(len, chosen)
    pool = make_pool(cells, held, n + m, (resolution, n, rng))
    return pool, np.arange(n), np.arange(n, n + m), np.arange(n if enough else 0, len(cells))


def _relabel(
    pool: Pool, first: np.ndarray, second: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets at random from `rows`, with as many held-out and other cells as the true ones."""
    parts = []
    for held in (True, False):
        order = rng.permutation(rows[pool.held[rows] == held])
        n, m = (int((pool.held[side] == held).sum()) for side in (first, second))
        parts.append((order[:n], order[n : n + m]))
    (held_one, held_other), (fit_one, fit_other) = parts
    return np.concatenate([held_one, fit_one]), np.concatenate([held_other, fit_other])


def _evidence(found: Gap, null: list[Gap]) -> dict[str, float]:
    distance = _against([gap.distance for gap in null], found.distance)
    auc = _against([gap.auc for gap in null], found.auc)
    # The null's coverages are of two halves of one set: both directions estimate one number.
    like = float(np.mean([[gap.covered_first, gap.covered_second] for gap in null]))
    return {
        "distance": found.distance,
        "distance_share": (found.distance - distance.mean) / LARGEST_DISTANCE,
        "distance_null": distance.mean,
        "distance_null_high": distance.high,
        "distance_p": distance.p,
        "auc": found.auc,
        "auc_null": auc.mean,
        "auc_null_high": auc.high,
        "auc_p": auc.p,
        "covered_translated": found.covered_first / max(like, 1e-9),
        "covered_target": found.covered_second / max(like, 1e-9),
    }


def _against(null: list[float], value: float) -> _Null:
    """Student's t: `value` as one more draw from where `null` came from."""
    n, mean = len(null), float(np.mean(null))
    sd = max(float(np.std(null, ddof=1)), 1e-9) * float(np.sqrt(1 + 1 / n))
    high = mean + float(student_t.ppf(0.95, n - 1)) * sd
    return _Null(mean, sd, high, float(student_t.sf((value - mean) / sd, n - 1)))


def _conclude(evidence: dict[str, float], family: str, spread: float) -> Alignment:
    share, excess = evidence["distance_share"], evidence["auc"] - evidence["auc_null"]
    far = evidence["distance_p"] < SIGNIFICANCE, share >= MATERIAL_SHARE
    told = evidence["auc_p"] < SIGNIFICANCE, excess >= MATERIAL_AUC
    moved = evidence["score_p"] < SIGNIFICANCE, far[1] or told[1]
    reasons = [_distance_sentence(evidence, family), _auc_sentence(evidence)]
    if moved[0]:
        reasons.append(f"Means or covariances differ (score test, p = {evidence['score_p']:.2g}).")
    if all(told) and not all(far):
        reasons.append("The density family is too weak to see the difference; a classifier sees it.")
    if evidence["distance"] < evidence["distance_null"] - FAR_BELOW * spread - MATERIAL_SHARE * LARGEST_DISTANCE:
        reasons.append("The distance lies below its null: densities fitted to some cells do not hold for the others.")
    if all(told) or all(far) or all(moved):
        cause, why = _cause(evidence)
        return Alignment("not aligned", [*reasons, why], evidence, family, cause)
    possible = max(excess, 0) + evidence["auc_null_high"] - evidence["auc_null"]
    if possible > HIDDEN_AUC or min(evidence["held_translated"], evidence["held_target"]) < LIKE_HELD:
        return Alignment("cannot be told", [*reasons, _more_cells(evidence, possible)], evidence, family)
    if told[0] or far[0] or moved[0]:
        reasons.append("The sets differ significantly, by less than matters.")
    return Alignment("aligned", reasons, evidence, family)


def _cause(evidence: dict[str, float]) -> tuple[str, str]:
    translated, target = evidence["covered_translated"], evidence["covered_target"]
    found = (
        f"Relative to like sets, {_percent(min(translated, 1))} of the translated cells lie among target cells, and "
        f"{_percent(min(target, 1))} of the target cells among translated ones"
    )
    if max(translated, target) < DISJOINT_SUPPORT:
        return "disjoint", f"{found}: the sets lie apart."
    if min(translated, target) < UNLIKE_SUPPORT:
        return "unlike supports", f"{found}: cells of one set have no counterpart in the other."
    if evidence["auc"] > PLAIN_AUC:
        return "unlike densities", f"{found}: the sets differ plainly in a way that nearest neighbours do not see."
    return "unlike densities", f"{found}: both sets take the same places, in other numbers."


def _distance_sentence(evidence: dict[str, float], family: str) -> str:
    share = evidence["distance_share"]
    size = f"{_percent(share)} of" if share <= 1 else "more than"
    return (
        f"The log-likelihood-ratio distance ({family}) is {evidence['distance']:.3f}, where like sets have "
        f"{evidence['distance_null']:.3f} and at most {evidence['distance_null_high']:.3f} "
        f"(p = {evidence['distance_p']:.2g}); the excess is {size} 2 log 2."
    )


def _auc_sentence(evidence: dict[str, float]) -> str:
    return (
        f"A classifier tells the sets apart with an AUC of {evidence['auc']:.3f}, where like sets have "
        f"{evidence['auc_null']:.3f} and at most {evidence['auc_null_high']:.3f} (p = {evidence['auc_p']:.2g})."
    )


def _more_cells(evidence: dict[str, float], possible: float) -> str:
    held = min(evidence["held_translated"], evidence["held_target"])
    # The interval shrinks with the root of the number of cells.
    needed = max(ENOUGH_HELD, int(np.ceil(held * (possible / HIDDEN_AUC) ** 2 / 50) * 50))
    return (
        f"{held:.0f} cells were evaluated, and do not exclude an AUC {possible:.2f} above that of like sets; about "
        f"{needed} held-out cells of each set would tell."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
