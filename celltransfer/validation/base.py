"""Suites: experiments from the papers, run by name, resumable, and judged against what the papers claim.

A suite lists its jobs and runs one; `run` does the rest: what is done already, processes, table, claims, files.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from celltransfer.data.writeback import atomic_path
from celltransfer.errors import ConfigError
from celltransfer.markdown import markdown_table
from celltransfer.validation.runner import Store, device_name, label, results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

__all__ = [
    "Arrays",
    "Claim",
    "Job",
    "Outcome",
    "Scores",
    "Suite",
    "get",
    "label",
    "markdown_table",
    "mean_sd",
    "run",
    "suites",
]

Job = dict[str, Any]
Scores = dict[str, float | str]
Arrays = dict[str, np.ndarray]

# Suites by name; their modules are imported when run.
_SUITES = {
    "plane": "celltransfer.validation.plane:Plane",
    "mnist_rotated": "celltransfer.validation.mnist_rotated:MnistRotated",
    "shoes_rotated": "celltransfer.validation.shoes_rotated:ShoesRotated",
    "a549_one_anchor": "celltransfer.validation.a549:A549OneAnchor",
    "swiss_roll": "celltransfer.validation.swiss_roll:SwissRoll",
    "coloured_digits": "celltransfer.validation.coloured_digits:ColouredDigits",
    "weather": "celltransfer.validation.weather:Weather",
    "digits_glow": "celltransfer.validation.digits_glow:DigitsGlow",
    "gaussian_lrmf": "celltransfer.validation.gaussian_lrmf:GaussianLRMF",
    "vanishing": "celltransfer.validation.vanishing:Vanishing",
    "blobs": "celltransfer.validation.blobs:Blobs",
    "digits_usps_mnist": "celltransfer.validation.digits_usps_mnist:DigitsUspsMnist",
    "moons": "celltransfer.validation.moons:Moons",
    "meshes": "celltransfer.validation.meshes:Meshes",
    "latents": "celltransfer.validation.latents:Latents",
    "faces": "celltransfer.validation.faces:Faces",
    "gain_study": "celltransfer.validation.gain_study:GainStudy",
    "digit_swap": "celltransfer.validation.digit_swap:DigitSwap",
    "faces_interpolation": "celltransfer.validation.faces_interpolation:FacesInterpolation",
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
    written
        The files that `run` wrote.
    """

    name: str
    title: str
    reference: str
    rows: pd.DataFrame
    table: pd.DataFrame
    claims: list[Claim] = field(default_factory=list)
    figure: Figure | None = None
    seconds: float = 0.0
    written: list[Path] = field(default_factory=list)

    @property
    def contradicted(self) -> list[Claim]:
        """The claims that do not hold; those that cannot be told are none of them."""
        return [claim for claim in self.claims if claim.holds is not None and not claim.holds]

    @property
    def devices(self) -> str:
        """Where the jobs ran."""
        return ", ".join(sorted(set(self.rows["device"])))

    def to_markdown(self) -> str:
        """Title, table and claims."""
        size = "the paper's sizes" if self.rows["full"].all() else "default sizes"
        version = self.rows["celltransfer"].iloc[0]
        lines = [f"# {self.title}", "", self.reference, "", *markdown_table(self.table), ""]
        lines += [f"- {_MARKS[claim.holds]} {claim.text} Found: {claim.found}" for claim in self.claims]
        about = f"{len(self.rows)} runs at {size}, {self.seconds:.0f} s in all, on {self.devices}"
        lines += ["", f"{about}; celltransfer {version}."]
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
        are not run again, so an interrupted run goes on where it stopped, unless another version of celltransfer
        wrote them. Rows of other seeds and sizes stay. ``None`` writes nothing.
    processes
        Jobs at a time, each in a process of its own on one thread; 1 runs them here, on the threads torch is set to.
    device
        As in `celltransfer.train.Trainer`; all processes share it.

    Raises
    ------
    ConfigError
        There is no such suite or device, a number is below 1, or `out` holds rows of another suite.
    DatasetError
        Its data can be neither found nor downloaded.
    WriteError
        Nothing can be written to `out`.
    KeyboardInterrupt
        At Ctrl-C. Like any error that a job raises, it leaves the finished jobs in `out`.
    """
    for what, value in (("seeds", seeds), ("processes", processes)):
        if value is not None and value < 1:
            raise ConfigError(f"{what}={value}; expected at least 1.")
    suite, where = get(name)(full=full, device=device), device_name(device)
    folder = None if out is None else Path(out)
    store = Store(suite.name, [{"full": full} | job for job in suite.jobs(seeds)], folder)
    for job, row, arrays in results(suite, store.left(), processes, where):
        store.add(job, row, arrays)
    rows = store.rows()
    outcome = Outcome(suite.name, suite.title, suite.reference, rows, suite.table(rows), suite.claims(rows))
    outcome.seconds = float(rows["seconds"].sum())
    outcome.figure = _unmanaged(suite.draw(rows, store.arrays()))
    if folder is not None:
        outcome.written = [folder / "rows.csv", *outcome.save(folder)]
    return outcome


def _unmanaged(figure: Figure | None) -> Figure | None:
    """A figure that no window shows and pyplot does not keep."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if figure is not None and pyplot is not None:
        pyplot.close(figure)
    return figure


def mean_sd(values: pd.Series, digits: int = 3) -> str:
    """Mean and standard deviation over seeds as text; empty where there is no value."""
    if values.isna().all():
        return ""
    spread = values.std(ddof=1) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"
