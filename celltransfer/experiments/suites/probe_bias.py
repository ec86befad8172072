"""Suite ``probe_bias``: bias and variance of the masked probe of ||J||_1 against the size of its mask.

Random Jacobians of 1024 x 1024 at several densities, standard Gaussian where they are not zero, and one of ones; 504
probes each, as 63 points with 8 directions. Relative bias is estimate / truth - 1; relative variance is that of one
probe over the squared truth. `variance_of_8` is that of the mean of a point's 8 directions, whose masks do not overlap
while 8 s <= 1024; independent masks would give `variance` / 8. A seed is a Jacobian.

Claims were stated when its rows were there.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from celltransfer.experiments.claims import Says
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.losses.jacobian import sparse_probes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

D = 1024
DENSITIES = {"1 %": 0.01, "5 %": 0.05, "20 %": 0.2, "dense": 1.0}
ONES = "ones"
SIZES = (1, 2, 5, 10, 20, 51, 102, 205, 410, 1024)
N_PROBES, N_POINTS = 8, 63
SCALES = {"gaussian": math.sqrt(math.pi / 2), "binary": 1.0}


class ProbeBias(Suite):
    """Densities, directions and sizes of the mask."""

    name = "probe_bias"
    title = "Bias and variance of a probed Jacobian norm"
    reference = "Single-anchor alignment by Jacobian sparsity, appendix D: variance falls with the mask, bias grows."
    seeds = 20
    by = ("jacobian", "direction", "s")
    columns: ClassVar[Mapping[str, Column]] = {
        "direction": lambda group: group["direction"].iloc[0],
        "s": lambda group: group["s"].iloc[0],
        "relative bias": lambda group: float(group["bias"].mean()),
        "relative variance": lambda group: float(group["variance"].mean()),
        "variance of 8": lambda group: float(group["variance_of_8"].mean()),
    }

    def arms(self) -> list[tuple[str, str, int]]:
        """All of them."""
        return [(jacobian, way, s) for jacobian in (*DENSITIES, ONES) for way in SCALES for s in SIZES]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Probe one Jacobian with one size of mask."""
        s, direction, generator = job["s"], job["direction"], torch.Generator().manual_seed(job["seed"])
        jacobian = torch.ones(D, D)
        if job["jacobian"] != ONES:
            mask = torch.rand(D, D, generator=generator) < DENSITIES[job["jacobian"]]
            jacobian = mask * torch.randn(D, D, generator=generator)
        z = sparse_probes((N_PROBES, N_POINTS, D), s, generator, torch.device("cpu"), direction)
        norm = (z @ jacobian.T).abs().sum(dim=-1)
        relative = D / s * SCALES[direction] * norm / float(jacobian.abs().sum())
        found: Scores = {"bias": float(relative.mean()) - 1, "variance": float(relative.var(dim=1).mean())}
        return found | {"variance_of_8": float(relative.mean(dim=0).var())}, {}

    def says(self) -> list[Says]:
        """That the probe is unbiased where its mask has one coordinate, and what larger masks do."""
        random = [(jacobian, way) for jacobian in DENSITIES for way in SCALES]
        return [
            Says(
                "With larger masks the variance falls: from s = 1 to 102.", partial(_change, "variance"), random, "<", 0
            ),
            Says("And the estimate falls short.", partial(_change, "bias"), random, "<", 0),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Bias and variance over the size of the mask."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots(1, 2)
        for colour, name in enumerate(DENSITIES):
            for direction, style in zip(SCALES, ("-", ":"), strict=True):
                own = rows[(rows["jacobian"] == name) & (rows["direction"] == direction)].groupby("s")
                for ax, score in zip(axes, ("bias", "variance"), strict=True):
                    values = own[score].mean()
                    ax.plot(values[values != 0], style, marker=".", color=f"C{colour}", label=f"{name}, {direction}")
        axes[0].set(xscale="log", ylabel="relative bias", xlabel=f"non-zero coordinates s of {D}")
        axes[1].set(xscale="log", yscale="log", ylabel="relative variance of one probe", xlabel="s")
        axes[1].legend(frameon=False, fontsize="small")
        return figure


def _change(score: str, rows: pd.DataFrame) -> pd.Series:
    """By how much a figure changes from the smallest mask to one of a tenth of the coordinates."""
    by = rows[rows["s"].isin((SIZES[0], D // 10))].pivot(index="seed", columns="s", values=score)
    return by[D // 10] - by[SIZES[0]] if len(by.columns) == 2 else by.mean(axis=1) * np.nan
