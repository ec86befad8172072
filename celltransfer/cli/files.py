"""Files that commands read and write: unreadable ones are an error by name, written ones are whole or not there."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from enum import StrEnum
from os.path import isfile
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

from celltransfer.errors import InputError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData


class OnMissing(StrEnum):
    """What to do about features that the file lacks."""

    error = "error"
    zero = "zero"


def _h5mu(path: Path) -> Path:
    if path.suffix.lower() != ".h5mu":
        raise typer.BadParameter(f"The output is a MuData file, .h5mu; got {path.name!r}.")
    return path


def _h5ad(path: Path) -> Path:
    if not is_anndata(path):
        raise typer.BadParameter(f"The output is an AnnData file, .h5ad; got {path.name!r}.")
    return path


MuDataInput = Annotated[Path, typer.Argument(help="MuData file (.h5mu).", exists=True, dir_okay=False)]
CellsInput = Annotated[
    Path, typer.Argument(help="AnnData file (.h5ad) or MuData file (.h5mu).", exists=True, dir_okay=False)
]
MuDataOutput = Annotated[Path, typer.Option("--out", help="MuData file to write (.h5mu).", callback=_h5mu)]
AnnDataOutput = Annotated[Path, typer.Option("--out", help="AnnData file to write (.h5ad).", callback=_h5ad)]
MissingFeatures = Annotated[
    OnMissing | None, typer.Option("--on-missing", help="What to do about features the file lacks.")
]


def is_anndata(path: Path) -> bool:
    """Whether a file is named as an AnnData."""
    return path.suffix.lower() == ".h5ad"


def read_mudata(path: Path) -> MuData:
    """The MuData of a file."""
    import h5py  # type: ignore[import-untyped]
    import mudata

    if is_anndata(path):
        raise InputError(f"{path} holds an AnnData; put its modality into a MuData file (.h5mu).")
    with _reading(path, "a MuData"):
        with h5py.File(path) as file:
            if "mod" not in file:
                raise InputError("it has no modalities. The name of a file that holds an AnnData ends in .h5ad.")
        return mudata.read_h5mu(path)


def read_anndata(path: Path) -> AnnData:
    """The AnnData of a file."""
    import anndata

    with _reading(path, "an AnnData"):
        return anndata.read_h5ad(path)


def read_cells(path: Path) -> MuData | AnnData:
    """The AnnData or MuData of a file, by the ending of its name."""
    return read_anndata(path) if is_anndata(path) else read_mudata(path)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn what is raised between us and HDF5 into an error that names the file; anndata has plain Exceptions."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read as {what}: {error}") from error


def table(path: Path) -> pd.DataFrame:
    """A table of strings, whatever separates its columns."""
    import pandas as pd

    try:
        return pd.read_csv(path, sep=None, engine="python", dtype=str)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The table {path} cannot be read: {error}") from error


def table_or_name(text: str | None) -> pd.DataFrame | str | None:
    """A table in a file, or the name of a column."""
    return table(Path(text)) if text is not None and is_file(text) else text


def names(text: str) -> list[str]:
    """Names in a file, one a line, or with commas between."""
    if not is_file(text):
        return split_names(text)
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"The names in {text} cannot be read: {error}") from error
    return _stripped(lines, text)


def split_names(text: str) -> list[str]:
    """Names with commas between."""
    return _stripped(text.split(","), text)


def _stripped(items: list[str], text: str) -> list[str]:
    found = [item.strip() for item in items if item.strip()]
    if not found:
        raise InputError(f"There is no name in {text!r}.")
    return found


def is_file(text: str) -> bool:
    """Whether a text means a file rather than names: one that is there, or one with the ending of a table."""
    # os.path.isfile, unlike Path.is_file, also answers for lists longer than a path may be.
    return text.lower().endswith((".csv", ".tsv", ".txt")) or isfile(text)


def check_output(path: Path | None, keep: Path | None = None) -> None:
    """Refuse before the work what writing a file would refuse after it, or that it would replace the file to keep."""
    if path is None:
        return
    if path.is_dir():
        raise WriteError(f"Cannot write {path}: it is a folder.")
    if keep is not None and path.expanduser().exists() and path.expanduser().samefile(keep):
        raise WriteError(f"Cannot write {path}: the cells are read from it, and would be lost.")
    folder = path.expanduser().parent
    try:
        with TemporaryFile(dir=folder if folder.exists() else folder.parent):
            pass
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {error.strerror} ({folder}).") from error


def write_text(text: str, path: Path) -> None:
    """Write `text` to `path`, atomically."""
    from celltransfer.data.writeback import atomic_path

    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
