"""Checkpoints: written whole or not at all, and read only by the fit that wrote them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from celltransfer.errors import ModelFormatError

if TYPE_CHECKING:
    from celltransfer.data.pair import ModalityPair

CHECKPOINT = "checkpoint.pt"
Fingerprint = dict[str, str]


def fingerprint(pair: ModalityPair, **settings: Any) -> Fingerprint:
    """Digests of the data and of JSON-writable `settings` by name: two fits that share them train alike."""
    arrays = {
        "source cells": pair.x,
        "target cells": pair.y,
        "anchors": pair.anchors,
        "source conditions": pair.condition_x,
        "target conditions": pair.condition_y,
    }
    named = {name: _digest_array(values) for name, values in arrays.items()}
    return named | {name: _digest(json.dumps(value, sort_keys=True).encode()) for name, value in settings.items()}


def write(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `state` to `folder`; complete or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{CHECKPOINT}.{os.getpid()}.part"
    torch.save(state, unfinished)
    os.replace(unfinished, folder / CHECKPOINT)


def read(folder: str | Path, mine: Fingerprint, device: torch.device) -> dict[str, Any] | None:
    """The state in `folder`, or ``None`` where there is none.

    Raises
    ------
    ModelFormatError
        The file cannot be read, or was written by a fit with another fingerprint than `mine`.
    """
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        theirs: Fingerprint = state["fingerprint"]
    except (KeyError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise foreign(folder, f"it cannot be read: {error}") from error
    other = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    if other:
        raise foreign(folder, f"it was written with other {', '.join(other)}")
    return state


def foreign(folder: str | Path, reason: str) -> ModelFormatError:
    """The error for a checkpoint that this fit cannot continue from."""
    return ModelFormatError(
        f"The checkpoint {Path(folder) / CHECKPOINT} does not belong to this fit ({reason}). Fit with the data and "
        "options it was written with, or choose another checkpoint_dir."
    )


def _digest_array(values: Any) -> str:
    if values is None:
        return ""
    if isinstance(values, sp.csr_matrix | sp.csr_array):
        parts = [np.array(values.shape), values.indptr, values.indices, values.data]
        return _digest(*(_digest_array(part).encode() for part in parts))
    array = np.ascontiguousarray(values)
    return _digest(f"{array.dtype.str}{array.shape}".encode(), array.tobytes())


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
