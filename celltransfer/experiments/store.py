"""Rows of finished jobs in one table, with arrays beside it: nothing that is finished is lost or run twice."""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer._version import __version__
from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ConfigError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Arrays = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)


def label(job: Mapping[str, Any]) -> str:
    """A job's values as one file name, without what says how large the run is."""
    return re.sub("[ /]", "-", "_".join(f"{key}-{value}" for key, value in job.items() if key != "full"))


class Store:
    """Rows and arrays of finished jobs, in memory or in a folder as they come; several processes may write to one.

    Rows are kept as text, whether they have been read from a file or not, so that a resumed run finds what it would
    have found in one go. Rows of other jobs stay. Those of another version of the package do not count: their jobs are
    run again, and their rows replaced.

    Parameters
    ----------
    what
        Whose rows they are, as errors say it.
    keys
        Columns that tell jobs apart.
    folder
        Where to keep rows and arrays; ``None`` keeps them in memory.
    file
        Name of the table.
    needed
        Columns that every table of these rows has beside the keys.

    Raises
    ------
    WriteError
        The folder cannot be made.
    """

    def __init__(
        self, what: str, keys: Sequence[str], folder: Path | None, *, file: str = "rows.csv", needed: Sequence[str] = ()
    ) -> None:
        self.what, self.keys, self.folder, self.file = what, list(keys), folder, file
        self.needed = [*keys, *needed, "celltransfer"]
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        self._arrays: dict[tuple[str, ...], Arrays] = {}
        if folder is not None:
            make_folder(folder)

    def read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """All rows by their key, as text.

        Raises
        ------
        ConfigError
            The file cannot be read, or holds something else.
        """
        if self.folder is None or not (path := self.folder / self.file).exists():
            return self._rows
        try:
            frame = pd.read_csv(path, dtype=str, na_filter=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Give another folder, or remove the file.") from error
        missing = [name for name in self.needed if name not in frame]
        if missing:
            self.refuse(f"it has no column {missing[0]!r}")
        return {self.key(row): row for row in frame.to_dict("records")}  # type: ignore[misc, arg-type]

    def refuse(self, why: str) -> None:
        """Say that the table is of something else."""
        path = (self.folder / self.file) if self.folder else self.file
        raise ConfigError(f"{path} does not hold rows of {self.what}: {why}. Give another folder, or remove the file.")

    def finished(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Rows that count, by their key."""
        rows = self.read()
        others = sorted({row["celltransfer"] for row in rows.values()} - {__version__})
        if others:
            _log.warning("%s has rows of celltransfer %s; they do not count.", self.folder, ", ".join(others))
        return {key: row for key, row in rows.items() if row["celltransfer"] == __version__}

    def add(self, rows: Sequence[Mapping[str, Any]], arrays: Arrays | None = None, *, instead: Any = None) -> None:
        """Keep the rows and arrays of a job; rows of the same keys, and of the key `instead`, are replaced.

        The rows come last: where there are some, the arrays are there too.
        """
        if arrays:
            self._keep(rows[0], arrays)
        new = {self.key(row): {name: _text(value) for name, value in row.items()} for row in rows}
        with nullcontext() if self.folder is None else _locked(self.folder):
            table = self.read() | new
            table.pop(instead, None)
            self._rows = table if self.folder is None else {}
            if self.folder is not None:
                with atomic_path(self.folder / self.file) as part:
                    pd.DataFrame(list(table.values())).to_csv(part, index=False)

    def rows(self, jobs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Rows of these jobs, in their order, with numbers as numbers."""
        known = self.read()
        found = ({name: _value(text) for name, text in known[self.key(job)].items() if text} for job in jobs)
        return pd.DataFrame([row | dict(job) for row, job in zip(found, jobs, strict=True)])

    def arrays(self, row: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Arrays of a job; ``None`` where it has none."""
        if self.folder is None:
            found = self._arrays.get(self.key(row))
            return None if found is None else dict(found)
        if not (path := self.folder / self.place(row)).exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Values of a job, or of a row, as text."""
        return tuple(_text(row[name]) for name in self.keys)

    def place(self, row: Mapping[str, Any]) -> str:
        """Where the arrays of a job stand in the folder."""
        job = {name: row[name] for name in self.keys}
        return f"{'arrays-full' if str(job.get('full')) == 'True' else 'arrays'}/{label(job)}.npz"

    def _keep(self, row: Mapping[str, Any], arrays: Arrays) -> None:
        if self.folder is None:
            self._arrays[self.key(row)] = arrays
            return
        path = self.folder / self.place(row)
        make_folder(path.parent)
        with atomic_path(path) as part:
            np.savez_compressed(part, **arrays)  # type: ignore[arg-type]


def make_folder(folder: Path) -> None:
    """Make a folder that may be there.

    Raises
    ------
    WriteError
        It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"Cannot write to {folder}: {error}") from error


def _text(value: Any) -> str:
    """A plain value, exactly."""
    value = value.item() if isinstance(value, np.generic) else value
    return "" if value is None else str(value)


def _value(text: str) -> Any:
    """Inverse of `_text` for numbers and booleans; anything else stays text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with the folder, among processes on one machine, where the system can do that."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
