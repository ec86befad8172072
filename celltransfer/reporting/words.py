"""What scores, controls and evidence are called, and how figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

TRANSLATION = "translation"
CONTROLS = {
    "chance": "chance",
    "depth": "depth rank",
    "depth_reversed": "depth rank, reversed",
    "condition_mean": "condition mean",
    "shuffled_anchors": "ridge on shuffled anchors",
    "labels_only": "labels only",
    "label_oracle": "label oracle",
    "ridge": "ridge on the anchors",
    "pls": "PLS on the anchors",
    "reference": "ceiling: all pairs",
}
CEILING = CONTROLS["reference"]
# Labels may come from both modalities: what uses them is no measure of what can be translated.
USE_LABELS = [CONTROLS["labels_only"], CONTROLS["label_oracle"]]
HEADLINE = [
    "foscttm",
    "foscttm_source_to_target",
    "foscttm_target_to_source",
    "knn_accuracy@10",
    "knn_accuracy@50",
    "knn_accuracy_target_to_source@10",
    "label_transfer_accuracy",
    "foscttm_within_label",
    "foscttm_depth_regressed",
    "bias",
]
_EVIDENCE = {
    "foscttm": "FOSCTTM (0 is perfect, chance 0.5)",
    "foscttm_within_condition": "FOSCTTM within a condition (0 is perfect, chance 0.5)",
    "knn_accuracy": "True partner among the 10 nearest",
    "knn_accuracy@50": "True partner among the 50 nearest",
    "n_anchors": "Anchors of the fit",
    "held_out_anchors": "Anchors left out and ranked",
    "reference_cells": "Target cells that partners are looked for among",
    "held_out_rank": "Mean rank of left-out anchors (as FOSCTTM)",
    "held_out_sd": "Standard deviation of these ranks",
    "held_out_rank_within_condition": "Mean rank of left-out anchors within their condition",
    "held_out_near@10": "Left-out anchors whose partner is among the 10 nearest",
    "held_out_near@50": "Left-out anchors whose partner is among the 50 nearest",
    "variance_ratio": "Spread of translated cells over that of target cells",
    "self_rank": "Expected rank of a partner, from the noise about translations",
    "refit_disagreement": "Disagreement between refits (as FOSCTTM)",
    "twin_disagreement": "Disagreement of a second map that fits as well (as FOSCTTM)",
    "twin_distance": "Energy distance of the second map that fits as well from the target cells",
    "distance": "Energy distance of the fit from the target cells",
    "distance_ratio": "Energy distance to the target cells, over that of a constant",
    "shape_ratio": "The same, at the spread of the target cells",
    "depth_agreement": "Correlation of the library sizes of cells and of their translations",
    "depth_explained": "Share of library size that target cells reveal",
    "round_trip": "Error of cells translated forth and back, in units of their spread",
    "round_trip_failed": "Translated cells could not be taken back (1: yes)",
    "alignment_distance": "Alignment: log-likelihood-ratio distance of translated and target cells",
    "alignment_distance_share": "Alignment: its excess over like sets, as a share of the largest possible",
    "alignment_distance_null": "Alignment: that distance of like sets, on average",
    "alignment_distance_null_high": "Alignment: that distance of like sets, at most (95 %)",
    "alignment_distance_p": "Alignment: p value of that distance",
    "alignment_auc": "Alignment: AUC of a classifier that tells the sets apart",
    "alignment_auc_null": "Alignment: that AUC of like sets, on average",
    "alignment_auc_null_high": "Alignment: that AUC of like sets, at most (95 %)",
    "alignment_auc_p": "Alignment: p value of that AUC",
    "alignment_score_p": "Alignment: p value of equal means and covariances (score test)",
    "alignment_covered_translated": "Alignment: translated cells among target cells, relative to like sets",
    "alignment_covered_target": "Alignment: target cells among translated cells, relative to like sets",
    "alignment_cells_translated": "Alignment: translated cells",
    "alignment_cells_target": "Alignment: target cells",
    "alignment_held_translated": "Alignment: translated cells evaluated that the fit has not seen",
    "alignment_held_target": "Alignment: target cells evaluated that the fit has not seen",
    "alignment_dimensions": "Alignment: dimensions of the comparison",
    "alignment_broken_cells": "Alignment: translated cells that are no numbers",
}


def evidence_label(key: str) -> str:
    """A piece of evidence in words; of an unknown one, its name."""
    return _EVIDENCE.get(key) or key.replace("_", " ").capitalize()


def confidence_label(key: str) -> str:
    """What a translation says of its cells in ``obs["translation_..."]``, by its name there."""
    return key.removeprefix("translation_").replace("_", " ")


def score_label(key: str, source: str, target: str) -> str:
    """A score of `celltransfer.metrics.protocol` in words, its direction by the names of the modalities."""
    name, _, k = key.partition("@")
    word = {"foscttm": "FOSCTTM", "knn_accuracy": f"partner among the {k} nearest"}
    for direction, text in (
        ("_source_to_target", f", {source} looks for {target}"),
        ("_target_to_source", f", {target} looks for {source}"),
    ):
        if name.endswith(direction):
            return word[name.removesuffix(direction)] + text
    both = ", both directions" if name == "foscttm" else f", {source} looks for {target}"
    return word[name] + both


def short(name: Hashable) -> str:
    """The name of a score, for the head of a column."""
    text = str(name)
    for long, brief in (("source_to_target", "->"), ("target_to_source", "<-"), ("_accuracy", ""), ("_", " ")):
        text = text.replace(long, brief)
    return text


def number(value: Any, digits: int = 3) -> str:
    """A figure with so many digits, or nothing where there is none."""
    return "" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def percent(value: Any, digits: int = 0) -> str:
    """A share, or nothing where there is none."""
    return "" if value is None or not np.isfinite(value) else f"{value:.{digits}%}"


def spread(value: Any, low: Any, high: Any, form: Any = number) -> str:
    """A figure and its interval, briefly: ``0.109 (0.103–0.115)``, ``6.7% (5.5–8.0)``."""
    if not form(value) or not form(low):
        return form(value)
    dash = " to " if low < 0 else "\N{EN DASH}"
    return f"{form(value)} ({form(low).rstrip('%')}{dash}{form(high).rstrip('%')})"
