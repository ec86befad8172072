"""Model files: a folder with plain JSON and plain tensors. Nothing in it can carry code."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ModelFormatError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER, ARRAYS = "model.json", "arrays.safetensors"


def write_model(path: str | Path, header: dict[str, Any], arrays: dict[str, np.ndarray], *, overwrite: bool) -> None:
    """Write folder `path`, atomically."""
    from safetensors.numpy import save

    target = Path(path).expanduser().resolve()
    check_target(target, overwrite=overwrite)
    # safetensors writes memory as it lies, so arrays must be in C order.
    plain = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    content = save(plain)
    with atomic_path(target) as part:
        part.mkdir()
        (part / ARRAYS).write_bytes(content)
        (part / HEADER).write_text(json.dumps(header | {"arrays_sha256": sha256(content).hexdigest()}, indent=2))


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise where a model must not be written: something else would be lost."""
    if not target.exists():
        return
    if not overwrite:
        raise WriteError(f"{target} exists; pass overwrite=True to replace it.")
    if not (target / HEADER).is_file():
        raise WriteError(f"{target} exists and is no celltransfer model; it is not overwritten.")
    others = sorted({entry.name for entry in target.iterdir()} - {HEADER, ARRAYS})
    if others:
        raise WriteError(f"{target} holds other files, such as {others[0]!r}; it is not overwritten.")


def read_model(path: str | Path, newest: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and arrays of folder `path`; formats above `newest` are refused."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(path).expanduser()
    for name in (HEADER, ARRAYS):
        if not (folder / name).is_file():
            raise ModelFormatError(f"{folder} is not a celltransfer model: {name} is missing.")
    try:
        header = json.loads((folder / HEADER).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{folder / HEADER} is not valid JSON: {error}.") from error
    version = header.get("format_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise ModelFormatError(f"{folder / HEADER} has no format_version; it is not a celltransfer model.")
    if version > newest:
        raise ModelFormatError(
            f"{folder} has format {version}, written by celltransfer {header.get('celltransfer_version', 'unknown')}; "
            f"this version reads formats up to {newest}. Upgrade celltransfer to read it."
        )
    content = (folder / ARRAYS).read_bytes()
    if sha256(content).hexdigest() != header.get("arrays_sha256"):
        raise ModelFormatError(f"{folder / ARRAYS} is corrupt or not the one that {HEADER} was written with.")
    try:
        return header, load(content)
    except (SafetensorError, ValueError) as error:
        raise ModelFormatError(f"{folder / ARRAYS} is corrupt: {error}.") from error


def encode_strings(values: Iterable[str]) -> np.ndarray:
    """Strings as the bytes of a JSON list, shape (n_bytes,), uint8: tensors know no strings."""
    return np.frombuffer(json.dumps([str(value) for value in values]).encode(), dtype=np.uint8)


def decode_strings(values: np.ndarray) -> list[str]:
    """Inverse of `encode_strings`."""
    return [str(value) for value in json.loads(np.asarray(values, dtype=np.uint8).tobytes().decode())]
