"""Anchored Jacobian-sparse translator: match the distributions by a map whose Jacobian is sparse, pinned by anchors."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim import Adam, Optimizer

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConfigError
from celltransfer.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from celltransfer.losses.discrepancy import energy_distance
from celltransfer.losses.jacobian import exact_l1, linear_proximal_step, probe_l1
from celltransfer.nn.blocks import MLP, Discriminator, Residual, update_average
from celltransfer.pp.transforms import moments
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import register
from celltransfer.translators.baselines import anchor_and_condition_map, column_means, several_conditions
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.batches import Batch

# Cells a side of the held-out sample that the monitor compares, at most and at least; its cost is quadratic in them.
MONITOR_CELLS, FEWEST_MONITOR_CELLS = 500, 10
# Target cells among which the guard ranks a left-out partner.
RANK_CELLS = 1000
# Anchors from which the guard works, and its folds.
GUARD_ANCHORS, GUARD_FOLDS = 6, 3
_CHOICES = {
    "map": ("linear", "residual", "mlp"),
    "gan": ("non_saturating", "least_squares"),
    "init": ("ridge", "random"),
    "estimator": ("auto", "exact", "probe", "difference"),
}


class _Networks(nn.Module):
    """All parameters: the map f on features of unit scale, its moving average, discriminator, reconstructor, scales."""

    mean_x: Tensor
    mean_y: Tensor
    scale: Tensor

    def __init__(
        self, f: nn.Module, discriminator: nn.Module, reconstructor: nn.Module | None, d: int, out: int
    ) -> None:
        super().__init__()
        self.f, self.average = f, copy.deepcopy(f).requires_grad_(False)
        self.discriminator, self.reconstructor = discriminator, reconstructor
        self.register_buffer("mean_x", torch.zeros(d))
        self.register_buffer("mean_y", torch.zeros(out))
        self.register_buffer("scale", torch.ones(2))

    def translate(self, x: Tensor) -> Tensor:
        """The moving average of f, which is zero wherever a linear f is: an average alone never gets there."""
        if not _is_linear(self.f):
            return self.average(x)
        weight, bias = self.average.parameters()
        return linear(x, weight * (next(self.f.parameters()) != 0), bias)


@register
class JacobianSparse(TrainedTranslator):
    r"""Translator with a sparse Jacobian, matched to the target's distribution and pinned by anchors.

    .. math::
        \min_f \max_D \; \lambda_{gan} L_{gan}(f, D)
        + \lambda_{anchor} \frac1k \sum_i \frac{\|f(x_i) - y_i\|^2}{D}
        + \lambda_{sparse} \frac1D E \|J_f(x)\|_1
        + \lambda_{inv} \frac1d E \|r(f(x)) - x\|^2

    Features are centred and divided by one number per modality, so that weights mean the same for all data; the
    relative scales of features are kept. Every term is a mean over output features. With ``init="ridge"`` the linear
    part starts at the ridge solution of the anchors and the means of the conditions, which the matching then refines.
    After training the moving average of f translates.

    The state returned is the one with the lowest monitor: energy distance between f(x) and y on cells held out of
    the matching, within conditions where they are given. That distance cannot tell the right map from a wrong one
    with the right distribution: `guard` asks the anchors.

    Reference: single-anchor alignment by Jacobian sparsity; R1: Mescheder et al. 2018.

    Parameters
    ----------
    map
        ``"linear"``, ``"residual"`` (linear plus a network that starts at zero) or ``"mlp"``.
    hidden, hidden_discriminator
        Widths of hidden layers of f and of the discriminator.
    gan
        ``"non_saturating"`` or ``"least_squares"``.
    weight_gan, weight_anchor, weight_sparse, weight_inverse
        Weights of the terms above. The reconstruction term is only meaningful where D >= d.
    r1, r1_every
        Weight of the discriminator's gradient penalty, and the steps between its evaluations.
    estimator
        Of the Jacobian's norm where f is not linear: ``"exact"``, ``"probe"`` (masked directions, forward mode),
        ``"difference"`` (masked directions, finite differences); ``"auto"`` is exact up to d = 64. A linear f is
        penalised by proximal steps, and its zeros are exact.
    n_probes, probe_size
        Directions per cell, and their non-zero coordinates (``None``: d / 10).
    init
        ``"ridge"`` or ``"random"``.
    lr, lr_discriminator
        Learning rates of Adam, betas (0, 0.99).
    decay
        Of the moving average of f.
    restarts
        Fits from as many seeds, of which the one with the lowest monitor is kept. Most runs from a random start end in
        bad minima, and the monitor tells them from good ones.
    guard
        From `GUARD_ANCHORS` anchors on, and with ``init="ridge"``: leave anchors out in folds, and match only if that
        places the left-out anchors better than ridge alone does, by more than a standard error; otherwise the fit is
        the ridge solution, with status "solved". Gain and standard error are in ``result_.history``, "guard" and
        "guard_error". With fewer anchors there is nothing to ask: the fit matches, unless conditions are known, whose
        means are a start that unchecked matching tends to spoil.
    """

    name = "jacobian"
    uses_conditions = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 500, "batch_size": 200, "check_every": 50, "patience": 6}

    module_: _Networks

    def __init__(
        self,
        *,
        map: str = "linear",
        hidden: Sequence[int] = (128,),
        hidden_discriminator: Sequence[int] = (128, 128),
        gan: str = "non_saturating",
        weight_gan: float = 0.1,
        weight_anchor: float = 1.0,
        weight_sparse: float = 0.3,
        weight_inverse: float = 0.0,
        r1: float = 1.0,
        r1_every: int = 4,
        estimator: str = "auto",
        n_probes: int = 8,
        probe_size: int | None = None,
        init: str = "ridge",
        lr: float = 2e-3,
        lr_discriminator: float = 2e-3,
        decay: float = 0.995,
        restarts: int = 1,
        guard: bool = True,
    ) -> None:
        self.map, self.hidden, self.hidden_discriminator = map, hidden, hidden_discriminator
        self.gan, self.r1, self.r1_every = gan, r1, r1_every
        self.weight_gan, self.weight_anchor = weight_gan, weight_anchor
        self.weight_sparse, self.weight_inverse = weight_sparse, weight_inverse
        self.estimator, self.n_probes, self.probe_size = estimator, n_probes, probe_size
        self.init, self.lr, self.lr_discriminator, self.decay = init, lr, lr_discriminator, decay
        self.restarts, self.guard = restarts, guard

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self._check()
        guarded, trainer = self.guard and self._ridge_start(pair), trainer or Trainer()
        if guarded and pair.n_anchors < GUARD_ANCHORS and several_conditions(pair):
            result = self._start_only(pair, seed, trainer)
            result.notes.append(
                f"With fewer than {GUARD_ANCHORS} anchors nothing tells whether matching helps, so this is ridge on "
                "the anchors and the means of the conditions."
            )
            return result
        if not guarded or pair.n_anchors < GUARD_ANCHORS:
            return super()._fit(pair, seed=seed, trainer=trainer)
        clock = Clock(trainer.max_seconds)
        gains = self._gains(pair, seed, trainer, clock)
        gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
        if gain > error:
            result = super()._fit(pair, seed=seed, trainer=replace(trainer, max_seconds=clock.share(1)))
        else:
            result = self._start_only(pair, seed, trainer)
        result.history |= {"guard": [(0, gain)], "guard_error": [(0, error)]}
        if gain <= error:
            result.notes.append(
                f"Matching did not place left-out anchors better than the ridge start does (gain {gain:.3f} +- "
                f"{error:.3f} in rank), so this is the ridge solution."
            )
        result.seconds = clock.elapsed()
        return result

    def _start_only(self, pair: ModalityPair, seed: int, trainer: Trainer) -> FitResult:
        result = super()._fit(pair, seed=seed, trainer=replace(_unsaved(trainer), max_steps=0))
        result.status = Status.SOLVED
        return result

    def build(self) -> _Networks:
        """Networks from the configuration and the feature counts."""
        d, out = self.n_features_in_, self.n_features_out_
        reconstructor = self._map(out, d) if self.weight_inverse else None
        discriminator = Discriminator(out, self.hidden_discriminator, self.n_conditions_)
        return _Networks(self._map(d, out), discriminator, reconstructor, d, out)

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build, set scales, start at the ridge solution, and hold cells out for the monitor."""
        self.module_ = self.build()
        rng = np.random.default_rng(generator.initial_seed())
        codes_x, codes_y = _codes(pair)
        rows_x, held_x = _hold_out(codes_x, pair.anchors[:, 0], rng)
        rows_y, held_y = _hold_out(codes_y, pair.anchors[:, 1], rng)
        self._standardise(pair)
        if self._ridge_start(pair):
            self._start_at_ridge(pair)
        self._held = self._held_out(pair, held_x, held_y, generator.device)
        return rows_x, rows_y

    def players(self) -> dict[str, Optimizer]:
        """Discriminator first, then the translator with its reconstructor."""
        net = self.module_
        translator = [*net.f.parameters(), *(net.reconstructor.parameters() if net.reconstructor else [])]
        self._adam = Adam(translator, lr=self.lr, betas=(0.0, 0.99))
        if not self.weight_gan:
            return {"translator": self._adam}
        critic = Adam(net.discriminator.parameters(), lr=self.lr_discriminator, betas=(0.0, 0.99))
        return {"discriminator": critic, "translator": self._adam}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms of one player."""
        x, y = self._source(batch.x), self._target(batch.y)
        if player == "discriminator":
            return self._discriminator_losses(x, y, batch.condition, step)
        return self._translator_losses(x, batch)

    def after_step(self, step: int) -> None:
        """Proximal step of a linear map, then the moving average."""
        net = self.module_
        if self.map == "linear" and self.weight_sparse:
            weight = next(net.f.parameters())
            linear_proximal_step(weight, self._adam, self.weight_sparse / len(weight))
        update_average(net.average, net.f, min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def monitor(self) -> float | None:
        """Energy distance between translated and true target cells, both held out of the matching.

        With conditions, the mean of the distances within them, weighted as in a batch.
        """
        if not self._held:
            return None
        return float(sum(share * energy_distance(self.module_.translate(x), y) for share, x, y in self._held))

    def release(self) -> None:
        """Drop held-out cells and the optimiser."""
        for name in ("_held", "_adam"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Translate with the moving average of f."""
        net = self.module_
        return net.translate(self._source(x)) * net.scale[1] + net.mean_y

    def _discriminator_losses(self, x: Tensor, y: Tensor, condition: Tensor | None, step: int) -> dict[str, Tensor]:
        net = self.module_
        codes = condition if self.n_conditions_ else None
        with torch.no_grad():
            fake = net.f(x)
        logits = net.discriminator(y, codes), net.discriminator(fake, codes)
        losses = {"discriminator": discriminator_loss(*logits, kind=self.gan)}
        if self.r1 and step % self.r1_every == 0:
            penalty = r1_penalty(lambda inputs: net.discriminator(inputs, codes), y)
            losses["r1"] = self.r1 * self.r1_every * penalty
        return losses

    def _translator_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        net = self.module_
        fake = net.f(x)
        losses = {}
        if self.weight_gan:
            logits = net.discriminator(fake, batch.condition if self.n_conditions_ else None)
            losses["gan"] = self.weight_gan * generator_loss(logits, self.gan)
        if len(batch.xa) and self.weight_anchor:
            error = net.f(self._source(batch.xa)) - self._target(batch.ya)
            losses["anchor"] = self.weight_anchor * error.square().mean()
        if net.reconstructor is not None:
            losses["inverse"] = self.weight_inverse * (net.reconstructor(fake) - x).square().mean()
        if self.weight_sparse and self.map != "linear":
            losses["sparse"] = self.weight_sparse * self._sparsity(x)
        return losses or {"none": fake.sum() * 0}

    def _sparsity(self, x: Tensor) -> Tensor:
        f, kind = self.module_.f, self.estimator
        if kind == "auto":
            kind = "exact" if self.n_features_in_ <= 64 else "probe"
        if kind == "exact":
            return exact_l1(f, x[:64])  # a mean over cells: 64 of them are plenty, and d times cheaper than all
        step = 1e-2 if kind == "difference" else None
        return probe_l1(f, x, n_probes=self.n_probes, s=self.probe_size, step=step, generator=self.generator_)

    def _gains(self, pair: ModalityPair, seed: int, trainer: Trainer, clock: Clock) -> np.ndarray:
        """Ridge's rank of every left-out anchor's partner minus the matched map's, shape (k,); > 0: match."""
        folds = np.array_split(np.random.default_rng(seed).permutation(pair.n_anchors), GUARD_FOLDS)
        quiet = _unsaved(trainer)
        gains = []
        for i, fold in enumerate(folds):
            limited = replace(quiet, max_seconds=clock.share(GUARD_FOLDS + 1 - i))
            before = self._trial_ranks(pair, fold, seed, replace(quiet, max_steps=0))
            gains.append(before - self._trial_ranks(pair, fold, seed, limited))
        return np.concatenate(gains)

    def _trial_ranks(self, pair: ModalityPair, left_out: np.ndarray, seed: int, trainer: Trainer) -> np.ndarray:
        """Ranks of the left-out anchors' partners after a fit without them; the worst, 1, where it diverged."""
        kept = replace(pair, anchors=np.delete(pair.anchors, left_out, axis=0))
        trial = type(self)(**self.get_config() | {"guard": False}).fit_pair(kept, seed=seed, trainer=trainer)
        if trial.result_.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if trial.result_.status is Status.DIVERGED:
            return np.ones(len(left_out))
        x, y = pair.anchors[left_out].T
        return partner_ranks(trial.translate(pair.x[x]), pair.y, y)

    def _ridge_start(self, pair: ModalityPair) -> bool:
        known = pair.n_anchors > 0 or bool(several_conditions(pair))
        return self.init == "ridge" and self.map != "mlp" and known

    def _map(self, n_in: int, n_out: int) -> nn.Module:
        if self.map == "residual":
            return Residual(n_in, n_out, self.hidden)
        return MLP(n_in, n_out, () if self.map == "linear" else self.hidden)

    def _source(self, x: Tensor) -> Tensor:
        return (x - self.module_.mean_x) / self.module_.scale[0]

    def _target(self, y: Tensor) -> Tensor:
        return (y - self.module_.mean_y) / self.module_.scale[1]

    def _standardise(self, pair: ModalityPair) -> None:
        net = self.module_
        for i, (buffer, matrix) in enumerate(((net.mean_x, pair.x), (net.mean_y, pair.y))):
            mean, deviation = moments(matrix)
            buffer.copy_(torch.as_tensor(mean))
            net.scale[i] = max(float(np.square(deviation).mean()), 1e-12) ** 0.5

    def _start_at_ridge(self, pair: ModalityPair) -> None:
        net = self.module_
        scale_x, scale_y = (float(s) for s in net.scale)
        weight, offset = anchor_and_condition_map(pair)
        mean_x, mean_y = (mean.double().numpy() for mean in (net.mean_x, net.mean_y))
        bias = (offset + mean_x @ weight - mean_y) / scale_y
        for f in (net.f, net.average):
            layer = f.linear if isinstance(f, Residual) else f[0]  # type: ignore[index]
            with torch.no_grad():
                layer.weight.copy_(torch.as_tensor(weight.T * (scale_x / scale_y)))
                layer.bias.copy_(torch.as_tensor(bias))

    def _held_out(
        self, pair: ModalityPair, rows_x: np.ndarray, rows_y: np.ndarray, device: torch.device
    ) -> list[tuple[float, Tensor, Tensor]]:
        """Share, source and target cells of every condition that holds two cells a side; empty if too few cells."""
        self.module_.to(device)
        codes_x, codes_y = _codes(pair)
        groups = []
        for code, share in zip(*shared_conditions(codes_x, codes_y), strict=True):
            rows = rows_x[codes_x[rows_x] == code], rows_y[codes_y[rows_y] == code]
            if min(map(len, rows)) >= 2:
                x, y = (
                    torch.as_tensor(dense(m[r]), device=device) for m, r in zip((pair.x, pair.y), rows, strict=True)
                )
                groups.append((float(share), self._source(x), self._target(y)))
        n_held = sum(min(len(x), len(y)) for _, x, y in groups)
        return groups if n_held >= FEWEST_MONITOR_CELLS else []

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r}; it is one of {', '.join(choices)}.")


def partner_ranks(prediction: np.ndarray, y: Matrix, partners: np.ndarray) -> np.ndarray:
    """Share of target cells whose direction from the mean is nearer to each prediction than its partner's, (k,)."""
    rows = np.unique(np.concatenate([partners, np.linspace(0, y.shape[0] - 1, RANK_CELLS).astype(int)]))
    mean = column_means(y)
    cells, prediction = dense(y[rows]) - mean, prediction - mean
    cells = cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1e-12)
    scores = prediction @ cells.T
    own = np.take_along_axis(scores, np.searchsorted(rows, partners)[:, None], axis=1)
    return (scores > own).mean(axis=1)


def _hold_out(codes: np.ndarray, anchors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out: a tenth of each condition's cells that are no anchors.

    Together at most `MONITOR_CELLS`, but two of a condition that has them, so that every one can be compared.
    """
    free = rng.permutation(np.setdiff1d(np.arange(len(codes)), anchors))
    share = min(0.1, MONITOR_CELLS / max(len(free), 1))
    groups = [free[codes[free] == code] for code in np.unique(codes)]
    sizes = [max(int(share * len(group)), min(2, len(group) // 10)) for group in groups]
    held = np.concatenate([group[:size] for group, size in zip(groups, sizes, strict=True)])
    return np.setdiff1d(np.arange(len(codes)), held), held


def _codes(pair: ModalityPair) -> tuple[np.ndarray, np.ndarray]:
    """Condition codes of both sides; one condition for all cells where none are given."""
    if pair.condition_x is None or pair.condition_y is None:
        return np.zeros(pair.n_source, np.int64), np.zeros(pair.n_target, np.int64)
    return np.asarray(pair.condition_x), np.asarray(pair.condition_y)


def _is_linear(f: nn.Module) -> bool:
    return isinstance(f, MLP) and len(f) == 1


def _unsaved(trainer: Trainer) -> Trainer:
    """The same without checkpoints and progress, for what is no part of the fit proper."""
    return replace(trainer, checkpoint_dir=None, resume=False, progress=False)
