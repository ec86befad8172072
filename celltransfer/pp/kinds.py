"""What the recipe of each kind of modality is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from celltransfer.errors import ConfigError
from celltransfer.pp.transforms import CLR, SVD, Identity, Latent, LogNormalize, Normalizer, Standardize, TfIdf, totals

if TYPE_CHECKING:
    from celltransfer.data.pair import Matrix
    from celltransfer.pp.checks import Scale

Components = int | Literal["auto"] | None

# Up to so many features, a modality is left unreduced by ``n_components="auto"``.
FEW_FEATURES = 50


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """Options of a recipe, and the steps they amount to.

    Attributes
    ----------
    n_components
        Components of the reduction; ``None``: no reduction; ``"auto"``: 50, and none with up to 50 features.
    whiten
        Standardise components, or features where there is no reduction.
    """

    n_components: Components = None
    whiten: bool = False

    scale_: ClassVar[Scale] = "real"
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    sparse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count = self.n_components
        if not (count in (None, "auto") or (isinstance(count, int) and count > 0)):
            raise ConfigError(f"n_components={count!r}; expected a positive integer, 'auto' or None.")

    @abstractmethod
    def normalizer(self) -> Normalizer:
        """The unfitted first step."""

    def select(self, y: Matrix) -> np.ndarray:
        """Sorted numbers of the features to keep, from normalised training cells, shape (n, p)."""
        return np.arange(y.shape[1])

    def latent(self, n_features: int, seed: int) -> list[Latent]:
        """The unfitted steps that follow normalisation and selection."""
        count: int | None = self.n_components if isinstance(self.n_components, int) else None
        if self.n_components == "auto" and n_features > FEW_FEATURES:
            count = FEW_FEATURES
        steps: list[Latent] = [] if count is None else [self._reduction(count, seed)]
        if self.whiten:
            steps.append(Standardize(center=bool(steps) or not self.sparse))
        return steps

    def _reduction(self, n_components: int, seed: int) -> Latent:
        return SVD(n_components, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Counted(Kind):
    """Counts of many features, of which few are seen in a cell."""

    n_top_features: int | None = None
    n_components: Components = 50
    whiten: bool = False

    scale_: ClassVar[Scale] = "counts"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    sparse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_top_features is not None and self.n_top_features < 1:
            raise ConfigError(f"n_top_features={self.n_top_features!r}; expected a positive integer or None for all.")

    def select(self, y: Matrix) -> np.ndarray:
        seen = np.flatnonzero(totals(y, axis=0) > 0)
        if self.n_top_features is None or self.n_top_features >= len(seen):
            return seen
        return seen[self._top(y[:, seen], self.n_top_features)]

    @abstractmethod
    def _top(self, y: Matrix, n: int) -> np.ndarray:
        """Sorted numbers of the n best columns."""


@dataclass(frozen=True, kw_only=True)
class Rna(_Counted):
    """Options of `celltransfer.pp.rna`."""

    n_top_features: int | None = 2000
    target_sum: float = 1e4
    scale: bool = False

    def normalizer(self) -> Normalizer:
        """The unfitted first step."""
        return LogNormalize(self.target_sum)

    def _top(self, y: Matrix, n: int) -> np.ndarray:
        import scanpy as sc
        from anndata import AnnData

        table = sc.pp.highly_variable_genes(AnnData(y), n_top_genes=n, flavor="seurat", inplace=False)
        return np.flatnonzero(table["highly_variable"].to_numpy())

    def _reduction(self, n_components: int, seed: int) -> Latent:
        return SVD(n_components, scale=self.scale, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Atac(_Counted):
    """Options of `celltransfer.pp.atac`."""

    flavor: Literal["muon", "signac"] = "muon"
    binarize: bool = False
    scale_factor: float = 1e4
    depth_threshold: float | None = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flavor not in ("muon", "signac"):
            raise ConfigError(f"flavor={self.flavor!r}; expected 'muon' or 'signac'.")

    def normalizer(self) -> Normalizer:
        """The unfitted first step."""
        return TfIdf(self.flavor, self.scale_factor, self.binarize)

    def _top(self, y: Matrix, n: int) -> np.ndarray:
        cells = totals((y > 0).astype(np.float32), axis=0)
        return np.sort(np.argsort(-cells, kind="stable")[:n])

    def _reduction(self, n_components: int, seed: int) -> Latent:
        return SVD(n_components, center=False, depth_threshold=self.depth_threshold, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Protein(Kind):
    """Options of `celltransfer.pp.protein`."""

    n_components: Components = "auto"
    whiten: bool = False
    axis: Literal["cell", "feature"] = "cell"

    scale_: ClassVar[Scale] = "counts"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("cell", "feature"):
            raise ConfigError(f"axis={self.axis!r}; expected 'cell' or 'feature'.")

    def normalizer(self) -> Normalizer:
        """The unfitted first step."""
        return CLR(self.axis)


@dataclass(frozen=True, kw_only=True)
class Methylation(Kind):
    """Options of `celltransfer.pp.methylation`."""

    n_components: Components = "auto"
    whiten: bool = False

    scale_: ClassVar[Scale] = "fractions"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def normalizer(self) -> Normalizer:
        """The unfitted first step."""
        return Identity()


@dataclass(frozen=True, kw_only=True)
class AsIs(Kind):
    """Options of `celltransfer.pp.none`."""

    def normalizer(self) -> Normalizer:
        """The unfitted first step."""
        return Identity()


KINDS: dict[str, type[Kind]] = {
    "rna": Rna,
    "atac": Atac,
    "protein": Protein,
    "methylation": Methylation,
    "none": AsIs,
}
