"""What a written report says, in what order: sections of paragraphs, tables and pictures, for every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from celltransfer.markdown import markdown_table
from celltransfer.reporting import tables, words
from celltransfer.reporting.words import TRANSLATION, number, percent, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celltransfer.reporting.result import Report

# Rows of a long table that are shown; all of them are in the report's DataFrames.
MAX_GROUPS, MAX_EXTREMES = 20, 10


@dataclass(frozen=True)
class Table:
    """A table of text; `strong` is the row that stands out."""

    caption: str
    frame: pd.DataFrame
    strong: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture, by its name in `celltransfer.reporting.pictures`."""

    name: str


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: list[str | Table | Picture] = field(default_factory=list)


def sections(report: Report) -> list[Section]:
    """The sections that this report has something to say in."""
    made = [make(report) for make in (_verdict, _scores, _controls, _groups, _curve, _features, _cells, _notes)]
    return [section for section in made if section.blocks]


def markdown(report: Report) -> str:
    """The report in Markdown: all sentences and the headline table first, then the sections, without pictures."""
    summary = report.summary()
    lines = [f"# {summary[0]}", "", *(f"{line}\n" for line in summary[1:])]
    if not report.table.empty:
        lines += markdown_table(report.headline().rename(columns=words.short).rename_axis("method"), number)
    for section in sections(report):
        found = [block for block in section.blocks if isinstance(block, Table) and section.title != "Controls"]
        if found:
            lines += ["", f"## {section.title}"]
        for table in found:
            lines += ["", f"{table.caption}", "", *markdown_table(table.frame)]
    return "\n".join(lines) + "\n"


def _verdict(report: Report) -> Section:
    blocks: list[str | Table | Picture] = [" ".join(report.verdict.reasons)] if report.verdict.reasons else []
    evidence = report.evidence
    if len(evidence):
        frame = pd.DataFrame(
            {
                "estimate": [spread(a, b, c, _figure) for a, b, c in evidence[["value", "low", "high"]].to_numpy()],
                "measured": [number(value) for value in evidence["measured"]],
                "interval holds it": [_yes(value) for value in evidence["held"]],
            },
            index=pd.Index([words.evidence_label(str(key)) for key in evidence.index], name="evidence"),
        )
        if not frame["measured"].any():
            frame = frame[["estimate"]]
        beside = "Beside it, and not in the level."
        if "reference_cells" in evidence.index and frame.shape[1] > 1:
            among = report.verdict.evidence["reference_cells"]
            beside += f" kNN accuracy is estimated, and measured, among {among:.0f} target cells."
        rests = "What the level of the verdict rests on: no pair that is scored here was used for it."
        decides = evidence["in_level"].to_numpy(dtype=bool)
        for caption, part in ((rests, frame[decides]), (beside, frame[~decides])):
            blocks += [Table(caption, part.loc[:, (part != "").any()])] if len(part) else []
    return Section("Verdict", blocks)


def _figure(value: float) -> str:
    return number(value, 0 if np.isfinite(value) and float(value).is_integer() and value > 1 else 3)


def _yes(value: Any) -> str:
    return "" if value is None or pd.isna(value) else "yes" if value else "no"


def _scores(report: Report) -> Section:
    if report.overall.empty:
        return Section("Scores")
    about, overall = report.about, report.overall
    rows = []
    for name, row in overall.iterrows():
        form = number if str(name).startswith("foscttm") else tenths
        rows.append(
            {
                "score": words.score_label(str(name), about["source"], about["target"]),
                "translation (95 % interval)": spread(row["translation"], row["low"], row["high"], form),
                "chance": form(row["chance"]),
                "ceiling": form(row["ceiling"]),
                "share of the ceiling": spread(row["share"], row["share_low"], row["share_high"], percent),
            }
        )
    frame = pd.DataFrame(rows).set_index("score")
    caption = "Both directions, with the share of the way from chance to the ceiling (a model that saw all pairs)."
    return Section(
        "Scores", [" ".join(report.summary()[2:5]), Table(caption, frame), Picture("foscttm"), Picture("space")]
    )


def tenths(value: Any) -> str:
    """A share in tenths of a percent."""
    return percent(value, 1)


def _controls(report: Report) -> Section:
    if report.table.empty:
        return Section("Controls")
    shown = report.headline()
    frame = shown.map(number).rename(columns=words.short).rename_axis("method")
    caption = (
        "The same cells, scored the same way. A translation that does not beat the depth of sequencing, the labels or "
        "ridge on the same anchors has learned nothing else. -> and <- are the directions of the query."
    )
    return Section("Controls", [Table(caption, frame, strong=TRANSLATION)])


def _groups(report: Report) -> Section:
    if report.by_group.empty:
        return Section("By group")
    blocks: list[str | Table | Picture] = [sentence] if (sentence := report.lost_within()) else []
    for grouping, part in tables.groupings(report.by_group):
        found = part.droplevel(0)
        rest = len(found) - MAX_GROUPS
        caption = f"By {grouping}. Chance is 0.5 within a group too." + (
            f" The {MAX_GROUPS} largest of {len(found)} groups." if rest > 0 else ""
        )
        blocks.append(Table(caption, _group_table(found.head(MAX_GROUPS))))
    return Section("By group", [*blocks, Picture("groups")])


def _group_table(found: pd.DataFrame) -> pd.DataFrame:
    def interval(name: str, form: Callable[[Any], str]) -> list[str]:
        names = [name, f"{name}_low", f"{name}_high"]
        if name not in found:
            return [""] * len(found)
        return [spread(a, b, c, form) for a, b, c in found.reindex(columns=names).to_numpy(dtype=float)]

    columns = {
        "n": [str(n) for n in found["n"]],
        "FOSCTTM": interval("foscttm", number),
        "FOSCTTM ->": found["foscttm_source_to_target"].map(number),
        "FOSCTTM <-": found["foscttm_target_to_source"].map(number),
        "ceiling": found["foscttm_ceiling"].map(number),
        "FOSCTTM within": interval("foscttm_within", number),
        "among 10": interval("knn_accuracy@10", tenths),
        "among 50": interval("knn_accuracy@50", tenths),
        "label transfer": interval("label_transfer_accuracy", percent),
    }
    frame = pd.DataFrame(columns, index=found.index)
    return frame.loc[:, (frame != "").any()]


def _curve(report: Report) -> Section:
    title = "Number of anchors"
    if report.curve.empty:
        return Section(title)
    shown = ["foscttm", "foscttm_source_to_target", "foscttm_target_to_source", "knn_accuracy@10", "knn_accuracy@50"]
    grouped = report.curve.groupby(["n_anchors", "method"], sort=True)
    mean, draws = grouped[shown].mean(), grouped.size()
    frame = mean.rename(columns=words.short).map(number)
    frame.insert(0, "draws", draws.astype(str))
    frame.insert(0, "method", [method for _, method in frame.index])
    frame.index = pd.Index([str(k) for k, _ in frame.index], name="anchors")
    caption = "Refits with fewer anchors, mean over draws of the anchors; the last number is the model itself."
    return Section(title, [Table(caption, frame), Picture("curve")])


def _features(report: Report) -> Section:
    if report.by_feature.empty:
        return Section("Features")
    features = report.by_feature.dropna(subset=["pearson"])
    flat = len(report.by_feature) - len(features)
    text = (
        f"Correlation of translated and measured values over the scored cells, for {len(features)} features: median "
        f"{features['pearson'].median():.3f}, above 0.3 for {(features['pearson'] > 0.3).mean():.0%} of them."
    )
    text += f" {flat} features do not vary over these cells and are left out." if flat else ""
    blocks: list[str | Table | Picture] = [text, Picture("features")]
    for which, part in _extremes(features, "best predicted features", "worst predicted features"):
        frame = pd.DataFrame(
            {
                "Pearson": part["pearson"].map(number),
                "Spearman": part["spearman"].map(number),
                "mean": part["mean_measured"].map(number),
                "sd": part["sd_measured"].map(number),
                "sd translated": part["sd_translated"].map(number),
                "detected in": part["detected"].map(tenths),
            }
        )
        blocks.append(Table(f"{which}.", frame))
    return Section("Features", blocks)


def _extremes(frame: pd.DataFrame, best: str, worst: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The first and the last rows; all of them at once where there are few."""
    if len(frame) <= 2 * MAX_EXTREMES:
        yield f"All {len(frame)}, {best} first", frame
    else:
        yield f"The {MAX_EXTREMES} {best}", frame.head(MAX_EXTREMES)
        yield f"The {MAX_EXTREMES} {worst}", frame.tail(MAX_EXTREMES)[::-1]


def _cells(report: Report) -> Section:
    found = report.by_cell
    if found.empty:
        return Section("Cells")
    blocks: list[str | Table | Picture] = [*_confidence_sentences(report), Picture("risk")]
    names = tables.confidences(found)
    by = names[-1] if names else "foscttm"
    if names:
        ordered = found.sort_values(by, ascending=False, kind="stable")
        label = words.confidence_label(by)
        titles = f"most reliable cells by {label}", f"least reliable cells by {label}"
        if not tables.ranks_errors(found, by):
            more = f"{label}, which does not tell reliable cells here"
            titles = f"cells of highest {more}", f"cells of lowest {more}"
    else:
        ordered = found.sort_values(by, kind="stable")
        titles = "cells of lowest FOSCTTM, in hindsight", "cells of highest FOSCTTM, in hindsight"
    for which, part in _extremes(ordered, *titles):
        blocks.append(Table(f"{which}.", _cell_table(part, names, report)))
    return Section("Cells", blocks)


def _confidence_sentences(report: Report) -> list[str]:
    found, sentences = report.by_cell, []
    for name in tables.confidences(found):
        correlation, kept = tables.rank_correlation(found, name), report.risk[name]
        half, best = (float(curve[kept.index == 0.5].iloc[0]) for curve in (kept, report.risk["best possible"]))
        sentences.append(
            f"{words.confidence_label(name).capitalize()} (obs[{name!r}]) ranks cells by their error with a "
            f"correlation of {correlation:.2f} (1 is right for all, 0 for none). With the less confident half "
            f"rejected, FOSCTTM goes from {found['foscttm'].mean():.3f} to {half:.3f} (at best {best:.3f})."
            f"{'' if tables.ranks_errors(found, name) else _no_use(name, correlation)}"
        )
    return sentences


def _no_use(name: str, correlation: float) -> str:
    """That a confidence does not rank the errors, plainly."""
    how = "ranks the cells the wrong way round" if correlation <= -tables.MIN_CORRELATION else "does not rank the cells"
    return f" On these cells {words.confidence_label(name)} {how}: do not choose or reject cells by it."


def _cell_table(part: pd.DataFrame, names: list[str], report: Report) -> pd.DataFrame:
    groups = [str(name) for name in report.by_group.index.unique(0)] if len(report.by_group) else []
    columns: dict[str, Any] = {name: part[name].map(lambda v: "" if pd.isna(v) else str(v)) for name in groups}
    columns |= {words.confidence_label(name): part[name].map(number) for name in names}
    columns["FOSCTTM"] = part["foscttm"].map(number)
    columns["rank of the partner"] = part["partner_rank"].map(lambda rank: f"{rank:.0f}")
    return pd.DataFrame(columns, index=part.index.rename("cell"))


def _notes(report: Report) -> Section:
    about = report.about
    how = [
        f"Method {about['method']}, {about['n_anchors']} anchors, seed {about['seed']}; the fit took "
        f"{about['seconds']:.1f} s ({about['status']}, {about['device']})."
        if "seconds" in about
        else f"Method {about['method']}."
    ]
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    how += [f"Versions: {versions}."] if versions else []
    if not report.table.empty:
        how.append(
            "FOSCTTM is the share of cells closer than the true partner: 0 is perfect, 0.5 chance. Cells are compared "
            "by cosine in 20 components of the target, fitted on training cells and independent of the method; "
            "translations are centred by their own mean. Intervals resample the scored cells, 95 %."
        )
    return Section("How this was made", [*report.notes, *how])
