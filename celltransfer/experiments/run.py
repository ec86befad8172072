"""Running the jobs of a suite, here or in processes side by side, and keeping what they find as they end."""

from __future__ import annotations

import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from celltransfer._version import __version__
from celltransfer.experiments.processes import interruptible, workers
from celltransfer.experiments.store import Store, label
from celltransfer.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from celltransfer.experiments.suite import Arrays, Job, Suite

    Row = dict[str, Any]
    # Rows of a job, its arrays, and what it displaces.
    Found = tuple[Sequence[Row], "Arrays | None", Any]


def run_suite(suite: Suite, jobs: Sequence[Job], folder: Path | None, processes: int) -> Store:
    """Run what a folder does not hold yet of a suite's jobs.

    Raises
    ------
    ConfigError
        The folder holds rows that cannot be read, or those of another suite.
    """
    where = device_name(suite.device)
    store = Store(f"suite {suite.name!r}", list(jobs[0]), folder, needed=[*_about("")])
    done = store.finished()
    if others := {row["suite"] for row in store.read().values()} - {suite.name}:
        store.refuse(f"its suite is {others.pop()!r}")
    left = [job for job in jobs if store.key(job) not in done]
    found = workers(_one, [(suite, job, where) for job in left], processes)
    keep(store, (([row], arrays, None) for row, arrays in found), len(left))
    return store


def keep(store: Store, found: Iterable[Found], total: int, tell: Callable[[int, Row], None] | None = None) -> None:
    """Keep what jobs find as they end; tell of it, or show a bar on stderr where progress is shown."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() if settings.progress is None else settings.progress
    with tqdm(found, total=total, disable=tell is not None or not shown, unit="run") as ended:
        for done, (rows, arrays, instead) in enumerate(ended, 1):
            store.add(rows, arrays, instead=instead)
            if tell is not None:
                tell(done, rows[-1])


def device_name(name: str) -> str:
    """What a device is called in the rows: its kind, and the model of a GPU."""
    import torch

    from celltransfer.train.loop import Trainer

    device = Trainer(device=name).resolve_device()
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _one(suite: Suite, job: Job, where: str) -> tuple[Row, Arrays]:
    start = time.perf_counter()
    try:
        with interruptible():
            scores, arrays = suite.run({key: value for key, value in job.items() if key != "full"})
    except Exception as error:
        error.add_note(f"In run {label(job)} of suite {suite.name!r}; what was finished before is kept.")
        raise
    return job | scores | _about(suite.name, time.perf_counter() - start, where), arrays


def _about(suite: str, seconds: float = 0.0, where: str = "") -> Row:
    """What a row says beside its job and scores."""
    return {
        "suite": suite,
        "seconds": round(seconds, 2),
        "device": where,
        "machine": platform.machine(),
        "celltransfer": __version__,
    }
