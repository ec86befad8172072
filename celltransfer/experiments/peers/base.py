"""What the adapters share: what a peer says about itself, what it is given, and how matched cells become a translation.

A peer that matches cells, and has no map for new ones, is given the source side of the test cells in its fit, which
our own methods never are. It sees at most so many cells a side: the anchors, then the test cells, then others at
random; a test cell that is left over takes the mean of the nearest cells that were matched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, util
from typing import TYPE_CHECKING, Any, ClassVar

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from celltransfer.data.pair import Matrix, dense
from celltransfer.pp import Recipe
from celltransfer.pp.transforms import CLR, LogNormalize, TfIdf

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.pp.transforms import Normalizer
    from celltransfer.train.stopping import Clock

Translated = tuple[np.ndarray, "pd.Index[str]"]

# Cells whose mean stands for a cell: nearest targets in a joint embedding, nearest matched cells for one left over.
N_NEAREST = 10
_KINDS: dict[type[Normalizer], str] = {LogNormalize: "rna", TfIdf: "atac", CLR: "protein"}


class Peer(ABC):
    """One method of others, as this benchmark runs it.

    Attributes
    ----------
    title, reference, package, licence
        Name, publication, distribution that is installed, and its licence.
    modules
        What must be importable.
    transductive
        The source side of the test cells is part of the fit.
    uses_anchors
        Whether it can make use of pairs.
    needs, given
        What data it needs; what it was given, at which settings.
    kinds
        Kinds of source and target it is made for; empty: any.
    min_anchors
        Fewer pairs do not do.
    """

    title: ClassVar[str]
    reference: ClassVar[str]
    package: ClassVar[str]
    licence: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    transductive: ClassVar[bool] = False
    uses_anchors: ClassVar[bool] = True
    needs: ClassVar[str]
    given: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ()
    min_anchors: ClassVar[int] = 0

    def missing(self) -> str | None:
        """Why it cannot run here, or ``None``."""
        absent = [name for name in self.modules if util.find_spec(name) is None]
        if absent:
            return f"{self.package} is not installed: pip install celltransfer[peers]"
        return None

    def applies(self, task: Task) -> str | None:
        """Why it cannot do this task, or ``None``."""
        found = kind(task, task.source), kind(task, task.target)
        if self.kinds and found != self.kinds:
            return f"it translates {' to '.join(self.kinds)} counts; here they are {' and '.join(found)}"
        if len(task.anchors) < self.min_anchors:
            return f"it needs at least {self.min_anchors} pairs; there are {len(task.anchors)}"
        return None

    def versions(self) -> str:
        """Distribution and its version."""
        try:
            return f"{self.package} {metadata.version(self.package)}"
        except metadata.PackageNotFoundError:
            return f"{self.package} not installed"

    @abstractmethod
    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Translated test cells on the normalised scale, and the names of their features."""


@contextmanager
def lent_to_numpy(**names: Any) -> Iterator[None]:
    """Give numpy names back that it has dropped and a peer still uses, for as long as the peer runs."""
    new = {name: value for name, value in names.items() if not hasattr(np, name)}
    for name, value in new.items():
        setattr(np, name, value)
    try:
        yield
    finally:
        for name in new:
            delattr(np, name)


def kind(task: Task, modality: str) -> str:
    """Which counts a modality holds, by how the scorer normalises it: rna, atac or protein; none for other values."""
    return _KINDS.get(type(task.normalizers[modality]()), "none")


def recipe(task: Task, modality: str) -> Recipe:
    """Default features of a modality, as for our own methods, fitted on the task's training cells."""
    return Recipe(kind(task, modality)).fit(task.mdata.mod[modality])


def anchor_rows(task: Task) -> np.ndarray:
    """Rows of the anchors among the source and the target cells of ``task.mdata``, shape (k, 2)."""
    columns = (task.source, "source_id"), (task.target, "target_id")
    return np.column_stack([task.mdata.mod[name].obs_names.get_indexer(task.anchors[ids]) for name, ids in columns])


def nearest_mean(queries: np.ndarray, cells: np.ndarray, values: Matrix) -> np.ndarray:
    """Mean value of the nearest cells of each query, shape (n, p)."""
    rows = NearestNeighbors(n_neighbors=min(N_NEAREST, len(cells))).fit(cells).kneighbors(queries)[1]
    weights = sp.lil_matrix((len(queries), len(cells)))
    weights[np.arange(len(queries))[:, None], rows] = 1 / rows.shape[1]
    return _weighted(weights.tocsr(), values)


def _weighted(weights: Matrix, values: Matrix) -> np.ndarray:
    """Products (n, m) x (m, p), dense float32."""
    product: Any = weights @ values
    return np.asarray(product if isinstance(product, np.ndarray) else product.toarray(), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Matching:
    """Cells to be matched.

    Attributes
    ----------
    task
        The problem.
    source, target
        The cells of either side, anchors first and in the same order.
    n_anchors
        Number of anchors, k.
    x, y
        Their features, shapes (n, d) and (m, D), float64.
    """

    task: Task
    source: AnnData
    target: AnnData
    n_anchors: int
    x: np.ndarray
    y: np.ndarray
    recipe_x: Recipe

    @classmethod
    def of(cls, task: Task, max_cells: int, seed: int) -> Matching:
        """Draw the cells; see the module."""
        rng = np.random.default_rng(seed)
        rows = anchor_rows(task)
        cells, target = task.mdata.mod[task.source], task.mdata.mod[task.target]
        new = task.source_test[~task.source_test.obs_names.isin(cells.obs_names)]
        pool = ad.concat([cells, new], merge="same") if new.n_obs else cells
        test = rng.permutation(pool.obs_names.get_indexer(task.source_test.obs_names))
        source = pool[_drawn(rows[:, 0], test, pool.n_obs, max_cells, rng)].copy()
        target = target[_drawn(rows[:, 1], rows[:0, 1], target.n_obs, max_cells, rng)].copy()
        recipe_x, recipe_y = recipe(task, task.source), recipe(task, task.target)
        x, y = (dense(own.transform(side)).astype(np.float64) for own, side in ((recipe_x, source), (recipe_y, target)))
        return cls(task, source, target, min(len(rows), max_cells), x, y, recipe_x)

    @cached_property
    def values(self) -> Matrix:
        """The target cells on the scorer's normalised scale, shape (m, p)."""
        return self.task.normalizer.transform(self.target.X)

    def project(self, plan: np.ndarray) -> Translated:
        """The test cells' barycentric targets under a plan, shape (n, m)."""
        mass = plan.sum(axis=1, keepdims=True)
        weights = np.where(mass > 0, plan / np.where(mass > 0, mass, 1), 1 / plan.shape[1])
        return self.extend(_weighted(weights, self.values))

    def extend(self, translated: np.ndarray) -> Translated:
        """The test cells' rows of translated source cells, shape (n, p)."""
        test = self.task.source_test
        rows = self.source.obs_names.get_indexer(test.obs_names)
        out = translated[rows]
        left = np.flatnonzero(rows < 0)
        if len(left):
            out[left] = nearest_mean(dense(self.recipe_x.transform(test[left])), self.x, translated)
        return out, self.task.truth.var_names


def _drawn(first: np.ndarray, then: np.ndarray, n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows `first`, then those of `then`, then others at random, up to `size`."""
    rest = rng.permutation(np.setdiff1d(np.arange(n), np.concatenate([first, then])))
    return np.concatenate([first, np.setdiff1d(then, first, assume_unique=True), rest])[:size].astype(np.int64)
