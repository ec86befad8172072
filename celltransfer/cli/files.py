"""Files that commands read and write: unreadable ones are an error by name, written ones are whole or not there."""

from __future__ import annotations

import csv
from contextlib import contextmanager
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


def _h5mu(path: Path) -> Path:
    if path.suffix != ".h5mu":
        raise typer.BadParameter(f"The output is a MuData file, .h5mu; got {path.name!r}.")
    return path


def _h5ad(path: Path) -> Path:
    if path.suffix != ".h5ad":
        raise typer.BadParameter(f"The output is an AnnData file, .h5ad; got {path.name!r}.")
    return path


MuDataInput = Annotated[Path, typer.Argument(help="MuData file (.h5mu).", exists=True, dir_okay=False)]
CellsInput = Annotated[
    Path, typer.Argument(help="AnnData file (.h5ad) or MuData file (.h5mu).", exists=True, dir_okay=False)
]
MuDataOutput = Annotated[Path, typer.Option("--out", help="MuData file to write (.h5mu).", callback=_h5mu)]
AnnDataOutput = Annotated[Path, typer.Option("--out", help="AnnData file to write (.h5ad).", callback=_h5ad)]


def read_mudata(path: Path) -> MuData:
    """The MuData of a file."""
    import mudata

    if path.suffix == ".h5ad":
        raise InputError(f"{path} holds an AnnData; put its modality into a MuData file (.h5mu).")
    with _reading(path, "a MuData"):
        return mudata.read_h5mu(path)


def read_anndata(path: Path) -> AnnData:
    """The AnnData of a file."""
    import anndata

    with _reading(path, "an AnnData"):
        return anndata.read_h5ad(path)


def read_cells(path: Path) -> MuData | AnnData:
    """The AnnData or MuData of a file, by the ending of its name."""
    return read_anndata(path) if path.suffix == ".h5ad" else read_mudata(path)


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
    try:
        items = Path(text).read_text(encoding="utf-8").splitlines() if is_file(text) else text.split(",")
    except (OSError, ValueError) as error:
        raise InputError(f"The names in {text} cannot be read: {error}") from error
    found = [item.strip() for item in items if item.strip()]
    if not found:
        raise InputError(f"There is no name in {text!r}.")
    return found


def is_file(text: str) -> bool:
    """Whether a text means a file rather than names: one that is there, or one with the ending of a table."""
    # os.path.isfile, unlike Path.is_file, also answers for lists longer than a path may be.
    return text.endswith((".csv", ".tsv", ".txt")) or isfile(text)


def check_output(path: Path | None) -> None:
    """Refuse before the work what writing a file would refuse after it."""
    if path is None:
        return
    if path.is_dir():
        raise WriteError(f"Cannot write {path}: it is a folder.")
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


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write `adata` to `path`, atomically."""
    from celltransfer.data.writeback import atomic_path

    with atomic_path(path) as part:
        adata.write_h5ad(part)
