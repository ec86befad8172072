"""Running the jobs of a suite, and keeping what they found: nothing that is finished is lost or run twice."""

from __future__ import annotations

import logging
import platform
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer import __version__
from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ConfigError, WriteError
from celltransfer.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from celltransfer.validation.base import Arrays, Job, Suite

    Row = dict[str, Any]

_log = logging.getLogger(__name__)


def label(job: Mapping[str, Any]) -> str:
    """A job's values as one file name, without what says how large the run is."""
    return re.sub("[ /]", "-", "_".join(f"{key}-{value}" for key, value in job.items() if key != "full"))


class Store:
    """Rows and arrays of finished jobs, in memory and, with a folder, on disk as they come.

    Rows are kept as the text that stands in ``rows.csv``, whether they have been read from there or not, so that a
    resumed run finds what it would have found in one go. Rows of other jobs stay in the file. Those of another
    version of the package do not count: their jobs are run again, and their rows replaced.

    Parameters
    ----------
    suite
        Name of the suite.
    jobs
        All jobs wanted, with the same keys.
    folder
        Where to keep rows and arrays; ``None`` keeps them in memory.

    Raises
    ------
    ConfigError
        The folder holds rows that cannot be read, or those of another suite.
    WriteError
        The folder cannot be made.
    """

    def __init__(self, suite: str, jobs: Sequence[Job], folder: Path | None) -> None:
        self.suite, self.jobs, self.folder = suite, jobs, folder
        self.keys = list(jobs[0])
        self._arrays: dict[str, Arrays] = {}
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        if folder is not None:
            _make(folder)
            self._rows = {self._key(row): row for row in self._read(folder / "rows.csv")}

    def left(self) -> list[Job]:
        """Jobs that are still to be run."""
        return [job for job in self.jobs if not self._done(job)]

    def add(self, job: Job, row: Row, arrays: Arrays) -> None:
        """Keep what a job found. The row comes last: where there is one, the arrays are there too."""
        if arrays:
            self._arrays[label(job)] = arrays
        self._rows[self._key(job)] = {name: _text(value) for name, value in row.items()}
        if self.folder is None:
            return
        if arrays:
            path = self._array_file(job)
            _make(path.parent)
            with atomic_path(path) as part:
                np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
        with atomic_path(self.folder / "rows.csv") as part:
            pd.DataFrame(list(self._rows.values())).to_csv(part, index=False)

    def rows(self) -> pd.DataFrame:
        """Rows of the wanted jobs, in their order."""
        found = (self._rows[self._key(job)] for job in self.jobs)
        values = ({name: _value(text) for name, text in row.items() if text} for row in found)
        return pd.DataFrame([row | job for row, job in zip(values, self.jobs, strict=True)])

    def arrays(self) -> dict[str, Arrays]:
        """Arrays of the wanted jobs by their label."""
        for job in self.jobs:
            if label(job) not in self._arrays and self.folder is not None and self._array_file(job).exists():
                with np.load(self._array_file(job), allow_pickle=False) as file:
                    self._arrays[label(job)] = dict(file)
        return {label(job): self._arrays[label(job)] for job in self.jobs if label(job) in self._arrays}

    def _done(self, job: Job) -> bool:
        return self._rows.get(self._key(job), {}).get("celltransfer") == __version__

    def _key(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Values of a job, or of a row as text."""
        return tuple(_text(values[key]) for key in self.keys)

    def _array_file(self, job: Job) -> Path:
        assert self.folder is not None
        return self.folder / ("arrays-full" if job["full"] else "arrays") / f"{label(job)}.npz"

    def _read(self, path: Path) -> list[dict[str, str]]:
        if not path.exists():
            return []
        try:
            frame = pd.read_csv(path, dtype=str, na_filter=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Give another folder, or remove the file.") from error
        missing = [name for name in [*self.keys, *_about("")] if name not in frame]
        if missing or set(frame["suite"]) - {self.suite}:
            what = f"it has no column {missing[0]!r}" if missing else f"its suite is {frame['suite'].iloc[0]!r}"
            raise ConfigError(
                f"{path} does not hold rows of suite {self.suite!r}: {what}. Give another folder, or remove the file."
            )
        others = sorted(set(frame["celltransfer"]) - {__version__})
        if others:
            _log.warning("%s has rows of celltransfer %s; they do not count.", path, ", ".join(others))
        return frame.to_dict("records")  # type: ignore[return-value]


def results(suite: Suite, jobs: Sequence[Job], processes: int, where: str) -> Iterator[tuple[Job, Row, Arrays]]:
    """Run the jobs and give what they found, as they end; `where` names the device."""
    if processes == 1 or len(jobs) < 2:
        yield from _watched((_finished(suite, job, where) for job in jobs), len(jobs))
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
        found = parallel(delayed(_elsewhere)(suite, job, where, vars(settings)) for job in jobs)
    try:
        yield from _watched(found, len(jobs))
    finally:
        found.close()


def device_name(name: str) -> str:
    """What a device is called in the rows: its kind, and the model of a GPU."""
    import torch

    from celltransfer.train.loop import Trainer

    device = Trainer(device=name).resolve_device()
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


class _Interrupted(BaseException):
    """Ctrl-C in a job. A `KeyboardInterrupt` would end the fit alone, and the job go on as if it were complete."""


@contextmanager
def _interruptible() -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    ours = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def interrupt(*_: Any) -> None:
        raise _Interrupted

    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _elsewhere(suite: Suite, job: Job, where: str, own: dict[str, Any]) -> tuple[Job, Row, Arrays]:
    """The same in another process: on one thread, and with the settings of this one."""
    import torch

    torch.set_num_threads(1)
    with settings.override(**own):
        return _finished(suite, job, where)


def _finished(suite: Suite, job: Job, where: str) -> tuple[Job, Row, Arrays]:
    start = time.perf_counter()
    try:
        with _interruptible():
            scores, arrays = suite.run({key: value for key, value in job.items() if key != "full"})
    except Exception as error:
        error.add_note(f"In run {label(job)} of suite {suite.name!r}; what was finished before is kept.")
        raise
    about = _about(suite.name, time.perf_counter() - start, where)
    return job, job | scores | about, arrays


def _about(suite: str, seconds: float = 0.0, where: str = "") -> Row:
    """What a row says beside its job and scores."""
    return {
        "suite": suite,
        "seconds": round(seconds, 2),
        "device": where,
        "machine": platform.machine(),
        "celltransfer": __version__,
    }


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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"Cannot write to {folder}: {error}") from error


def _watched(items: Any, total: int) -> Any:
    """Items with a progress bar on stderr where progress is shown."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() if settings.progress is None else settings.progress
    return tqdm(items, total=total, disable=not shown, unit="run")
