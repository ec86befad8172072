"""TransferModel: the AnnData shell around two recipes and a fitted translator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.data import cells, writeback
from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import (
    ConditionError,
    ConfigError,
    FeatureError,
    ModalityError,
)
from celltransfer.model import counterfactual, interpolation
from celltransfer.model.confidence import Confidence
from celltransfer.model.law import Calibration, ConditionalLaw
from celltransfer.train.outcome import FitResult, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.pp import Recipe
    from celltransfer.pp.slots import OnMissing
    from celltransfer.translators.base import Translator
    from celltransfer.verdict.alignment import Alignment

# Target cells kept with the model, to tell whether a translation lies where target cells are.
MAX_REFERENCE = 2000
# Translations are turned back into target features in blocks of at most so many bytes.
BLOCK_BYTES = 2**26


class TransferModel:
    """A fitted translation from one modality to another; made by `celltransfer.fit` and `celltransfer.load`.

    Attributes
    ----------
    source, target
        Names of the modalities.
    recipes
        Fitted preprocessing by modality; ``model.recipes["rna"].transform(adata)`` gives the features.
    translator
        The fitted translator, on arrays.
    conditions, levels
        The condition columns and the values the model knows.
    anchors
        The anchor pairs training saw: columns ``source_id``, ``target_id``.
    links
        What feature links say of the map between features, shape (d, D) (`celltransfer.pp.links`), or ``None``.
    training_cells, held_out_cells
        Barcodes of the training cells by modality; and of those among them that the method held out to test itself.
    calibration_
        How far the stated standard deviations can be trusted (`celltransfer.model.law.Calibration`), for methods that
        state any.
    confidence_
        What is known of the confidence in single translations (`celltransfer.model.confidence.Confidence`).
    """

    def __init__(
        self,
        source: str,
        target: str,
        recipes: Mapping[str, Recipe],
        translator: Translator,
        *,
        conditions: Sequence[str] = (),
        levels: Sequence[str] = (),
        anchors: pd.DataFrame | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.recipes = dict(recipes)
        self.translator = translator
        self.conditions = tuple(conditions)
        self.levels = tuple(levels)
        self.anchors = pd.DataFrame({"source_id": [], "target_id": []}, dtype=str) if anchors is None else anchors
        self.training_cells: dict[str, pd.Index] = {source: pd.Index([]), target: pd.Index([])}
        self.held_out_cells: dict[str, pd.Index] = {source: pd.Index([]), target: pd.Index([])}
        self.links: Matrix | None = None
        self._opposite: TransferModel | None = None
        self.calibration_ = Calibration()
        self.confidence_ = Confidence()
        self.reference = np.empty((0, 0), dtype=np.float32)
        self.reference_source = np.empty((0, 0), dtype=np.float32)
        self._reference_gap = np.empty(0, dtype=np.float32)

    @property
    def method(self) -> str:
        """Name of the translator."""
        return self.translator.name

    @property
    def result_(self) -> FitResult:
        """How the fit ended: status, advice, history, seeds, versions."""
        return self.translator.result_

    @property
    def verdict_(self) -> Verdict:
        """Whether to believe the translation, with the evidence."""
        return self.result_.verdict or Verdict("ambiguous", ["No evidence was gathered."])

    @property
    def alignment_(self) -> Alignment | None:
        """Whether translated cells are like target cells, for methods that test it in the fit (see `ct.alignment`)."""
        from celltransfer.verdict.alignment import Alignment

        found = self.result_.alignment
        return None if found is None else Alignment.from_dict(found)

    @property
    def doubtful(self) -> bool:
        """Whether to warn of this model: it is not identified, or was to make cells alike and did not."""
        found = self.alignment_
        return self.verdict_.level != "identified" or (found is not None and found.level == "not aligned")

    @property
    def law(self) -> ConditionalLaw:
        """The conditional law of the target cell: ``std``, ``interval``, ``sample``, ``log_prob``, ``coverage``.

        Raises
        ------
        ConfigError
            The method gives a mean only.
        """
        return ConditionalLaw(self)

    @property
    def backward(self) -> TransferModel:
        """The same model from target to source, where the method has an exact inverse.

        A view: it translates and is reported on like any model, and shares the verdict of the fit.

        Raises
        ------
        ConfigError
            The method has no inverse.
        """
        from celltransfer.translators.backward import Backward

        if self._opposite is not None:
            return self._opposite
        anchors = self.anchors.rename(columns={"source_id": "target_id", "target_id": "source_id"})
        model = TransferModel(
            self.target,
            self.source,
            self.recipes,
            Backward(self.translator),
            conditions=self.conditions,
            levels=self.levels,
            anchors=anchors[["source_id", "target_id"]],
        )
        model.training_cells, model.held_out_cells = self.training_cells, self.held_out_cells
        model._opposite = self
        model.refer_to(self.reference_source, self.reference)
        return model

    def __repr__(self) -> str:
        result = self.result_
        ended = "" if result.status in (Status.SOLVED, Status.CONVERGED) else f". {result.advice}"
        lines = [
            f"TransferModel({self.source} -> {self.target}, method={self.translator.label!r}, {result.n_source} source "
            f"and {result.n_target} target cells, {result.n_anchors} anchors)",
            f"  recipes: {', '.join(f'{name} {recipe!r}' for name, recipe in self.recipes.items())}",
            f"  status:  {result.status.value} after {result.seconds:.1f} s{ended}",
            *(f"  note:    {note}" for note in result.notes),
            *([f"  spread:  {self.calibration_.describe()}"] if self.translator.gives_distribution else []),
            f"  verdict: {self.verdict_.level}. {' '.join(self.verdict_.reasons)}",
        ]
        return "\n".join(lines)

    def remember_training(self, training_cells: dict[str, pd.Index], pair: ModalityPair, seed: int) -> None:
        """Keep the barcodes of the training cells and a sample of target cells (features, not counts).

        Of source cells too, where the model can be turned around.
        """
        self.training_cells = training_cells
        if self.translator.held_out_ is not None:
            names = (self.source, self.target)
            held = zip(names, self.translator.held_out_, strict=True)
            self.held_out_cells = {name: training_cells[name][rows] for name, rows in held}
        source = _sampled(pair.x, seed) if self.translator.invertible else self.reference_source
        self.refer_to(_sampled(pair.y, seed), source)

    def refer_to(self, target: np.ndarray, source: np.ndarray) -> None:
        """Measure support against these cells, shapes (n, D) and (m, d)."""
        self.reference, self.reference_source = target, source
        if len(target):
            self._reference_gap = np.sort(_nearest(target, target, skip_self=True))

    def translate(
        self,
        data: MuData | AnnData,
        *,
        direction: str = "forward",
        key_added: str | None = None,
        copy: bool = False,
        features: Sequence[str] | None = None,
        counts: bool = True,
        std: bool = True,
        reject: float | None = None,
        on_missing: OnMissing | None = None,
        batch_size: int = 8192,
    ) -> MuData | AnnData | None:
        """Translate the source cells of `data` into the target modality.

        Parameters
        ----------
        data
            A MuData with the source modality, or an AnnData of source cells. Cells the model has not seen are fine;
            features may come in any order.
        direction
            ``"forward"``; or ``"backward"``, target cells into the source modality, where the method has an exact
            inverse: the same as ``model.backward.translate(data)``.
        key_added
            Name of the new modality; ``"{target}_from_{source}"`` if ``None`` (backward, the other way round).
        copy
            Return a copy of the MuData with the new modality, and leave `data` alone.
        features
            Target features to write; ``None`` writes all the model was fitted on. The result is a dense matrix of
            cells x features, so say which you need where there are many of both.
        counts
            Write expected counts into ``layers["counts"]`` where the recipe knows them.
        std
            Write standard deviations into ``layers["std"]`` where the method knows them.
        reject
            Mark cells whose confidence is below this, 0 to 1. Their translation is written all the same, so that the
            cells stay aligned: leave them out with ``~obs["translation_rejected"]``.
        on_missing
            ``"error"`` or ``"zero"``: what to do about source features that `data` lacks. ``None``: as the recipe says.
        batch_size
            Cells translated at a time.

        Returns
        -------
        MuData or AnnData or None
            For a MuData, ``None`` (or the copy), and this is written to ``mdata.mod[key_added]``; for an AnnData, it
            is returned:

            ``X`` : numpy.ndarray (cells, features), float32
                The translation on the target's normalised scale (see the target's recipe).
            ``layers["counts"]`` : numpy.ndarray (cells, features), float32
                Expected counts at the median depth of the training cells, where the recipe can tell.
            ``layers["std"]`` : numpy.ndarray (cells, features), float32
                Standard deviation of a measured cell about its translation, for methods that know it
                (``model.law.std``); ``uns["celltransfer"]["calibration"]`` says how far to trust it.
            ``obsm["X_translated"]`` : numpy.ndarray (cells, d), float32
                The translation in the target recipe's feature space.
            ``obs["translation_support"]`` : pandas.Series (float)
                Share of training target cells that lie further from their nearest neighbour than this translation
                lies from its own: near 0 where the translation is unlike any target cell. It is no probability of
                being right.
            ``obs["translation_confidence"]`` : pandas.Series (float)
                How far to believe this cell's translation rather than another's, 0 to 1, where the fit was judged: one
                less twice the rank that its true partner is expected to have among cells (0 is no better than chance).
                It orders cells and is no probability; whether the map as a whole is right, the verdict says. Of a fit
                that was not judged, for methods with a law: the share of the target's variance that it resolves.
            ``obs["translation_rejected"]`` : pandas.Series (bool)
                With `reject`: whether the confidence is below it.
            ``uns["celltransfer"]`` : dict
                Provenance: versions, method, seed, anchors, status, verdict.

            Feature names are those of the target, so that both can be compared; they occur twice in ``mdata.var``
            then, and features are selected in a modality, ``mdata["atac"][:, names]``, rather than in the MuData.

        Raises
        ------
        FeatureError
            Source features are missing, or `features` are unknown or named twice.
        ConditionError
            The model was fitted with conditions and the cells lack them or have unknown ones.
        InputError
            `data` cannot take a new modality (view, backed), or the result would not fit into memory.
        """
        from anndata import AnnData

        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}; expected 1 or more.")
        if direction not in ("forward", "backward"):
            raise ConfigError(f"direction={direction!r}; expected 'forward' or 'backward'.")
        if direction == "backward":
            return self.backward.translate(
                data,
                key_added=key_added,
                copy=copy,
                features=features,
                counts=counts,
                std=std,
                reject=reject,
                on_missing=on_missing,
                batch_size=batch_size,
            )
        self._check_reject(reject)
        if isinstance(data, AnnData):
            return self.translate_cells(data, None, features, counts, on_missing, batch_size, std, reject)
        adata = cells.check_modality(data, self.source)
        key = f"{self.target}_from_{self.source}" if key_added is None else key_added
        writeback.check_writable(data, key, copy=copy)
        out = writeback.copy_of(data) if copy else data
        translated = self.translate_cells(adata, data, features, counts, on_missing, batch_size, std, reject)
        writeback.add_modality(out, key, translated)
        return out if copy else None

    def translate_cells(
        self,
        adata: AnnData,
        mdata: MuData | None = None,
        features: Sequence[str] | None = None,
        counts: bool = False,
        on_missing: OnMissing | None = None,
        batch_size: int = 8192,
        std: bool = False,
        reject: float | None = None,
    ) -> AnnData:
        """`translate` for the cells of one AnnData; conditions it lacks are looked up in `mdata`."""
        from anndata import AnnData

        target = self.recipes[self.target]
        columns = self.columns(features)
        # The recipe is asked about no cells: it answers None where it knows no counts.
        counts = counts and target.to_counts(np.empty((0, len(columns)), dtype=np.float32), columns) is not None
        std = std and self.translator.gives_distribution
        writeback.check_memory(adata.n_obs, len(columns), 1 + counts + std)
        x, codes = self.inputs(adata, mdata, on_missing=on_missing)
        latent = self.translator.translate(x, codes, batch_size=batch_size)
        out = AnnData(
            X=np.empty((adata.n_obs, len(columns)), dtype=np.float32),
            obs=adata.obs.copy(),
            var=target.var_.iloc[columns].copy(),
        )
        if counts:
            out.layers["counts"] = np.empty_like(out.X)
        rows = max(1, min(batch_size, BLOCK_BYTES // max(1, 4 * len(columns))))
        for start in range(0, adata.n_obs, rows):
            block = slice(start, start + rows)
            out.X[block] = target.inverse_transform(latent[block], columns)
            if counts:
                out.layers["counts"][block] = target.to_counts(out.X[block], columns)
        out.obsm["X_translated"] = latent
        out.obs["translation_support"] = self._support(latent)
        if self.confidence_.known:
            out.obs["translation_confidence"] = self.confidence_.of(latent)
        elif self.translator.gives_distribution:
            out.obs["translation_confidence"] = self.law.confidence(x, codes)
        if reject is not None:
            out.obs["translation_rejected"] = out.obs["translation_confidence"] < reject
        if std:
            out.layers["std"] = self.law.spread(x, codes, columns)
        out.uns["celltransfer"] = self.provenance()
        return out

    def _check_reject(self, reject: float | None) -> None:
        if reject is None:
            return
        if isinstance(reject, bool) or not isinstance(reject, int | float) or not 0 <= reject <= 1:
            raise ConfigError(f"reject={reject!r}; expected a confidence between 0 and 1.")
        if not self.confidence_.known and not self.translator.gives_distribution:
            raise ConfigError(
                "reject= needs the confidence in single cells, which only a judged fit knows (verdict=True); within "
                "one modality only one with anchors."
            )

    interpolate = interpolation.interpolate
    add_latents = counterfactual.add_latents
    counterfactual = counterfactual.counterfactual

    def latent(
        self,
        adata: AnnData,
        mdata: MuData | None = None,
        *,
        on_missing: OnMissing | None = None,
        batch_size: int = 8192,
    ) -> np.ndarray:
        """Translate source cells into the target recipe's feature space, shape (cells, d), float32.

        `mdata` is looked at for condition columns that `adata` lacks.
        """
        return self.translator.translate(*self.inputs(adata, mdata, on_missing=on_missing), batch_size=batch_size)

    def inputs(
        self, adata: AnnData, mdata: MuData | None = None, *, on_missing: OnMissing | None = None
    ) -> tuple[Matrix, np.ndarray | None]:
        """What the translator takes: features of the source cells, shape (cells, d), and their condition codes."""
        if adata.n_obs == 0:
            raise ModalityError(f"There are no {self.source!r} cells to translate.")
        return self.recipes[self.source].transform(adata, on_missing=on_missing), self._codes(adata, mdata)

    def _codes(self, adata: AnnData, mdata: MuData | None) -> np.ndarray | None:
        if not self.conditions or not self.translator.needs_condition:
            return None
        if mdata is None:
            missing = [key for key in self.conditions if key not in adata.obs]
            if missing:
                raise ConditionError(
                    f"The model was fitted with condition {missing[0]!r}, which obs of the cells lacks."
                )
        holder: Any = _Cells({self.source: adata}, adata.obs if mdata is None else mdata.obs)
        labels = cells.condition_labels(holder, self.source, self.conditions)
        return cells.encode_conditions(labels, self.levels, self.source)

    def columns(self, features: Sequence[str] | None) -> np.ndarray:
        """Positions of target features by name; ``None``: all."""
        if isinstance(features, str):
            raise FeatureError(f"features={features!r}; expected a list of names, [{features!r}].")
        names = self.recipes[self.target].feature_names_
        if features is None:
            return np.arange(len(names))
        wanted = pd.Index(features)
        if wanted.has_duplicates:
            raise FeatureError(f"features= names {wanted[wanted.duplicated()][0]!r} twice; expected every name once.")
        columns = names.get_indexer(wanted)
        if (columns < 0).any():
            lost = [name for name, column in zip(features, columns, strict=True) if column < 0]
            raise FeatureError(
                f"{len(lost)} of {len(columns)} features were not among those the model was fitted on, the first "
                f"{lost[0]!r}. See model.recipes[{self.target!r}].feature_names_."
            )
        return columns

    def _support(self, latent: np.ndarray) -> np.ndarray:
        if len(self._reference_gap) == 0:
            return np.full(len(latent), np.nan)
        gap = _nearest(latent, self.reference)
        return 1.0 - np.searchsorted(self._reference_gap, gap, side="left") / len(self._reference_gap)

    def provenance(self) -> dict[str, Any]:
        """Where a translation came from, in types that h5mu can store."""
        result = self.result_
        return {
            "source": self.source,
            "target": self.target,
            "method": self.method,
            "config": json.dumps(self.translator.get_config()),
            "recipes": json.dumps({name: recipe.get_config() for name, recipe in self.recipes.items()}),
            "conditions": list(self.conditions),
            "anchors_source": self.anchors["source_id"].to_numpy(dtype=str).astype(object),
            "anchors_target": self.anchors["target_id"].to_numpy(dtype=str).astype(object),
            "seed": result.seed,
            "device": result.device,
            "status": result.status.value,
            "verdict": self.verdict_.level,
            "reasons": " ".join(self.verdict_.reasons),
            "notes": " ".join(result.notes),
            "evidence": dict(self.verdict_.evidence),
            "alignment": "" if self.alignment_ is None else self.alignment_.level,
            "versions": dict(result.versions),
        } | ({"calibration": self.calibration_.describe()} if self.translator.gives_distribution else {})

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to folder `path`: ``model.json`` and ``arrays.safetensors``, plain data only.

        Raises
        ------
        WriteError
            The folder exists and `overwrite` is off, or cannot be written; nothing half-written is left.
        """
        from celltransfer.model import io as files

        files.save(self, path, overwrite=overwrite)


def _sampled(cells: Matrix, seed: int) -> np.ndarray:
    """At most `MAX_REFERENCE` cells, dense."""
    n = cells.shape[0]
    rows = np.sort(np.random.default_rng(seed).choice(n, size=min(n, MAX_REFERENCE), replace=False))
    return dense(cells[rows])


def _nearest(queries: np.ndarray, points: np.ndarray, *, skip_self: bool = False) -> np.ndarray:
    """Euclidean distance of each query to its nearest point, shape (n,)."""
    from sklearn.neighbors import NearestNeighbors

    k = 2 if skip_self and len(points) > 1 else 1
    distance, _ = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(queries)
    return distance[:, -1].astype(np.float32)


class _Cells:
    """Some cells of one modality, in the shape that the readers of conditions expect of a MuData."""

    def __init__(self, mod: dict[str, AnnData], obs: pd.DataFrame) -> None:
        self.mod = mod
        self.obs = obs
