"""Running the grid: jobs in processes of their own, rows as they come, nothing lost and nothing run twice."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from celltransfer._version import __version__
from celltransfer.errors import ConfigError
from celltransfer.experiments.grid.job import machine, to_json
from celltransfer.experiments.grid.rows import Results, load
from celltransfer.experiments.processes import Ended, side_by_side
from celltransfer.experiments.run import keep
from celltransfer.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celltransfer.experiments.grid.plan import Job

MAX_SECONDS = 900.0
# Share of its time that a peer is told it has: the rest is for loading and scoring.
_PEER_SHARE = 0.8


def run(
    jobs: list[Job],
    out: str | Path,
    *,
    processes: int = 1,
    threads: int = 1,
    max_seconds: float = MAX_SECONDS,
    max_mb: float | None = None,
    redo: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Run what is left of `jobs`, and return all rows of the folder.

    Parameters
    ----------
    jobs
        See `celltransfer.experiments.grid.jobs`.
    out
        Folder for ``results.csv`` and scores per cell; jobs whose rows it has are not run again.
    processes, threads
        Jobs at a time, and threads of each.
    max_seconds, max_mb
        Wall time and memory that each job may take; one that takes more is stopped, and its row says so.
    redo
        ``"failed"`` runs jobs again that did not end well, ``"all"`` all of them.
    tell
        Called with one line per finished job, and with what the methods took at the end.
    """
    if processes < 1 or threads < 1 or max_seconds <= 0:
        raise ConfigError(f"{processes=}, {threads=}, {max_seconds=}; expected positive numbers.")
    tell = tell or (lambda line: None)
    results = Results(out)
    left = results.left(jobs, redo)
    tell(f"{len(left)} of {len(jobs)} jobs to run.")
    here = _without_missing(left, results, tell)
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="celltransfer-benchmark-") as scratch:
        commands = _commands(here, Path(scratch), max_seconds)
        ends = side_by_side(
            commands,
            env=_environment(),
            processes=processes,
            threads=threads,
            max_seconds=max_seconds,
            max_mb=max_mb,
        )
        say = tell
        keep(results, _found(ends, results, spent), len(here), lambda n, row: say(f"{n}/{len(here)} {describe(row)}"))
    if spent:
        hours = ", ".join(f"{name} {s / 3600:.2f}" for name, s in sorted(spent.items(), key=lambda item: -item[1]))
        tell(f"CPU hours: {sum(spent.values()) / 3600:.2f} ({hours}).")
    return load(out) if results.read() else pd.DataFrame()


def _found(ends: Iterator[tuple[Any, Ended]], results: Results, spent: dict[str, float]) -> Iterator[Any]:
    """What jobs left as they end; adds the time of each to that its method `spent`."""
    for (job, folder), ended in ends:
        spent[job.method.name] = spent.get(job.method.name, 0.0) + ended.cpu_seconds
        yield results.found(_rows(job, folder, ended), folder / "cells.npz")
        (folder / "cells.npz").unlink(missing_ok=True)


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    what = f"{row['dataset']} {row['regime']} k={row['k']} seed={row['seed']} {row['method']}"
    if row["status"] != "ok":
        return f"{what}: {row['status']}, {row['reason']}"
    foscttm, knn, seconds, mb = (float(row[name]) for name in ("foscttm", "knn_accuracy@50", "seconds", "peak_mb"))
    scores = f"foscttm {foscttm:.3f}, knn@50 {knn:.3f}"
    return f"{what}: {scores}, {seconds:.1f} s, {mb:.0f} MB {row.get('verdict') or ''}".rstrip()


def _without_missing(jobs: list[Job], results: Results, tell: Callable[[str], None]) -> list[Job]:
    """Jobs that can be run here; those of peers that are not installed become rows that say so."""
    from celltransfer.experiments import peers

    missing = {m: peers.missing(m) for m in {job.method.runs for job in jobs if job.method.kind == "peer"}}
    absent = [job for job in jobs if job.method.kind == "peer" and missing[job.method.runs]]
    if absent:
        reasons = {job.method.name: missing[job.method.runs] for job in absent}
        results.add([_bare_row(job, "skipped", str(reasons[job.method.name])) for job in absent])
        for name, reason in reasons.items():
            tell(f"{name}: skipped, {reason}")
    return [job for job in jobs if job not in absent]


def _bare_row(job: Job, status: str, reason: str) -> dict[str, Any]:
    about = {"source": job.arm.source, "target": job.arm.target, "status": status, "reason": reason, "versions": ""}
    return job.key | about | {"celltransfer": __version__, "machine": machine()}


def _commands(jobs: list[Job], scratch: Path, max_seconds: float) -> Iterator[tuple[Any, list[str], Path]]:
    for number, job in enumerate(jobs):
        folder = scratch / str(number)
        folder.mkdir()
        (folder / "job.json").write_text(to_json(job), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "celltransfer.experiments.grid.job",
            str(folder),
            str(_PEER_SHARE * max_seconds),
        ]
        yield (job, folder), command, folder


def _rows(job: Job, folder: Path, ended: Ended) -> list[dict[str, Any]]:
    """Rows that a job left, or the one that says why it left none."""
    path = folder / "rows.json"
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))
    else:
        status = "failed" if ended.status == "ok" else ended.status
        rows = [_bare_row(job, status, ended.reason or "it ended without a result")]
    cost = {"total_seconds": ended.seconds / len(rows), "cpu_seconds": ended.cpu_seconds / len(rows)}
    return [row | cost | {"process_peak_mb": ended.peak_mb, "load": ended.load} for row in rows]


def _environment() -> dict[str, str]:
    """The settings of this process, for others."""
    env = {"CELLTRANSFER_CACHE_DIR": str(settings.cache_dir), "CELLTRANSFER_DEVICE": settings.device}
    env["CELLTRANSFER_PROGRESS"] = "0"
    if settings.data_mirror is not None:
        env["CELLTRANSFER_DATA_MIRROR"] = str(settings.data_mirror)
    return env
