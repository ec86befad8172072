"""What the values of a matrix must be, and messages that name the first cell that breaks the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp

from celltransfer.errors import CountsError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from celltransfer.data.pair import Matrix

Scale = Literal["counts", "fractions", "real"]

# float32 holds whole numbers up to 2**24 exactly; the tolerance forgives counts restored from normalised values.
_WHOLE = 1e-3


@dataclass(frozen=True)
class Rule:
    """One thing that values must not be."""

    broken: Callable[[np.ndarray], np.ndarray]
    expected: str
    fix: str


_FINITE = Rule(lambda v: ~np.isfinite(v), "finite values", "Remove or impute these values, or leave the cells out.")
_USE_COUNTS = (
    "If these are normalised or log-transformed values, point at the raw counts with `layer=...`, or keep the values "
    "as they are with the recipe 'none'; round counts that an ambient-RNA correction left fractional."
)
_RULES: dict[Scale, tuple[Rule, ...]] = {
    "counts": (
        _FINITE,
        Rule(lambda v: v < 0, "raw counts (0, 1, 2, ...)", _USE_COUNTS),
        Rule(lambda v: np.abs(v - np.rint(v)) > _WHOLE, "raw counts (0, 1, 2, ...)", _USE_COUNTS),
    ),
    "fractions": (
        _FINITE,
        Rule(
            lambda v: (v < 0) | (v > 1),
            "binary or beta values between 0 and 1",
            "Divide percentages by 100; take the recipe 'none' with `whiten=True` for M values.",
        ),
    ),
    "real": (_FINITE,),
}


def check_values(x: Matrix, scale: Scale, slot: str, cells: pd.Index, features: pd.Index) -> None:
    """Raise where `x`, shape (n, p), is not on `scale`, naming the first offending cell and feature.

    Raises
    ------
    CountsError
        Counts are needed and a value is negative, fractional or not finite.
    InputError
        Any other scale is broken.
    """
    values = x.data if sp.issparse(x) else np.ravel(x)
    for rule in _RULES[scale]:
        wrong = np.flatnonzero(rule.broken(values))
        if wrong.size:
            error = CountsError if scale == "counts" else InputError
            row, column = _position(x, wrong[0])
            raise error(
                f"`{slot}` holds {values[wrong[0]]:.6g} for cell {str(cells[row])!r}, "
                f"feature {str(features[column])!r}; expected {rule.expected}. {rule.fix}"
            )


def _position(x: Matrix, index: int) -> tuple[int, int]:
    """Row and column of the stored value number `index`."""
    if sp.issparse(x):
        return int(np.searchsorted(x.indptr, index, side="right") - 1), int(x.indices[index])
    row, column = divmod(int(index), x.shape[1])
    return row, column
