"""ModalityPair: what a translator is trained on. Arrays only; no AnnData below this line."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from celltransfer.errors import AnchorError, InputError

Matrix = np.ndarray | sp.csr_matrix | sp.csr_array


@dataclass(frozen=True, eq=False)
class ModalityPair:
    """Unpaired source and target cells, and the few anchors that link them.

    Attributes
    ----------
    x
        Source cells, shape (n_source, d). Dense float32 or CSR.
    y
        Target cells, shape (n_target, D). Row i of `x` and row i of `y` are unrelated.
    anchors
        Row pairs (i, j): row i of `x` and row j of `y` are the same cell. Shape (k, 2), int64.
    condition_x, condition_y
        Condition codes of the source and target cells, shapes (n_source,) and (n_target,), or ``None``.
        Code c means ``conditions[c]`` on both sides.
    conditions
        Names of the conditions.
    x_names, y_names
        Feature names, for messages and plots only.
    links
        What feature links alone say of the map, shape (d, D), or ``None``: a source cell that lies u from the mean
        source cell belongs to a target cell that lies about ``u @ links`` from the mean target cell.
        See `celltransfer.pp.links`.
    shared
        Whether source and target have the same features, on the same scale.
    attribute_x, attribute_y
        Codes of an attribute that is meant to change, shapes (n_source,) and (n_target,), -1 where it is not known; or
        ``None``.
    """

    x: Matrix
    y: Matrix
    anchors: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    condition_x: np.ndarray | None = None
    condition_y: np.ndarray | None = None
    conditions: tuple[str, ...] = ()
    x_names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ()
    links: Matrix | None = None
    shared: bool = False
    attribute_x: np.ndarray | None = None
    attribute_y: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _matrix(self.x, "source"))
        object.__setattr__(self, "y", _matrix(self.y, "target"))
        object.__setattr__(self, "anchors", _anchor_rows(self.anchors, self.x.shape[0], self.y.shape[0]))
        for name, codes, n in (
            ("source", self.condition_x, self.n_source),
            ("target", self.condition_y, self.n_target),
        ):
            if codes is not None and np.shape(codes) != (n,):
                raise InputError(f"The {name} condition codes have shape {np.shape(codes)}; expected ({n},).")
        if (self.condition_x is None) != (self.condition_y is None):
            raise InputError("Condition codes are given for one modality only; give them for both or for none.")
        if self.links is not None:
            object.__setattr__(self, "links", _matrix(self.links, "linked"))
            expected = self.x.shape[1], self.y.shape[1]
            if self.links.shape != expected:
                raise InputError(
                    f"The links have shape {self.links.shape}; expected {expected}, source by target features."
                )

    @property
    def n_source(self) -> int:
        """Number of source cells."""
        return int(self.x.shape[0])

    @property
    def n_target(self) -> int:
        """Number of target cells."""
        return int(self.y.shape[0])

    @property
    def shared_conditions(self) -> np.ndarray:
        """Codes of the conditions that both modalities have, sorted; none without conditions."""
        if self.condition_x is None or self.condition_y is None:
            return np.empty(0, dtype=np.int64)
        return np.intersect1d(self.condition_x, self.condition_y)

    @property
    def n_anchors(self) -> int:
        """Number of anchor pairs."""
        return len(self.anchors)

    @property
    def anchor_x(self) -> np.ndarray:
        """Source side of the anchors, dense, shape (k, d)."""
        return dense(self.x[self.anchors[:, 0]])

    @property
    def anchor_y(self) -> np.ndarray:
        """Target side of the anchors, dense, shape (k, D)."""
        return dense(self.y[self.anchors[:, 1]])


def dense(matrix: Matrix) -> np.ndarray:
    """Return `matrix` as a dense float32 array (no copy where it already is one)."""
    full = matrix.toarray() if sp.issparse(matrix) else matrix
    return np.asarray(full, dtype=np.float32)


def _matrix(values: Matrix, side: str) -> Matrix:
    """Dense float32 or CSR float32, finite, two-dimensional and not empty."""
    matrix: Matrix = sp.csr_matrix(values, dtype=np.float32) if sp.issparse(values) else np.asarray(values, np.float32)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"The {side} features have shape {matrix.shape}; expected (cells, features), none of them 0.")
    data = matrix.data if sp.issparse(matrix) else matrix
    if not np.isfinite(data).all():
        rows = np.flatnonzero(~np.isfinite(dense(matrix)).all(axis=1))
        raise InputError(
            f"The {side} features hold NaN or infinite values in {len(rows)} cells, the first at row {rows[0]}."
        )
    return matrix


def _anchor_rows(anchors: np.ndarray, n_source: int, n_target: int) -> np.ndarray:
    rows = np.asarray(anchors, dtype=np.int64).reshape(-1, 2) if np.size(anchors) else np.empty((0, 2), np.int64)
    for column, (side, n) in enumerate((("source", n_source), ("target", n_target))):
        used = rows[:, column]
        if len(used) and (used.min() < 0 or used.max() >= n):
            raise AnchorError(f"Anchors point at {side} row {int(used.max())}, and there are {n} {side} cells.")
        if len(np.unique(used)) != len(used):
            raise AnchorError(f"A {side} cell occurs in more than one anchor pair; every cell has one partner at most.")
    return rows
