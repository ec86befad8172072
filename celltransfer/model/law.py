"""What a model knows of the translated cell beyond its mean: spread, intervals, draws, densities, and their check."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from celltransfer.data import cells
from celltransfer.data.pair import dense
from celltransfer.errors import CelltransferWarning, ConfigError, ModalityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.data.pair import Matrix
    from celltransfer.model.model import TransferModel
    from celltransfer.pp import Recipe
    from celltransfer.translators.conditional import ConditionalTranslator

# Left-out anchors from which intervals are corrected: with 10, a conformal quantile knows steps of 1/11 only.
MIN_ANCHORS = 50
# Probabilities at which the quantiles of standardised errors are kept.
GRID = np.linspace(0.005, 0.995, 199)
# Training cells from which the spread outside the components is estimated.
NOISE_CELLS = 2000
LEVELS = (0.5, 0.8, 0.95)


@dataclass
class Calibration:
    """How wide the stated spread is, as found on anchors that the fit had not seen.

    In the features that the translator works in: components of the target, or its features where the recipe does not
    reduce them. Single genes or peaks, most of whose values are zero, would calibrate the zeros and nothing else.

    Attributes
    ----------
    n_anchors
        Left-out anchors it rests on; 0 where none were left out.
    ratio
        Root mean square of their standardised errors: 1 where standard deviations are right, more where too small.
    quantiles
        Quantiles of their absolute standardised errors at `GRID`, over anchors and features, shape (199,).
    noise
        Variance by feature, on the normalised scale, of what the target recipe's components leave out, shape (p,).
    """

    n_anchors: int = 0
    ratio: float = 1.0
    quantiles: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    noise: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def calibrated(self) -> bool:
        """Whether there were anchors enough to correct the spread."""
        return self.n_anchors >= MIN_ANCHORS

    @property
    def factor(self) -> float:
        """What stated standard deviations are multiplied by."""
        return self.ratio if self.calibrated else 1.0

    def __repr__(self) -> str:
        return f"Calibration(n_anchors={self.n_anchors}, ratio={self.ratio:.3g}, calibrated={self.calibrated})"

    def multiplier(self, level: float) -> float:
        """Half-width of the interval of a level, in uncorrected standard deviations.

        From 50 anchors on, the quantile of their errors at level (1 + 1 / k), as in conformal prediction; the normal
        law's below.

        Raises
        ------
        ConfigError
            The level is no share, or higher than so many anchors can tell.
        """
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
            raise ConfigError(f"level={level!r}; expected a share between 0 and 1, such as 0.8.")
        if not self.calibrated:
            return float(norm.ppf((1 + level) / 2))
        highest = GRID[-1] / (1 + 1 / self.n_anchors)
        if level > highest:
            raise ConfigError(f"level={level}; {self.n_anchors} anchors tell levels up to {highest:.3f}.")
        return float(np.interp(level * (1 + 1 / self.n_anchors), GRID, self.quantiles))

    def describe(self) -> str:
        """One sentence for reports and provenance."""
        if self.calibrated:
            return (
                f"Standard deviations are calibrated on {self.n_anchors} left-out anchors, whose errors were "
                f"{self.ratio:.2f} times as large as stated before."
            )
        found = f" (the errors of {self.n_anchors} were {self.ratio:.2f} times as large)" if self.n_anchors else ""
        return f"Standard deviations are not calibrated: that takes {MIN_ANCHORS} left-out anchors{found}."


class ConditionalLaw:
    """The conditional law of the target given source cells, on AnnData; ``model.law``.

    Values are on the target's normalised scale, features those of ``model.recipes[model.target].feature_names_``.

    Parameters
    ----------
    model
        A fitted model whose method gives a law (``"ieot"``, ``"ieot_energy"``).

    Raises
    ------
    ConfigError
        The method gives a mean only.
    """

    def __init__(self, model: TransferModel) -> None:
        if not model.translator.gives_distribution:
            raise ConfigError(
                f"method={model.method!r} translates each cell to one value; for standard deviations, draws and "
                'densities fit method="ieot".'
            )
        self.model = model
        self.translator: Any = model.translator

    def __repr__(self) -> str:
        return f"ConditionalLaw({self.model.source} -> {self.model.target}, method={self.model.method!r})"

    def mean(self, data: MuData | AnnData, *, features: Sequence[str] | None = None) -> np.ndarray:
        """The translation, shape (cells, p), float32: ``X`` of what `translate` writes."""
        x, codes = self._inputs(data)
        return self._target.inverse_transform(self.translator.translate(x, codes), self.model.columns(features))

    def std(self, data: MuData | AnnData, *, features: Sequence[str] | None = None) -> np.ndarray:
        """Standard deviation of each feature given each source cell, shape (cells, p), float32.

        With what the recipe's components leave out: it is that of a measured cell about its translation. The law's part
        is corrected by left-out anchors if there were at least 50 (`Calibration`).
        """
        x, codes = self._inputs(data)
        return self.spread(x, codes, self.model.columns(features))

    def interval(self, data: MuData | AnnData, level: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds that hold a share `level` of measured values, float32.

        Over cells and features together, not for each feature alone. Where the target's recipe does not reduce
        features (proteins, methylation), they are on the normalised scale, shape (cells, p). Otherwise they are of
        components, as ``obsm["X_translated"]``, shape (cells, d): the recipe's ``transform`` takes measured cells
        there. Single genes or peaks, most of whose values are zero, have no interval worth the name. Warns where they
        are not calibrated.
        """
        multiplier = self._multipliers([level])[0]
        x, codes = self._inputs(data)
        mean, half = self.translator.translate(x, codes), multiplier * self.translator.std(x, codes)
        low, high = (mean - half).astype(np.float32), (mean + half).astype(np.float32)
        if self._target.reduces:
            return low, high
        return self._target.inverse_transform(low), self._target.inverse_transform(high)

    def sample(
        self, data: MuData | AnnData, n: int = 1, *, features: Sequence[str] | None = None, seed: int = 0
    ) -> np.ndarray:
        """Draw `n` target cells for each source cell, shape (n, cells, p), float32.

        Deviations from the mean are corrected as in `std`. What the recipe's components leave out, mostly counting
        noise, is not drawn: a draw is an expected profile, and varies less than `std`, which is of a measured cell.
        """
        x, codes = self._inputs(data)
        columns, factor = self.model.columns(features), np.float32(self.model.calibration_.factor)
        mean = self.translator.translate(x, codes)
        drawn = mean + factor * (self.translator.sample(x, n, codes, seed=seed) - mean)
        return np.stack([self._target.inverse_transform(one, columns) for one in drawn])

    def log_prob(self, source: MuData | AnnData, target: AnnData | None = None) -> np.ndarray:
        """Log density of target cells given source cells, shape (cells,), in nats, in the target recipe's features.

        Not corrected by left-out anchors.

        Parameters
        ----------
        source
            Source cells; or a MuData whose cells have both modalities.
        target
            The target side of the same cells, row by row; ``None`` with a MuData.

        Raises
        ------
        ModalityError
            Rows are no partners: the numbers differ, or the barcodes are the same in another order.
        """
        if not hasattr(self.translator, "log_prob"):
            raise ConfigError(f"method={self.model.method!r} draws cells but knows no density; method='ieot' does.")
        x, codes, partners = self._partners(source, target)
        return self.translator.log_prob(x, self._target.transform(partners), codes)

    def responsibilities(self, data: MuData | AnnData) -> np.ndarray:
        """Weight of each component of the law of each cell, shape (cells, M, N); method="ieot" only."""
        if not hasattr(self.translator, "responsibilities"):
            raise ConfigError(f"method={self.model.method!r} is no mixture; method='ieot' is.")
        return self.translator.responsibilities(*self._inputs(data))

    def coverage(
        self, source: MuData | AnnData, target: AnnData | None = None, levels: Sequence[float] = LEVELS
    ) -> dict[float, float]:
        """Share of measured values that `interval` holds, by level; source and target as in `log_prob`.

        It checks the width, not the translation: a law that says nothing of the source covers as well, with wider
        intervals. Warns where they are not calibrated.
        """
        if isinstance(levels, int | float):
            raise ConfigError(f"levels={levels!r}; expected a list of levels, [{levels!r}].")
        bounds = np.array(self._multipliers(levels))
        errors = self.standardised_errors(*self._partners(source, target))
        return {level: float((errors <= bound).mean()) for level, bound in zip(levels, bounds, strict=True)}

    def confidence(self, x: Matrix, codes: np.ndarray | None) -> np.ndarray:
        """Share of the target's variance that the law of each cell resolves, shape (cells,), 0 to 1."""
        variance = np.square(self.translator.std(x, codes) * self.model.calibration_.factor).sum(axis=1)
        whole = float(np.var(self.model.reference, axis=0).sum())
        return np.clip(1 - variance / max(whole, 1e-12), 0, 1).astype(np.float32)

    def spread(self, x: Matrix, codes: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
        """Standard deviations of some features, shape (cells, len(columns)), float32; see `std`."""
        out = np.empty((x.shape[0], len(columns)), dtype=np.float32)
        noise = self._noise(columns)
        factor = np.float32(self.model.calibration_.factor**2)
        for rows, block in self._covariances(x, codes):
            np.sqrt(factor * self._target.inverse_variance(block, columns) + noise, out=out[rows])
        return out

    def standardised_errors(
        self, x: Matrix, codes: np.ndarray | None, target: AnnData, translator: Any = None
    ) -> np.ndarray:
        """Absolute errors over uncorrected standard deviations, shape (cells, d'): features that vary in training."""
        translator = translator or self.translator
        truth = dense(self._target.transform(target))
        varies = np.ptp(self.model.reference, axis=0) > 0
        sd = np.maximum(translator.std(x, codes), 1e-12)
        return (np.abs(truth - translator.translate(x, codes)) / sd)[:, varies]

    @property
    def _target(self) -> Recipe:
        return self.model.recipes[self.model.target]

    def _noise(self, columns: np.ndarray) -> np.ndarray:
        noise = self.model.calibration_.noise
        return noise[columns] if len(noise) else np.zeros(len(columns), np.float32)

    def _multipliers(self, levels: Sequence[float]) -> list[float]:
        calibration = self.model.calibration_
        found = [calibration.multiplier(level) for level in levels]
        if not calibration.calibrated:
            warnings.warn(calibration.describe(), CelltransferWarning, stacklevel=3)
        return found

    def _partners(self, source: MuData | AnnData, target: AnnData | None) -> tuple[Any, np.ndarray | None, AnnData]:
        """Features and codes of source cells, and their partners row by row."""
        from anndata import AnnData

        adata, mdata = self._source(source)
        if target is None:
            if mdata is None:
                raise ModalityError("Pass the target side of the cells as well, or a MuData that has both modalities.")
            rows = cells.coassayed(mdata, self.model.source, self.model.target)
            if len(rows) != adata.n_obs:
                raise ModalityError(f"{len(rows)} of {adata.n_obs} source cells have a partner; select those first.")
            target = mdata.mod[self.model.target][rows[np.argsort(rows[:, 0]), 1]]
        if not isinstance(target, AnnData):
            raise ModalityError(
                f"target is a {type(target).__name__}; pass the AnnData of {self.model.target!r} alone."
            )
        if target.n_obs != adata.n_obs:
            raise ModalityError(f"There are {adata.n_obs} source and {target.n_obs} target cells; rows are partners.")
        apart = adata.obs_names != target.obs_names
        if apart.any() and target.obs_names[apart].isin(adata.obs_names).any():
            raise ModalityError(
                f"{int(apart.sum())} rows of source and target have different barcodes that occur in both: bring them "
                "into one order, target[source.obs_names], or give partners the same row."
            )
        return *self.model.inputs(adata, mdata), target

    def _covariances(self, x: Matrix, codes: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
        """Covariances (block, d, d) of a block of cells at a time; variances (cells, d) where nothing is reduced."""
        if not self._target.reduces:
            yield slice(0, x.shape[0]), np.square(self.translator.std(x, codes))
            return
        start = 0
        for block in self.translator.covariance_blocks(x, codes):
            yield slice(start, start + len(block)), block
            start += len(block)

    def _inputs(self, data: MuData | AnnData) -> tuple[Any, np.ndarray | None]:
        return self.model.inputs(*self._source(data))

    def _source(self, data: MuData | AnnData) -> tuple[AnnData, MuData | None]:
        from anndata import AnnData

        if isinstance(data, AnnData):
            return data, None
        return cells.check_modality(data, self.model.source), data


def outside_noise(recipe: Recipe, adata: AnnData, seed: int) -> np.ndarray:
    """Variance by feature of what the components of a recipe leave out of its training cells, shape (p,), float32."""
    n = adata.n_obs
    rows = np.sort(np.random.default_rng(seed).choice(n, size=min(n, NOISE_CELLS), replace=False))
    some = adata[rows]
    z, y = recipe.transform(some), recipe.normalize(some)
    total, squares = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for start in range(0, len(rows), 256):
        block = slice(start, start + 256)
        gap = dense(y[block]) - recipe.inverse_transform(z[block])
        total += gap.sum(axis=0)
        squares += np.square(gap).sum(axis=0)
    return np.maximum(squares / len(rows) - (total / len(rows)) ** 2, 0).astype(np.float32)


def calibrate(
    model: TransferModel,
    refits: Sequence[tuple[ConditionalTranslator, np.ndarray]],
    features: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None, AnnData]],
) -> Calibration:
    """Compare the stated spread with the errors of anchors that a refit had not seen.

    Parameters
    ----------
    model
        The fitted model; its calibration holds the noise outside the components.
    refits
        Fits of the same method, and the anchors each was fitted without, as positions.
    features
        Source features, condition codes and target cells of some anchors.
    """
    law, errors, held = model.law, [], 0
    for translator, anchors in refits:
        errors.append(law.standardised_errors(*features(anchors), translator).ravel())
        held += len(anchors)
    pooled = np.concatenate(errors)
    ratio = float(np.sqrt(np.mean(np.square(pooled, dtype=np.float64))))
    quantiles = np.quantile(pooled, GRID).astype(np.float32)
    return Calibration(held, ratio, quantiles, model.calibration_.noise)
