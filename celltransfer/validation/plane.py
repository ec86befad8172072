"""Suite ``plane``: in two dimensions, sparsity and one anchor identify the map; either alone does not.

Four starts are chosen from without the truth (equation 7); arms without that are fits from one start.

Tuning, by the true error on other seeds than those reported: about ten settings of sparsity with an informative anchor
(weight 0.1 to 0.5, schedule 1 or 8, steps and rates), and three weights each of the other structures. All other arms
take the same options. Four starts were added after one start had found the map in 18 of the 20 reported seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from celltransfer.data.pair import ModalityPair
from celltransfer.train.loop import Trainer
from celltransfer.translators import make
from celltransfer.validation.base import Arrays, Claim, Job, Scores, Suite, label, mean_sd
from celltransfer.verdict import symmetries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from celltransfer.translators import Translator

# The source: Gaussian with this correlation. The target: coordinates swapped and scaled.
CORRELATION, SCALE = 0.5, 1.5
# Sparse maps that carry the source onto itself: all that sparsity and matching leave open here.
SYMMETRIES = {
    "truth": np.eye(2),
    "point reflection": -np.eye(2),
    "swap": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "swapped reflection": np.array([[0.0, -1.0], [-1.0, 0.0]]),
}
# Share of the target's variance up to which a map counts as found.
FOUND = 0.05
# Held-out energy distance below which the laws count as matched.
MATCHED = 0.03
# Cells that are drawn.
DRAWN = 1000
# Cells among which the anchor is chosen.
CANDIDATES = 200

_BASE = {"map": "mlp", "hidden": (32, 32), "hidden_discriminator": (64, 64), "init": "random", "weight_gan": 1.0}
_FULL = {"weight_structure": 0.1, "weight_anchor": 1.0, "structure_start": 8.0}
_NO_SCHEDULE = {"structure_start": 1.0}
# Arm: how the anchor is chosen, and what differs from all terms together.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "matching": ("none", {"weight_structure": 0.0}),
    "matching + sparsity": ("none", {}),
    "matching + anchor": ("informative", {"weight_structure": 0.0}),
    "both": ("informative", {"restarts": 4}),
    "both, anchor at random": ("random", {"restarts": 4}),
    "both, one start": ("informative", {}),
    "both, one start, anchor at random": ("random", {}),
    "both, anchor at the centre": ("centre", {}),
    "both, one start, no schedule": ("informative", _NO_SCHEDULE),
    "both, one start, the paper's weights": ("random", _NO_SCHEDULE | {"weight_inverse": 1.0}),
    "orthogonal Jacobian + anchor": ("informative", {"structure": "orthogonal"}),
    "diverse influence + anchor": ("informative", {"structure": "diverse"}),
}


# Seeds that found the map and seeds in all, by arm.
Found = dict[str, tuple[int, int]]


class Plane(Suite):
    """A dependent source, its coordinates swapped and scaled, and one anchor against none."""

    name = "plane"
    title = "Two dimensions: a permutation and a scaling from one anchor"
    reference = "Single-anchor alignment by Jacobian sparsity, section 5.1, figure 4; structures of its appendix C."
    seeds: ClassVar[int] = 20

    def jobs(self, seeds: int | None) -> list[Job]:
        """Every arm with every seed."""
        return [{"arm": arm, "seed": seed} for seed in range(seeds or self.seeds) for arm in ARMS]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit one arm and measure the error on fresh cells."""
        choice, changes = ARMS[job["arm"]]
        n, steps, batch = (27_000, 7_000, 1024) if self.full else (4_000, 1_500, 256)
        rng = np.random.default_rng([job["seed"], 2])
        pair, test = task(n, choice, rng)
        rate = 1e-3
        translator = make("jacobian", **_BASE | _FULL | {"r1": 0.1, "lr": rate, "lr_discriminator": rate} | changes)
        trainer = Trainer(
            max_steps=steps,
            batch_size=batch,
            patience=float("inf"),
            check_every=steps // 6,
            device=self.device,
            progress=False,
        )
        translator.fit_pair(pair, seed=job["seed"], trainer=trainer)
        arrays = {"source": test, "translated": translator.translate(test)} if job["seed"] == 0 else {}
        return measure(translator, pair, test), arrays

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Translation error, share of seeds that found the map, and how far the anchors were from fixed sets."""
        by_arm = rows.groupby("arm", sort=False)
        arms = [str(arm) for arm, _ in by_arm]
        table = pd.DataFrame(
            {
                "anchor": [ARMS[arm][0] for arm in arms],
                "found": [f"{(group['error'] <= FOUND).sum()} of {len(group)}" for _, group in by_arm],
                "error, median": [f"{group['error'].median():.3f}" for _, group in by_arm],
                "TE": [mean_sd(group["te"]) for _, group in by_arm],
                "energy distance": [mean_sd(group["energy_distance"], 4) for _, group in by_arm],
                "anchor's displacement": [mean_sd(group["displacement"], 2) for _, group in by_arm],
            },
            index=pd.Index(arms, name="arm"),
        )
        chance = np.mean([_te(h) for h in SYMMETRIES.values()])
        last = {"found": f"1 in {len(SYMMETRIES)}", "TE": f"{chance:.3f}"}
        return (
            pd.concat([table, pd.DataFrame(last, index=["chance: a symmetry at random"])]).fillna("").rename_axis("arm")
        )

    def claims(self, rows: pd.DataFrame) -> list[Claim]:
        """One anchor identifies the map; without one, or without sparsity, chance decides."""
        groups = {str(arm): group for arm, group in rows.groupby("arm")}
        found = {arm: (int((group["error"] <= FOUND).sum()), len(group)) for arm, group in groups.items()}
        matched = {arm for arm, group in groups.items() if (group["energy_distance"] < MATCHED).mean() >= 0.5}
        return [
            _at_least(found, "both", 0.95, "Sparsity and one informative anchor identify the map in 95 % of seeds."),
            _at_least(found, "both, anchor at random", 0.95, "A random anchor does, too (theorem 3.4)."),
            _at_most_chance(found, matched, "matching + sparsity", "Without an anchor no more often than by chance."),
            _at_most_chance(
                found, matched, "both, anchor at the centre", "An anchor at the centre identifies nothing."
            ),
            _below(found, "matching + anchor", "both", "An anchor without sparsity does not suffice."),
            _below(
                found, "both, one start, no schedule", "both", "Without schedule and starts it is found less often."
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Source, target and translations of the first seed; a cell keeps its colour."""
        from matplotlib.figure import Figure

        shown = {arm: arrays[key] for arm in ARMS if (key := label({"arm": arm, "seed": 0})) in arrays}
        figure = Figure(figsize=(15, 6.4), layout="constrained")
        axes = figure.subplots(2, (len(shown) + 3) // 2, sharex=True, sharey=True).ravel()
        first = next(iter(shown.values()))["source"]
        _scatter(axes[0], first, first, "source")
        _scatter(axes[1], truth(first), first, "target")
        for ax, (arm, found) in zip(axes[2:], shown.items(), strict=False):
            _scatter(ax, found["translated"], found["source"], arm)
        for ax in axes[2 + len(shown) :]:
            ax.set_axis_off()
        return figure


def truth(x: np.ndarray) -> np.ndarray:
    """The map to find: coordinates swapped and scaled."""
    return np.ascontiguousarray(SCALE * x[:, ::-1], dtype=np.float32)


def sample(n: int, rng: np.random.Generator) -> np.ndarray:
    """Source cells, shape (n, 2)."""
    factor = np.linalg.cholesky(np.array([[1.0, CORRELATION], [CORRELATION, 1.0]]))
    return (rng.normal(size=(n, 2)) @ factor.T).astype(np.float32)


def task(n: int, choice: str, rng: np.random.Generator) -> tuple[ModalityPair, np.ndarray]:
    """Independent source and target cells with one anchor or none, and fresh source cells to score on."""
    x, y, test = sample(n, rng), truth(sample(n, rng)), sample(3_000, rng)
    if choice == "none":
        return ModalityPair(x, y), test
    anchor = _anchor(choice, sample(CANDIDATES, rng), x)
    pair = ModalityPair(np.vstack([x, anchor]), np.vstack([y, truth(anchor)]), np.array([[n, n]]))
    return pair, test


def displacement(points: np.ndarray) -> np.ndarray:
    """Least distance that a symmetry of the source moves each point, relative to its typical one; shape (n,)."""
    others = [h for name, h in SYMMETRIES.items() if name != "truth"]
    covariance = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    moved = [np.linalg.norm(points @ (h - np.eye(2)).T, axis=1) for h in others]
    typical = [np.sqrt(np.trace((h - np.eye(2)) @ covariance @ (h - np.eye(2)).T)) for h in others]
    return np.min([m / t for m, t in zip(moved, typical, strict=True)], axis=0)


def measure(translator: Translator, pair: ModalityPair, test: np.ndarray) -> Scores:
    """Errors on fresh cells, the held-out distance, and how informative the anchor was."""
    y, translated = truth(test), translator.translate(test)
    residual = np.linalg.norm(translated - y, axis=1)
    symmetric = {name: float(np.square(translated - truth(test @ h.T)).sum(1).mean()) for name, h in SYMMETRIES.items()}
    monitors = [value for _, value in translator.result_.history["monitor"]]
    anchor = float(displacement(pair.anchor_x)[0]) if pair.n_anchors else float("nan")
    return {
        "te": float((residual / np.sqrt(2)).mean()),
        "te_sd": float((residual / np.sqrt(2)).std()),
        "error": float(np.square(residual).mean() / y.var(axis=0).sum()),
        "energy_distance": min(monitors),
        "displacement": anchor,
        "nearest": min(symmetric, key=symmetric.__getitem__),
    }


def _anchor(choice: str, candidates: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One of the candidates: any, the one at the centre, or the one that breaks most symmetries of x; shape (1, 2)."""
    if choice == "random":
        return candidates[:1]
    if choice == "centre":
        return candidates[[np.argmin(np.linalg.norm(candidates, axis=1))]]
    cells = np.vstack([x, candidates])
    rows = np.arange(len(x), len(cells))
    return cells[symmetries.choose(cells, 1, symmetries.find(x, axes="features"), among=rows)]


def _te(symmetry: np.ndarray) -> float:
    """Translation error of the truth after a symmetry of the source, from a fixed sample."""
    x = sample(20_000, np.random.default_rng(0))
    return float(np.linalg.norm(truth(x @ symmetry.T) - truth(x), axis=1).mean() / np.sqrt(2))


def _at_least(found: Found, arm: str, share: float, text: str) -> Claim:
    """Whether the share is reached; too few seeds to miss it by one cannot tell."""
    got, of = found[arm]
    reached = got / of >= share
    return Claim(text, f"{got} of {of} seeds.", reached if not reached or of * (1 - share) >= 0.99 else None)


def _at_most_chance(found: Found, matched: set[str], arm: str, text: str) -> Claim:
    """Not above the upper 5 % of a binomial law with the share of one symmetry in all.

    Maps that did not match say nothing, nor do so few seeds that all of them may be found by chance.
    """
    from scipy.stats import binom

    got, of = found[arm]
    bound = int(binom.ppf(0.95, of, 1 / len(SYMMETRIES)))
    tells = arm in matched and bound < of
    return Claim(
        text, f"{got} of {of} seeds; chance gives at most {bound} in 95 % of cases.", got <= bound if tells else None
    )


def _below(found: Found, arm: str, other: str, text: str) -> Claim:
    """Fisher's exact test; ``None`` where neither is found significantly more often."""
    from scipy.stats import fisher_exact

    (a, n), (b, m) = found[arm], found[other]
    table = np.array([[a, n - a], [b, m - b]])
    less, more = (float(fisher_exact(table, alternative=side).pvalue) for side in ("less", "greater"))
    holds = True if less < 0.05 else False if more < 0.05 else None
    return Claim(text, f"{a} of {n} seeds against {b} of {m} (Fisher's exact test, p = {less:.2g}).", holds)


def _scatter(ax: Axes, points: np.ndarray, source: np.ndarray, title: str) -> None:
    """Points coloured by angle and radius of their source cell."""
    from matplotlib import colormaps

    points, source = points[:DRAWN], source[:DRAWN]
    angle = np.arctan2(source[:, 1], source[:, 0]) / (2 * np.pi) + 0.5
    ax.scatter(points[:, 0], points[:, 1], c=colormaps["hsv"](angle), s=3, linewidths=0, rasterized=True)
    ax.set_title(title, fontsize=7)
    ax.set_aspect("equal")
