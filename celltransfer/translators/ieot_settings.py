"""Settings of inverse entropic OT, chosen by the likelihood of left-out anchors.

All candidates are fitted at once, each without one fold of the anchors: their parameters are stacked, and one step of
one optimiser is a step of every fit. That costs a fraction of fitting them one after the other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from celltransfer.data.pair import dense
from celltransfer.losses.transport import semi_supervised

if TYPE_CHECKING:
    from celltransfer.data.pair import ModalityPair
    from celltransfer.nn.mixture import TiltedMixture
    from celltransfer.translators.ieot import IEOT, ScaledLaw

# Candidates, the default of each first. lambda and penalty are compared together at the first size, then the sizes.
WEIGHTS, PENALTIES, SIZES = (0.2, 0.03, 1.0), (60.0, 12.0, 400.0, 3000.0), (20, 5, 50)
# With fewer anchors none can be left out, and the defaults are taken.
FEWEST_ANCHORS = 3
# Folds at most, steps of the comparison (fewer where the fit is to take fewer), and cells a side in each step.
FOLDS, STEPS, BATCH = 5, 150, 128
CELLS = 2000
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
        """At most `size` cells a side; with conditions, as many of each on both sides."""
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
        """`size` rows of both sides, drawn independently, of the same conditions."""
        n = len(self.x)
        rows = torch.as_tensor(rng.integers(n, size=size))
        if self.condition is None:
            return replace(self, x=self.x[rows], y=self.y[torch.as_tensor(rng.integers(n, size=size))])
        # Row i of both sides has the same condition, and is not the same cell.
        return replace(self, x=self.x[rows], y=self.y[rows], condition=self.condition[rows])

    def loss(
        self, law: TiltedMixture, weight_unpaired: Tensor, share: float, anchor_weights: Tensor, *, joint: bool
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
            share=share,
            joint=joint,
            anchor_weights=anchor_weights,
        )

    def mixture(self, n_components: int, floor: float, n_conditions: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (1 + conditions, N), centres (N, D) and variances (N, D) of a mixture fitted to the target cells."""
        from sklearn.mixture import GaussianMixture

        y = self.y.numpy().astype(np.float64)
        n = min(n_components, len(y))
        fitted = GaussianMixture(n, covariance_type="diag", reg_covar=floor, max_iter=50, random_state=0).fit(y)
        overall, shares = fitted.weights_, fitted.predict_proba(y)
        # A condition's share of a component is the mean over its cells, drawn a little towards that of all cells.
        codes = None if self.condition is None else self.condition.numpy()
        own = [shares[codes == c] for c in range(n_conditions)] if codes is not None else []
        rows = [overall, *((part.sum(axis=0) + overall) / (len(part) + 1) for part in own)]
        spare = n_components - n  # fewer cells than components: the rest start at the first ones, with little weight
        at = np.r_[np.arange(n), np.arange(spare) % n]
        found = [np.stack(rows)[:, at].clip(1e-6), fitted.means_[at], fitted.covariances_[at]]
        return tuple(torch.as_tensor(values, dtype=torch.float32) for values in found)  # type: ignore[return-value]


def choose(method: IEOT, pair: ModalityPair, rng: np.random.Generator) -> Settings:
    """Settings that the options of `method` give, the open ones chosen by left-out anchors where there are enough.

    Anchors are left out in up to `FOLDS` groups. lambda and penalty are compared together, from 3 x 4 values, then the
    number of components from 3. The candidate with the highest mean log density of the left-out anchors is taken if it
    beats the defaults by more than a standard error of the difference: a handful of anchors decides little.
    """
    sizes = SIZES if method.n_potential is None else (method.n_potential,)
    weights = WEIGHTS if method.weight_unpaired is None else (method.weight_unpaired,)
    penalties = PENALTIES if method.penalty is None else (method.penalty,)
    default = Settings(sizes[0], weights[0], penalties[0])
    n_candidates = len(weights) * len(penalties) + len(sizes) - 1
    if n_candidates == 1 or len(np.unique(pair.anchor_x, axis=0)) < FEWEST_ANCHORS:
        return default
    compare = _Comparison(method, pair, rng)
    if compare.n_parameters > MOST_PARAMETERS:
        return default._replace(reason="Default settings: with so many features they are not compared.")
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
    best = _better(found, default)
    found |= {other: compare.likelihoods([other])[0] for other in (best._replace(n_potential=n) for n in sizes[1:])}
    best = _better({s: found[s] for s in found if s[1:] == best[1:]}, best)
    means = [float(values.mean()) for values in found.values()]
    return best._replace(
        reason=f"Settings by left-out anchors: weight_unpaired={best.weight_unpaired:g}, penalty={best.penalty:g}, "
        f"n_potential={best.n_potential}, mean log density {float(found[best].mean()):.2f} ({len(found)} compared, "
        f"{min(means):.2f} to {max(means):.2f})."
    )


def _better(found: dict[Settings, Tensor], default: Settings) -> Settings:
    """The settings with the highest mean, unless the default's is within a standard error of the difference."""
    best = max(found, key=lambda s: float(found[s].mean()))
    gain = found[best] - found[default]
    return best if best != default and gain.mean() > gain.std() / len(gain) ** 0.5 else default


class _OutOfTimeError(Exception):
    """The time limit leaves no more for comparing settings."""


class _Comparison:
    """Fits of several settings on several folds of the anchors, all at once."""

    def __init__(self, method: IEOT, pair: ModalityPair, rng: np.random.Generator) -> None:
        self.method, self.rng, self.share = method, rng, pair.n_anchors / pair.n_source
        method.settings_ = Settings(1, WEIGHTS[0], PENALTIES[0])
        scales = method.build()
        self.n_parameters = sum(p.numel() for p in scales.parameters())
        scales.set_scales(pair)
        self.cells = Cells.sample(scales, pair, rng, CELLS)
        # Anchors that repeat one source cell, with several targets, are left out together.
        _, source = np.unique(pair.anchor_x, axis=0, return_inverse=True)
        folds = np.array_split(rng.permutation(source.max() + 1), min(source.max() + 1, FOLDS))
        self.held = torch.stack([torch.as_tensor(np.isin(source.ravel(), fold)) for fold in folds]).float()
        self.seed = int(rng.integers(2**31))
        self.deadline = MOST_TIME * (method.clock_.left() + method.clock_.elapsed())

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
        law.set_potential(*self.cells.mixture(settings.n_potential, self.method.floor, self.method.n_conditions_))
        return _Law(law, self.share, self.method.potential == "joint")


class _Law(nn.Module):
    """The law as a function of its parameters: the loss of one fit, or log densities of all anchors."""

    def __init__(self, law: TiltedMixture, share: float, joint: bool) -> None:
        super().__init__()
        self.law, self.share, self.joint = law, share, joint

    def forward(self, cells: Cells, fit: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """The loss of a fit given its lambda, penalty and anchor weights; without, log densities of the anchors."""
        from celltransfer.translators.ieot import penalties

        if fit is None:
            return self.law.log_prob(cells.anchor_x, cells.anchor_y, cells.condition_anchor)
        weight_unpaired, penalty, kept = fit
        loss = cells.loss(self.law, weight_unpaired, self.share, kept, joint=self.joint)
        return loss + torch.stack(list(penalties(self.law, cells.x, penalty).values())).sum()


def _rows(pair: ModalityPair, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both sides, at most `size`; with conditions, of the same condition one by one."""
    if pair.condition_x is None or pair.condition_y is None:
        n = min(size, pair.n_source, pair.n_target)
        return rng.permutation(pair.n_source)[:n], rng.permutation(pair.n_target)[:n]
    codes = [np.asarray(c) for c in (pair.condition_x, pair.condition_y)]
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    total = min(size, pair.n_source, pair.n_target)
    for code in pair.shared_conditions:
        own = [np.flatnonzero(c == code) for c in codes]
        n = max(1, round(total * float(np.mean([(c == code).mean() for c in codes]))))
        for side in (0, 1):
            rows[side].append(rng.choice(own[side], size=n, replace=n > len(own[side])))
    return np.concatenate(rows[0]), np.concatenate(rows[1])
