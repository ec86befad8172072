"""Suites: experiments from the papers, run by name, resumable, and judged against what the papers claim.

A suite lists its jobs and runs one; the runner here does the rest: what is done already, processes, table, files.
"""

from __future__ import annotations

import platform
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from celltransfer import __version__
from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.figure import Figure

Job = dict[str, Any]
Scores = dict[str, float | str]
Arrays = dict[str, np.ndarray]

# Suites by name; their modules are imported when run.
_SUITES = {
    "plane": "celltransfer.validation.plane:Plane",
    "a549_one_anchor": "celltransfer.validation.a549:A549OneAnchor",
}


@dataclass(frozen=True)
class Claim:
    """Something a paper or the theory says, and what was found.

    Attributes
    ----------
    text
        The claim.
    found
        The figures that bear on it.
    holds
        Whether they bear it out; ``None`` where they cannot tell.
    """

    text: str
    found: str
    holds: bool | None


@dataclass
class Outcome:
    """What a suite found.

    Attributes
    ----------
    name, title, reference
        Of the suite.
    rows
        One row per job: what identifies it, its scores, seconds, device and version.
    table
        The summary: mean and standard deviation over seeds.
    claims
        What the paper says against what was found.
    figure
        The picture.
    seconds
        Sum of the jobs' times.
    """

    name: str
    title: str
    reference: str
    rows: pd.DataFrame
    table: pd.DataFrame
    claims: list[Claim] = field(default_factory=list)
    figure: Figure | None = None
    seconds: float = 0.0

    def to_markdown(self) -> str:
        """Title, table and claims."""
        devices = ", ".join(sorted(set(self.rows["device"])))
        lines = [f"# {self.title}", "", self.reference, "", *markdown_table(self.table), ""]
        lines += [f"- {_MARKS[claim.holds]} {claim.text} Found: {claim.found}" for claim in self.claims]
        lines += ["", f"{len(self.rows)} runs, {self.seconds:.0f} s in all, on {devices}."]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Write ``table.md`` and ``picture.png`` into `folder`; the rows are there already."""
        written = [folder / "table.md"]
        with atomic_path(written[0]) as path:
            path.write_text(self.to_markdown(), encoding="utf-8")
        if self.figure is not None:
            written.append(folder / "picture.png")
            with atomic_path(written[1]) as path:
                self.figure.savefig(path, dpi=120, format="png")
        return written


_MARKS = {True: "**holds:**", False: "**does not hold:**", None: "**cannot be told:**"}


class Suite(ABC):
    """One experiment. A subclass gives names, lists jobs, runs one, and reads the rows.

    Attributes
    ----------
    name, title, reference
        What to run it by, one line on what it shows, and where it is from.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]

    def __init__(self, *, full: bool = False, device: str = "auto") -> None:
        self.full, self.device = full, device

    @abstractmethod
    def jobs(self, seeds: int | None) -> list[Job]:
        """Plain values that say what to run; `seeds` replaces the suite's own number of seeds."""

    @abstractmethod
    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Run one job: its scores, and arrays for the picture (empty for jobs that are not drawn)."""

    @abstractmethod
    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Summary of the rows."""

    @abstractmethod
    def claims(self, rows: pd.DataFrame) -> list[Claim]:
        """What the paper says against the rows."""

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure | None:
        """The picture; `arrays` by `label` of the job. ``None`` where there is nothing to draw."""
        return None


def suites() -> pd.DataFrame:
    """All suites: title and reference by name."""
    classes = [get(name) for name in _SUITES]
    index = pd.Index(list(_SUITES), name="name")
    return pd.DataFrame({"title": [c.title for c in classes], "reference": [c.reference for c in classes]}, index=index)


def get(name: str) -> type[Suite]:
    """The suite of this name."""
    if name not in _SUITES:
        raise ConfigError(f"There is no suite {name!r}; there are {', '.join(_SUITES)}.")
    module, _, cls = _SUITES[name].partition(":")
    return getattr(import_module(module), cls)


def run(
    name: str,
    *,
    full: bool = False,
    seeds: int | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    device: str = "auto",
) -> Outcome:
    """Run a suite.

    Parameters
    ----------
    name
        See `suites`.
    full
        The paper's sizes, which take hours without a GPU; otherwise sizes for minutes on two CPU cores.
    seeds
        Seeds per arm, instead of the suite's own number.
    out
        Folder for ``rows.csv``, ``table.md``, ``picture.png`` and the arrays behind the picture. Rows it already has
        are not run again, so an interrupted run goes on where it stopped. ``None`` keeps nothing.
    processes
        Jobs at a time, each on one thread.
    device
        As in `celltransfer.train.Trainer`.

    Raises
    ------
    ConfigError
        There is no such suite, or a number is below 1.
    DatasetError
        Its data can be neither found nor downloaded.
    """
    for what, value in (("seeds", seeds), ("processes", processes)):
        if value is not None and value < 1:
            raise ConfigError(f"{what}={value}; expected at least 1.")
    suite = get(name)(full=full, device=device)
    jobs = [{"full": full} | job for job in suite.jobs(seeds)]
    store = _Store(jobs, None if out is None else Path(out))
    todo = [job for job in jobs if not store.has(job)]
    for job, row, arrays in _results(suite, todo, processes):
        store.add(job, row, arrays)
    rows = store.rows()
    outcome = Outcome(suite.name, suite.title, suite.reference, rows, suite.table(rows), suite.claims(rows))
    outcome.figure = suite.draw(rows, store.arrays())
    outcome.seconds = float(rows["seconds"].sum())
    if out is not None:
        outcome.save(Path(out))
    return outcome


def label(job: Mapping[str, Any]) -> str:
    """A job's values as one file name, without what says how large the run is."""
    return "_".join(f"{key}-{value}" for key, value in job.items() if key != "full").replace("/", "-").replace(" ", "-")


def mean_sd(values: pd.Series, digits: int = 3) -> str:
    """Mean and standard deviation over seeds as text."""
    spread = values.std(ddof=1) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"


def markdown_table(table: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table, the index as first column."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, values in table.iterrows():
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
        lines.append("| " + " | ".join([str(name), *cells]) + " |")
    return lines


class _Store:
    """Rows and arrays of finished jobs, in memory and, with a folder, on disk as they come."""

    def __init__(self, jobs: Sequence[Job], folder: Path | None) -> None:
        self.jobs, self.folder = jobs, folder
        self.keys = list(jobs[0])
        self._rows: list[dict[str, Any]] = []
        self._arrays: dict[str, Arrays] = {}
        if folder is not None:
            (folder / "arrays").mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                self._rows = self._read()

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "rows.csv"

    def has(self, job: Job) -> bool:
        return self._key(job) in {self._key(row) for row in self._rows}

    def add(self, job: Job, row: dict[str, Any], arrays: Arrays) -> None:
        self._rows.append(row)
        if self.folder is not None:
            with atomic_path(self._file) as path:
                pd.DataFrame(self._rows).to_csv(path, index=False, float_format="%.6g")
            if arrays:
                np.savez_compressed(self.folder / "arrays" / f"{label(job)}.npz", **arrays)  # type: ignore[arg-type]
        if arrays:
            self._arrays[label(job)] = arrays

    def rows(self) -> pd.DataFrame:
        """Rows of the wanted jobs, in their order."""
        found = {self._key(row): row for row in self._rows}
        return pd.DataFrame([found[self._key(job)] for job in self.jobs])

    def arrays(self) -> dict[str, Arrays]:
        wanted = [label(job) for job in self.jobs]
        if self.folder is not None:
            for name in wanted:
                path = self.folder / "arrays" / f"{name}.npz"
                if name not in self._arrays and path.exists():
                    with np.load(path, allow_pickle=False) as file:
                        self._arrays[name] = dict(file)
        return {name: self._arrays[name] for name in wanted if name in self._arrays}

    def _read(self) -> list[dict[str, Any]]:
        frame = pd.read_csv(self._file)
        missing = [key for key in [*self.keys, "device", "seconds"] if key not in frame]
        if missing:
            raise ConfigError(
                f"{self._file} has no column {missing[0]!r}: it holds the rows of another suite or version. "
                "Give another folder, or remove the file."
            )
        return frame.to_dict("records")  # type: ignore[return-value]

    def _key(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Values of a job or a row as text, alike before and after a CSV file."""
        return tuple(f"{v:g}" if isinstance(v := values[key], float) else str(v) for key in self.keys)


def _results(suite: Suite, jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any], Arrays]]:
    """Finished jobs as they come."""
    from joblib import Parallel, delayed

    if processes == 1 or len(jobs) < 2:
        yield from (_finished(suite, job) for job in _watched(jobs, len(jobs)))
        return
    parallel = Parallel(n_jobs=processes, return_as="generator_unordered")
    yield from _watched(parallel(delayed(_finished)(suite, job, threads=1) for job in jobs), len(jobs))


def _finished(suite: Suite, job: Job, threads: int | None = None) -> tuple[Job, dict[str, Any], Arrays]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    scores, arrays = suite.run({key: value for key, value in job.items() if key != "full"})
    about = {"seconds": time.perf_counter() - start, "device": _device(suite.device)}
    return job, job | scores | about | {"celltransfer": __version__, "machine": platform.machine()}, arrays


def _device(name: str) -> str:
    from celltransfer.train.loop import Trainer

    return str(Trainer(device=name).resolve_device())


def _watched(items: Any, total: int) -> Any:
    """Items with a progress bar on stderr where progress is shown."""
    import sys

    from tqdm import tqdm

    from celltransfer.settings import settings

    shown = sys.stderr.isatty() if settings.progress is None else settings.progress
    return tqdm(items, total=total, disable=not shown, unit="run")
