"""A model as a folder: a JSON header and safetensors arrays, plain data that cannot carry code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from celltransfer import translators
from celltransfer._version import __version__
from celltransfer.data import storage
from celltransfer.errors import CelltransferError, ModelFormatError, VerdictWarning
from celltransfer.model.confidence import Confidence
from celltransfer.model.law import Calibration
from celltransfer.model.model import TransferModel
from celltransfer.pp import Recipe
from celltransfer.train.outcome import FitResult

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION = 1


def save(model: TransferModel, path: str | Path, *, overwrite: bool = False) -> None:
    """Write `model` to folder `path`; see `TransferModel.save`."""
    storage.write_model(path, _header(model), _arrays(model), overwrite=overwrite)


def load(path: str | Path) -> TransferModel:
    """Read a model written by `TransferModel.save`. Runs no code from the files.

    Warns again, with `VerdictWarning`, where the fit did.

    Raises
    ------
    ModelFormatError
        The folder is no model, is incomplete or corrupt, or was written by a newer version.
    ConfigError
        The model's method is not registered here (a third-party translator whose package is not imported).
    """
    header, arrays = storage.read_model(path, FORMAT_VERSION)
    try:
        model = _rebuild(header, arrays)
        _check_arrays(model)
    except CelltransferError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFormatError(f"{path} is not a complete model: {error!r}.") from error
    if model.doubtful:
        reasons = " ".join(model.verdict_.reasons)
        warnings.warn(f"The model in {path} is {model.verdict_.level}. {reasons}", VerdictWarning, stacklevel=2)
    return model


def _rebuild(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> TransferModel:
    names = {"source": header["source"], "target": header["target"]}
    translator = translators.make(header["method"], **header["config"])
    translator.set_state(_below(arrays, "translator."))
    translator.result_ = FitResult.from_dict(header["result"])
    recipes = {
        name: Recipe.from_state(header["recipes"][name], _below(arrays, f"recipe.{role}."))
        for role, name in names.items()
    }
    anchors = pd.DataFrame({c: storage.decode_strings(arrays[f"anchors.{c}"]) for c in ("source_id", "target_id")})
    model = TransferModel(
        names["source"],
        names["target"],
        recipes,
        translator,
        conditions=_strings(header["conditions"]),
        levels=_strings(header["levels"]),
        anchors=anchors,
    )
    model.training_cells = {
        name: pd.Index(storage.decode_strings(arrays[f"cells.{role}"])) for role, name in names.items()
    }
    if "held_out.source" in arrays:
        model.held_out_cells = {
            name: pd.Index(storage.decode_strings(arrays[f"held_out.{role}"])) for role, name in names.items()
        }
    if "links.shape" in arrays:
        parts = (arrays[f"links.{name}"] for name in ("data", "indices", "indptr"))
        model.links = sp.csr_matrix(tuple(parts), shape=tuple(arrays["links.shape"]))
    model.refer_to(arrays["reference"], arrays.get("reference_source", model.reference_source))
    if "calibration" in header:
        model.calibration_ = Calibration(**header["calibration"] | _below(arrays, "calibration."))
    if "confidence.doubt" in arrays:
        model.confidence_ = Confidence(**_below(arrays, "confidence."))
    return model


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of strings, got {values!r}")
    return values


def _below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _header(model: TransferModel) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "celltransfer_version": __version__,
        "source": model.source,
        "target": model.target,
        "method": model.method,
        "config": model.translator.get_config(),
        "recipes": {name: recipe.get_config() for name, recipe in model.recipes.items()},
        "conditions": list(model.conditions),
        "levels": list(model.levels),
        "result": model.result_.to_dict(),
        "calibration": {"n_anchors": model.calibration_.n_anchors, "ratio": model.calibration_.ratio},
    }


def _arrays(model: TransferModel) -> dict[str, np.ndarray]:
    arrays = {f"translator.{key}": value for key, value in model.translator.get_state().items()}
    for role, name in (("source", model.source), ("target", model.target)):
        state = model.recipes[name].get_state()
        arrays |= {f"recipe.{role}.{key}": value for key, value in state.items()}
        arrays[f"cells.{role}"] = storage.encode_strings(model.training_cells[name])
        arrays[f"held_out.{role}"] = storage.encode_strings(model.held_out_cells[name])
    for column in ("source_id", "target_id"):
        arrays[f"anchors.{column}"] = storage.encode_strings(model.anchors[column])
    arrays |= {f"calibration.{name}": getattr(model.calibration_, name) for name in ("quantiles", "noise")}
    if model.links is not None:
        links = sp.csr_matrix(model.links)
        arrays |= {f"links.{name}": getattr(links, name) for name in ("data", "indices", "indptr")}
        arrays["links.shape"] = np.array(links.shape, dtype=np.int64)
    if model.confidence_.known:
        arrays |= {f"confidence.{name}": getattr(model.confidence_, name) for name in ("translated", "doubt")}
    return arrays | {"reference": model.reference, "reference_source": model.reference_source}


def _check_arrays(model: TransferModel) -> None:
    """Raise unless recipes and translator fit together and give finite numbers."""
    source, target = model.recipes[model.source], model.recipes[model.target]
    widths = source.n_features_out_, target.n_features_out_
    own = model.translator.n_features_in_, model.translator.n_features_out_
    if widths != own:
        raise ValueError(f"the recipes have {widths} features and the translator {own}")
    codes = np.zeros(1, dtype=np.int64) if model.translator.needs_condition and model.levels else None
    latent = model.translator.translate(np.zeros((1, own[0]), dtype=np.float32), codes)
    if not np.isfinite(target.inverse_transform(latent)).all() or not np.isfinite(model.reference).all():
        raise ValueError("arrays hold NaN or infinite values")
