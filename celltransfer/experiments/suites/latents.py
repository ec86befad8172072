"""Suite ``latents``: are the latents found, and when does a sparse mixing make up for few domains.

The paper does not define its dataset A, nor which correlation its MCC uses: the generator is
`celltransfer.experiments.suites.latents_models.generate`, and MCC is the mean absolute Pearson correlation of true and
recovered latents (posterior means) after the best one-to-one matching, on cells that no fit has seen. Spearman's is
beside it, as theory finds latents up to a monotone map of each. Chance is the truth turned at random, the ceiling a
regression on the true latents.

What is fitted is ``method="sparse_mixing"`` itself, to one modality without anchors; a domain is a condition. Its
settings were chosen on draws that are not reported: the noise that the decoder is told to leave, alpha, and how content
is told from style on seeds 0 and 1 of earlier versions of the generator; the weight of the match between domains (0,
.1 and 1), of which 1 hinders telling content from style, on seeds 10 and 11. One arm has the method's default options,
but for the numbers of latents and `shared`, at as many steps as the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from celltransfer.experiments.claims import Says
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites.latents_models import (
    ALLOWED,
    CONTENT,
    STYLE,
    explained,
    fit,
    fit_conditional,
    generate,
    mcc,
    rotated,
    supervised,
)
from celltransfer.experiments.tables import seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

CELLS, STEPS = 4000, 1500
DOMAINS = (1, 2, 4, 2 * STYLE + 1)
# Domains at which all else is compared.
FEW, MANY = 2, 2 * STYLE + 1
ON, OFF, PLAIN, FIXED = "CG-VAE", "CG-VAE, not sparse", "conditional VAE", "CG-VAE, fixed blocks"
CHANCE, CEILING = "chance: turned at random", "ceiling: supervised"
STRONG = 0.5
WEAKER = {f"CG-VAE, alpha {alpha}": alpha for alpha in (0.01, 0.05, 0.1)}
L2, AS_IT_COMES = "CG-VAE, L2", "sparse_mixing as it comes"
_SETTINGS: dict[str, Any] = {"map": "mlp", "hidden": (64, 64), "noise": ALLOWED, "lr": 3e-3, "weight_match": 0.1}
# Options of `SparseMixing`.
ARMS: dict[str, dict[str, Any]] = {
    ON: _SETTINGS | {"alpha": STRONG},
    OFF: _SETTINGS | {"alpha": 0.0},
    **{arm: _SETTINGS | {"alpha": alpha} for arm, alpha in WEAKER.items()},
    L2: _SETTINGS | {"alpha": STRONG, "norm": "l2"},
    FIXED: _SETTINGS | {"alpha": STRONG, "mask": "fixed"},
    AS_IT_COMES: {},
}
# Arms that are compared at some numbers of domains alone.
ELSEWHERE = dict.fromkeys((FIXED, PLAIN), (FEW, MANY)) | dict.fromkeys((*WEAKER, L2, AS_IT_COMES), (FEW,))


class Latents(Suite):
    """CG-VAE with and without its parts, over numbers of domains."""

    name = "latents"
    title = "Style latents from few domains: sufficient changes and sparse mixing"
    reference = "Synergy between sufficient changes and sparse mixing, dataset A and its ablations."
    by = ("arm", "domains")
    columns: ClassVar[Mapping[str, Column]] = {
        "domains": lambda group: group["domains"].iloc[0],
        "seeds": len,
        "MCC": "mcc",
        "MCC, Spearman": "mcc_spearman",
        "MCC, style block": "mcc_style",
        "R² of content by content": "content",
        "R² of content by style": "leak",
        "seconds": seconds,
    }

    def arms(self) -> list[tuple[str, int]]:
        """Every arm where it is compared."""
        domains = tuple(range(1, MANY + 1)) if self.full else DOMAINS
        return [(arm, n) for arm in (*ARMS, PLAIN, CHANCE, CEILING) for n in ELSEWHERE.get(arm, domains)]

    def jobs(self, seeds: int | None) -> list[Job]:
        """Every arm with every seed."""
        return super().jobs(seeds or (10 if self.full else self.seeds))

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit one arm, and compare what it finds with the truth on cells it has not seen."""
        arm, seed = job["arm"], job["seed"]
        data = generate(seed, job["domains"], CELLS * (5 if self.full else 1))
        steps = STEPS * (4 if self.full else 1)
        if arm in ARMS:
            found = fit(data, ARMS[arm], seed=seed, steps=steps, device=self.device)
        elif arm == PLAIN:
            found = fit_conditional(data, seed=seed, steps=steps)
        else:
            found = rotated(data, seed) if arm == CHANCE else supervised(data, seed)
        half = len(found) // 2
        return measure(data.z[half:], found[half:]), {}

    def says(self) -> list[Says]:
        """What the paper says of domains, sparsity, its weight and norm."""
        return [
            Says(f"With {FEW} domains the sparse term finds more.", "mcc", (ON, FEW), ">", (OFF, FEW)),
            Says(f"With {MANY} domains, too.", "mcc", (ON, MANY), ">", (OFF, MANY)),
            Says(
                "It gains more where domains are few: sparsity makes up for them.",
                lambda rows: _gain(rows, FEW) - _gain(rows, MANY),
                None,
                ">",
                0,
                what="gain higher by",
            ),
            Says(
                f"Without it, {MANY} domains (2n + 1 for n style latents) find more than {FEW}.",
                "mcc",
                (OFF, MANY),
                ">",
                (OFF, FEW),
            ),
            Says(f"{MANY} domains alone find all latents.", "mcc", (OFF, MANY), ">", 0.95),
            Says(f"Both find all latents with {FEW} domains.", "mcc", (ON, FEW), ">", 0.95),
            Says("One domain is not enough to tell style from content.", "mcc_style", (ON, 1), "<", (ON, MANY)),
            Says("L1 finds more than L2.", "mcc", (ON, FEW), ">", (L2, FEW)),
            Says("A conditional VAE finds less than CG-VAE.", "mcc", (PLAIN, FEW), "<", (ON, FEW)),
            Says(
                "Blocks fixed in advance find less style than sorted ones.", "mcc_style", (FIXED, FEW), "<", (ON, FEW)
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """MCC over the number of domains, and over the weight of the sparsity."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots(1, 3)
        for ax, score, title in ((axes[0], "mcc", "all latents"), (axes[1], "mcc_style", "style block")):
            for arm in (ON, OFF, CHANCE, CEILING):
                found = {n: values for (name, n), values in wide(rows, score).items() if name == arm}
                _line(ax, list(found), list(found.values()), arm, arm in (CHANCE, CEILING))
            ax.set(xlabel="domains", ylabel="MCC", title=title, ylim=(0, 1.02))
        axes[0].legend(fontsize=6)
        few = rows[rows["domains"] == FEW]
        arms = [OFF, *WEAKER, ON]
        groups = [few.loc[few["arm"] == arm, "mcc"] for arm in arms]
        _line(axes[2], list(range(len(arms))), groups, ON, False)
        axes[2].set_xticks(range(len(arms)), [f"{ARMS[arm]['alpha']:g}" for arm in arms])
        axes[2].set(xlabel=f"alpha, {FEW} domains", ylabel="MCC", ylim=(0, 1.02))
        return figure


def measure(truth: np.ndarray, found: np.ndarray) -> Scores:
    """Correlations of all latents and of the style block, and how content is explained by either block."""
    return {
        "mcc": mcc(truth, found),
        "mcc_spearman": mcc(truth, found, ranks=True),
        "mcc_style": mcc(truth[:, CONTENT:], found[:, CONTENT:]),
        "content": explained(truth[:, :CONTENT], found[:, :CONTENT]),
        "leak": explained(truth[:, :CONTENT], found[:, CONTENT:]),
    }


def _gain(rows: pd.DataFrame, domains: int) -> pd.Series:
    """What the sparse term gains at a number of domains, by seed."""
    found = wide(rows, "mcc")
    return found[ON, domains] - found[OFF, domains]


def wide(rows: pd.DataFrame, score: str) -> dict[tuple[str, int], pd.Series]:
    """A score's values over seeds, by arm and number of domains."""
    return {
        (arm, domains): group.set_index("seed")[score]
        for arm in rows["arm"].unique()
        for domains in rows["domains"].unique()
        if len(group := rows[(rows["arm"] == arm) & (rows["domains"] == domains)])
    }


def _line(ax: Axes, at: list[int], groups: list[pd.Series], name: str, dashed: bool) -> None:
    """Mean and standard deviation of the groups."""
    spread = [group.std() if len(group) > 1 else 0.0 for group in groups]
    mean = [group.mean() for group in groups]
    ax.errorbar(at, mean, spread, ls="--" if dashed else "-", marker="o", ms=3, label=name)
