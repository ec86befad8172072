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
    "knn_accuracy": "True partner among the nearest cells",
    "held_out_anchors": "Anchors left out and ranked",
    "variance_ratio": "Spread of translated cells over that of target cells",
    "twin_disagreement": "Disagreement of a second map that fits as well (0 to 1)",
    "alignment_auc": "How well a classifier tells translated from target cells",
}
_CONFIDENCE = {
    "translation_support": "support: how near the translation lies to target cells",
    "translation_confidence": "confidence: share of the target's variance that the method resolves",
}


def evidence_label(key: str) -> str:
    """A piece of evidence in words; of an unknown one, its name."""
    return _EVIDENCE.get(key) or key.replace("_", " ").capitalize()


def confidence_label(key: str) -> str:
    """A per-cell confidence in words; of an unknown one, its name."""
    return _CONFIDENCE.get(key) or key.removeprefix("translation_").replace("_", " ")


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
    """A figure and its interval."""
    if not form(value) or not form(low):
        return form(value)
    return f"{form(value)} ({form(low)} to {form(high)})"
