"""From figures over seeds to a claim: Student's intervals, which can bear a claim out, contradict it, or not tell."""

from __future__ import annotations

import numpy as np
import pandas as pd

from celltransfer.validation.base import Claim

__all__ = ["above", "below", "interval", "lower", "rate_above", "separated"]

Values = pd.Series | np.ndarray | list[float]


def interval(values: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's interval; the interval is everything where there are fewer than two values."""
    from scipy.stats import t

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n, mean = len(values), float(values.mean()) if len(values) else float("nan")
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def above(text: str, what: str, values: Values, bound: float, level: float = 0.95) -> Claim:
    """Whether a mean over seeds lies above a bound."""
    mean, low, high = interval(values, level)
    holds = True if low > bound else False if high < bound else None
    return Claim(text, _said(what, mean, low, high, values, level), holds)


def below(text: str, what: str, values: Values, bound: float, level: float = 0.95) -> Claim:
    """Whether a mean over seeds lies below a bound."""
    claim = above(text, what, values, bound, level)
    return claim if claim.holds is None else Claim(text, claim.found, not claim.holds)


def lower(text: str, what: str, ours: pd.Series, theirs: pd.Series, level: float = 0.95) -> Claim:
    """Whether one arm's figure is the lower one: the interval of the paired difference over common seeds."""
    gain = (theirs - ours).dropna()
    mean, low, high = interval(gain, level)
    holds = True if low > 0 else False if high < 0 else None
    found = f"{what} {ours[gain.index].mean():.3g} against {theirs[gain.index].mean():.3g}; lower by {mean:.3g}"
    return Claim(text, f"{found} ({_interval(low, high, level)}, {len(gain)} seeds).", holds)


def rate_above(text: str, what: str, hits: Values, bound: float, level: float = 0.95) -> Claim:
    """Whether a share of runs lies above a bound: the exact interval of Clopper and Pearson."""
    from scipy.stats import binomtest

    found = np.asarray(hits, bool)
    if not len(found):
        return Claim(text, "no run bears on it.", None)
    exact = binomtest(int(found.sum()), len(found)).proportion_ci(level)
    holds = True if exact.low > bound else False if exact.high < bound else None
    said = f"{what} {found.sum()} of {len(found)} runs ({100 * level:.3g} % interval of the share"
    return Claim(text, f"{said} {exact.low:.2f} to {exact.high:.2f}).", holds)


def separated(text: str, what: str, low: Values, high: Values) -> Claim:
    """Whether every value of one group lies below every one of another; few values tell nothing (rank test, 5 %)."""
    from scipy.stats import mannwhitneyu

    low, high = np.asarray(low, float), np.asarray(high, float)
    if not len(low) or not len(high):
        return Claim(text, "one of the groups is empty.", None)
    p = float(mannwhitneyu(low, high, alternative="less", method="exact").pvalue)
    found = f"{what} {low.min():.3g} to {low.max():.3g} ({len(low)} runs) against {high.min():.3g} to {high.max():.3g}"
    apart = bool(low.max() < high.min())
    return Claim(text, f"{found} ({len(high)} runs; rank test, p = {p:.2g}).", apart if not apart or p < 0.05 else None)


def _said(what: str, mean: float, low: float, high: float, values: Values, level: float) -> str:
    return f"{what} {mean:.5g} ({_interval(low, high, level)}, {len(values)} seeds)."


def _interval(low: float, high: float, level: float) -> str:
    return f"{100 * level:.3g} % interval {low:.5g} to {high:.5g}"
