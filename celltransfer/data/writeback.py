"""Putting a translation back into the MuData, and files onto the disk, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from celltransfer.errors import InputError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from mudata import MuData


def check_writable(mdata: MuData, key: str, *, copy: bool = False) -> None:
    """Raise where a modality `key` cannot be added to `mdata`, in place or in a copy."""
    if not isinstance(key, str) or "/" in key or not key.strip():
        raise InputError(f"key_added={key!r} is not a valid modality name: a string, not empty, without '/'.")
    if key in mdata.mod and "celltransfer" not in mdata.mod[key].uns:
        raise InputError(
            f"The MuData has a modality {key!r} that celltransfer did not write, and it is not overwritten: choose "
            "another name with key_added=."
        )
    if mdata.is_view and not copy:
        raise InputError(
            "The MuData is a view, and a view cannot take a new modality: pass mdata.copy(), or copy=True."
        )
    if mdata.isbacked:
        raise InputError(
            "The MuData is backed by a file, and a modality in memory cannot be added to it. Translate the modality "
            "alone, model.translate(mdata[source]), or read the file without backed."
        )


def copy_of(mdata: MuData) -> MuData:
    """A copy, without mudata's warnings about feature names that earlier translations share with their target."""
    with no_pull(), _one_index_name(mdata):
        out = mdata.copy()
    out.obs.index.name, out.var.index.name = mdata.obs.index.name, mdata.var.index.name
    return out


def add_modality(mdata: MuData, key: str, adata: AnnData) -> None:
    """Add or replace modality `key`; the other modalities and the columns of ``mdata.obs`` stay as they are."""
    mdata.mod[key] = adata
    with no_pull(), _one_index_name(mdata):
        mdata.update()


@contextmanager
def _one_index_name(mdata: MuData) -> Iterator[None]:
    """Give ``mdata.obs`` and ``mdata.var`` the index name their modalities agree on: mudata's update joins by it."""
    names = {}
    for axis in ("obs", "var"):
        frame = getattr(mdata, axis)
        found = {getattr(adata, axis).index.name for adata in mdata.mod.values()}
        names[axis] = frame.index.name
        frame.index.name = found.pop() if len(found) == 1 else None
    try:
        yield
    finally:
        for axis, name in names.items():
            getattr(mdata, axis).index.name = name


@contextmanager
def no_pull() -> Iterator[None]:
    """Make mudata neither copy annotation nor warn about feature names that two modalities share.

    mudata < 0.4 adds prefixed copies (``rna:split``) of the annotation unless told otherwise; later versions never do.
    A translated modality has the target's feature names on purpose.
    """
    import mudata

    options = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with options, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*var_names", category=UserWarning, module="mudata")
        warnings.filterwarnings("ignore", category=FutureWarning, module="mudata")
        yield


def check_memory(n_cells: int, n_features: int, n_matrices: int) -> None:
    """Refuse a result that the machine cannot hold, before anything is computed."""
    needed = n_cells * n_features * n_matrices * 4
    available = _available_memory()
    if available is None:
        return
    if needed > available:
        raise InputError(
            f"The translation of {n_cells:,} cells x {n_features:,} features takes {needed / 1e9:.0f} GB, and "
            f"{available / 1e9:.0f} GB are free. Pass features= to translate only those you need, counts=False, or "
            "translate the cells in parts; model.latent(adata) gives the translation in the compact feature space."
        )


def _available_memory() -> int | None:
    """Bytes that can be had without swapping, caches that the system would give up included; ``None``: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block succeeds, remove it when not.

    Raises
    ------
    WriteError
        The disk is full, or the folder is missing or not writable. Nothing is left behind.
    """
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise WriteError(f"Cannot write {target}: {error}") from error
    try:
        part = scratch / target.name
        yield part
        _move(part, target)
    except OSError as error:
        # The error's own words name the temporary path, which is of no use to anybody.
        raise WriteError(f"Cannot write {target}: {error.strerror or error}. Nothing was written.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(part: Path, target: Path) -> None:
    """Replace `target`; a folder is moved aside first, because folders cannot be replaced in one step."""
    if not target.is_dir():
        os.replace(part, target)
        return
    aside = part.with_name(f"{part.name}.old")
    os.replace(target, aside)
    try:
        os.replace(part, target)
    except BaseException:
        os.replace(aside, target)
        raise


def write_h5mu(mdata: MuData, path: str | Path) -> None:
    """Write `mdata` to `path`, atomically."""
    with _storing(path) as part, no_pull():
        mdata.write_h5mu(part)


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write `adata` to `path`, atomically."""
    with _storing(path) as part:
        adata.write_h5ad(part)


@contextmanager
def _storing(path: str | Path) -> Iterator[Path]:
    """`atomic_path`; what HDF5 cannot hold is an error that names the file, too. anndata has plain Exceptions."""
    try:
        with atomic_path(path) as part:
            yield part
    except (WriteError, MemoryError):
        raise
    except Exception as error:
        words = " ".join([str(error), *getattr(error, "__notes__", [])])
        raise WriteError(f"Cannot write {path}: {words}. Nothing was written.") from error
