"""What the benchmark found, in a folder: ``results.csv`` with one row per job, and scores per cell beside it."""

from __future__ import annotations

import logging
import os
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer import __version__
from celltransfer.benchmark.grid import KEY, Job
from celltransfer.benchmark.methods import CONTROL_PREFIX, CONTROLS
from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ConfigError, InputError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_log = logging.getLogger(__name__)
_FILE = "results.csv"


class Results:
    """Rows and per-cell scores in a folder, kept as they come. Several processes may write to one folder.

    Raises
    ------
    WriteError
        The folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"Cannot write to {folder}: {error}") from error

    @property
    def path(self) -> Path:
        """The table."""
        return self.folder / _FILE

    def left(self, jobs: list[Job], redo: str | None = None) -> list[Job]:
        """Jobs that are still to be run.

        A job has been run where there is a row of this version of the package, unless it was skipped for a peer that
        is not installed. ``redo="failed"`` runs those again that did not end well, and ``redo="all"`` all.
        """
        if redo not in (None, "failed", "all"):
            raise ConfigError(f"redo={redo!r} is not known; choose 'failed' or 'all'.")
        if redo == "all":
            return jobs
        rows = _read_text(self.path)
        if len(rows) and (others := sorted(set(rows["celltransfer"]) - {__version__})):
            _log.warning("%s has rows of celltransfer %s; they do not count.", self.path, ", ".join(others))
        again = (rows["status"] == "skipped") & (rows["versions"] == "")
        if redo == "failed":
            again |= rows["status"] != "ok"
        done = set(rows.loc[(rows["celltransfer"] == __version__) & ~again, KEY].itertuples(index=False, name=None))
        return [job for job in jobs if _row_key(job) not in done]

    def add(self, rows: list[dict[str, Any]], cells: Path | None) -> None:
        """Keep the rows of a job and its file of scores per cell; rows of the same keys are replaced."""
        if cells is not None:
            target = self.cells_file(rows[0])
            with atomic_path(target) as part:
                part.write_bytes(cells.read_bytes())
        new = pd.DataFrame([{name: _text(value) for name, value in row.items()} for row in rows])
        with _locked(self.folder):
            old = _read_text(self.path)
            table = pd.concat([old, new], ignore_index=True).fillna("")
            # Controls of a task that failed or was skipped as a whole have a row of their own, until they are run.
            for name in KEY:
                table[name] = table[name].astype(str)
            table = table.drop_duplicates(KEY, keep="last")
            if new["method"].str.startswith(CONTROL_PREFIX).any():
                same = (table[KEY[:-1]] == new[KEY[:-1]].iloc[0]).all(axis=1)
                table = table[~(same & (table["method"] == CONTROLS))]
            with atomic_path(self.path) as part:
                table.to_csv(part, index=False)

    def cells_file(self, row: Mapping[str, Any]) -> Path:
        """Where the scores per cell of a row's job stand."""
        return cells_file(self.folder, row)


def cells_file(folder: Path, row: Mapping[str, Any]) -> Path:
    """Where the scores per cell of a row's job stand."""
    method = str(row["method"])
    values = [str(row[name]) for name in KEY[:-1]] + [CONTROLS if method.startswith(CONTROL_PREFIX) else method]
    name = "_".join(re.sub(r"[^\w+.-]+", "-", value) for value in values)
    # Two names may become one where characters are replaced.
    return folder / "cells" / f"{name}_{zlib.crc32('|'.join(values).encode()):08x}.npz"


def load(path: str | Path) -> pd.DataFrame:
    """Rows of a results file, or of a folder that holds one; ``attrs["folder"]`` is the folder."""
    path = Path(path)
    path = path / _FILE if path.is_dir() else path
    try:
        rows = pd.read_csv(path, low_memory=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as results of the benchmark: {error}") from error
    missing = [name for name in [*KEY, "status"] if name not in rows]
    if missing:
        raise InputError(f"{path} does not hold results of the benchmark: it has no column {missing[0]!r}.")
    # What no job found is no column of the file.
    for name in ("n", "seconds", "peak_mb", "cpu_seconds", "load", "foscttm"):
        rows[name] = rows[name] if name in rows else np.nan
    for name in ("source", "target", "reason", "versions", "machine"):
        rows[name] = rows[name].fillna("") if name in rows else ""
    rows["reference_share"] = _reference_share(rows)
    rows.attrs["folder"] = str(path.parent)
    return rows


def _reference_share(rows: pd.DataFrame) -> pd.Series:
    """Share of the way from chance to the ceiling that FOSCTTM went, on the same problem."""
    problem = KEY[:-1]
    ends = [
        rows.loc[rows["method"] == CONTROL_PREFIX + name, [*problem, "foscttm"]].rename(columns={"foscttm": name})
        for name in ("chance", "reference")
    ]
    both = rows[problem].merge(ends[0], how="left", on=problem).merge(ends[1], how="left", on=problem)
    share = (rows["foscttm"].to_numpy() - both["chance"]) / (both["reference"] - both["chance"])
    return pd.Series(share.to_numpy(), index=rows.index)


def scored(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of one method that ended well."""
    return rows[(rows["method"] == method) & (rows["status"] == "ok")]


def higher_is_better(score: str) -> bool:
    """Whether more of a score is better: not for FOSCTTM, errors and distances."""
    return not score.startswith(("foscttm", "mse", "bias", "energy_distance", "classifier_auc"))


def per_cell(rows: pd.DataFrame, method: str, score: str, seeds: list[int]) -> np.ndarray | None:
    """Scores per cell of a method, shape (seeds, cells), from rows of one problem; ``None`` where they are missing."""
    found = []
    for seed in seeds:
        row = rows[(rows["method"] == method) & (rows["seed"] == seed)]
        if not len(row):
            return None
        path = cells_file(Path(rows.attrs["folder"]), {name: row.iloc[0][name] for name in KEY})
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            if f"{method}/{score}" not in file:
                return None
            found.append(file[f"{method}/{score}"].astype(np.float64))
    return np.stack(found) if found and len({len(values) for values in found}) == 1 else None


def _row_key(job: Job) -> tuple[str, ...]:
    """Key of the row that tells whether a job is done."""
    key = job.key
    if job.method.kind == CONTROLS:
        key["method"] = f"{CONTROL_PREFIX}chance"
    return tuple(str(value) for value in key.values())


def _read_text(path: Path) -> pd.DataFrame:
    needed = [*KEY, "status", "versions", "celltransfer"]
    if not path.exists():
        return pd.DataFrame(columns=needed, dtype=str)
    try:
        rows = pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Give another folder, or remove the file.") from error
    missing = [name for name in needed if name not in rows]
    if missing:
        raise ConfigError(f"{path} holds no results of the benchmark: no column {missing[0]!r}. Give another folder.")
    return rows


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
