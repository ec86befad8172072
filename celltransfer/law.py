"""What a model knows of the translated cell beyond its mean: spread, intervals, draws, densities, and their check."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from celltransfer.data import cells
from celltransfer.data.pair import dense
from celltransfer.errors import AnchorError, CelltransferWarning, ConfigError, ModalityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.data.pair import Matrix
    from celltransfer.model import TransferModel
    from celltransfer.pp import Recipe
    from celltransfer.translators.conditional import ConditionalTranslator

# Left-out anchors from which intervals are corrected: with 10, a conformal quantile knows steps of 1/11 only.
MIN_ANCHORS = 50
# Probabilities at which the quantiles of standardised errors are kept.
GRID = np.linspace(0.005, 0.995, 199)
# Training cells from which the spread outside the components is estimated, and covariances held at a time.
NOISE_CELLS, BLOCK_BYTES = 2000, 2**26
LEVELS = (0.5, 0.8, 0.95)


@dataclass
class Calibration:
    """How wide the stated spread is, as found on anchors that the fit had not seen.

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

    def multiplier(self, level: float) -> float:
        """Half-width of the interval of a level, in uncorrected standard deviations.

        From 50 anchors on, the conformal quantile at level (1 + 1 / k); the normal law's below.
        """
        if not self.calibrated:
            return float(norm.ppf((1 + level) / 2))
        return float(np.interp(level * (1 + 1 / self.n_anchors), GRID, self.quantiles))

    def describe(self) -> str:
        """One sentence for reports and provenance."""
        if self.calibrated:
            return (
                f"Calibrated on {self.n_anchors} left-out anchors, whose errors were {self.ratio:.2f} times the stated "
                "standard deviation."
            )
        found = f"; the errors of {self.n_anchors} were {self.ratio:.2f} times as large" if self.n_anchors else ""
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

    def std(self, data: MuData | AnnData, *, features: Sequence[str] | None = None) -> np.ndarray:
        """Standard deviation of each feature given each source cell, shape (cells, p), float32.

        With what the recipe's components leave out: it is that of a measured cell about its translation. Corrected by
        left-out anchors if there were at least 50 (`Calibration`).
        """
        x, codes = self._inputs(data)
        return self.spread(x, codes, self.model.columns(features)) * np.float32(self.model.calibration_.factor)

    def interval(
        self, data: MuData | AnnData, level: float = 0.8, *, features: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds that hold a share `level` of measured values, both (cells, p), float32.

        Over cells and features together, not for each feature alone. Warns where they are not calibrated.
        """
        if not 0 < level < 1:
            raise ConfigError(f"level={level}; expected a share between 0 and 1, such as 0.8.")
        if not self.model.calibration_.calibrated:
            warnings.warn(self.model.calibration_.describe(), CelltransferWarning, stacklevel=2)
        x, codes = self._inputs(data)
        columns = self.model.columns(features)
        half = self.spread(x, codes, columns) * np.float32(self.model.calibration_.multiplier(level))
        mean = self._target.inverse_transform(self.translator.translate(x, codes), columns)
        return mean - half, mean + half

    def sample(
        self, data: MuData | AnnData, n: int = 1, *, features: Sequence[str] | None = None, seed: int = 0
    ) -> np.ndarray:
        """Draw `n` target cells for each source cell, shape (n, cells, p), float32.

        Without the noise that the recipe's components leave out, and without calibration.
        """
        x, codes = self._inputs(data)
        columns = self.model.columns(features)
        drawn = self.translator.sample(x, n, codes, seed=seed)
        return np.stack([self._target.inverse_transform(one, columns) for one in drawn])

    def log_prob(self, source: MuData | AnnData, target: AnnData | None = None) -> np.ndarray:
        """Log density of target cells given source cells, shape (cells,), in nats, in the target recipe's features.

        Parameters
        ----------
        source
            Source cells; or a MuData whose cells have both modalities.
        target
            The target side of the same cells, row by row; ``None`` with a MuData.
        """
        if not hasattr(self.translator, "log_prob"):
            raise ConfigError(f"method={self.model.method!r} draws cells but knows no density; method='ieot' does.")
        adata, mdata = self._source(source)
        if target is None:
            if mdata is None:
                raise ModalityError("Pass the target side of the cells as well, or a MuData that has both modalities.")
            rows = cells.coassayed(mdata, self.model.source, self.model.target)
            if len(rows) != adata.n_obs:
                raise ModalityError(f"{len(rows)} of {adata.n_obs} source cells have a partner; select those first.")
            target = mdata.mod[self.model.target][rows[np.argsort(rows[:, 0]), 1]]
        if target.n_obs != adata.n_obs:
            raise ModalityError(f"There are {adata.n_obs} source and {target.n_obs} target cells; rows are partners.")
        x, codes = self.model.inputs(adata, mdata)
        return self.translator.log_prob(x, self._target.transform(target), codes)

    def responsibilities(self, data: MuData | AnnData) -> np.ndarray:
        """Weight of each component of the law of each cell, shape (cells, M, N); method="ieot" only."""
        if not hasattr(self.translator, "responsibilities"):
            raise ConfigError(f"method={self.model.method!r} is no mixture; method='ieot' is.")
        return self.translator.responsibilities(*self._inputs(data))

    def coverage(
        self, source: MuData | AnnData, target: AnnData, levels: Sequence[float] = LEVELS
    ) -> dict[float, float]:
        """Share of the measured values of `target` that the intervals of `source` hold, by level; rows are partners."""
        x, codes = self._inputs(source)
        calibration = self.model.calibration_
        bounds = np.array([calibration.multiplier(level) for level in levels])
        inside, total = np.zeros(len(bounds)), 0
        for errors in self.standardised_errors(x, codes, target):
            inside += (errors[..., None] <= bounds).sum(axis=(0, 1))
            total += errors.size
        return dict(zip(levels, (inside / max(total, 1)).tolist(), strict=True))

    def confidence(self, x: Matrix, codes: np.ndarray | None) -> np.ndarray:
        """Share of the target's variance that the law of each cell leaves no doubt about, shape (cells,), 0 to 1."""
        variance = np.square(self.translator.std(x, codes)).sum(axis=1)
        whole = float(np.var(self.model.reference, axis=0).sum())
        return np.clip(1 - variance / max(whole, 1e-12), 0, 1).astype(np.float32)

    def spread(self, x: Matrix, codes: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
        """Uncorrected standard deviations of some features, shape (cells, len(columns)), float32."""
        out = np.empty((x.shape[0], len(columns)), dtype=np.float32)
        noise = self._noise(columns)
        for rows, block in self._covariances(x, codes):
            out[rows] = np.sqrt(self._target.inverse_variance(block, columns) + noise)
        return out

    def standardised_errors(
        self, x: Matrix, codes: np.ndarray | None, target: AnnData, translator: Any = None
    ) -> Iterator[np.ndarray]:
        """Absolute errors over uncorrected standard deviations, a block of cells at a time, shape (block, p')."""
        translator = translator or self.translator
        every = np.arange(len(self._target.feature_names_))
        noise = self._noise(every)
        truth = self._target.normalize(target)
        for rows, block in self._covariances(x, codes, translator):
            sd = np.sqrt(self._target.inverse_variance(block, every) + noise)
            own = None if codes is None else codes[rows]
            mean = self._target.inverse_transform(translator.translate(x[rows], own))
            varies = sd.max(axis=0) > 0
            yield np.abs(dense(truth[rows]) - mean)[:, varies] / sd[:, varies]

    @property
    def _target(self) -> Recipe:
        return self.model.recipes[self.model.target]

    def _noise(self, columns: np.ndarray) -> np.ndarray:
        noise = self.model.calibration_.noise
        return noise[columns] if len(noise) else np.zeros(len(columns), np.float32)

    def _covariances(
        self, x: Matrix, codes: np.ndarray | None, translator: ConditionalTranslator | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Covariances (block, d, d) of a block of cells at a time; variances (block, d) where nothing is reduced."""
        law: Any = translator or self.translator
        d = law.n_features_out_
        step = max(
            1, BLOCK_BYTES // (4 * d * (d if self._target.reduces else 1) + 4 * len(self._target.feature_names_))
        )
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            own = None if codes is None else codes[rows]
            yield rows, law.covariance(x[rows], own) if self._target.reduces else np.square(law.std(x[rows], own))

    def _inputs(self, data: MuData | AnnData) -> tuple[Any, np.ndarray | None]:
        return self.model.inputs(*self._source(data))

    def _source(self, data: MuData | AnnData) -> tuple[AnnData, MuData | None]:
        from anndata import AnnData

        if isinstance(data, AnnData):
            return data, None
        cells.check_mudata(data)
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
    if not refits:
        raise AnchorError("No anchors were left out, so nothing can be calibrated.")
    law, errors, held = model.law, [], 0
    for translator, anchors in refits:
        x, codes, target = features(anchors)
        errors += [block.ravel() for block in law.standardised_errors(x, codes, target, translator)]
        held += len(anchors)
    pooled = np.concatenate(errors)
    ratio = float(np.sqrt(np.mean(np.square(pooled, dtype=np.float64))))
    quantiles = np.quantile(pooled, GRID).astype(np.float32)
    return Calibration(held, ratio, quantiles, model.calibration_.noise)
