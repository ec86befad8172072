"""Experiments by name: `suites` lists them, `run` runs one and returns an `Outcome`, as ``celltransfer validate``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from celltransfer.errors import ConfigError
from celltransfer.experiments.claims import Claim
from celltransfer.experiments.run import run_suite
from celltransfer.experiments.store import label
from celltransfer.experiments.suite import Outcome, Suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Claim", "Outcome", "Suite", "read", "run", "suites"]

# Suites by name; their modules are imported when run.
_SUITES = {
    "plane": "plane:Plane",
    "mnist_rotated": "mnist_rotated:MnistRotated",
    "shoes_rotated": "shoes_rotated:ShoesRotated",
    "a549_one_anchor": "a549:A549OneAnchor",
    "swiss_roll": "swiss_roll:SwissRoll",
    "coloured_digits": "coloured_digits:ColouredDigits",
    "weather": "weather:Weather",
    "digits_glow": "digits_glow:DigitsGlow",
    "gaussian_lrmf": "gaussian_lrmf:GaussianLRMF",
    "vanishing": "vanishing:Vanishing",
    "blobs": "blobs:Blobs",
    "digits_usps_mnist": "digits_usps_mnist:DigitsUspsMnist",
    "moons": "moons:Moons",
    "meshes": "meshes:Meshes",
    "latents": "latents:Latents",
    "faces": "faces:Faces",
    "gain_study": "gain_study:GainStudy",
    "digit_swap": "digit_swap:DigitSwap",
    "faces_interpolation": "faces_interpolation:FacesInterpolation",
    "a549_conditions": "a549_conditions:A549Conditions",
    "alignment_controls": "alignment_controls:AlignmentControls",
    "anchor_laws": "anchor_laws:AnchorLaws",
    "probe_cost": "probe_cost:ProbeCost",
    "probe_bias": "probe_bias:ProbeBias",
}


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
    return getattr(import_module(f"{__name__}.{module}"), cls)


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
    suite, folder = get(name)(full=full, device=device), None if out is None else Path(out)
    jobs = [{"full": full} | job for job in suite.jobs(seeds)]
    store = run_suite(suite, jobs, folder, processes)
    rows, arrays = store.rows(jobs), {label(job): found for job in jobs if (found := store.arrays(job)) is not None}
    outcome = reading(suite, rows)
    outcome.figure = _unmanaged(suite.draw(rows, arrays))
    if folder is not None:
        outcome.written = [folder / "rows.csv", *outcome.save(folder)]
    return outcome


def read(folder: str | Path) -> Outcome:
    """What the rows of a folder say, whatever version wrote them; nothing is run, and there is no picture.

    Raises
    ------
    ConfigError
        The folder holds no rows of a suite.
    """
    path = Path(folder) / "rows.csv"
    try:
        rows = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
        name = rows["suite"].iloc[0]
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f"{path} cannot be read as rows of a suite: {error!r}.") from error
    suite = get(name)(full=bool(rows["full"].all()))
    jobs = suite.jobs(int(rows["seed"].max()) + 1)
    order = {tuple(map(str, job.values())): i for i, job in enumerate(jobs)}
    place = rows[list(jobs[0])].astype(str).apply(lambda row: order.get(tuple(row), -1), axis=1)
    known = rows[(place >= 0) & (rows["full"] == suite.full)]
    return reading(suite, known.iloc[place[known.index].argsort(kind="stable")].reset_index(drop=True))


def reading(suite: Suite, rows: pd.DataFrame) -> Outcome:
    """What rows say."""
    outcome = Outcome(suite.name, suite.title, suite.reference, rows, suite.table(rows), suite.claims(rows))
    outcome.seconds = float(rows["seconds"].sum())
    return outcome


def _unmanaged(figure: Figure | None) -> Figure | None:
    """A figure that no window shows and pyplot does not keep."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if figure is not None and pyplot is not None:
        pyplot.close(figure)
    return figure
