"""Summaries of rows: one line per arm, with mean and standard deviation over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    # A score, a score and its digits, or what a function makes of the rows of an arm.
    Column = str | tuple[str, int] | Callable[[pd.DataFrame], Any]


def summary(
    rows: pd.DataFrame,
    by: Sequence[str],
    columns: Mapping[str, Column],
    line: Callable[..., str] = lambda *key: str(key[0]),
) -> pd.DataFrame:
    """A line for each group of rows by the columns `by`; `columns` says what stands below a title, `line` its name.

    A score is given as mean and standard deviation over the rows, and left empty where no row has it.
    """
    groups = dict(list(rows.groupby(list(by), sort=False)))
    cells = {title: [_cell(what, group) for group in groups.values()] for title, what in columns.items()}
    return pd.DataFrame(cells, index=pd.Index([line(*key) for key in groups], name=by[0]))


def _cell(what: Column, group: pd.DataFrame) -> Any:
    if callable(what):
        return what(group)
    score, digits = (what, 3) if isinstance(what, str) else what
    return mean_sd(group[score], digits)


def mean_sd(values: pd.Series, digits: int = 3) -> str:
    """Mean and standard deviation over seeds as text; empty where there is no value."""
    if values.isna().all():
        return ""
    spread = values.std(ddof=1) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"


def first(column: str, text: str = "{}") -> Callable[[pd.DataFrame], str]:
    """What all rows of a group have in a column; empty where they have nothing."""

    def cell(group: pd.DataFrame) -> str:
        value = group[column].iloc[0]
        return "" if pd.isna(value) else text.format(value)

    return cell


def times(column: str, value: Any) -> Callable[[pd.DataFrame], str]:
    """How many rows of how many have a value."""
    return lambda group: f"{(group[column] == value).sum()} of {len(group)}"


def listed(column: str) -> Callable[[pd.DataFrame], str]:
    """The words that occur in a column."""
    return lambda group: ", ".join(sorted(set(group[column].dropna())))


def seconds(group: pd.DataFrame) -> str:
    """Mean time of a run."""
    return f"{group['seconds'].mean():.0f}"


def minutes(group: pd.DataFrame) -> str:
    """Mean time of a run."""
    return f"{group['seconds'].mean() / 60:.1f}"
