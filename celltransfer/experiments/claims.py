"""What a paper says against what was found: one rule for all experiments.

A claim is about a figure that every seed gives, or about how far two arms' figures differ on the same seed. The 95 %
interval of its mean over seeds is held against the claim's margin. The claim **holds** where the whole interval lies
on the claimed side of the margin, **does not hold** where all of it lies on the other, and **cannot be told**
otherwise, nor from fewer than two seeds. Every claim is read by itself; there is no correction for their number.

- Intervals are Student's. Suites have three to twenty seeds, of which a bootstrap knows too few different resamples
  (ten, of three seeds) to be as wide as it says.
- Where the figure is a yes or no, as whether a run found the map, equal answers have no spread that Student's interval
  could be made of, and few answers no normal mean. Then it is the exact interval of the share (Clopper and Pearson);
  and two arms are compared by the seeds on which they differ, whose share is held against one half.
- Where no chance enters, as in an integral, the value that speaks most against the claim is the interval.
- A claim about each of several arms holds where it holds of each, and does not where it fails for one.

The benchmark of methods has scores of single cells, and takes the interval of the same paired difference over cells
and seeds together (`celltransfer.metrics.bootstrap`); `read` is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LEVEL = 0.95


@dataclass(frozen=True)
class Claim:
    """Something a paper or the theory says, and what was found.

    Attributes
    ----------
    text
        The claim.
    found
        The figures that bear on it.
    holds
        Whether they bear it out; ``None`` where they cannot tell.
    """

    text: str
    found: str
    holds: bool | None


@dataclass(frozen=True)
class Says:
    """A claim, before it is held against rows.

    Attributes
    ----------
    text
        The claim.
    figure
        A score, or what a function makes of the arm's rows: values by row, or by seed where their index is so named.
    arm
        Whose figure it is: values of the suite's columns `by`, from the first on; ``None`` is all rows. A list says it
        of each.
    sense
        Whether the figure is said to lie above or below.
    than
        A margin, or a function of the rows that gives it; or another arm, whose figure on the same seed is the other
        side of a paired difference. A list is as long as that of `arm`, or stands for all against one.
    by
        Margin of a paired difference: by how much the one is said to lie above, or below, the other.
    exact
        No chance enters, and seeds are no sample of anything.
    unless
        Says why the rows cannot tell, whatever the figures are; an empty text where they can.
    what
        The figure in words, where no column of the table has it.
    """

    text: str
    figure: str | Callable[[pd.DataFrame], pd.Series]
    arm: Any
    sense: Literal["<", ">"]
    than: Any
    by: float = 0.0
    exact: bool = False
    unless: Callable[[pd.DataFrame], str] | None = None
    what: str = ""


def judge(says: Says, rows: pd.DataFrame, by: Sequence[str], titles: Mapping[Any, str]) -> Claim:
    """Hold a claim against the rows; `titles` name the scores."""
    if says.unless is not None and (why := says.unless(rows)):
        return Claim(says.text, why, None)
    n = max([len(side) for side in (says.arm, says.than) if isinstance(side, list)], default=1)
    arms, others = (side if isinstance(side, list) else [side] * n for side in (says.arm, says.than))
    what = says.what or titles.get(says.figure, says.figure if isinstance(says.figure, str) else "")
    read_ = [_read(says, what, rows, by, *sides) for sides in zip(arms, others, strict=True)]
    told = [found for found in read_ if found is not None]
    if not told:
        return Claim(says.text, "nothing that was run bears on it.", None)
    worst = min(told, key=lambda found: ((False, None, True).index(found.holds), found.gain))
    if n == 1:
        return Claim(says.text, worst.text, worst.holds)
    count = sum(found.holds is True for found in told)
    names = "" if not isinstance(says.than, list) else f" ({_named(others[read_.index(worst)])})"
    return Claim(says.text, f"for {count} of {len(told)}; least{names}: {worst.text}", worst.holds)


class _Found(NamedTuple):
    """Figures in words, by how much they are on the claimed side of the margin, and what they say."""

    text: str
    gain: float
    holds: bool | None


def _read(says: Says, what: str, rows: pd.DataFrame, by: Sequence[str], arm: Any, other: Any) -> _Found | None:
    """One arm against a margin or another arm; ``None`` where one of them was not run."""
    sign = 1 if says.sense == ">" else -1
    ours = _figures(says, rows, by, arm)
    if callable(other):
        other = other(rows)
    if isinstance(other, Real):
        if ours.empty:
            return None
        text, mean, low, high = (_exactly if says.exact else _share if ours.dtype == bool else _mean)(ours, sign)
        return _Found(f"{what} {text}".strip(), sign * (mean - float(other)), read(low, high, float(other), sign))
    theirs = _figures(says, rows, by, other)
    common = ours.index.intersection(theirs.index)
    if not len(common):
        return None
    if ours.dtype == theirs.dtype == bool:
        text, mean, low, high = _more_often(ours[common], theirs[common])
        return _Found(f"{what} {text}".strip(), sign * (mean - 0.5), read(low, high, 0.5, sign))
    text, mean, low, high = _difference(ours[common], theirs[common], sign)
    return _Found(f"{what} {text}".strip(), mean - says.by, read(low, high, says.by))


def interval(values: Any) -> tuple[float, float, float]:
    """Mean and Student's interval; the interval is everything where there are fewer than two values."""
    from scipy.stats import t

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n, mean = len(values), float(values.mean()) if len(values) else float("nan")
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def share(hits: Any) -> tuple[float, float]:
    """The exact interval of the share of hits; everything where there is none."""
    from scipy.stats import binomtest

    hits = np.asarray(hits, bool)
    if not len(hits):
        return 0.0, 1.0
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL)
    return float(found.low), float(found.high)


def read(low: float, high: float, margin: float = 0.0, sign: int = 1) -> bool | None:
    """Whether an interval lies above a margin (below, where the sign is -1); ``None`` where the margin is in it."""
    found = True if low > margin else False if high < margin else None
    return found if sign > 0 or found is None else not found


def _figures(says: Says, rows: pd.DataFrame, by: Sequence[str], arm: Any) -> pd.Series:
    """The claim's figure of an arm by seed; answers of yes or no by run."""
    own = rows
    if arm is not None:
        values = arm if isinstance(arm, tuple) else (arm,)
        own = rows[np.logical_and.reduce([rows[name] == value for name, value in zip(by, values, strict=False)])]
    if own.empty or (isinstance(says.figure, str) and says.figure not in own):
        return pd.Series(dtype=float)
    found = own[says.figure] if isinstance(says.figure, str) else says.figure(own)
    if found.index.name != "seed":
        found = found.set_axis(own.loc[found.index, "seed"])
    return found if found.dtype == bool else found.dropna().astype(float).groupby(level=0).mean()


def _mean(values: pd.Series, sign: int) -> tuple[str, float, float, float]:
    mean, low, high = interval(values)
    return f"{mean:.3g} ({_between(low, high)}, {_seeds(values)}).", mean, low, high


def _exactly(values: pd.Series, sign: int) -> tuple[str, float, float, float]:
    worst = float(values.min() if sign > 0 else values.max())
    return f"at {'least' if sign > 0 else 'most'} {worst:.5g}.", worst, worst, worst


def _share(hits: pd.Series, sign: int) -> tuple[str, float, float, float]:
    low, high = share(hits)
    return f"{hits.sum()} of {len(hits)} ({_between(low, high)} of the share).", float(hits.mean()), low, high


def _difference(ours: pd.Series, theirs: pd.Series, sign: int) -> tuple[str, float, float, float]:
    mean, low, high = interval(sign * (ours - theirs))
    words = f"{ours.mean():.3g} against {theirs.mean():.3g}; {'higher' if sign > 0 else 'lower'} by {mean:.3g}"
    return f"{words} ({_between(low, high)}, {_seeds(ours)}).", mean, low, high


def _more_often(ours: pd.Series, theirs: pd.Series) -> tuple[str, float, float, float]:
    differ = ours[ours != theirs]
    low, high = share(differ)
    words = f"{ours.sum()} of {len(ours)} seeds against {theirs.sum()}; of {len(differ)} that differ {differ.sum()}"
    return f"{words} ({_between(low, high)} of the share).", float(differ.mean()) if len(differ) else 0.5, low, high


def _seeds(values: pd.Series) -> str:
    return f"{len(values)} {'seed' if len(values) == 1 else 'seeds'}"


def _between(low: float, high: float) -> str:
    return f"95 % interval {low:.3g} to {high:.3g}"


def _named(arm: Any) -> str:
    return ", ".join(map(str, arm)) if isinstance(arm, tuple) else str(arm)
