"""What the benchmark found, in a folder: ``results.csv`` with one row per job, and scores per cell beside it."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.errors import ConfigError, InputError
from celltransfer.experiments.grid.methods import CONTROL_PREFIX, CONTROLS
from celltransfer.experiments.grid.plan import KEY, Job
from celltransfer.experiments.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE = "results.csv"


class Results(Store):
    """Rows and per-cell scores in a folder."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__("the benchmark", KEY, Path(folder), file=_FILE, needed=("status", "versions"))

    def left(self, jobs: list[Job], redo: str | None = None) -> list[Job]:
        """Jobs that are still to be run.

        A job has been run where there is a row of this version of the package, unless it was skipped for a peer that
        is not installed. ``redo="failed"`` runs those again that did not end well, and ``redo="all"`` all.
        """
        if redo not in (None, "failed", "all"):
            raise ConfigError(f"redo={redo!r} is not known; choose 'failed' or 'all'.")
        if redo == "all":
            return jobs

        def again(row: Mapping[str, str]) -> bool:
            missing = row["status"] == "skipped" and not row["versions"]
            return missing or (redo == "failed" and row["status"] != "ok")

        done = {key for key, row in self.finished().items() if not again(row)}
        return [job for job in jobs if self._row_key(job) not in done]

    def found(self, rows: list[dict[str, Any]], cells: Path) -> tuple[list[dict[str, Any]], Any, Any]:
        """What a job left, as the store keeps it: rounded rows, scores per cell, and the row that they displace.

        Controls of a task that failed or was skipped as a whole have a row of their own, until they are run.
        """
        arrays, instead = None, None
        if cells.exists():
            with np.load(cells, allow_pickle=False) as file:
                arrays = dict(file)
        if str(rows[-1]["method"]).startswith(CONTROL_PREFIX):
            instead = self.key(rows[-1] | {"method": CONTROLS})
        return [{name: _rounded(value) for name, value in row.items()} for row in rows], arrays, instead

    def place(self, row: Mapping[str, Any]) -> str:
        """Where the scores per cell of a row's job stand."""
        return str(cells_file(Path(), row))

    def _row_key(self, job: Job) -> tuple[str, ...]:
        """Key of the row that tells whether a job is done."""
        return self.key(job.key | ({"method": f"{CONTROL_PREFIX}chance"} if job.method.kind == CONTROLS else {}))


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


def _rounded(value: Any) -> Any:
    """Six digits are more than a score has."""
    if value is None or value != value:  # NaN
        return None
    return f"{value:.6g}" if isinstance(value, float) else value
