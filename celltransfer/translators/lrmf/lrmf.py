"""Log-likelihood-ratio minimizing flows: an invertible map that makes two sets alike, found by minimisation alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConfigError
from celltransfer.nn import flows
from celltransfer.train.loop import Trainer, seeded
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators import holdout
from celltransfer.translators.base import Arrays, register
from celltransfer.translators.lrmf.loss import likelihood_ratio, moment_map, shared_pull
from celltransfer.translators.lrmf.networks import Aligner
from celltransfer.translators.trained import TrainedTranslator, lowest_monitor

if TYPE_CHECKING:
    from celltransfer.data.batches import Batch

# Share of the cells that losses are evaluated on and densities are stopped by.
HELD_OUT = 0.2
# Densities that are compared where none is named, and the map that goes with each: one that has fewer parameters.
CANDIDATES = {"gaussian": "affine", "realnvp": "realnvp"}
# Nats below zero from which on the held-out loss cannot be read.
TOO_LOW = -0.05
# Steps of the private densities, at most and for each step of the map, and their batch.
DENSITY_STEPS, STEPS_RATIO, DENSITY_BATCH = 1500, 2, 256
LONGEST_GRADIENT = 10.0
# Training cells of a side that moments, densities and c(A, B) are taken from, at most; the map is trained on all.
MOST_CELLS = 50_000
# A shared density that pulls this little, compared with the target's own, has settled on the two sets one by one.
VANISHED = 0.1
# Weight of the anchors' squared error, as a share of the target's variance.
ANCHOR_WEIGHT = 1.0


class Unpaired(NamedTuple):
    """What a fit learned from unpaired cells alone: the split, theta_B, and c(A, B) on training and held-out cells."""

    held: holdout.Split
    target: flows.Density
    constant: float
    held_constant: float


@register
class LRMF(TrainedTranslator):
    r"""Log-likelihood-ratio minimizing flow: minimisation alone, and a loss that is zero when the sets are alike.

    .. math:: L = c(A, B) - E \log|\det dT/dx| - E \log P(T(x); \theta_S) - E \log P(y; \theta_S)

    The private densities theta_A and theta_B are fitted first, which gives c(A, B); then the invertible T and the
    shared density, which starts at theta_B, minimise L together. T starts at the affine map that gives source cells
    the moments of the target, turned towards the anchors (`celltransfer.translators.lrmf.loss.moment_map`): that is
    the optimum of the Gaussian family. Where Gaussians describe the target best, it is the answer.

    No anchor is needed, but matching alone leaves open whatever carries the target onto itself, and a low loss does
    not show that. It does not show either whether the sets are alike, because T can move cells into a density that is
    too weak: see `celltransfer.alignment` for the test that does.

    The inverse is exact in floating point, but for continuous flows: there it is as exact as their solver, 1e-5.

    Both sides need the same number of features, `n_features`; `celltransfer.fit` has its recipes bring them there.

    Reference: log-likelihood ratio minimizing flows, equation 3, algorithm 1.

    Parameters
    ----------
    transform
        ``"affine"`` (symmetric positive definite), ``"shift"``, ``"scale_shift"``, ``"realnvp"``, ``"spline"``,
        ``"continuous"``, ``"glow"``; ``"auto"``: the kind of the density, with fewer parameters.
    density
        ``"gaussian"``, ``"realnvp"``, ``"spline"``, ``"continuous"``, ``"glow"``; ``"auto"``: the one of Gaussian and
        RealNVP with the higher likelihood on held-out target cells.
    blocks, hidden, blocks_density, hidden_density
        Layers of the flows and hidden layers of their networks.
    start
        ``"affine"``: T starts at the moment map. ``"identity"``: at the identity in the target's units, as in the
        paper; for modalities that are measured alike.
    weight_anchor
        Weight of the anchors' squared error as a share of the target's variance, per anchor pair.
    lr, lr_density
        Learning rate of Adam, which declines to 0 over the second half of the steps; and that of the private densities.
    side, scales
        Of ``"glow"``: side of the square images, number of scales.
    """

    name = "lrmf"
    matches_distributions = True
    scheduled = True  # the learning rate declines over the second half of the steps
    tests_alignment = True
    equal_widths = True
    invertible = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 1000, "batch_size": 256, "check_every": 25, "patience": 6}

    module_: Aligner
    families_: tuple[str, str]
    held_: holdout.Split
    # Likelihoods of the densities that were compared, and the one that was taken.
    _scores: dict[str, float]
    _candidate: flows.Density | None
    _known: Unpaired | None = None

    def __init__(
        self,
        *,
        transform: str = "auto",
        density: str = "auto",
        blocks: int = 4,
        hidden: Sequence[int] = (32, 32),
        blocks_density: int = 4,
        hidden_density: Sequence[int] = (64, 64),
        start: str = "affine",
        weight_anchor: float = ANCHOR_WEIGHT,
        lr: float = 1e-3,
        lr_density: float = 3e-3,
        side: int = 0,
        scales: int = 3,
    ) -> None:
        self.transform = transform
        self.density = density
        self.blocks = blocks
        self.hidden = hidden
        self.blocks_density = blocks_density
        self.hidden_density = hidden_density
        self.start = start
        self.weight_anchor = weight_anchor
        self.lr = lr
        self.lr_density = lr_density
        self.side = side
        self.scales = scales

    def refit(self) -> LRMF:
        """The same families, held-out cells, target density and c(A, B), none of which needs the anchors."""
        kind, family = self.families_
        again = type(self)(**self.get_config() | {"transform": kind, "density": family})
        again._known = Unpaired(self.held_, copy.deepcopy(self.module_.private_b), self._constant, self._held_constant)
        return again

    def density_(self, which: str) -> flows.Density:
        """The fitted density "A", "B" (private, theta_A and theta_B) or "S" (shared), in features of unit scale."""
        self._check_fitted()
        net = self.module_
        return {"A": net.private_a, "B": net.private_b, "S": net.shared}[which]

    @torch.no_grad()
    def loss_on(self, x: np.ndarray, y: np.ndarray) -> float:
        """Equation 3 on cells (n, d) and (m, d), with c(A, B) of the same cells by the private densities of the fit."""
        self._check_fitted()
        net = self.module_
        device = net.w_x.device
        u, v = net.source(torch.as_tensor(x, device=device)), net.target(torch.as_tensor(y, device=device))
        return float(likelihood_ratio(net.transform, net.shared, u, v)) + self._private_likelihood(u, v)

    def build(self) -> Aligner:
        """Map and densities of the chosen families."""
        d, (kind, family) = self.n_features_in_, self.families_
        image = {"side": self.side, "scales": self.scales}
        t = flows.transform(kind, d, blocks=self.blocks, hidden=self.hidden, **image)
        net = Aligner(d, t, self._new_density(family, d))
        net.families.copy_(torch.tensor([flows.TRANSFORMS.index(kind), flows.DENSITIES.index(family)]))
        return net

    def _new_density(self, family: str, d: int) -> flows.Density:
        return flows.density(
            family, d, blocks=self.blocks_density, hidden=self.hidden_density, side=self.side, scales=self.scales
        )

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self._check_options()
        trainer = trainer or Trainer()
        clock = Clock(trainer.max_seconds)
        self._steps = self.training["max_steps"] if trainer.max_steps is None else trainer.max_steps
        known = self._known
        if known is None:
            pair, self.held_ = split(pair, np.random.default_rng(seed))
        else:
            self.held_ = known.held
            pair = replace(pair, anchors=pair.anchors[~np.isin(pair.anchors[:, 0], known.held.held_x)])
        held = self.held_
        self.held_out_ = held.held_x, held.held_y
        self._scores, self._candidate = {}, None
        cut = self._choose_families(pair, seed, trainer, clock)
        # The moment map is the optimum of affine maps under Gaussians; there is nothing left to train.
        solved = self.families_ == ("affine", "gaussian") and self.start == "affine"
        left = replace(trainer, max_seconds=clock.share(1))
        if solved:
            left = replace(left, max_steps=0, checkpoint_dir=None, resume=False)
        result = super()._fit(pair, seed=seed, trainer=left)
        result.status = Status.SOLVED if solved and not cut else Status.MAX_TIME if cut else result.status
        if cut:
            result.notes.append(
                "The time limit came before the densities were fitted, so their comparison says little."
            )
        result.seconds = clock.elapsed()
        return result

    def _choose_families(self, pair: ModalityPair, seed: int, trainer: Trainer, clock: Clock) -> bool:
        """Set `families_`, those of the checkpoint if there is one; whether time ran out in between."""
        saved = self.saved_state(pair, seed, trainer)
        if saved is not None:
            self.families_ = _families(saved["families"].numpy())
            return False
        family = self.density
        if family == "auto":
            with seeded(seed):
                family = self._choose_density(pair, seed, trainer.resolve_device(), clock)
        self.families_ = (CANDIDATES.get(family, family) if self.transform == "auto" else self.transform, family)
        return self.density == "auto" and clock.left() == 0

    def _check_options(self) -> None:
        if self.start not in ("affine", "identity"):
            raise ConfigError(f"start={self.start!r}; expected 'affine' or 'identity'.")
        for name in ("lr", "lr_density", "weight_anchor"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}; expected a number of at least 0.")
        for name in ("blocks", "blocks_density", "scales"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}; expected 1 or more.")
        for name in ("hidden", "hidden_density"):
            widths = getattr(self, name)
            if not isinstance(widths, Sequence) or not widths or min(widths) < 1:
                raise ConfigError(f"{name}={widths!r}; expected the widths of hidden layers, such as (32, 32).")
        if self.density != "auto" and self.density not in flows.DENSITIES:
            raise ConfigError(f"density={self.density!r}; it is one of auto, {', '.join(flows.DENSITIES)}.")
        if self.transform != "auto" and self.transform not in flows.TRANSFORMS:
            raise ConfigError(f"transform={self.transform!r}; it is one of auto, {', '.join(flows.TRANSFORMS)}.")

    def _fit_density(self, module: flows.Density, train: Tensor, held: Tensor, seed: int, clock: Clock) -> float:
        steps = min(DENSITY_STEPS, STEPS_RATIO * self._steps)
        how = {"max_steps": steps, "batch_size": DENSITY_BATCH, "lr": self.lr_density, "seed": seed}
        return flows.fit_density(module, train, held, **how, expired=lambda: clock.left() == 0)  # type: ignore[arg-type]

    def _choose_density(self, pair: ModalityPair, seed: int, device: torch.device, clock: Clock) -> str:
        """The family with the highest likelihood on held-out target cells; couplings need two features."""
        if pair.y.shape[1] < 2:
            return "gaussian"
        scale = Aligner(pair.y.shape[1], flows.Invertible(), flows.Density())
        set_target_scale(scale, pair, self.held_, self.start)
        scale.to(device)
        train, held = (scale.target(_cells(pair.y, rows, device)) for rows in (self.held_.train_y, self.held_.held_y))
        fitted = {family: self._new_density(family, pair.y.shape[1]).to(device) for family in CANDIDATES}
        for family, candidate in fitted.items():
            self._scores[family] = self._fit_density(candidate, train, held, seed, clock)
        best = max(self._scores, key=self._scores.__getitem__)
        self._candidate = fitted[best]
        return best

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Set scales and the start, fit the private densities, and start the shared one at the target's."""
        net = self.module_ = self.build().to(generator.device)
        set_target_scale(net, pair, self.held_, self.start)
        self._set_source_scale(pair)
        device, held = generator.device, self.held_

        self._u, self._v = (
            net.source(_cells(pair.x, held.held_x, device)),
            net.target(_cells(pair.y, held.held_y, device)),
        )
        train_u, train_v = (
            net.source(_cells(pair.x, held.train_x, device)),
            net.target(_cells(pair.y, held.train_y, device)),
        )
        if self.resumed_ is not None:
            net.load_state_dict(self.resumed_)
        else:
            self._fit_private(train_u, train_v, generator.initial_seed())
            net.shared.load_state_dict(net.private_b.state_dict())
        known = self._known
        self._constant = known.constant if known else self._private_likelihood(train_u, train_v)
        self._held_constant = known.held_constant if known else self._private_likelihood(self._u, self._v)
        return held.train_x, held.train_y

    def _fit_private(self, train_u: Tensor, train_v: Tensor, seed: int) -> None:
        """Fit theta_A and theta_B, or take over what is known of them; theta_A is there for c(A, B) alone."""
        net, known = self.module_, self._known
        fitted = known.target if known else self._candidate
        if fitted is not None:
            net.private_b.load_state_dict(fitted.state_dict())
        todo = [] if known else [(net.private_a, train_u, self._u)]
        todo += [] if fitted is not None else [(net.private_b, train_v, self._v)]
        for private, train, rest in todo:
            private.requires_grad_(True)
            self._fit_density(private, train, rest, seed, self.clock_)
            private.requires_grad_(False)

    def _set_source_scale(self, pair: ModalityPair) -> None:
        """Set u = W_x x + b_x: the moment map in the target's unit scale, or the same scale as the target's."""
        net = self.module_
        if self.start == "identity":
            net.w_x.copy_(net.w_y)
            net.b_x.copy_(-(net.w_y @ net.mean_y))
            return
        moments = [
            [value.numpy().astype(np.float64) for value in flows.moments(_cells(matrix, rows))]
            for matrix, rows in ((pair.x, self.held_.train_x), (pair.y, self.held_.train_y))
        ]
        (mean_x, covariance_x), (mean_y, covariance_y) = moments
        w, b = moment_map(mean_x, covariance_x, mean_y, covariance_y, (pair.anchor_x, pair.anchor_y))
        w_y = net.w_y.cpu().double().numpy()
        net.w_x.copy_(torch.as_tensor(w_y @ w))
        net.b_x.copy_(torch.as_tensor(w_y @ (b - mean_y)))

    @torch.no_grad()
    def _private_likelihood(self, u: Tensor, v: Tensor) -> float:
        """c(A, B) on these cells."""
        net = self.module_
        return float(net.private_a.log_prob(u).mean() + net.private_b.log_prob(v).mean())

    def players(self) -> dict[str, Optimizer]:
        """One: map and shared density minimise the same loss."""
        net = self.module_
        self._adam = Adam([*net.transform.parameters(), *net.shared.parameters()], lr=self.lr, fused=True)
        self._adam.register_step_pre_hook(_clip)
        return {"flow": self._adam}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Equation 3 on the batch, and the anchors' error."""
        net = self.module_
        named = {
            "loss": likelihood_ratio(net.transform, net.shared, net.source(batch.x), net.target(batch.y))
            + self._constant
        }
        if len(batch.xa) and self.weight_anchor:
            error = (net(batch.xa) - batch.ya).square().sum(dim=1).mean()
            named["anchor"] = self.weight_anchor * error / self._target_variance()
        return named

    def _target_variance(self) -> Tensor:
        """Trace of the target's covariance, from the scale that takes it out."""
        return torch.linalg.inv(self.module_.w_y).square().sum()

    def after_step(self, step: int) -> None:
        """Let the learning rate decline over the second half."""
        left = 2 * (1 - (step + 1) / max(self.max_steps_, 1))
        for group in self._adam.param_groups:
            group["lr"] = self.lr * min(1.0, left)

    @torch.no_grad()
    def monitor(self) -> float | None:
        """Equation 3 on held-out cells, with c(A, B) of the same cells; ``None`` where they are too few."""
        net = self.module_
        if min(len(self._u), len(self._v)) < holdout.FEWEST_CELLS:
            return None
        net.eval()
        value = float(likelihood_ratio(net.transform, net.shared, self._u, self._v)) + self._held_constant
        net.train()
        return value

    def remarks(self, result: FitResult) -> list[str]:
        """Which families were chosen and why, and what loss and gradient say."""
        net, (kind, family) = self.module_, self.families_
        loss = self.monitor()
        net.eval()
        notes = [f"Map {kind!r} ({flows.n_parameters(net.transform):,} parameters), density {family!r}."]
        if self._scores:
            scores = ", ".join(f"{name} {score:.2f}" for name, score in self._scores.items())
            notes.append(f"The density has the highest likelihood on held-out target cells (nats per cell: {scores}).")
        if loss is None:
            return [*notes, "There are too few cells to hold any out, so nothing stopped the training early."]
        with torch.no_grad():
            moved = net.transform(self._u)[0]
        pull = shared_pull(net.shared, net.private_b, moved)
        result.history |= {"held_out_loss": [(result.n_steps, loss)], "pull": [(result.n_steps, pull)]}
        if loss < TOO_LOW:
            notes.append(
                f"The held-out loss is {loss:.2f}, and below zero it cannot be read: the density family is too weak, "
                "or the private densities generalise worse than the shared one."
            )
        return notes

    def explain(self, cause: str) -> str:
        """Vanishing gradients, a density or a map that is too weak, or training that ended early or gained nothing."""
        (kind, family), history = self.families_, self.result_.history
        loss, pull = (history.get(name, [(0, float("nan"))])[-1][1] for name in ("held_out_loss", "pull"))
        # An optimum has no pull either: only sets that lie apart tell that it has vanished on the way.
        if cause == "disjoint" and pull < VANISHED:
            return (
                "The gradient has vanished: the shared density has settled on the two sets one by one and pulls "
                f"translated cells {pull:.0%} as hard as the target's own density does. Start nearer (start='affine', "
                "anchors), or reduce to fewer components."
            )
        if loss < TOO_LOW:
            return (
                "The loss is below zero though the cells are not alike, so it cannot guide the map: the density "
                f"family {family!r} is too weak, or its private fits generalise worse than the shared one."
            )
        if kind in ("shift", "scale_shift", "affine"):
            return (
                f"A map of the family {kind!r} comes no nearer. If its capacity is what lacks, a flow does better "
                "(density='realnvp'); if one side has cells that the other does not, nothing will."
            )
        if self.result_.history.get("monitor", [(0, 0.0)])[0][1] <= lowest_monitor(self.result_):
            return (
                "Training did not improve on the start, on held-out cells: more cells or fewer components would help."
            )
        return "" if self.result_.status is Status.CONVERGED else self.result_.advice

    def release(self) -> None:
        """Forget the held-out cells."""
        for name in ("_u", "_v", "_adam", "_candidate"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """T."""
        return self.module_(x)

    @torch.no_grad()
    def _inverse(self, y: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        device = next(self.module_.buffers()).device
        return self.module_.inverse(torch.as_tensor(y, device=device)).cpu().numpy()

    def _load_state(self, state: Arrays) -> None:
        self.families_ = _families(state["families"])
        super()._load_state(state)


def _families(numbers: np.ndarray) -> tuple[str, str]:
    """Names of map and density."""
    kind, family = (int(i) for i in numbers)
    return flows.TRANSFORMS[kind], flows.DENSITIES[family]


def split(pair: ModalityPair, rng: np.random.Generator) -> tuple[ModalityPair, holdout.Split]:
    """Hold a fifth of each side out; anchors only where there are few other cells, as pairs that the fit does without.

    Returns the pair with the anchors that are left, and the rows.
    """
    rows = holdout.split(pair, rng, HELD_OUT)
    wanted = [min(int(HELD_OUT * n), holdout.MOST_CELLS) for n in (pair.n_source, pair.n_target)]
    short = [size - len(held) for size, held in zip(wanted, (rows.held_x, rows.held_y), strict=True)]
    if not any(2 * lack > size for lack, size in zip(short, wanted, strict=True)):
        return pair, rows
    order = rng.permutation(pair.n_anchors)
    drawn, kept = np.split(order, [min(max(short), pair.n_anchors // 2)])
    held = [np.union1d(own, pair.anchors[drawn, side]) for side, own in enumerate((rows.held_x, rows.held_y))]
    train = [np.setdiff1d(np.arange(n), own) for n, own in zip((pair.n_source, pair.n_target), held, strict=True)]
    return replace(pair, anchors=pair.anchors[np.sort(kept)]), holdout.Split(*train, *held)


def _cells(matrix: Matrix, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """These rows, or `MOST_CELLS` of them, dense."""
    if len(rows) > MOST_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_CELLS, replace=False))
    return torch.as_tensor(dense(matrix[rows]), device=device)


def _clip(optimizer: Optimizer, *_: Any) -> None:
    """Bound the gradient: far from its cells a density is so steep that Adam would stand still for long after."""
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], LONGEST_GRADIENT)


def set_target_scale(net: Aligner, pair: ModalityPair, held: holdout.Split, start: str) -> None:
    """Set v = (y - mean_y) W_y^T: whitened, or in the target's units at one scale, from training cells."""
    mean, covariance = flows.moments(_cells(pair.y, held.train_y))
    if start == "identity":
        w = torch.eye(len(mean)) / covariance.diagonal().mean().sqrt()
    else:
        values, vectors = torch.linalg.eigh(covariance.double())
        w = (vectors * values.clamp_min(1e-12 * float(values.max())).rsqrt()) @ vectors.T
    net.mean_y.copy_(mean)
    net.w_y.copy_(w)
