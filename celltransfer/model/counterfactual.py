"""Cells as they would be under another condition, and what of a cell is content and what is style."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.data import cells, writeback
from celltransfer.errors import CelltransferWarning, ConditionError, ConfigError, InputError, ModalityError

if TYPE_CHECKING:
    from mudata import MuData

    from celltransfer.model.model import TransferModel
    from celltransfer.pp.slots import OnMissing


NOT_JUDGED = (
    "What was judged is the translation between the modalities. No cell is seen under two conditions, so nothing tells "
    "whether a counterfactual is right."
)


def counterfactual(
    self: TransferModel,
    mdata: MuData,
    *,
    condition: object,
    modality: str | None = None,
    key_added: str | None = None,
    counts: bool = True,
    on_missing: OnMissing | None = None,
    copy: bool = False,
) -> MuData | None:
    """Cells of one modality as they would be under another condition; for ``method="sparse_mixing"``.

    Every cell is encoded, its style is moved from the law of its condition to that of the other, and it is decoded;
    what the latents do not explain of it goes with it, except with likelihoods of counts. Nothing tells whether the
    same cell would have become this: it is the counterfactual of the fitted model.

    Parameters
    ----------
    mdata
        MuData with the modality, and the condition of every cell.
    condition
        The condition to move to, a value of the column the model was fitted with; of several columns, a tuple of
        values, or one of ``model.levels``. Text may stand for a number or a boolean: "3.0" for 3.
    modality
        Source or target of the model; the source if ``None``.
    key_added
        Name of the new modality; ``"{modality}_at_{condition}"`` if ``None``, any ``/`` as ``_``.
    counts
        Write expected counts into ``layers["counts"]`` where the recipe knows them.
    on_missing
        ``"error"`` or ``"zero"``: what to do about features that the modality lacks. ``None``: as the recipe says.
    copy
        Return a copy with the new modality, and leave `mdata` alone.

    Returns
    -------
    MuData or None
        ``None`` (or the copy), and this is written to ``mdata.mod[key_added]``:

        ``X`` : numpy.ndarray (cells, features), float32
            On the normalised scale of the modality's recipe.
        ``layers["counts"]`` : numpy.ndarray (cells, features), float32
            Expected counts at the training cells' median depth, where the recipe can tell.
        ``obsm["X_translated"]`` : numpy.ndarray (cells, d), float32
            In the recipe's feature space.
        ``obs`` : pandas.DataFrame
            The cells', with the condition they were moved to, of the column's own type where it can be, and in
            ``{column}_from``, in place of a column of that name, the one they are under.
        ``uns["celltransfer"]`` : dict
            Provenance, with ``counterfactual``: the condition. Its verdict is ambiguous, whatever the model's.

    Raises
    ------
    ConfigError
        The method has no counterfactuals.
    ConditionError
        The model was fitted without conditions, or does not know one, or only one modality had it in the fit.
    InputError
        `mdata` lacks the modality or features of it, or cannot take a new one.
    """
    from anndata import AnnData

    translator = _mixing(self)
    name = _modality(self, mdata, modality)
    to = _level(self, condition)
    key = f"{name}_at_{self.levels[to].replace('/', '_')}" if key_added is None else key_added
    writeback.check_writable(mdata, key, copy=copy)
    adata, recipe = cells.check_modality(mdata, name), self.recipes[name]
    writeback.check_memory(adata.n_obs, len(recipe.feature_names_), 1 + counts)
    side, codes = int(name != self.source), _codes(self, mdata, name)
    _check_common(self, np.append(codes, to))
    points = translator.counterfactual(recipe.transform(adata, on_missing=on_missing), to, codes, side=side)
    new = AnnData(recipe.inverse_transform(points), obs=_moved_obs(self, mdata, name, to), var=recipe.var_.copy())
    if counts and (expected := recipe.to_counts(new.X)) is not None:
        new.layers["counts"] = expected
    new.obsm["X_translated"] = points
    judged = {"verdict": "ambiguous", "reasons": NOT_JUDGED, "evidence": {}}
    new.uns["celltransfer"] = self.provenance() | judged | {"counterfactual": self.levels[to], "modality": name}
    out = writeback.copy_of(mdata) if copy else mdata
    writeback.add_modality(out, key, new)
    return out if copy else None


def add_latents(
    self: TransferModel,
    mdata: MuData,
    *,
    key_added: str = "X",
    on_missing: OnMissing | None = None,
    copy: bool = False,
) -> MuData | None:
    """Write content and style of the cells into the source and target modality; for ``method="sparse_mixing"``.

    Content is what has one law in all domains (modalities and conditions), style what changes with them; the fit's
    notes say where content was not free of the domain. Both modalities have one content space.

    Parameters
    ----------
    mdata
        MuData with the source modality, the target modality, or both.
    key_added
        Start of the keys.
    on_missing
        ``"error"`` or ``"zero"``: what to do about features that a modality lacks. ``None``: as its recipe says.
    copy
        Return a copy and leave `mdata` alone.

    Returns
    -------
    MuData or None
        ``None`` (or the copy), and these are written to ``mdata[modality]``:

        ``obsm["{key_added}_content"]`` : numpy.ndarray (cells, n_content), float32
            The same in all domains. With a warning, not written where the model has no content.
        ``obsm["{key_added}_style"]`` : numpy.ndarray (cells, n_style), float32
            Different between domains.

    Raises
    ------
    ConfigError
        The method has no such latents, or `key_added` is no name.
    InputError
        `mdata` has neither modality, lacks features, or is a view or backed.
    """
    translator = _mixing(self)
    if not isinstance(key_added, str) or not key_added.strip() or "/" in key_added:
        raise ConfigError(f"key_added={key_added!r}; expected a name, not empty, without '/'.")
    cells.check_mudata(mdata)
    present = [name for name in (self.source, self.target) if name in mdata.mod]
    if not present:
        raise ModalityError(f"The MuData has neither {self.source!r} nor {self.target!r}: {', '.join(mdata.mod)}.")
    if not copy and (mdata.is_view or mdata.isbacked):
        raise InputError("The MuData is a view or backed, and its obsm cannot be written: pass copy=True.")
    # All before any is written: an error leaves the MuData as it was.
    found = {
        name: translator.split(
            self.recipes[name].transform(cells.check_modality(mdata, name), on_missing=on_missing), side=side
        )
        for side, name in enumerate((self.source, self.target))
        if name in present
    }
    out = writeback.copy_of(mdata) if copy else mdata
    for name, (content, style) in found.items():
        out[name].obsm[f"{key_added}_style"] = style
        if content.shape[1]:
            out[name].obsm[f"{key_added}_content"] = content
    if not any(content.shape[1] for content, _ in found.values()):
        warnings.warn("No latent of this model is content: only style was written.", CelltransferWarning, stacklevel=2)
    return out if copy else None


def _mixing(model: TransferModel) -> Any:
    """The translator, if it has content and style."""
    if not hasattr(model.translator, "counterfactual"):
        raise ConfigError(f"method={model.method!r} does not tell content from style; fit with method='sparse_mixing'.")
    return model.translator


def _modality(model: TransferModel, mdata: MuData, modality: str | None) -> str:
    name = model.source if modality is None else modality
    if name not in (model.source, model.target):
        raise ModalityError(f"modality={name!r}; the model knows {model.source!r} and {model.target!r}.")
    cells.check_modality(mdata, name)
    return name


def _level(model: TransferModel, condition: object) -> int:
    """Code of a condition by its value."""
    if not model.conditions:
        raise ConditionError("The model was fitted without conditions: pass conditions= to celltransfer.fit.")
    if isinstance(condition, tuple | list):
        values = list(condition)
    else:
        values = list(cells.split_labels(cells.condition_label(condition), len(model.conditions)))
    label = cells.known_label(values, model.levels) if len(values) == len(model.conditions) else None
    if label is None:
        raise ConditionError(f"condition={condition!r}; the model knows {', '.join(map(repr, model.levels))}.")
    return model.levels.index(label)


def _codes(model: TransferModel, mdata: MuData, name: str) -> np.ndarray:
    return cells.encode_conditions(cells.condition_labels(mdata, name, model.conditions), model.levels, name)


def _check_common(model: TransferModel, codes: np.ndarray) -> None:
    """Refuse conditions whose style was not learned, by name."""
    strange = np.setdiff1d(codes, _mixing(model).common_codes)
    if len(strange):
        raise ConditionError(
            f"Only one modality had cells of {model.levels[strange[0]]!r} in the fit, so that its style was not "
            "learned: there are no counterfactuals to or from it."
        )


def _moved_obs(model: TransferModel, mdata: MuData, name: str, to: int) -> pd.DataFrame:
    """Annotation of made cells: the condition moved to in its columns, the cells' own in ``{column}_from``."""
    obs = mdata.mod[name].obs.copy()
    labels = cells.split_labels(model.levels[to], len(model.conditions))
    for key, label in zip(model.conditions, labels, strict=True):
        obs[f"{key}_from"] = column = cells.obs_column(mdata, name, key)
        obs[key] = _filled(column, label)
    return obs


def _filled(column: pd.Series, label: str) -> pd.Series:
    """The column with one value in every row: that of a row with this label, or the label, of its type if it can be."""
    rows = np.flatnonzero(cells.column_labels(column) == label)
    if len(rows):
        return column.iloc[np.repeat(rows[:1], len(column))].set_axis(column.index)
    made = pd.Series(label, index=column.index, dtype=object)
    try:
        typed = made.astype(column.dtype)
    except (TypeError, ValueError):
        return made
    return typed if (cells.column_labels(typed) == label).all() else made
