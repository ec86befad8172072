"""Settings of inverse entropic OT, chosen by the likelihood of left-out anchors.

All candidates are fitted at once, each without one fold of the anchors: their parameters are stacked, and one step of
one optimiser is a step of every fit. That costs a fraction of fitting them one after the other.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import dense
from celltransfer.translators.ieot.loss import semi_supervised

if TYPE_CHECKING:
    from celltransfer.data.pair import ModalityPair
    from celltransfer.translators.ieot.ieot import IEOT, ScaledLaw
    from celltransfer.translators.ieot.mixture import TiltedMixture

logger = logging.getLogger("celltransfer")

# Candidates, the default of each first. lambda and penalty are compared together at the first size, then the sizes.
WEIGHTS, PENALTIES, SIZES = (0.2, 0.03, 1.0), (60.0, 12.0, 400.0, 3000.0), (20, 5, 50)
# With fewer source cells among the anchors nothing is compared, and the defaults are taken; they are left otherwise if
# a candidate's gain is significant at this level, one-sided.
FEWEST_ANCHORS, LEVEL = 5, 0.1
# Folds at most, steps of the comparison (fewer where the fit is to take fewer), and cells a side in each step.
FOLDS, STEPS, BATCH = 5, 150, 128
CELLS = 2000
# Target cells that a mixture is started from, and what keeps its variances from vanishing before the floor does.
START_CELLS, REGULARISATION = 5000, 1e-3
EPSILON = 1e-3
# Log density of what a fit that diverged makes of an anchor.
WORST = -1e9
# Parameters of one fit up to which fits are compared, as many at a time hold as many times the memory; and the share of
# a time limit that comparing may take.
MOST_PARAMETERS, MOST_TIME = 200_000, 0.5


class Settings(NamedTuple):
    """Number of components of the potential, lambda, penalty; and how they were found, where they were."""

    n_potential: int
    weight_unpaired: float
    penalty: float
    reason: str | None = None


@dataclass(frozen=True)
class Cells:
    """Scaled cells of both sides that share their conditions row by row, and the anchors.

    Attributes
    ----------
    x, y
        Source and target cells, shapes (n, d) and (n, D); with conditions, row i of both has ``condition[i]``.
    condition
        Condition codes of the rows, or ``None``.
    anchor_x, anchor_y, condition_anchor
        Anchors and their conditions.
    """

    x: Tensor
    y: Tensor
    condition: Tensor | None
    anchor_x: Tensor
    anchor_y: Tensor
    condition_anchor: Tensor | None

    @classmethod
    def sample(cls, scales: ScaledLaw, pair: ModalityPair, rng: np.random.Generator, size: int) -> Cells:
        """At most `size` cells a side that are no anchors; with conditions, as many of each on both sides."""
        rows_x, rows_y = _rows(pair, rng, size)
        condition = None if pair.condition_x is None else torch.as_tensor(np.asarray(pair.condition_x))
        codes, codes_a = (None if condition is None else condition[rows] for rows in (rows_x, pair.anchors[:, 0]))
        return cls(
            scales.source(torch.as_tensor(dense(pair.x[rows_x])), codes),
            scales.target(torch.as_tensor(dense(pair.y[rows_y]))),
            codes,
            scales.source(torch.as_tensor(pair.anchor_x), codes_a),
            scales.target(torch.as_tensor(pair.anchor_y)),
            codes_a,
        )

    def draw(self, size: int, rng: np.random.Generator) -> Cells:
        """`size` rows of both sides, of the same conditions."""
        at_x = torch.as_tensor(rng.integers(len(self.x), size=size))
        if self.condition is None:
            return replace(self, x=self.x[at_x], y=self.y[torch.as_tensor(rng.integers(len(self.y), size=size))])
        # Rows of both sides that share a position share a condition, and were drawn independently.
        return replace(self, x=self.x[at_x], y=self.y[at_x], condition=self.condition[at_x])

    def loss(
        self,
        law: TiltedMixture,
        weight_unpaired: Tensor,
        shares: tuple[float, float],
        anchor_weights: Tensor,
        *,
        joint: bool,
    ) -> Tensor:
        """`semi_supervised` on these cells."""
        return semi_supervised(
            law,
            self.x,
            self.y,
            self.anchor_x,
            self.anchor_y,
            weight_unpaired=weight_unpaired,
            condition=self.condition,
            condition_anchor=self.condition_anchor,
            share_x=shares[0],
            share_y=shares[1],
            joint=joint,
            anchor_weights=anchor_weights,
        )


def mixture(
    scales: ScaledLaw, pair: ModalityPair, rng: np.random.Generator, n_components: int, *, anchors: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mixture of Gaussians fitted to target cells, anchors among them or not, to start the potential from.

    Weights (conditions, N), centres and variances (N, D), and the share of each condition among the target cells.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    free = np.arange(pair.n_target) if anchors else _others(pair.n_target, pair.anchors[:, 1])
    rows = rng.permutation(free)[:START_CELLS]
    y = scales.target(torch.as_tensor(dense(pair.y[rows]))).numpy().astype(np.float64)
    how = {"covariance_type": "diag", "reg_covar": REGULARISATION, "max_iter": 50, "random_state": 0}
    fitted = GaussianMixture(n_components, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not have converged
        fitted.fit(y)
    weights, shares = fitted.weights_[None], np.ones(1)
    if pair.condition_x is not None and pair.condition_y is not None:
        # A condition's share of a component is the mean over its cells, drawn a little towards that of all cells.
        codes, belongs = np.asarray(pair.condition_y)[rows], fitted.predict_proba(y)
        n_conditions = int(max(np.max(pair.condition_x), np.max(pair.condition_y))) + 1
        counts = np.bincount(codes, minlength=n_conditions)
        sums = np.stack([belongs[codes == c].sum(axis=0) for c in range(n_conditions)])
        weights, shares = (sums + weights) / (counts[:, None] + 1), counts / counts.sum()
    found = weights.clip(1e-6), fitted.means_, fitted.covariances_, shares.clip(1e-6)
    return tuple(torch.as_tensor(values, dtype=torch.float32) for values in found)  # type: ignore[return-value]


def choose(method: IEOT, pair: ModalityPair, rng: np.random.Generator) -> Settings:
    """Settings that the options of `method` give, the open ones chosen by left-out anchors where there are enough.

    Anchors are left out in up to `FOLDS` groups, as pairs and as cells: what is left out is new to the fit. lambda and
    penalty are compared together, from 3 x 4 values, then the number of components from 3. The candidate with the
    highest mean log density of the left-out anchors is taken if its gain over the default is significant (Student's t
    over source cells): a handful of anchors decides little.
    """
    n_free = pair.n_target - pair.n_anchors or pair.n_target
    wanted = SIZES if method.n_potential is None else (method.n_potential,)
    sizes = tuple(dict.fromkeys(min(size, n_free) for size in wanted))
    weights = WEIGHTS if method.weight_unpaired is None else (method.weight_unpaired,)
    penalties = PENALTIES if method.penalty is None else (method.penalty,)
    default = Settings(sizes[0], weights[0], penalties[0])
    n_candidates = len(weights) * len(penalties) + len(sizes) - 1
    few = len(np.unique(pair.anchor_x, axis=0)) < FEWEST_ANCHORS or pair.n_anchors == min(pair.n_source, pair.n_target)
    if n_candidates == 1 or few or method.optimizers == "two":
        return default
    compare = _Comparison(method, pair, rng)
    if compare.n_parameters > MOST_PARAMETERS:
        return default._replace(reason="Default settings: with so many features they are not compared.")
    logger.info("Comparing %d settings on left-out anchors; options that are given are not compared.", n_candidates)
    try:
        return _compared(compare, default, weights, penalties, sizes)
    except _OutOfTimeError:
        return default._replace(reason="Default settings: there was no time to compare any; raise `max_seconds`.")


def _compared(
    compare: _Comparison,
    default: Settings,
    weights: tuple[float, ...],
    penalties: tuple[float, ...],
    sizes: tuple[int, ...],
) -> Settings:
    """The settings that left-out anchors choose."""
    first = [default._replace(weight_unpaired=weight, penalty=p) for weight in weights for p in penalties]
    found = dict(zip(first, compare.likelihoods(first), strict=True))
    best = compare.better(found, default)
    found |= {other: compare.likelihoods([other])[0] for other in (best._replace(n_potential=n) for n in sizes[1:])}
    best = compare.better({s: found[s] for s in found if s[1:] == best[1:]}, best)
    means = [float(values.mean()) + compare.units for values in found.values()]
    return best._replace(
        reason=f"Settings by left-out anchors: weight_unpaired={best.weight_unpaired:g}, penalty={best.penalty:g}, "
        f"n_potential={best.n_potential}, mean log density {float(found[best].mean()) + compare.units:.2f} "
        f"({len(found)} compared, {min(means):.2f} to {max(means):.2f})."
    )


class _OutOfTimeError(Exception):
    """The time limit leaves no more for comparing settings."""


class _Comparison:
    """Fits of several settings on several folds of the anchors, all at once."""

    def __init__(self, method: IEOT, pair: ModalityPair, rng: np.random.Generator) -> None:
        self.method, self.pair, self.rng = method, pair, rng
        method.settings_ = Settings(1, WEIGHTS[0], PENALTIES[0])
        scales = method.build()
        self.n_parameters, self.scales = sum(p.numel() for p in scales.parameters()), scales
        scales.set_scales(pair)
        # From densities of scaled features to those of features as they are.
        self.units = float(scales.factor_y.log().sum())
        self.cells = Cells.sample(scales, pair, rng, CELLS)
        # Anchors that repeat one source cell, with several targets, are left out together.
        _, source = np.unique(pair.anchor_x, axis=0, return_inverse=True)
        self.groups = torch.as_tensor(source.ravel())
        folds = np.array_split(rng.permutation(source.max() + 1), min(source.max() + 1, FOLDS))
        self.held = torch.stack([torch.as_tensor(np.isin(source.ravel(), fold)) for fold in folds]).float()
        kept = pair.n_anchors * (1 - 1 / len(folds))
        self.shares = kept / (pair.n_source - pair.n_anchors + kept), kept / (pair.n_target - pair.n_anchors + kept)
        self.seed = int(rng.integers(2**31))
        self.deadline = MOST_TIME * (method.clock_.left() + method.clock_.elapsed())

    def better(self, found: dict[Settings, Tensor], default: Settings) -> Settings:
        """The settings with the highest mean log density, if their gain over the default is significant."""
        from scipy.stats import t

        best = max(found, key=lambda s: float(found[s].mean()))
        if best == default or float(found[best].min()) <= WORST:
            return default
        gain = (found[best] - found[default]).double()
        n = int(self.groups.max()) + 1
        by_source = torch.zeros(n, dtype=gain.dtype).index_add_(0, self.groups, gain) / self.groups.bincount()
        bound = float(t.ppf(1 - LEVEL, n - 1)) * float(by_source.std()) / n**0.5
        diverged = float(found[default].min()) <= WORST
        return best if diverged or float(by_source.mean()) > bound else default

    def likelihoods(self, candidates: list[Settings]) -> list[Tensor]:
        """Log densities (k,) of the anchors under fits without them, of candidates with one number of components."""
        model, n_folds = self._start(candidates[0]), len(self.held)
        n = len(candidates) * n_folds
        held = self.held.repeat(len(candidates), 1)
        kept = (1 - held) / (1 - held).sum(dim=1, keepdim=True)
        lam = torch.tensor([c.weight_unpaired for c in candidates]).repeat_interleave(n_folds)
        penalty = torch.tensor([c.penalty for c in candidates]).repeat_interleave(n_folds)
        penalty = penalty / (1 - held).sum(dim=1)
        stacked, _ = stack_module_state([copy.deepcopy(model) for _ in range(n)])
        self._fit(model, stacked, lam, penalty, kept)
        found = vmap(lambda p: functional_call(model, p, (self.cells,)))(stacked)
        found = found.detach().nan_to_num(nan=WORST, neginf=WORST, posinf=WORST) * held
        return list(found.reshape(len(candidates), n_folds, -1).sum(dim=1))

    def _fit(self, model: _Law, stacked: dict[str, Tensor], lam: Tensor, penalty: Tensor, kept: Tensor) -> None:
        """`STEPS` steps of all fits, on the same cells."""
        rng = np.random.default_rng(self.seed)
        steps = max(1, min(STEPS, STEPS * self.method.max_steps_ // self.method.training["max_steps"]))
        parameters = list(stacked.values())
        optimizer = torch.optim.Adam([p.requires_grad_() for p in parameters], lr=1.5 * self.method.lr, eps=EPSILON)
        for step in range(steps):
            if self.method.clock_.elapsed() > self.deadline:
                raise _OutOfTimeError
            optimizer.param_groups[0]["lr"] = 1.5 * self.method.lr * min(1.0, 2 * (1 - step / steps))
            cells = self.cells.draw(BATCH, rng)

            def one(p: dict[str, Tensor], *fit: Tensor, cells: Cells = cells) -> Tensor:
                return functional_call(model, p, (cells, fit))

            total = vmap(one)(stacked, lam, penalty, kept).sum()
            gradients = torch.autograd.grad(total, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()

    def _start(self, settings: Settings) -> _Law:
        self.method.settings_ = settings
        law = self.method.build().law
        law.floor.copy_(self.scales.law.floor)
        law.set_potential(*mixture(self.scales, self.pair, self.rng, settings.n_potential, anchors=False))
        return _Law(law, self.shares, self.method.potential == "joint")


class _Law(nn.Module):
    """The law as a function of its parameters: the loss of one fit, or log densities of all anchors."""

    def __init__(self, law: TiltedMixture, shares: tuple[float, float], joint: bool) -> None:
        super().__init__()
        self.law, self.shares, self.joint = law, shares, joint

    def forward(self, cells: Cells, fit: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """The loss of a fit given its lambda, penalty and anchor weights; without, log densities of the anchors."""
        from celltransfer.translators.ieot.ieot import penalties

        if fit is None:
            return self.law.log_prob(cells.anchor_x, cells.anchor_y, cells.condition_anchor)
        weight_unpaired, penalty, kept = fit
        loss = cells.loss(self.law, weight_unpaired, self.shares, kept, joint=self.joint)
        return loss + torch.stack(list(penalties(self.law, cells.x, penalty).values())).sum()


def _rows(pair: ModalityPair, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both sides that are no anchors, at most `size`; with conditions, of the same condition one by one."""
    free = [_others(n, rows) for n, rows in zip((pair.n_source, pair.n_target), pair.anchors.T, strict=True)]
    if pair.condition_x is None or pair.condition_y is None:
        return rng.permutation(free[0])[:size], rng.permutation(free[1])[:size]
    codes = [np.asarray(c)[rows] for c, rows in zip((pair.condition_x, pair.condition_y), free, strict=True)]
    total = min(size, *map(len, free))
    out: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for code, share in zip(*shared_conditions(*codes), strict=True):
        n = max(1, round(total * float(share)))
        for side in (0, 1):
            own = free[side][codes[side] == code]
            out[side].append(rng.choice(own, size=n, replace=n > len(own)))
    return np.concatenate(out[0]), np.concatenate(out[1])


def _others(n: int, anchors: np.ndarray) -> np.ndarray:
    """Rows that are no anchors; all where none are left."""
    rest = np.setdiff1d(np.arange(n), anchors)
    return rest if len(rest) else np.arange(n)
