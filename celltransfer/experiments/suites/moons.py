"""Suite ``moons``: two moons, turned by 50 degrees, to such moons; is each kept together, and does the loss tell.

Every trained map is the same RealNVP from the identity, under different objectives; scores are of fresh points. Sizes
are smaller than the paper's (2 x 512 units; ``--full`` has them).

Tuning, by the accuracy on seed 100, which is not reported, with the source turned by -50 degrees: two settings of each
method, those of `SETTINGS`, of which the first is taken (ties by the earth mover's distance). LRMF was looked
at more often: prototypes on seeds 100 to 103; without clipped gradients (accuracy .9995, loss .24: a RealNVP far from
its cells has so little likelihood that the first gradients stall Adam), and with 800 steps and densities that are
fitted to convergence on seeds 100 and 101 (1.000 twice, loss -.03 and -.02; before, -.12), which is what is reported.
Splines and the other turn were not tuned; there, eight settings of LRMF (start, widths, learning rates, splines,
clipping, steps) gave accuracies of .67 to .91 on these seeds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from celltransfer.experiments.claims import Says
from celltransfer.experiments.store import label
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites import moons_models
from celltransfer.experiments.tables import first, seconds, times
from celltransfer.metrics.scores import energy_distance
from celltransfer.train.loop import Trainer
from celltransfer.translators.lrmf.lrmf import LRMF
from celltransfer.verdict.alignment import alignment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from matplotlib.figure import Figure
    from sklearn.neighbors import KNeighborsClassifier

    from celltransfer.experiments.tables import Column

    Move = Callable[[np.ndarray], np.ndarray]

POINTS, NOISE, DEGREES = 2000, 0.05, 50.0
# Points of each side in distances and verdicts, and those that are drawn.
SCORED, DRAWN = 1000, 1200
WIDTHS = (0.1, 0.3, 1.0)
# A map matches if its earth mover's distance is at most so many times that of the truth.
MATCHED = 2.0
# What the paper says.
ACCURATE, NEAR_ZERO = 0.99, 0.05

_COUPLINGS: dict[str, Any] = {"blocks": 4, "hidden": (64, 64)}
_STEPS: dict[str, Any] = {"steps": 600, "batch": 256, "lr": 1e-3}
_GAN: dict[str, Any] = {"steps": 1500, "batch": 256, "lr_discriminator": 1e-3, "rounds": 1}
_LRMF: dict[str, Any] = _COUPLINGS | {"blocks_density": 4, "hidden_density": (64, 64), "lr": 1e-3, "steps": 800}
_NVP: dict[str, Any] = {"transform": "realnvp", "density": "realnvp"}
_SPLINES: dict[str, Any] = {"transform": "spline", "density": "spline", "start": "identity"}
_BACK: dict[str, Any] = {"batch": 256, "lr": 1e-3}
# Settings that were tried; the first is reported.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "LRMF": tuple(_LRMF | _NVP | {"start": start} for start in ("identity", "affine")),
    "LRMF, splines": (_LRMF | _SPLINES,),
    "MMD": tuple(_COUPLINGS | _STEPS | {"widths": widths} for widths in (WIDTHS, (1.0,))),
    "EMD": tuple(_COUPLINGS | _STEPS | {"power": power} for power in (1, 2)),
    "F o G^-1": (
        _COUPLINGS | _BACK | {"family": "spline", "steps": 1000},
        _COUPLINGS | _BACK | {"family": "realnvp", "steps": 2000},
    ),
    "SN-GAN": tuple(_COUPLINGS | _GAN | {"lr": lr} for lr in (2e-4, 1e-3)),
}
_METHODS = {"MMD": "mmd", "EMD": "emd", "F o G^-1": "back_to_back", "SN-GAN": "sngan"}
OURS, SPLINES = "LRMF", "LRMF, splines"
INPUT, TRUTH, PLAN = "control: not moved", "ceiling: the truth", "EMD, exact plan"
CONTROLS = (INPUT, TRUTH, PLAN)
# Seeds of slow arms.
SLOW = {SPLINES: 2}
# Arms that are run with the target turned the other way, too, and their seeds there.
OTHER_WAY, OTHER_SEEDS = (INPUT, TRUTH, OURS, "MMD", "EMD"), 3


class Sample(NamedTuple):
    """Points and moons of source and target, (n, 2) and (n,), and fresh ones to score on."""

    x: np.ndarray
    moon_x: np.ndarray
    y: np.ndarray
    moon_y: np.ndarray
    fresh_x: np.ndarray
    fresh_moon_x: np.ndarray
    fresh_y: np.ndarray


class Trace(NamedTuple):
    """During training: steps, objectives, and the accuracies of the map."""

    step: list[int]
    objective: list[float]
    accuracy: list[float]


class Watched(LRMF):
    """LRMF that calls `look(loss)` whenever its monitor is asked."""

    look: Callable[[float], None]

    def monitor(self) -> float | None:
        """The loss on held-out cells."""
        value = super().monitor()
        if value is not None:
            self.look(value)
        return value


class Moons(Suite):
    """LRMF, other objectives of the same map, and flows back to back."""

    name = "moons"
    title = "Two moons, turned by 50 degrees: is each moon kept together"
    reference = "Log-likelihood ratio minimizing flows, setup 1, figures 2 to 4, 9 and 10."
    seeds = 10
    by = ("arm", "turn")
    columns: ClassVar[Mapping[str, Column]] = {
        "turn": first("turn", "{}" + f"{DEGREES:.0f}°"),
        "seeds": len,
        "1-NN accuracy": "accuracy",
        "MMD²": ("mmd", 4),
        "EMD": ("emd", 4),
        "energy distance": ("energy_distance", 4),
        "loss, fresh points": "loss",
        "aligned, by the verdict": times("verdict", "aligned"),
        "objective with accuracy": ("rho", 2),
        "seconds": seconds,
    }

    def jobs(self, seeds: int | None) -> list[Job]:
        """Every arm with every seed; some with the target turned the other way."""
        n = seeds or self.seeds
        first = [
            {"arm": arm, "turn": "-", "seed": seed}
            for seed in range(n)
            for arm in (*CONTROLS, *SETTINGS)
            if seed < SLOW.get(arm, n)
        ]
        others = [{"arm": arm, "turn": "+", "seed": seed} for seed in range(min(n, OTHER_SEEDS)) for arm in OTHER_WAY]
        return first + others

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit one arm and score it on fresh points."""
        data = draw_sample(job["seed"], job["turn"])
        trace = Trace([], [], [])
        near = _classifier(data)
        move, loss = self.fit(job["arm"], data, job["turn"], job["seed"], partial(_look, trace, near, data))
        translated = move(data.fresh_x)
        scores = measure(translated, data, near)
        scores |= {"loss": loss} | following(trace)
        if job["seed"]:
            return scores, {}
        shown = {"translated": translated[:DRAWN], "source": data.fresh_x[:DRAWN], "moon": data.fresh_moon_x[:DRAWN]}
        return scores, shown | {"target": data.fresh_y[:DRAWN]} | {k: np.array(v) for k, v in trace._asdict().items()}

    def fit(self, arm: str, data: Sample, turn: str, seed: int, look: Callable[..., None]) -> tuple[Move, float]:
        """The map of an arm, and the loss of LRMF on fresh points."""
        if arm == INPUT:
            return lambda points: points, float("nan")
        if arm == TRUTH:
            # Turning back is turning the other way.
            return lambda points: turned(points, "+" if turn == "-" else "-"), float("nan")
        if arm == PLAN:
            return lambda points: _partners(points, data.y), float("nan")
        settings = dict(SETTINGS[arm][0])
        if self.full:
            settings |= {"hidden": (512, 512)} | ({"hidden_density": (512, 512)} if arm in (OURS, SPLINES) else {})
        if arm in (OURS, SPLINES):
            return _fit_lrmf(data, seed, look, self.device, **settings)
        mean = data.y.mean(axis=0)
        scale = float((data.y - mean).std())
        x, y = (torch.as_tensor((cells - mean) / scale) for cells in (data.x, data.y))

        def moved(f: Callable[[torch.Tensor], torch.Tensor], points: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return f(torch.as_tensor((points - mean) / scale)).numpy() * scale + mean

        f = moons_models.fit(
            _METHODS[arm], x, y, seed=seed, watch=lambda step, value, f: look(value, partial(moved, f)), **settings
        )
        return partial(moved, f), float("nan")

    def says(self) -> list[Says]:
        """What the paper says of accuracy, loss and its use, and what the verdict is worth."""
        ours, back = (OURS, "-"), ("F o G^-1", "-")
        keeps = partial(Says, figure="accuracy", sense=">", than=ACCURATE - 1e-6)
        return [
            keeps("LRMF keeps the moons: .99 or more (figure 4).", arm=ours),
            Says(
                "Its loss ends within .05 of zero (figure 2).",
                lambda rows: rows["loss"].abs(),
                ours,
                "<",
                NEAR_ZERO,
                what="distance to zero",
            ),
            *(
                Says(f"Labels are less accurate by {arm} (figure 4).", "accuracy", (arm, "-"), "<", ours)
                for arm in ("MMD", "EMD", PLAN, "F o G^-1", "SN-GAN")
            ),
            Says("F o G^-1 matches the law better than LRMF.", "emd", back, "<", ours),
            # A discriminator's loss rises as the laws become alike, so strengths are compared, not signs.
            Says(
                "SN-GAN's objective goes with accuracy less closely than LRMF's (figure 3).",
                lambda rows: rows["rho"].abs(),
                ("SN-GAN", "-"),
                "<",
                ours,
                what="absolute rank correlation",
            ),
            keeps("Turned the other way, LRMF keeps the moons, too.", arm=(OURS, "+")),
            Says(
                "Where the verdict tells, it agrees with the earth mover's distance, in 80 % of runs.",
                _verdicts,
                None,
                ">",
                0.8,
                what="right in",
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Points of the first seed by moon, and objectives with accuracies in training."""
        from matplotlib.figure import Figure

        shown = [
            (arm, turn, arrays[key])
            for turn in "-+"
            for arm in (INPUT, *SETTINGS, PLAN)
            if (key := label({"arm": arm, "turn": turn, "seed": 0})) in arrays
        ]
        columns = (len(shown) + 1) // 2
        figure = Figure(figsize=(2.1 * columns, 6.3), layout="constrained")
        grid = figure.add_gridspec(3, columns)
        for i, (arm, turn, found) in enumerate(shown):
            ax = figure.add_subplot(grid[divmod(i, columns)])
            colour = np.where(found["moon"] == 1, "tab:red", "tab:blue")
            for points, size, shade in ((found["target"], 1, "0.8"), (found["translated"], 1.5, colour)):
                ax.scatter(points[:, 0], points[:, 1], s=size, c=shade, linewidths=0, rasterized=True)
            ax.set_title(f"{arm}\n{turn}{DEGREES:.0f}°", fontsize=7)
            ax.set(xticks=[], yticks=[], aspect="equal")
        traced = [item for item in shown if len(item[2]["step"])]
        for i, (arm, turn, found) in enumerate(traced[:columns]):
            ax = figure.add_subplot(grid[2, i])
            ax.plot(found["step"], found["objective"], color="tab:orange", lw=0.8)
            low, high = np.nanquantile(found["objective"], [0, 0.9])
            ax.set_ylim(low - 0.05, high + 0.05)
            ax.set_title(f"{arm}, {turn}{DEGREES:.0f}°: objective,\naccuracy (blue)", fontsize=6)
            ax.tick_params(labelsize=5)
            twin = ax.twinx()
            twin.plot(found["step"], found["accuracy"], color="tab:blue", lw=0.8)
            twin.set_ylim(0.45, 1.02)
            twin.tick_params(labelsize=5)
        return figure


def turned(points: np.ndarray, turn: str) -> np.ndarray:
    """The points turned about the origin, by `DEGREES` (``"+"``) or minus that (``"-"``)."""
    angle = np.deg2rad(DEGREES) * (1 if turn == "+" else -1)
    c, s = np.cos(angle), np.sin(angle)
    return (points @ np.array([[c, s], [-s, c]])).astype(np.float32)


def draw_sample(seed: int, turn: str, n: int | None = None) -> Sample:
    """Independent source and target points; the source is the turned one."""
    from sklearn.datasets import make_moons

    seeds = np.random.default_rng([seed, 1]).integers(2**31, size=4)
    drawn = [make_moons(n or POINTS, noise=NOISE, random_state=int(s)) for s in seeds]
    (x, moon_x), (y, moon_y), (fresh_x, fresh_moon_x), (fresh_y, _) = drawn
    y, fresh_y = y.astype(np.float32), fresh_y.astype(np.float32)
    return Sample(turned(x, turn), moon_x, y, moon_y, turned(fresh_x, turn), fresh_moon_x, fresh_y)


def measure(translated: np.ndarray, data: Sample, near: KNeighborsClassifier) -> Scores:
    """Accuracy of the nearest target point's label, distances of the laws, and the verdict; all on fresh points."""
    a, b = translated[:SCORED], data.fresh_y[:SCORED]
    u, v = (torch.as_tensor(np.ascontiguousarray(side, np.float32)) for side in (a, b))
    verdict = alignment(a, b, n_splits=5, seed=0)
    return {
        "accuracy": float(near.score(translated, data.fresh_moon_x)),
        "mmd": float(moons_models.mmd(u, v, WIDTHS)),
        "emd": float(moons_models.emd(u, v, 1)),
        "energy_distance": energy_distance(a, b),
        "verdict": verdict.level,
        "auc": verdict.evidence.get("auc", float("nan")),
    }


def following(trace: Trace) -> Scores:
    """Rank correlation of objective and accuracy over training, from the first look on; NaN where one is constant."""
    from scipy.stats import spearmanr

    if len(set(trace.accuracy)) < 2 or len(set(trace.objective)) < 2:
        return {"rho": float("nan")}
    return {"rho": float(spearmanr(trace.objective, trace.accuracy).statistic)}


def _fit_lrmf(
    data: Sample, seed: int, look: Callable[..., None], device: str, *, steps: int, **settings: Any
) -> tuple[Move, float]:
    """LRMF's map, and its loss on fresh points."""
    f = Watched(**settings)
    f.look = lambda value: look(value, lambda points: f._translate(points, None))
    trainer = Trainer(
        max_steps=steps, check_every=moons_models.EVERY, patience=float("inf"), device=device, progress=False
    )
    f.fit(data.x, data.y, seed=seed, trainer=trainer)
    return f.translate, f.loss_on(data.fresh_x, data.fresh_y)


def _look(trace: Trace, near: KNeighborsClassifier, data: Sample, objective: float, move: Move) -> None:
    """One look at a map in training."""
    trace.step.append(len(trace.step) * moons_models.EVERY)
    trace.objective.append(objective)
    trace.accuracy.append(float(near.score(move(data.fresh_x), data.fresh_moon_x)))


def _classifier(data: Sample) -> KNeighborsClassifier:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1).fit(data.y, data.moon_y)


def _partners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The target point that optimal transport gives each source point."""
    import ot

    plan = ot.emd(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), ot.dist(x, y).astype(float))
    return y[plan.argmax(axis=1)]


def _verdicts(rows: pd.DataFrame) -> pd.Series:
    """Whether told verdicts agree with the earth mover's distance, beside that of the truth."""
    truth = float(rows.loc[rows["arm"] == TRUTH, "emd"].mean())
    told = rows[~rows["arm"].isin(CONTROLS) & (rows["verdict"] != "cannot be told")]
    return (told["emd"] <= MATCHED * truth) == (told["verdict"] == "aligned")
