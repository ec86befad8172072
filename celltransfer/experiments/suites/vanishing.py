r"""Suite ``vanishing``: the gradient that moves two far domains together vanishes, and the loss says that it did.

Example 2.2. :math:`A` is an equal mixture of :math:`N(\mu \pm \delta, \sigma_0^2)`, :math:`B` the same at
:math:`\mu = 0`, T a shift, and M all equal mixtures of two Gaussians of one variance. Far domains have the best shared
model :math:`N(0, s^2), N(\mu, s^2)`, :math:`s^2 = \sigma_0^2 + \delta^2`, one component for each. The first part
measures the gradient of the loss there, by integration in float64 and by samples; the second fits shifts.

The paper gives neither :math:`\delta` nor :math:`\sigma_0`: here :math:`\delta = 1`, so that all lengths are in its
units, and six :math:`\sigma_0`. For :math:`\sigma_0 < \delta` the exponent is quadratic in :math:`\mu` in general and
:math:`\sqrt{-\log|\partial L/\partial\mu|}` has the asymptotic slope :math:`\delta / (\sqrt 2 s^2)`; beyond, it is
:math:`1 / (2 \sqrt 2 \sigma_0)`.

Nothing is tuned but the learning rates of the two optimisers, one value each on two seeds (100, 101) that are not
reported: the largest power of ten at which near domains still align. What is near and far was set on them, too. The
number of steps was raised from 3,000 when those from B's model had been seen to be still on their way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celltransfer.experiments.claims import Says
from celltransfer.experiments.store import label
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.tables import mean_sd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Half the distance of the modes; their widths; the width of the second part.
DELTA, WIDTHS, WIDTH = 1.0, (0.25, 0.4, 0.5, 0.75, 1.0, 1.5), 0.4
# Distances at which the gradient is taken.
DISTANCES = np.arange(4.0, 16.01, 0.25)
# Points of a sample of the gradient, as in the paper.
SAMPLE = 100_000
# Distances of the domains to be aligned by a shift, and the error, in units of delta, up to which they are.
SHIFTS, ALIGNED = (2.0, 4.0, 6.0, 8.0, 10.0), 0.1
# What counts as near and as far among them.
NEAR, FAR = 4.0, 8.0
# Distance from which the closed form of the shared model is held to be good.
GOOD = 6.0
INTEGRAL, SAMPLED = "integral", "sample"
# How a shift is fitted: optimiser, learning rate, and whether the shared model starts at B's or at the best for b = 0.
FITS = {
    "Adam, shared model from B's": ("Adam", 0.01, "B"),
    "Adam, from the best shared model": ("Adam", 0.01, "best"),
    "gradient descent, from the best shared model": ("descent", 0.1, "best"),
}


class Vanishing(Suite):
    """The gradient at a distance, and fits of shifts from near and far."""

    name = "vanishing"
    title = "The gradient between far domains vanishes, and the loss tells"
    reference = "Log-likelihood ratio minimizing flows, example 2.2, section 8.8 and figure 7."
    seeds = 5
    by = ("arm", "width", "mu")

    def jobs(self, seeds: int | None) -> list[Job]:
        """The integral once per width; samples and fits with every seed."""
        every = range(seeds or self.seeds)
        jobs = [_job(INTEGRAL, width, 0.0, 0) for width in WIDTHS]
        jobs += [_job(SAMPLED, width, 0.0, seed) for seed in every for width in WIDTHS]
        return jobs + [_job(arm, WIDTH, mu, seed) for seed in every for arm in FITS for mu in SHIFTS]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Measure the gradient, or fit a shift."""
        arm, width, seed = job["arm"], job["width"], job["seed"]
        if arm in FITS:
            scores, path = fit_shift(arm, job["mu"], seed, steps=40_000 if self.full else 8_000)
            return scores, {"path": path} if seed == 0 else {}
        exact = np.array([log_gradient(mu, width) for mu in DISTANCES])
        if arm == INTEGRAL:
            pairs = [(mu, value) for mu, value in zip(DISTANCES, exact, strict=True) if mu >= GOOD]
            worst = max(abs(best_gradient(mu, width) - value) for mu, value in pairs)
            return straight(exact) | {"closed_form_error": worst, "slope_theory": slope(width)}, {"log_gradient": exact}
        found = sampled_gradient(width, seed)
        scores = straight(found) | {"breaks": _first(np.abs(found - exact) > np.log(2))}
        return scores, {"log_gradient": found} if seed == 0 else {}

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Lines fitted to the gradient by width; then errors and losses of shifts by distance."""
        lines = [
            {
                "arm": f"gradient by {arm}, width {width:g}",
                "slope": mean_sd(group["slope"]) if arm == SAMPLED else f"{group['slope'].iloc[0]:.3f}",
                "offset": mean_sd(group["offset"]) if arm == SAMPLED else f"{group['offset'].iloc[0]:.3f}",
                "R": f"{group['r'].mean():.5f}",
                "slope in theory": "" if arm == SAMPLED else f"{group['slope_theory'].iloc[0]:.3f}",
                "wrong by 2 from mu": _breaks(group) if arm == SAMPLED else "",
            }
            for (arm, width), group in rows[~rows["arm"].isin(FITS)].groupby(["arm", "width"], sort=False)
        ]
        lines += [
            {
                "arm": f"{arm}, mu = {mu:g}",
                "aligned": f"{(group['error'] < ALIGNED).sum()} of {len(group)}",
                "error": mean_sd(group["error"], 2),
                "loss at the end": mean_sd(group["loss"], 3),
            }
            for (arm, mu), group in rows[rows["arm"].isin(FITS)].groupby(["arm", "mu"], sort=False)
        ]
        return pd.DataFrame(lines).fillna("").set_index("arm")

    def says(self) -> list[Says]:
        """The line and its slope, what samples make of it, and what becomes of the shifts."""
        narrow, wide = ([(INTEGRAL, w) for w in WIDTHS if keep(w)] for keep in (DELTA.__ge__, DELTA.__le__))
        narrow = [arm for arm in narrow if arm[1] <= DELTA / 2]
        line = partial(Says, figure="r", sense=">", than=0.999, exact=True, what="R")
        fits = partial(Says, sense=">", than=0.5)
        return [
            line("sqrt(-log |dL/dmu|) is linear in mu, R > .999, for modes of width up to delta / 2.", arm=narrow),
            line("It is so for modes of width delta and wider.", arm=wide),
            Says(
                f"From mu = {GOOD:g} the closed form of the shared model gives the gradient at the best one to 5 %.",
                lambda rows: np.expm1(rows["closed_form_error"]),
                (INTEGRAL,),
                "<",
                0.05,
                exact=True,
                what="off by",
            ),
            Says(
                f"A sample of {SAMPLE:,} has the right gradient up to mu = 16, width {WIDTH:g} (section 8.8).",
                lambda rows: rows["breaks"].fillna(np.inf).clip(upper=DISTANCES[-1] + 0.25),
                (SAMPLED, WIDTH),
                ">",
                DISTANCES[-1],
                what="wrong by a factor of two or more from mu =",
            ),
            fits(
                f"Near domains (mu up to {NEAR:g}) are aligned in most runs.",
                lambda rows: rows.loc[rows["arm"].isin(FITS) & (rows["mu"] <= NEAR), "error"] < ALIGNED,
                None,
                what="aligned in",
            ),
            *(
                fits(
                    f"Far domains (mu from {FAR:g}) are not, in most runs: {arm}.",
                    lambda rows: rows.loc[rows["mu"] >= FAR, "error"] >= ALIGNED,
                    arm,
                    what="not aligned in",
                )
                for arm in FITS
            ),
            Says(
                "The loss on held-out points tells which: all aligned runs have a lower one than all others.",
                _apart,
                None,
                ">",
                0,
                what="lowest loss of those less the highest of these",
            ),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """The gradient over the distance, its line, and the paths of shifts with their loss."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 4), layout="constrained")
        axes = figure.subplots(1, 2 + len(FITS))
        for i, width in enumerate(WIDTHS):
            for arm, style in ((INTEGRAL, "-"), (SAMPLED, "x")):
                found = arrays.get(label(_job(arm, width, 0.0, 0)))
                if found is not None:
                    values = np.sqrt(-found["log_gradient"])
                    axes[0].plot(DISTANCES, values, style, color=f"C{i}", ms=3, lw=1, label=_named(arm, width))
        axes[0].set(xlabel="mu", ylabel="sqrt(-log |dL/dmu|)", title="lines: integral; crosses: sample")
        axes[0].legend(fontsize=6)
        _losses(axes[1], rows[rows["arm"].isin(FITS)])
        for ax, arm in zip(axes[2:], FITS, strict=True):
            _paths(ax, arm, arrays)
        return figure


def _job(arm: str, width: float, mu: float, seed: int) -> Job:
    return {"arm": arm, "width": width, "mu": mu, "seed": seed}


def slope(width: float) -> float:
    """Asymptotic slope of sqrt(-log gradient): a saddle inside B's modes, or where the components are equal."""
    if width < DELTA:
        return float(DELTA / (np.sqrt(2) * (width**2 + DELTA**2)))
    return float(1 / (2 * np.sqrt(2) * width))


def log_gradient(mu: float, width: float) -> float:
    """Log of the cross-entropy's derivative by mu at the closed form of the shared model; by integration."""
    return _integral(mu, width, width**2 + DELTA**2, 0.0, lambda x: mu - x) - np.log(width**2 + DELTA**2)


def best_gradient(mu: float, width: float) -> float:
    r"""Log of half of dL/db at b = 0 for the best shared model, by the fixed point of its moments.

    Its means are mu - e and e with :math:`e = E_B[r (\mu - 2x)]`, r being the share of A's component, and with
    :math:`R = E_B[r]`, :math:`\partial L/\partial b = (e (1 - 2R) + R \mu) / s^2` up to the sign.
    """
    e, variance = 0.0, width**2 + DELTA**2
    for _ in range(50):
        share = np.exp(_integral(mu, width, variance, e, np.ones_like))
        x_share = mu * share - np.exp(_integral(mu, width, variance, e, lambda x: mu - x))
        e, spread = mu * share - 2 * x_share, width**2 + DELTA**2
        # The second moment about the nearer mean, from B alone by symmetry.
        variance = spread - 2 * (x_share * e) + e**2 + share * (mu - 2 * e) * mu - 2 * (mu - 2 * e) * x_share
    return float(np.log((e * (1 - 2 * share) + share * mu) / (2 * variance)))


def sampled_gradient(width: float, seed: int) -> np.ndarray:
    """Log of the derivative as a mean over one sample of B, for all distances."""
    x, variance = mixture(SAMPLE, width, np.random.default_rng([seed, 71])), width**2 + DELTA**2
    means = [(_share(x, mu, variance) * (mu - x)).mean() / variance for mu in DISTANCES]
    return np.log(means)


def mixture(n: int, width: float, rng: np.random.Generator) -> np.ndarray:
    """Points of B, shape (n,)."""
    return rng.choice([-DELTA, DELTA], n) + width * rng.normal(size=n)


def straight(log_gradients: np.ndarray) -> Scores:
    """Slope, offset and correlation of sqrt(-log gradient) over the distance."""
    values = np.sqrt(-log_gradients)
    slope, offset = np.polyfit(DISTANCES, values, 1)
    return {"slope": float(slope), "offset": float(offset), "r": float(np.corrcoef(DISTANCES, values)[0, 1])}


def log_density(x: np.ndarray, means: np.ndarray, log_scale: float) -> np.ndarray:
    """Of an equal mixture of two Gaussians of one variance, at points (n,)."""
    z = (x[:, None] - means) * np.exp(-log_scale)
    return np.logaddexp(*(-0.5 * z**2).T) - log_scale - np.log(2 * np.sqrt(2 * np.pi))


def gradient(parameters: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of equation 3 by shift, both means and the log scale, shape (4,); points (n,) and (m,)."""
    shift, *means, log_scale = parameters
    variance, found = np.exp(2 * log_scale), np.zeros(4)
    for x, moves in ((a + shift, True), (b, False)):
        away = x - means[0], x - means[1]
        share = 1 / (1 + np.exp(np.clip((away[1] ** 2 - away[0] ** 2) / (-2 * variance), -700, 700)))
        pulls = np.array([(share * away[0]).mean(), ((1 - share) * away[1]).mean()]) / variance
        spread = (share * away[0] ** 2 + (1 - share) * away[1] ** 2).mean() / variance
        found += [pulls.sum() if moves else 0.0, *-pulls, 1 - spread]
    return found


def descend(optimiser: str, rate: float, start: np.ndarray, a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Parameters after a hundred stretches of Adam or gradient descent, shape (100, 4)."""
    parameters, mean, square, path = start.copy(), np.zeros(4), np.zeros(4), []
    for step in range(1, steps + 1):
        move = gradient(parameters, a, b)
        if optimiser == "Adam":
            mean, square = 0.9 * mean + 0.1 * move, 0.999 * square + 0.001 * move**2
            move = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        parameters = parameters - rate * move
        if step % (steps // 100) == 0:
            path.append(parameters)
    return np.array(path)


def fit_shift(arm: str, mu: float, seed: int, steps: int, n: int = 1000) -> tuple[Scores, np.ndarray]:
    """Minimise equation 3 over a shift of A and the shared model; error, held-out loss, and path of the shift."""
    optimiser, rate, first = FITS[arm]
    rng = np.random.default_rng([seed, 72])
    a, b, held_a, held_b = (mixture(n, WIDTH, rng) + shift for shift in (mu, 0.0, mu, 0.0))
    own = [fit_mixture(x) for x in (a, b)]
    best = sum(log_density(x, *model).mean() for x, model in zip((held_a, held_b), own, strict=True))
    far = np.array([b.mean(), a.mean()]), np.log((a.var() + b.var()) / 2) / 2
    means, log_scale = own[1] if first == "B" else far
    path = descend(optimiser, rate, np.array([0.0, *means, log_scale]), a, b, steps)
    shift, *means, log_scale = path[-1]
    shared = [log_density(x, np.array(means), log_scale).mean() for x in (held_a + shift, held_b)]
    return {"error": abs(shift + mu), "loss": float(best - sum(shared)), "shift": float(shift)}, path[:, 0]


def fit_mixture(x: np.ndarray, steps: int = 200) -> tuple[np.ndarray, float]:
    """Means and log scale of the mixture that fits points (n,) best, by expectation and maximisation."""
    means, variance = np.quantile(x, [0.25, 0.75]), x.var() / 4
    for _ in range(steps):
        logs = -0.5 * (x[:, None] - means) ** 2 / variance
        share = np.exp(logs - np.logaddexp(*logs.T)[:, None])
        means = (share * x[:, None]).sum(0) / share.sum(0)
        variance = (share * (x[:, None] - means) ** 2).sum(1).mean()
    return means, float(np.log(variance) / 2)


def _share(x: np.ndarray, mu: float, variance: float) -> np.ndarray:
    """Share of the component at mu, not at 0, of points."""
    return np.exp(-np.logaddexp(0, ((x - mu) ** 2 - x**2) / (2 * variance)))


def _integral(mu: float, width: float, variance: float, e: float, times: Callable[[np.ndarray], np.ndarray]) -> float:
    """Log of the integral of B's density, the share of A's component and a function: sums of exponentials."""
    x = np.linspace(-DELTA - 40 * width, mu + DELTA + 40 * width, 40_001)
    density = np.logaddexp(*(-0.5 * ((x - sign * DELTA) / width) ** 2 for sign in (-1, 1)))
    logs = density - np.log(2 * np.sqrt(2 * np.pi) * width)
    logs -= np.logaddexp(0, ((x - mu + e) ** 2 - (x - e) ** 2) / (2 * variance))
    top = logs.max()
    return float(top + np.log((np.exp(logs - top) * times(x)).sum() * (x[1] - x[0])))


def _first(wrong: np.ndarray) -> float:
    """The first distance at which something is wrong; not a number where nothing is."""
    return float(DISTANCES[wrong.argmax()]) if wrong.any() else float("nan")


def _breaks(group: pd.DataFrame) -> str:
    """Where samples go wrong, and how many of them do."""
    found = group["breaks"].dropna()
    return f"{found.median():g} ({len(found)} of {len(group)} seeds)" if len(found) else f"none of {len(group)} seeds"


def _apart(rows: pd.DataFrame) -> pd.Series:
    """By how much the lowest loss of a seed's failed fits is above the highest of its aligned ones."""
    fits = rows[rows["arm"].isin(FITS)]
    aligned = fits["error"] < ALIGNED
    return fits[~aligned].groupby("seed")["loss"].min() - fits[aligned].groupby("seed")["loss"].max()


def _named(arm: str, width: float) -> str | None:
    return f"width {width:g}" if arm == INTEGRAL else None


def _losses(ax: Axes, fits: pd.DataFrame) -> None:
    """Loss over error at the end of every fit."""
    for i, (arm, group) in enumerate(fits.groupby("arm", sort=False)):
        ax.plot(group["error"], group["loss"], "o", ms=4, alpha=0.6, color=f"C{i}", label=str(arm))
    ax.axvline(ALIGNED, color="0.7", lw=1)
    ax.set(xlabel="error of the shift", ylabel="loss on held-out points", xscale="symlog", title="the loss tells")
    ax.legend(fontsize=6)


def _paths(ax: Axes, arm: str, arrays: Mapping[str, Arrays]) -> None:
    """How far A still is from B, over the steps."""
    for i, mu in enumerate(SHIFTS):
        found = arrays.get(label(_job(arm, WIDTH, mu, 0)))
        if found is not None:
            ax.plot(np.arange(len(found["path"])), mu + found["path"], color=f"C{i}", lw=1, label=f"mu = {mu:g}")
    ax.set(xlabel="per cent of the steps", title=arm)
    ax.title.set_fontsize(7)
    ax.legend(fontsize=5)
