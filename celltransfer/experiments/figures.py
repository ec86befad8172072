"""Pieces that pictures of several suites share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from celltransfer.experiments.store import label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.axes import Axes


def of_first_seed(arrays: Mapping[str, Any], arms: Iterable[Any], **others: Any) -> dict[Any, Any]:
    """Arrays of the arms that the first seed left some of; `others` are further values of their jobs."""
    labels = {arm: label({"arm": arm, **others, "seed": 0}) for arm in arms}
    return {arm: arrays[name] for arm, name in labels.items() if name in arrays}


def strips(lines: Mapping[str, np.ndarray], *, width: float = 10.0, height: float = 0.75, edge: float = 0.2) -> Figure:
    """Pictures side by side, one named line below the other; flat grey ones or (n, side, side, 3)."""
    figure = Figure(figsize=(width, height * len(lines)), layout="constrained")
    for ax, (name, pictures) in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines.items(), strict=True):
        strip(ax, name, pictures, edge=edge)
    return figure


def strip(ax: Axes, name: str, pictures: np.ndarray, *, edge: float = 0.2, most: float = 1.0) -> None:
    """One line of pictures from `-most` (black) to `most`, colours from 0 to 1, with an edge of this brightness."""
    if pictures.ndim == 2:
        side = round(pictures.shape[1] ** 0.5)
        pictures = pictures.astype(np.float32).reshape(-1, side, side).clip(-most, most)
    beyond = [(0, 0), (1, 1), (1, 1), (0, 0)][: pictures.ndim]
    padded = np.pad(pictures, beyond, constant_values=edge)
    ax.imshow(np.hstack(list(padded)), cmap="gray", vmin=-most, vmax=most)
    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    ax.set(xticks=[], yticks=[])
