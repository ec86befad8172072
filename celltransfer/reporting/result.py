"""`Report`: what is known about a translation, as tables, sentences and pages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from celltransfer.metrics.scores import reference_share
from celltransfer.reporting import tables
from celltransfer.reporting.words import CEILING, HEADLINE, TRANSLATION, number, short

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.console import Group

    from celltransfer.train.outcome import Verdict

# Groups that a sentence names.
MAX_NAMED = 5


@dataclass(frozen=True, eq=False)
class Report:
    """The scores of a translation and of its controls on the same cells, as a value.

    Every table is empty where no cell has a known partner.

    Attributes
    ----------
    table
        One row per method (the translation first), one column per score.
    intervals
        95 % bootstrap interval over cells of the translation's scores.
    about
        What was translated and on which cells it was scored.
    verdict
        The verdict of the fit, which has seen none of these pairs.
    notes
        What the user should know about the fit and the scores, one sentence each.
    overall
        One row per score and direction: ``translation`` with its interval (``low``, ``high``), ``chance``,
        ``ceiling``, and the ``share`` of the way from chance to the ceiling, with interval.
    by_group
        The scores by cell type, condition and what ``groups=`` named: index (grouping, group); ``n``, every score
        with ``_low`` and ``_high``, ``foscttm_within`` (among the cells of the group only) and ``foscttm_ceiling``.
    by_feature
        Correlation over cells, mean and spread of every predicted feature, best first.
    by_cell
        Every scored cell: partner, groups, error, what the translation says of itself, first two dimensions of the
        scoring space.
    risk
        FOSCTTM of the cells that are kept when the least confident are rejected: one row per share of cells kept,
        one column per confidence, and the best possible.
    curve
        The scores of refits with fewer anchors, if they were asked for.
    """

    table: pd.DataFrame
    intervals: dict[str, tuple[float, float]]
    about: dict[str, Any]
    verdict: Verdict
    notes: list[str] = field(default_factory=list)
    overall: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_group: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_feature: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_cell: pd.DataFrame = field(default_factory=pd.DataFrame)
    risk: pd.DataFrame = field(default_factory=pd.DataFrame)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def evidence(self) -> pd.DataFrame:
        """What the verdict found: one row per figure, estimates with interval and, if known, the measured score.

        ``in_level`` marks the figures that its level rests on; the others are beside it.
        kNN accuracy is measured among as many cells as the verdict ranked, ``reference_cells``.
        """
        found = self.verdict.evidence
        truth = tables.measured(self.table, self.by_cell, TRANSLATION, found.get("reference_cells"))
        return tables.evidence(found, truth)

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables that are not empty, by name."""
        names = ("table", "overall", "evidence", "by_group", "by_feature", "by_cell", "risk", "curve")
        return {name: frame for name in names if not (frame := getattr(self, name)).empty}

    def to_frame(self) -> pd.DataFrame:
        """All scores: one row per method, one column per score."""
        return self.table.copy()

    def headline(self) -> pd.DataFrame:
        """The scores that the printed table shows."""
        return self.table[[name for name in HEADLINE if name in self.table and self.table[name].notna().any()]]

    def summary(self) -> list[str]:
        """What the tables say, in sentences."""
        about = self.about
        lines = [
            f"{about['source']} -> {about['target']}, method {about['method']}, {about['n_anchors']} anchors, "
            f"seed {about['seed']}.",
            f"Verdict: {self.verdict.level}. {' '.join(self.verdict.reasons)}",
        ]
        if not self.table.empty:
            sample = f" (a random sample of {about['n_known']})" if about["n_cells"] < about["n_known"] else ""
            lines += [f"Scored on {about['n_cells']} {about['cells']}{sample}.", self._compare(), self._beaten_by()]
            lines += [sentence for sentence in [self.lost_within(), self.estimate_and_truth()] if sentence]
        return [*lines, *self.notes]

    def _compare(self) -> str:
        scores = dict(zip(self.table, self.table.loc[[TRANSLATION]].to_numpy(dtype=float)[0], strict=True))
        low, high = self.intervals["foscttm"]
        knn = self.intervals["knn_accuracy@10"]
        text = (
            f"FOSCTTM {scores['foscttm']:.3f} ({low:.3f} to {high:.3f}; 0 is perfect, chance 0.5); true partner among "
            f"the 10 nearest for {scores['knn_accuracy@10']:.1%} ({knn[0]:.1%} to {knn[1]:.1%}; "
            f"chance {min(10 / self.about['n_cells'], 1):.1%})"
        )
        if CEILING in self.table.index:
            rivals = tables.beat_ceiling(self.table, "foscttm")
            text += _against_ceiling(scores["foscttm"], float(self.table["foscttm"][CEILING]), rivals)
        return f"{text}."

    def _beaten_by(self) -> str:
        """Which controls translate better; none of them may use what the ceiling uses."""
        foscttm = self.table["foscttm"].drop(CEILING, errors="ignore")
        better = foscttm.index[foscttm < foscttm[TRANSLATION]]
        if not len(better):
            return "No control has a lower FOSCTTM."
        return f"Controls with a lower FOSCTTM: {', '.join(f'{name} ({foscttm[name]:.3f})' for name in better)}."

    def lost_within(self) -> str:
        """The groups within which cells are placed no better than at random; empty if there are none."""
        worse, equal = tables.lost_within(self.by_group)
        parts = [
            f"{what} within {_named(found)}"
            for what, found in (("worse than chance", worse), ("no better than chance", equal))
            if len(found)
        ]
        if not parts:
            return ""
        return f"By FOSCTTM among the cells of a group only, the translation is {' and '.join(parts)}."

    def estimate_and_truth(self) -> str:
        """Whether the verdict's interval for FOSCTTM holds what was measured; empty if it has none."""
        evidence = self.evidence[["value", "low", "high", "measured"]]
        if "foscttm" not in evidence.index or evidence.loc[["foscttm"]].isna().any(axis=None):
            return ""
        value, low, high, truth = evidence.loc["foscttm"].to_numpy(dtype=float)
        holds = "holds" if low <= truth <= high else "lies above" if truth < low else "lies below"
        return f"The verdict's estimate of FOSCTTM, {value:.3f} ({low:.3f} to {high:.3f}), {holds} the measured one."

    def pictures(self) -> dict[str, Figure]:
        """The pictures of the page, by name, as matplotlib figures; none where nothing could be scored."""
        from celltransfer.reporting import pictures

        return {name: picture.figure() for name, picture in pictures.pictures(self).items()}

    def to_markdown(self) -> str:
        """Sentences and tables, in Markdown."""
        from celltransfer.reporting import document

        return document.markdown(self)

    @overload
    def to_html(self, path: None = None) -> str: ...

    @overload
    def to_html(self, path: str | Path) -> None: ...

    def to_html(self, path: str | Path | None = None) -> str | None:
        """A page with all tables and pictures in one file: no scripts, and nothing loaded from elsewhere.

        Parameters
        ----------
        path
            Where to write it.

        Returns
        -------
        str or None
            The page where there is no path, ``None`` where it was written.
        """
        from celltransfer.data.writeback import atomic_path
        from celltransfer.reporting import page

        text = page.page(self)
        if path is None:
            return text
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")
        return None

    def to_csv(self, folder: str | Path) -> None:
        """Write every table that is not empty as ``<name>.csv`` into a folder, which is made if needed."""
        from pathlib import Path

        from celltransfer.data.writeback import atomic_path

        for name, frame in self.frames().items():
            with atomic_path(Path(folder) / f"{name}.csv") as part:
                frame.to_csv(part, index=name != "curve")

    def to_dict(self) -> dict[str, Any]:
        """Everything but single features and cells, in plain types."""
        return {
            "about": self.about,
            "verdict": self.verdict.to_dict(),
            "scores": _plain(self.table),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "overall": _plain(self.overall),
            "evidence": _plain(self.evidence),
            "by_group": {name: _plain(part.droplevel(0)) for name, part in tables.groupings(self.by_group)},
            "risk": _plain(self.risk.rename(index=str)),
            "curve": list(_plain(self.curve).values()),
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """Everything but single features and cells, as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_rich(self) -> Group:
        """Sentences and the headline table, for a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # Text, because rich takes "[...]" in a plain string for markup.
        sentences = [Text(line) for line in self.summary()]
        if self.table.empty:
            return Group(*sentences)
        shown = self.headline()
        table = Table()
        table.add_column("method", no_wrap=True)
        for name in shown:
            table.add_column(short(name), justify="right")
        for name, row in shown.iterrows():
            style = "bold" if name == TRANSLATION else ""
            table.add_row(Text(str(name)), *(number(value) for value in row), style=style)
        return Group(*sentences, table)

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        from celltransfer.reporting import page

        return page.fragment(self)


def _plain(frame: pd.DataFrame) -> dict[Any, dict[str, Any]]:
    """Rows by name, in types that JSON has; ``None`` for what is missing."""
    table = frame.astype(object).where(frame.notna(), None)
    return {
        name: {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
        for name, row in table.to_dict(orient="index").items()
    }


def _named(found: pd.Series) -> str:
    """The first groups with their scores, and how many more there are."""
    shown = ", ".join(f"{name} ({value:.3f})" for name, value in found.head(MAX_NAMED).items())
    rest = len(found) - MAX_NAMED
    return f"{shown} and {rest} more" if rest > 0 else shown


def _against_ceiling(foscttm: float, ceiling: float, rivals: pd.Series) -> str:
    """How far a FOSCTTM has come from chance to the ceiling, in words where a share would mislead.

    `rivals` are the controls that beat the ceiling.
    """
    if ceiling > tables.NO_CEILING:
        return f"; the ceiling itself is at {ceiling:.3f}: hardly anything can be translated between these modalities"
    share = reference_share(foscttm, 0.5, ceiling)
    if share <= 0:
        return "; not better than chance"
    if share > 1:
        return f"; better than the ceiling ({ceiling:.3f}), which too few pairs may have set too low"
    if len(rivals):
        return (
            f"; the ceiling ({ceiling:.3f}) is no scale, as {rivals.index[0]} ({rivals.iloc[0]:.3f}) beats it without "
            "a hidden pair"
        )
    return f"; {share:.0%} of the way from chance to the ceiling ({ceiling:.3f})"
