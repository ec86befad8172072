"""From evidence to an estimate: what FOSCTTM and kNN accuracy a translation has where nobody knows the truth.

A prior that needs no left-out anchor, and their ranks where there are any, meet by the precision of each. The constants
are fitted on the dev cells of data whose truth is known (``benchmarks/verdicts.py``), and judged on data left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

# A translation whose FOSCTTM is above this is wrong for most cells; chance is 0.5.
USABLE_FOSCTTM = 0.35
# Fewer anchors than this are not left out: one or two say next to nothing.
MIN_ANCHORS = 3
# The standard deviation of an anchor's rank is taken to be that by chance, with the weight of so many anchors.
CHANCE_SD, CHANCE_WEIGHT = 0.2, 3.0
# A twin that disagrees by more is another map; from so many left-out anchors on, their ranks decide all the same.
TWIN_LIMIT, FEW_ANCHORS = 0.25, 5
# What FOSCTTM is before any anchor is left out: no map is known to be perfect, nor to be worse than chance.
PRIOR_RANGE = 0.02, 0.55
# Neighbours that kNN accuracy is estimated for; the first has the short names.
NEIGHBOURS = (10, 50)
# Quantiles of the intervals, and of the bound that has to be above 0.35 for a fit to have failed.
Z, Z_FAILED = 1.96, 1.28


@dataclass(frozen=True)
class Constants:
    """What the estimate learned from data whose truth is known.

    Attributes
    ----------
    intercept, slope
        Prior mean of FOSCTTM: linear in ``self_rank``, what the fit expects of itself.
    spread
        Standard deviation of the truth about the prior without anchors, with one or two, and with more.
    shift, error
        Mean and standard deviation by which the truth differs from what endlessly many left-out anchors would say, with
        fewer than 10, fewer than 30, and more.
    exponents
        p of kNN accuracy (K / n) ** ((2 FOSCTTM) ** p), for each of `NEIGHBOURS`.
    strength
        How many left-out anchors that relation is worth.
    """

    intercept: float
    slope: float
    spread: tuple[float, float, float]
    shift: tuple[float, float, float]
    error: tuple[float, float, float]
    exponents: tuple[float, float]
    strength: float


FITTED = Constants(
    intercept=0.047,
    slope=0.904,
    spread=(0.097, 0.097, 0.116),
    shift=(0.005, -0.023, -0.038),
    error=(0.148, 0.106, 0.046),
    exponents=(0.55, 0.9),
    strength=25,
)


def estimate(evidence: dict[str, float], constants: Constants = FITTED) -> dict[str, float]:
    """Estimates with 95 % intervals of FOSCTTM and kNN accuracy, from the figures that `examine` found.

    Returns
    -------
    dict
        ``foscttm_estimate``, ``foscttm_low``, ``foscttm_high``, the same ``_within_condition`` where anchors tell;
        ``knn_accuracy_estimate`` and so on for the 10 nearest of ``reference_cells``, ``...@50`` for the 50 nearest.
    """
    mean, sd = _posterior(evidence, constants)
    found = {"foscttm_estimate": mean, "foscttm_low": mean - Z * sd, "foscttm_high": mean + Z * sd}
    if "held_out_rank_within_condition" in evidence:
        inside = evidence["held_out_rank_within_condition"]
        error = constants.error[left_out_group(evidence["held_out_anchors"])]
        sd = np.sqrt(anchor_variance(evidence, "_within_condition") + error**2)
        names = "estimate", "low", "high"
        found |= {f"foscttm_{n}_within_condition": inside + s * Z * sd for n, s in zip(names, (0, -1, 1), strict=True)}
    found = {name: float(np.clip(value, 0.0, 1.0)) for name, value in found.items()}
    for count, exponent, suffix in zip(NEIGHBOURS, constants.exponents, ("", "@50"), strict=True):
        found |= {name + suffix: value for name, value in _knn(evidence, found, count, exponent, constants).items()}
    return found


def _posterior(evidence: dict[str, float], constants: Constants) -> tuple[float, float]:
    """Mean and standard deviation of FOSCTTM given everything."""
    prior = float(np.clip(constants.intercept + constants.slope * evidence["self_rank"], *PRIOR_RANGE))
    spread = constants.spread[int(np.searchsorted([1, MIN_ANCHORS], evidence["n_anchors"], side="right"))]
    if not evidence["held_out_anchors"]:
        return prior, spread
    group = left_out_group(evidence["held_out_anchors"])
    variance = anchor_variance(evidence) + constants.error[group] ** 2
    weight = spread**2 / (spread**2 + variance)
    mean = weight * (evidence["held_out_rank"] + constants.shift[group]) + (1 - weight) * prior
    return mean, float(np.sqrt(weight * variance))


def left_out_group(n_anchors: float) -> int:
    """Position of the constants for so many left-out anchors."""
    return int(np.searchsorted([10, 30], n_anchors, side="right"))


def anchor_variance(evidence: dict[str, float], suffix: str = "") -> float:
    """Variance of the mean of the left-out anchors' ranks."""
    n = evidence["held_out_anchors"]
    own = evidence[f"held_out_sd{suffix}"] ** 2
    return float((n * own + CHANCE_WEIGHT * CHANCE_SD**2) / (n + CHANCE_WEIGHT) / n)


def knn_of_foscttm(foscttm: float, share: float, exponent: float) -> float:
    """Share of partners among a given share of cells that goes with a FOSCTTM: 1 at 0, that share itself at 0.5."""
    return float(share ** (min(2 * foscttm, 1.0) ** exponent))


def _knn(
    evidence: dict[str, float], found: dict[str, float], count: int, exponent: float, constants: Constants
) -> dict[str, float]:
    """Beta law of kNN accuracy: that which goes with FOSCTTM as prior, left-out anchors as trials."""
    share = min(count / evidence["reference_cells"], 1.0)
    n = evidence["held_out_anchors"]
    hits = n * evidence.get(f"held_out_near@{count}", 0.0)
    strength = constants.strength

    def law(foscttm: float, level: float | None) -> float:
        prior = float(np.clip(knn_of_foscttm(foscttm, share, exponent), 1e-6, 1 - 1e-6))
        a, b = strength * prior + hits, strength * (1 - prior) + n - hits
        return a / (a + b) if level is None else float(beta.ppf(level, a, b))

    return {
        "knn_accuracy_estimate": law(found["foscttm_estimate"], None),
        "knn_accuracy_low": law(found["foscttm_high"], 0.16),
        "knn_accuracy_high": law(found["foscttm_low"], 0.84),
    }


def conclude(evidence: dict[str, float]) -> tuple[str, list[str]]:
    """Level and reasons, from figures and estimates.

    ``"identified"`` if the interval of FOSCTTM lies below 0.35, anchors were left out to check it, no twin disagrees by
    more than 0.25 (or five or more left-out anchors speak for the map all the same), and, with conditions, their ranks
    within them lie below chance; ``"failed"`` if FOSCTTM is above 0.35 with 90 % probability; else ``"ambiguous"``.
    """
    high = evidence["foscttm_high"]
    reasons = [_found(evidence)]
    twins = evidence["twin_disagreement"] > TWIN_LIMIT
    checked = evidence["held_out_anchors"] >= FEW_ANCHORS
    if twins:
        reasons.append(
            f"Another map matches the target cells and the anchors as well and disagrees by "
            f"{evidence['twin_disagreement']:.2f} (FOSCTTM between the two): nothing but anchors tells them apart"
            f"{', and those left out speak for this one.' if checked and high < USABLE_FOSCTTM else '.'}"
        )
    if evidence["foscttm_estimate"] - (high - evidence["foscttm_estimate"]) * Z_FAILED / Z > USABLE_FOSCTTM:
        chance = " It may be no better than chance." if high >= 0.5 else ""
        return "failed", [*reasons, f"Do not use this translation; try another method or more anchors.{chance}"]
    if high >= USABLE_FOSCTTM:
        return "ambiguous", [*reasons, "That does not tell a usable translation from a wrong one; more anchors would."]
    if not evidence["held_out_anchors"]:
        alone = "Without any anchor, nothing tells a map from others that match as well."
        few = "No anchor was left to check it, and a wrong pair would not show."
        return "ambiguous", [*reasons, few if evidence["n_anchors"] else alone]
    if twins and not checked:
        return "ambiguous", reasons
    inside = evidence.get("foscttm_high_within_condition")
    if inside is not None and inside >= 0.5:
        return "ambiguous", [
            *reasons,
            f"Within a condition the interval reaches {inside:.2f}: what is found may be the condition alone.",
        ]
    return "identified", reasons


def _found(evidence: dict[str, float]) -> str:
    """The estimate and what it rests on."""
    low, high, mean = (evidence[f"foscttm_{name}"] for name in ("low", "high", "estimate"))
    interval = f"FOSCTTM of {mean:.2f} (95 % interval {low:.2f} to {high:.2f}; 0 is perfect, 0.5 is chance)"
    n = evidence["held_out_anchors"]
    if n:
        return f"Left-out anchors ({n:.0f}) and the clouds of cells give an estimated {interval}."
    k = evidence["n_anchors"]
    why = f"{k:.0f} anchor pair{'s' if k != 1 else ''} cannot be cross-validated (at least {MIN_ANCHORS} are needed)."
    if k >= MIN_ANCHORS:
        why = "Anchors are most of the few cells that the features were fitted to, so that none is new when left out."
    return f"{why} The clouds of cells alone suggest a {interval}."
