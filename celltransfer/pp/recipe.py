"""Recipe: how the cells of one modality become features for a translator, and how translated features come back."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from celltransfer.data.pair import Matrix, dense
from celltransfer.errors import ConfigError, FeatureError, ModalityError, ModelFormatError, NotFittedError
from celltransfer.pp.kinds import KINDS
from celltransfer.pp.slots import OnMissing, Slot, concatenate
from celltransfer.pp.transforms import SVD, Standardize, totals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from anndata import AnnData

    from celltransfer.pp.transforms import Fitted, Latent

Arrays = dict[str, np.ndarray]
# Products of loadings that `Recipe.inverse_variance` holds at a time.
PAIR_BYTES = 2**26


class Recipe:
    r"""Normalise, select features, reduce and standardise the cells of one modality.

    .. math:: \text{counts} \xrightarrow{\text{normalise}} \text{all features} \xrightarrow{\text{select}} (n, p)
              \xrightarrow{\text{SVD, standardise}} (n, d)

    Everything learned comes from the cells given to `fit`. Every cell is transformed on its own, so a result does
    not depend on which other cells are transformed with it. AnnData objects are read, never modified; backed objects
    are read in blocks of cells (a view of one at once).

    Parameters
    ----------
    kind
        ``"rna"``, ``"atac"``, ``"protein"``, ``"methylation"`` or ``"none"``. The functions of the same names in
        `celltransfer.pp` list the options of each.
    layer
        Key of `layers` to read; ``None`` reads `X`.
    use_rep
        Key of `obsm` to read instead; features are named after its columns, or ``"<use_rep>_<i>"``.
    on_missing
        What to do with features that cells lack in `transform`: ``"error"``, or ``"zero"`` to take them as 0.
    modality
        Name of the modality, for messages only.
    seed
        Seed of the start vector of the SVD.
    **options
        Options of the kind.

    Attributes
    ----------
    feature_names_
        The p features of the normalised scale, in the order of the training cells.
    var_
        Annotation of these features: the columns of `var` that are numbers, strings or categories.
    n_features_out_
        Number d of features that `transform` returns.
    n_cells_fit_
        Number of training cells.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> import celltransfer as ct
    >>> adata = AnnData(np.random.default_rng(0).poisson(1.0, (60, 30)).astype("float32"))
    >>> recipe = ct.pp.rna(n_components=5).fit(adata)
    >>> z = recipe.transform(adata)
    >>> z.shape, recipe.inverse_transform(z).shape
    ((60, 5), (60, 30))
    """

    def __init__(
        self,
        kind: str,
        *,
        layer: str | None = None,
        use_rep: str | None = None,
        on_missing: OnMissing = "error",
        modality: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"There is no recipe {kind!r}. Known recipes: {', '.join(KINDS)}.")
        if layer is not None and use_rep is not None:
            raise ConfigError(f"layer={layer!r} and use_rep={use_rep!r} are both given; a recipe reads one of them.")
        known = [option.name for option in fields(KINDS[kind])]
        for name in options:
            if name not in known:
                raise ConfigError(f"The recipe {kind!r} has no option {name!r}; it has {', '.join(known)}.")
        self.kind, self.on_missing, self.seed = kind, _known_on_missing(on_missing), seed
        self.slot = Slot(layer, use_rep, modality)
        self.options = KINDS[kind](**options)

    def __repr__(self) -> str:
        default = Recipe(self.kind).get_config()
        changed = [f"{name}={value!r}" for name, value in self.get_config().items() if value != default[name]]
        return f"Recipe({', '.join([repr(self.kind), *changed])})"

    def fit(self, adata: AnnData) -> Self:
        """Learn from the training cells of this modality; forgets an earlier fit.

        The matrix of the training cells is held in memory, sparse where it is stored sparse or holds RNA or ATAC
        counts, also where `adata` is backed.

        Raises
        ------
        ModalityError
            The slot does not exist, or there are fewer than two cells or no feature with a count.
        CountsError, InputError
            The values are not what this kind needs.
        FeatureError
            Feature names are duplicated.
        """
        features = self.slot.features(adata)
        if adata.n_obs < 2 or len(features) == 0:
            raise ModalityError(
                f"`{self.slot}` has {adata.n_obs} cells and {len(features)} features; "
                "a recipe is fitted on at least two cells and one feature."
            )
        x = concatenate(self._blocks(adata))
        depth = totals(x)
        normalizer = self.options.normalizer().fit(x)
        y = normalizer.transform(x)
        del x
        kept = self.options.select(y)
        if len(kept) == 0:
            raise ModalityError(f"`{self.slot}` has no count in any of the {adata.n_obs} training cells.")
        y = y if len(kept) == y.shape[1] else y[:, kept]
        latent = self.options.latent(len(kept), self.seed)
        for step in latent:
            y = step.fit(y, depth).transform(y)
        var = _plain(self.slot.var(adata).iloc[kept])
        self._features, self._kept, self._normalizer, self._latent = features, kept, normalizer, latent
        self.var_, self.n_features_out_, self.n_cells_fit_ = var, int(y.shape[1]), int(adata.n_obs)
        return self

    @property
    def feature_names_(self) -> pd.Index:
        """The p features of the normalised scale."""
        self._check_fitted()
        return self._features[self._kept]

    def normalize(
        self, adata: AnnData, *, features: Literal["kept", "all"] = "kept", on_missing: OnMissing | None = None
    ) -> Matrix:
        """Cells on the normalised scale, float32, CSR or dense.

        Parameters
        ----------
        adata
            Cells of this modality; features are matched by name, extra ones are left out.
        features
            ``"kept"``: shape (n, p), columns `feature_names_`; ``"all"``: every feature the training cells had,
            in their order.
        on_missing
            ``"error"`` or ``"zero"``; ``None``: as the recipe says.

        Raises
        ------
        FeatureError
            Features are missing and ``on_missing="error"``.
        CountsError, InputError
            The values are not what this kind needs.
        """
        if features not in ("kept", "all"):
            raise ConfigError(f"features={features!r}; expected 'kept' or 'all'.")
        return concatenate(self._normalized(adata, on_missing, every=features == "all"))

    def transform(self, adata: AnnData, *, on_missing: OnMissing | None = None) -> Matrix:
        """Cells as features for a translator, shape (n, d), float32.

        CSR where the matrix is sparse and there is neither a reduction nor a centring; dense otherwise. Parameters
        and errors as in `normalize`.
        """
        return concatenate(self._transformed(adata, on_missing))

    def inverse_transform(self, z: Matrix, features: np.ndarray | None = None) -> np.ndarray:
        """Features of a translator, shape (n, d), back on the normalised scale, shape (n, p), dense float32.

        Exact where there is no reduction, the projection on the components otherwise. Clipped to the range of the
        scale: not below 0 for counts, between 0 and 1 for methylation.

        Parameters
        ----------
        z
            Features of a translator, shape (n, d).
        features
            Positions in `feature_names_` of the columns to compute, and of no others; ``None``: all.
        """
        self._check_fitted()
        y = self._dense(z, self.n_features_out_)
        steps = self._latent
        if features is not None:
            # The first step alone knows the features; where it is no reduction, z has a column for each of them.
            reduced = bool(steps) and isinstance(steps[0], SVD)
            steps = [_of_columns(step, features) for step in steps[:1]] + steps[1:]
            y = y if reduced else y[:, features]
        for step in reversed(steps):
            y = step.inverse(y)
        return np.clip(y, *self.options.bounds, out=y if steps else None)

    @property
    def reduces(self) -> bool:
        """Whether the features of a translator are components, and not the features themselves."""
        self._check_fitted()
        return bool(self._latent) and isinstance(self._latent[0], SVD)

    def inverse_variance(self, spread: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Variances on the normalised scale, shape (n, p), of features of a translator with known spread.

        Exact for what `inverse_transform` does before it clips.

        Parameters
        ----------
        spread
            Covariances in the features of a translator, shape (n, d, d); or, where there is no reduction, variances,
            shape (n, d).
        features
            Positions in `feature_names_` of the columns to compute; ``None``: all.
        """
        columns = np.arange(len(self._kept)) if features is None else features
        first, scale = self._reduction_and_scale()
        if first is None:
            return (spread * scale**2)[:, columns]
        loadings = scale[:, None] * (first.components * first.scale_)[:, columns]
        # The quadratic form as one product: pairs of components, of which each stands for both orders.
        i, j = np.triu_indices(len(scale))
        pairs = spread[:, i, j] * np.where(i == j, 1, 2).astype(np.float32)
        out = np.empty((len(spread), len(columns)), dtype=np.float32)
        width = max(1, PAIR_BYTES // (4 * len(i)))
        for start in range(0, len(columns), width):
            part = slice(start, start + width)
            out[:, part] = pairs @ (loadings[i, part] * loadings[j, part])
        return np.maximum(out, 0, out=out)

    def slopes(self) -> tuple[Matrix, Matrix]:
        """Derivatives of the ways back and forth, which are linear: shapes (d, p) and (p, d).

        Of `inverse_transform`, before it clips, and of what `transform` does after `normalize`. Sparse where there is
        no reduction.
        """
        self._check_fitted()
        first, scale = self._reduction_and_scale()
        if first is None:
            return sp.diags(scale).tocsr(), sp.diags(1 / scale).tocsr()
        return scale[:, None] * (first.components * first.scale_), (first.components / first.scale_).T / scale

    def to_counts(self, normalized: Matrix, features: np.ndarray | None = None) -> np.ndarray | None:
        """Expected counts in a typical training cell, from the normalised scale, shape (n, p).

        Typical means: median depth of the training cells for RNA and ATAC; for protein, their median geometric mean
        (``axis="cell"``; a cell's own depth cannot be told from its CLR), or exact (``axis="feature"``). ``None``
        for methylation and 'none', which have no counts. Binarised ATAC gives expected numbers of open peaks.

        What is decoded is a mean of logarithms, and its exponential lies below the mean of counts (Jensen): a
        translated cell's counts may sum to half of a measured one's. Compare genes between translated cells, or scale.

        Parameters
        ----------
        normalized
            Cells on the normalised scale, shape (n, p) or (n, len(features)).
        features
            Positions in `feature_names_` of the columns given; ``None``: all.
        """
        self._check_fitted()
        kept = self._kept if features is None else self._kept[features]
        return self._normalizer.to_counts(self._dense(normalized, len(kept)), kept)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON-writable values."""
        slot = {"layer": self.slot.layer, "use_rep": self.slot.use_rep, "modality": self.slot.modality}
        return {"kind": self.kind, **slot, "on_missing": self.on_missing, "seed": self.seed, **asdict(self.options)}

    def get_state(self) -> Arrays:
        """Everything learned, as named numeric arrays; strings are UTF-8 JSON in uint8 arrays."""
        self._check_fitted()
        steps = {f"{step}.{name}": a for step, part in self._steps().items() for name, a in part.get_state().items()}
        return {
            "features": _encode([self._features.name, self._features.tolist()]),
            "var": _encode(_frame_to_json(self.var_)),
            "kept": np.asarray(self._kept, dtype=np.int64),
            "n_cells": np.array(self.n_cells_fit_, dtype=np.int64),
            "n_features_out": np.array(self.n_features_out_, dtype=np.int64),
            **steps,
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], state: Arrays) -> Recipe:
        """A fitted recipe from `get_config` and `get_state`; transforms bit for bit like the one saved.

        Raises
        ------
        ModelFormatError
            The state does not belong to the configuration.
        """
        recipe = cls(**config)
        try:
            recipe._load_state(state)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFormatError(f"The saved state does not fit {recipe!r}: {error!r}") from error
        return recipe

    def unfitted(self) -> Recipe:
        """A new recipe with the same configuration."""
        return Recipe(**self.get_config())

    def _load_state(self, state: Arrays) -> None:
        name, names = _decode(state["features"])
        self._features, self._kept = pd.Index(names, name=name).astype(str), state["kept"]
        self.n_cells_fit_, self.n_features_out_ = int(state["n_cells"]), int(state["n_features_out"])
        self.var_ = _frame_from_json(_decode(state["var"]), self._features[self._kept])
        self._normalizer = self.options.normalizer()
        self._latent = self.options.latent(len(self._kept), self.seed)
        for step, part in self._steps().items():
            part.set_state({key: state[f"{step}.{key}"] for key in part.arrays})

    def _steps(self) -> dict[str, Fitted]:
        """Fitted steps by the names they are saved under."""
        return {"normalizer": self._normalizer, **{f"latent{i}": step for i, step in enumerate(self._latent)}}

    def _blocks(
        self, adata: AnnData, fitted: pd.Index | None = None, on_missing: OnMissing = "error"
    ) -> Iterator[Matrix]:
        for x in self.slot.blocks(adata, self.options.scale_, fitted, on_missing):
            yield sp.csr_matrix(x) if self.options.sparse else x

    def _normalized(self, adata: AnnData, on_missing: OnMissing | None, every: bool = False) -> Iterator[Matrix]:
        self._check_fitted()
        for x in self._blocks(adata, self._features, _known_on_missing(on_missing or self.on_missing)):
            y = self._normalizer.transform(x)
            yield y if every or len(self._kept) == y.shape[1] else y[:, self._kept]

    def _transformed(self, adata: AnnData, on_missing: OnMissing | None) -> Iterator[Matrix]:
        for y in self._normalized(adata, on_missing):
            for step in self._latent:
                y = step.transform(y)
            yield y

    def _reduction_and_scale(self) -> tuple[SVD | None, np.ndarray]:
        """The fitted reduction, if there is one, and by what the features of a translator were divided, (d,)."""
        scale = np.ones(self.n_features_out_, dtype=np.float32)
        for step in self._latent:
            scale = scale * step.deviation if isinstance(step, Standardize) else scale
        return (self._latent[0] if self.reduces else None), scale  # type: ignore[return-value]

    def _dense(self, values: Matrix, width: int) -> np.ndarray:
        if values.ndim != 2 or values.shape[1] != width:
            raise FeatureError(f"The matrix has shape {values.shape}; this recipe expects (cells, {width}).")
        return dense(values)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_kept"):
            raise NotFittedError(f"{self!r} is not fitted yet; call `fit` with the training cells first.")


def _of_columns(step: Latent, columns: np.ndarray) -> Latent:
    """A fitted first step that goes back to these columns only."""
    part = copy(step)
    for name in ("components", "offset", "scale_") if isinstance(step, SVD) else ("mean", "deviation"):
        setattr(part, name, getattr(step, name)[..., columns])
    return part


def _known_on_missing(value: OnMissing) -> OnMissing:
    if value not in ("error", "zero"):
        raise ConfigError(f"on_missing={value!r}; expected 'error' or 'zero'.")
    return value


def _encode(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _decode(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())


def _frame_to_json(frame: pd.DataFrame) -> list[list[Any]]:
    """Columns as (name, dtype, values), leaving out those that are neither numbers, strings nor categories of them."""
    columns = []
    for name, column in frame.items():
        values = column.astype(object).where(column.notna(), None).tolist()
        if isinstance(name, str) and all(isinstance(v, str | bool | int | float | None) for v in values):
            columns.append([name, str(column.dtype), values])
    return columns


def _frame_from_json(columns: list[list[Any]], index: pd.Index) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, index, dtype) for name, dtype, values in columns}, index=index)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `frame` that can be saved, as they will be read again."""
    return _frame_from_json(_frame_to_json(frame), frame.index.astype(str))
