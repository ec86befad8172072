"""Suite ``blobs``: a hundred points of two Gaussians, and flows with far more parameters than points.

The paper's smallest data, on which RealNVP overfits and is said to align nevertheless. Means and covariances are ours.
Maps are fitted to 100 points a side and judged on 1,000 fresh ones of either law, which no fit has seen; the Gaussian
family, which is right here, stands beside. Chance: no map; ceiling: the laws' own map of least motion.

Tuning: none. RealNVP has the translator's defaults but for the start, which is the paper's, and 1,500 steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from celltransfer.experiments.claims import Says
from celltransfer.experiments.figures import of_first_seed
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.tables import first, times
from celltransfer.metrics.scores import energy_distance
from celltransfer.nn.flows import n_parameters
from celltransfer.train.loop import Trainer
from celltransfer.translators.lrmf.loss import moment_map
from celltransfer.translators.lrmf.lrmf import LRMF
from celltransfer.verdict.alignment import alignment

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

# Points of either set to fit to, and fresh ones to judge on.
POINTS, FRESH = 100, 1000
STEPS = 1500
FLOW, GAUSSIAN = "RealNVP", "Gaussian"
ARMS: dict[str, dict[str, Any]] = {
    FLOW: {"transform": "realnvp", "density": "realnvp", "start": "identity"},
    "RealNVP, affine start": {"transform": "realnvp", "density": "realnvp"},
    GAUSSIAN: {"transform": "affine", "density": "gaussian"},
}
CHANCE, CEILING = "control: no map", "control: the laws' own map"
# Size of a loss that counts as zero, and relative error of moments up to which they are matched.
ZERO, MATCHED = 0.1, 0.3


class Laws(NamedTuple):
    """Means (2, d) and covariances (2, d, d) of source and target."""

    means: np.ndarray
    covariances: np.ndarray

    def draw(self, side: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """Points of a side, shape (n, d)."""
        return rng.multivariate_normal(self.means[side], self.covariances[side], n).astype(np.float32)


class Blobs(Suite):
    """RealNVP from both starts and the Gaussian family, on few points."""

    name = "blobs"
    title = "A hundred points of two Gaussians under flows with too many parameters"
    reference = "Log-likelihood ratio minimizing flows, setup 1, figures 2 and 9."
    seeds = 5
    columns: ClassVar[Mapping[str, Column]] = {
        "parameters": first("parameters", "{:,.0f}"),
        "loss": ("loss", 2),
        "held-out loss, kept state": ("held_out_loss", 2),
        "error of the mean": ("mean_error", 2),
        "of the covariance": ("covariance_error", 2),
        "of the map": ("map_error", 2),
        "energy distance": "energy",
        "AUC": ("auc", 2),
        "aligned": times("verdict", "aligned"),
    }

    def arms(self) -> list[str]:
        """All, and both controls."""
        return [*ARMS, CHANCE, CEILING]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit to few points, judge on fresh ones."""
        arm, seed = job["arm"], job["seed"]
        rng = np.random.default_rng([seed, 95])
        laws = draw_laws(rng)
        a, b = (laws.draw(side, POINTS, rng) for side in (0, 1))
        fresh_a, fresh_b = (laws.draw(side, FRESH, rng) for side in (0, 1))
        if arm not in ARMS:
            return measure(fresh_a if arm == CHANCE else _truth(laws, fresh_a), fresh_a, fresh_b, laws, seed), {}
        trainer = Trainer(
            max_steps=5 * STEPS if self.full else STEPS, check_every=50, patience=float("inf"), progress=False
        )
        model = LRMF(**ARMS[arm]).fit(a, b, seed=seed, trainer=trainer)
        history = model.result_.history
        losses = np.array([value for _, value in history.get("loss", [])])
        scores = measure(model.translate(fresh_a), fresh_a, fresh_b, laws, seed)
        scores |= {
            "loss": float(losses[-5:].mean()) if len(losses) else float(history["held_out_loss"][-1][1]),
            "held_out_loss": float(history["held_out_loss"][-1][1]),
            "parameters": n_parameters(model.module_.transform) + n_parameters(model.module_.shared),
        }
        arrays = {"a": a, "b": b, "moved": model.translate(a), "losses": losses}
        return scores, arrays if seed == 0 else {}

    def says(self) -> list[Says]:
        """The paper's, on fresh points; and what the right family gains."""
        return [
            Says(f"RealNVP's loss goes to zero: below {ZERO:g} (figure 9).", "loss", FLOW, "<", ZERO),
            Says(f"It does not fall far below: not under -{ZERO:g} on training points.", "loss", FLOW, ">", -ZERO),
            Says(f"It is zero on held-out points, too: below {ZERO:g}.", "held_out_loss", FLOW, "<", ZERO),
            Says(f"The mean of fresh points is matched to {MATCHED:g}.", "mean_error", FLOW, "<", MATCHED),
            Says(f"The covariance of fresh points is matched to {MATCHED:g}.", "covariance_error", FLOW, "<", MATCHED),
            Says("It is nearer to the target than no map.", "energy", FLOW, "<", CHANCE),
            Says("The Gaussian family is nearer.", "energy", GAUSSIAN, "<", FLOW),
            Says("It is nearer to the laws' map.", "map_error", GAUSSIAN, "<", FLOW),
            Says(
                "celltransfer.alignment calls fresh points aligned in most runs.",
                lambda rows: rows["verdict"] == "aligned",
                FLOW,
                ">",
                0.4,
                what="aligned in",
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Source, target and translations of the first seed, and the loss."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 3.6), layout="constrained")
        axes = figure.subplots(1, len(ARMS) + 1)
        for i, (ax, arm) in enumerate(zip(axes, ARMS, strict=False)):
            if (found := of_first_seed(arrays, [arm]).get(arm)) is not None:
                _panel(ax, found, arm)
                axes[-1].plot(np.arange(len(found["losses"])) * 50, found["losses"], lw=1, color=f"C{i}", label=arm)
        axes[-1].axhline(0, color="0.6", lw=0.8)
        axes[-1].set(xlabel="step", title="loss", yscale="symlog")
        axes[-1].legend(fontsize=6)
        return figure


def draw_laws(rng: np.random.Generator) -> Laws:
    """Means some standard deviations apart, standard deviations from .3 to 1.5 along random axes."""
    covariances = []
    for _ in range(2):
        axes, _ = np.linalg.qr(rng.normal(size=(2, 2)))
        covariances.append((axes * np.exp(rng.uniform(np.log(0.3), np.log(1.5), 2)) ** 2) @ axes.T)
    return Laws(rng.normal(0, 2, (2, 2)), np.array(covariances))


def measure(moved: np.ndarray, source: np.ndarray, target: np.ndarray, laws: Laws, seed: int) -> Scores:
    """Errors of translated fresh points, shape (n, d): of moments, and against the laws' own map; and the verdict."""
    spread = np.trace(laws.covariances[1])
    verdict = alignment(moved, target, seed=seed)
    return {
        "mean_error": float(np.linalg.norm(moved.mean(0) - laws.means[1]) / np.sqrt(spread)),
        "covariance_error": float(
            np.linalg.norm(np.cov(moved.T) - laws.covariances[1]) / np.linalg.norm(laws.covariances[1])
        ),
        "map_error": float(np.square(moved - _truth(laws, source)).sum(1).mean() / spread),
        "energy": energy_distance(moved, target),
        "auc": verdict.evidence.get("auc", float("nan")),
        "verdict": verdict.level,
    }


def _truth(laws: Laws, points: np.ndarray) -> np.ndarray:
    """The map of least motion that carries one law onto the other."""
    w, b = moment_map(laws.means[0], laws.covariances[0], laws.means[1], laws.covariances[1])
    return points @ w.T + b


def _panel(ax: Axes, found: Arrays, title: str) -> None:
    for name, colour in (("a", "C0"), ("b", "C3"), ("moved", "C9")):
        ax.plot(
            found[name][:, 0], found[name][:, 1], ".", ms=4, color=colour, label={"a": "A", "b": "B"}.get(name, "T(A)")
        )
    ax.set_title(title)
    ax.set_aspect("equal")
    ax.legend(fontsize=6)
