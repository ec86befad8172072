"""Suites: experiments that say what to run, what stands in the table and what is claimed; and what they found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from celltransfer.data.writeback import atomic_path
from celltransfer.experiments.claims import Claim, Says, judge
from celltransfer.experiments.tables import summary
from celltransfer.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

__all__ = ["Arrays", "Job", "Outcome", "Scores", "Suite"]

Job = dict[str, Any]
Scores = dict[str, float | str]
Arrays = dict[str, np.ndarray]

_MARKS = {True: "**holds:**", False: "**does not hold:**", None: "**cannot be told:**"}


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
        took = f", {self.seconds:.0f} s in all" if self.seconds else ""
        about = f"{len(self.rows)} runs at {size}{took}, on {self.devices}"
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


class Suite(ABC):
    """One experiment: its arms, how one is run and scored, columns of the table, claims, and a picture.

    Attributes
    ----------
    name, title, reference
        What to run it by, one line on what it shows, and where it is from.
    seeds
        Seeds of every arm.
    by
        Columns that tell arms apart in table and claims.
    columns
        Titles of the table, and what stands below, see `celltransfer.experiments.tables.summary`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    seeds: ClassVar[int] = 3
    by: ClassVar[tuple[str, ...]] = ("arm",)
    columns: ClassVar[Mapping[str, Column]] = {}

    def __init__(self, *, full: bool = False, device: str = "auto") -> None:
        self.full, self.device = full, device

    def arms(self) -> Sequence[Any]:
        """What is run with every seed: values of the columns `by`, or one value where there is one column."""
        return ()

    @abstractmethod
    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Run one job: its scores, and arrays for the picture (empty for jobs that are not drawn)."""

    def says(self) -> Sequence[Says]:
        """What is claimed."""
        return ()

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure | None:
        """The picture; `arrays` by `label` of the job. ``None`` where there is nothing to draw."""
        return None

    def jobs(self, seeds: int | None) -> list[Job]:
        """Plain values that say what to run; `seeds` replaces the suite's own number of seeds."""
        arms = [arm if isinstance(arm, tuple) else (arm,) for arm in self.arms()]
        return [dict(zip(self.by, a, strict=True)) | {"seed": s} for s in range(seeds or self.seeds) for a in arms]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Summary of the rows."""
        return summary(rows, self.by, self.columns, self.line)

    def line(self, *key: Any) -> str:
        """What an arm's line of the table is called, by its values of `by`."""
        return str(key[0])

    def claims(self, rows: pd.DataFrame) -> list[Claim]:
        """What is claimed against the rows."""
        scores = {
            what if isinstance(what, str) else what[0]: t for t, what in self.columns.items() if not callable(what)
        }
        return [judge(says, rows, self.by, scores) for says in self.says()]
