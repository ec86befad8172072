"""Anchored Jacobian-sparse translator: match the distributions by a map whose Jacobian is sparse, pinned by anchors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from celltransfer.data.pair import dense
from celltransfer.errors import AnchorError, ConfigError, FeatureError
from celltransfer.losses.jacobian import exact_l1, linear_proximal_step, probe_l1
from celltransfer.nn.blocks import Residual
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators import left_out
from celltransfer.translators.adversarial.base import AdversarialTranslator
from celltransfer.translators.adversarial.one_anchor import search
from celltransfer.translators.adversarial.structure import diverse_influence, orthogonality
from celltransfer.translators.base import register
from celltransfer.translators.baselines import anchor_and_condition_map, several_conditions
from celltransfer.translators.trained import lowest_monitor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import ModalityPair

# Most features of either side for which a sparse map is searched for, and cells a side that the search looks at.
MOST_SEARCHED, SEARCHED_CELLS = 12, 5000
# Twice a log-likelihood that the map found has to be ahead of the next by, to be told from it.
TOLD_APART = 10.0
# Widest source for which the whole Jacobian is computed under estimator="auto".
EXACT_UP_TO = 64
# Cells a whole Jacobian is averaged over; it costs d times as much as a value.
EXACT_CELLS = 64
# Runs whose monitors differ by less than so many sampling errors match equally well.
EQUAL = 3.0


@register
class JacobianSparse(AdversarialTranslator):
    r"""Translator with a sparse Jacobian, matched to the target's distribution and pinned by anchors.

    .. math::
        \min_f \max_D \; \lambda_{gan} L_{gan}(f, D)
        + \lambda_{anchor} \frac1k \sum_i \frac{\|f(x_i) - y_i\|^2}{D}
        + \lambda_{structure} R(f)
        + \lambda_{inverse} \frac1d E \|r(f(x)) - x\|^2,
        \qquad R(f) = \frac1D E \|J_f(x)\|_1

    Features are centred and divided by one number per modality, so that weights mean the same for all data; the
    relative scales of features are kept. Every term is a mean over output features. With ``init="ridge"`` the linear
    part starts at the ridge solution of the anchors and the means of the conditions, which the matching then refines.
    After training the moving average of f translates.

    The state returned is the one with the lowest monitor: energy distance between f(x) and y on cells held out of
    the matching, within conditions where they are given. That distance cannot tell the right map from a wrong one
    with the right distribution: `guard` asks the anchors.

    Reference: single-anchor alignment by Jacobian sparsity, equations 7, 11 and 20; other structures, its appendix C;
    R1: Mescheder et al. 2018.

    Parameters
    ----------
    map
        ``"linear"``, ``"residual"`` (linear plus a network that starts at zero) or ``"mlp"``.
    hidden, hidden_discriminator
        Widths of hidden layers of f and of the discriminator.
    conditional
        How the discriminator knows conditions: as one-hot ``"input"``, or by ``"separate"`` last layers.
    gan
        ``"non_saturating"`` or ``"least_squares"``.
    weight_gan, weight_anchor, weight_structure, weight_inverse
        Weights of the terms above. ``weight_gan=None`` is 0.1 from the ridge start, which matching refines, and 1 from
        a random start. The reconstruction term is only meaningful where D >= d.
    structure
        What R asks of the Jacobian: ``"sparse"`` as above, ``"orthogonal"`` columns (independent mechanisms,
        `structure.orthogonality`) or ``"diverse"`` influence (`structure.diverse_influence`).
    structure_of
        Whose Jacobian: of the ``"map"`` f at x, or of the ``"reconstructor"`` r at f(x). A sparse f may have a dense
        inverse, and the other way round. The reconstructor is trained by `weight_inverse`, which has to be positive.
    structure_start
        How many times stronger R is at the first step; it declines linearly to 1 at half of ``max_steps``, and states
        before that are not kept. From a random start, with ``weight_gan=1``, 6 to 8 lead most runs to the sparse
        solution instead of a bad minimum: anchors act before the matching does.
    r1, r1_every
        Weight of the discriminator's gradient penalty, and the steps between its evaluations.
    estimator
        Of the Jacobian's norm where f is not linear: ``"exact"``, ``"probe"`` (masked directions, forward mode),
        ``"difference"`` (masked directions, finite differences: cheaper); ``"auto"`` is exact up to d = 64 and takes
        differences beyond. A linear f is
        penalised by proximal steps, and its zeros are exact. The other structures are always exact.
    n_probes, probe_size
        Directions per cell, and their non-zero coordinates (``None``: d / 10).
    init
        ``"ridge"``, ``"random"``, or ``"search"``: the sparsest linear map that matches the cells and meets the anchors
        (`one_anchor.search`: many starts at once, without training), which the matching then refines. For a handful of
        anchors in at most `MOST_SEARCHED` features; ridge on one pair is a map of rank one and far from the truth. The
        notes say so where another map is almost as likely; that does not show that the map has the right form.
    lr, lr_discriminator
        Learning rates of Adam, betas (0, 0.99).
    decay
        Of the moving average of f.
    restarts
        Fits from as many seeds. Of those that match equally well, within the monitor's sampling error, the one with
        the lowest anchor and structure terms is kept: equation 7, with nothing asked of hidden pairs.
    guard
        From `left_out.FEWEST_ANCHORS` anchors on, and with ``init="ridge"``: leave anchors out in folds, and match only
        if that places the left-out anchors better than ridge alone does, by more than a standard error; otherwise the
        fit is the ridge solution, with status "solved". Gain and standard error are in ``result_.history``, "guard"
        and "guard_error". With fewer anchors there is nothing to ask: the fit matches, unless conditions are known,
        whose means are a start that unchecked matching tends to spoil.
    """

    name = "jacobian"
    choices: ClassVar[dict[str, tuple[str, ...]]] = AdversarialTranslator.choices | {
        "structure": ("sparse", "orthogonal", "diverse"),
        "structure_of": ("map", "reconstructor"),
        "init": ("ridge", "random", "search"),
        "estimator": ("auto", "exact", "probe", "difference"),
    }
    least: ClassVar[dict[str, float]] = AdversarialTranslator.least | {
        "weight_structure": 0,
        "weight_inverse": 0,
        "structure_start": 0,
        "n_probes": 1,
        "probe_size": 1,
    }

    def __init__(
        self,
        *,
        map: str = "linear",
        hidden: Sequence[int] = (128,),
        hidden_discriminator: Sequence[int] = (128, 128),
        conditional: str = "input",
        gan: str = "non_saturating",
        weight_gan: float | None = None,
        weight_anchor: float = 1.0,
        weight_structure: float = 0.3,
        weight_inverse: float = 0.0,
        structure: str = "sparse",
        structure_of: str = "map",
        structure_start: float = 1.0,
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
        self.conditional, self.gan, self.r1, self.r1_every = conditional, gan, r1, r1_every
        self.weight_gan, self.weight_anchor = weight_gan, weight_anchor
        self.weight_structure, self.weight_inverse = weight_structure, weight_inverse
        self.structure, self.structure_of, self.structure_start = structure, structure_of, structure_start
        self.estimator, self.n_probes, self.probe_size = estimator, n_probes, probe_size
        self.init, self.lr, self.lr_discriminator, self.decay = init, lr, lr_discriminator, decay
        self.restarts, self.guard = restarts, guard

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self.check_options()
        guarded, trainer = self.guard and self._ridge_start(pair), trainer or Trainer()
        if self.init == "search":
            self._check_searchable(pair)
        if guarded and pair.n_anchors < left_out.FEWEST_ANCHORS and several_conditions(pair):
            result = self._start_only(pair, seed, trainer)
            result.notes.append(
                f"With fewer than {left_out.FEWEST_ANCHORS} anchors nothing tells whether matching helps, so this is "
                "ridge on the anchors and the means of the conditions."
            )
            return result
        if not guarded or pair.n_anchors < left_out.FEWEST_ANCHORS:
            return super()._fit(pair, seed=seed, trainer=trainer)
        return self._guarded(pair, seed, trainer)

    def _guarded(self, pair: ModalityPair, seed: int, trainer: Trainer) -> FitResult:
        """Match if left-out anchors gain by it, else keep the ridge start."""
        clock = Clock(trainer.max_seconds)
        gains = left_out.gains(self, pair, seed, trainer, clock)
        gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
        if gain > error:
            result = super()._fit(pair, seed=seed, trainer=replace(trainer, max_seconds=clock.share(1)))
        else:
            result = self._start_only(pair, seed, trainer)
            result.notes.append(
                f"Matching did not place left-out anchors better than the ridge start does (gain {gain:.3f} +- "
                f"{error:.3f} in rank), so this is the ridge solution."
            )
        result.history |= {"guard": [(0, gain)], "guard_error": [(0, error)]}
        result.seconds = clock.elapsed()
        return result

    def _start_only(self, pair: ModalityPair, seed: int, trainer: Trainer) -> FitResult:
        result = super()._fit(pair, seed=seed, trainer=replace(left_out.unsaved(trainer), max_steps=0))
        result.status = Status.SOLVED
        return result

    def check_options(self) -> None:
        """Refuse values that are none of their option's choices, and structure of a map that nothing trains."""
        super().check_options()
        if self.structure_of == "reconstructor" and not self.weight_inverse:
            raise ConfigError(
                "structure_of='reconstructor' asks for structure of the map back, which weight_inverse=0 leaves "
                "untrained; give it a weight."
            )

    def needs_reconstructor(self) -> bool:
        """There is one if reconstruction counts or the structure is asked of it."""
        return bool(self.weight_inverse) or self.structure_of == "reconstructor"

    def start(self, pair: ModalityPair) -> bool:
        """The ridge solution or the map found, if wanted; remembers the anchors for `final_figures`."""
        from_ridge = self._ridge_start(pair)
        if from_ridge:
            self._start_at(*anchor_and_condition_map(pair))
        elif self.init == "search":
            self._start_at_found(pair)
            from_ridge = True
        self._anchors = torch.as_tensor(pair.anchor_x), torch.as_tensor(pair.anchor_y)
        return from_ridge

    def map_losses(self, x: Tensor, fake: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
        """Anchor, reconstruction and, for a map that is not linear, structure."""
        net, losses = self.module_, {}
        if len(batch.xa) and self.weight_anchor:
            losses["anchor"] = self.weight_anchor * self.anchor_error(net.f, batch.xa, batch.ya)
        if net.reconstructor is not None and self.weight_inverse:
            losses["inverse"] = self.weight_inverse * (net.reconstructor(fake) - x).square().mean()
        if self.weight_structure and not self._proximal:
            losses["structure"] = self._strength(step) * self._structure(x, fake)
        return losses

    def after_step(self, step: int) -> None:
        """Proximal step of a linear map, then the moving average."""
        if self.weight_structure and self._proximal:
            weight = next(self._structured.parameters())
            linear_proximal_step(weight, self._adam, self._strength(step) / len(weight))
        super().after_step(step)

    def monitor(self) -> float | None:
        """The held-out distance; ``None``, so that the state is no candidate, while the schedule is under way."""
        return None if self.scheduled and 2 * self._step < self.max_steps_ else super().monitor()

    def remarks(self, result: FitResult) -> list[str]:
        """What the search says; whether training ended while the structural term was still stronger than wanted."""
        return [*self._found_remarks(), *self._schedule_remarks(result)]

    def _found_remarks(self) -> list[str]:
        """Whether the map that the search found is told from the next that differs."""
        margin = self.__dict__.get("_margin")
        if margin is None or margin >= TOLD_APART:
            return []
        return [
            f"Another map that differs from the one found explains cells and anchors almost as well (twice the "
            f"log-likelihood differs by {margin:.1f}): the anchors may lie on a symmetry of the cells. Add an anchor "
            "away from it (celltransfer.anchors.suggest)."
        ]

    def _schedule_remarks(self, result: FitResult) -> list[str]:
        if not self.scheduled or 2 * result.n_steps >= self.max_steps_:
            return super().remarks(result)
        return [
            f"The fit ended after {result.n_steps} of {self.max_steps_} steps, while the structural term was still "
            f"{self._strength(result.n_steps) / self.weight_structure:.1f} times as strong as wanted: give it more "
            "time, or lower max_steps."
        ]

    def release(self) -> None:
        """Drop what only training needed."""
        super().release()
        for name in ("_anchors", "_margin"):
            self.__dict__.pop(name, None)

    @torch.no_grad()
    def final_figures(self) -> dict[str, float]:
        """Anchor and structure terms of the state kept, and the sampling error of its monitor."""
        net, (xa, ya) = self.module_, (a.to(self.module_.scale.device) for a in self._anchors)
        held, constraint = self._held, 0.0
        if len(xa):
            constraint = self.weight_anchor * float(self.anchor_error(net.translate, xa, ya))
        x = self.scaled_source(xa) if held is None else held.source_cells(EXACT_CELLS)
        if self.weight_structure and len(x):
            constraint += self.weight_structure * float(self._structure(x, net.f(x)))
        error = {} if held is None else {"monitor_error": held.sampling_error(self.generator_)}
        return {"constraint": constraint} | error

    def choose(self, results: Sequence[FitResult]) -> int:
        """Of the runs that match as well as the best, within sampling error, the one with the lowest other terms.

        Runs that diverged are looked at only if all did.
        """
        whole = [i for i, result in enumerate(results) if result.status is not Status.DIVERGED]
        lowest = {i: lowest_monitor(results[i]) for i in whole or range(len(results))}
        errors = [value for i in lowest for _, value in results[i].history.get("monitor_error", [])]
        bound = min(lowest.values()) + EQUAL * max(errors, default=0.0)
        matched = [i for i, value in lowest.items() if value <= bound]
        return min(matched, key=lambda i: results[i].history["constraint"][0][1])

    @property
    def _structured(self) -> nn.Module:
        """The network whose Jacobian is asked to have structure."""
        net = self.module_
        return net.reconstructor if self.structure_of == "reconstructor" and net.reconstructor is not None else net.f

    @property
    def scheduled(self) -> bool:
        """Whether the structural term is stronger at first."""
        return self.structure_start != 1 and self.weight_structure > 0

    @property
    def _proximal(self) -> bool:
        return self.map == "linear" and self.structure == "sparse"

    def _strength(self, step: int) -> float:
        """Weight of the structural term at `step`."""
        done = min(1.0, 2 * step / max(self.max_steps_, 1))
        return self.weight_structure * (self.structure_start + (1 - self.structure_start) * done)

    def _structure(self, x: Tensor, fake: Tensor) -> Tensor:
        f, points = self._structured, fake if self.structure_of == "reconstructor" else x
        if self._proximal:
            weight = next(f.parameters())
            return weight.abs().sum() / len(weight)
        # A batch lists its cells condition by condition.
        spaced = points[:: max(1, len(points) // EXACT_CELLS)] if self.n_conditions_ else points
        if self.structure != "sparse":
            of = orthogonality if self.structure == "orthogonal" else diverse_influence
            return of(f, spaced[: 1 if self.map == "linear" else EXACT_CELLS])
        kind = self.estimator
        if kind == "auto":
            kind = "exact" if points.shape[1] <= EXACT_UP_TO else "difference"
        if kind == "exact":
            return exact_l1(f, spaced[:EXACT_CELLS])
        step = 1e-2 if kind == "difference" else None
        return probe_l1(f, points, n_probes=self.n_probes, s=self.probe_size, step=step, generator=self.generator_)

    def _ridge_start(self, pair: ModalityPair) -> bool:
        known = pair.n_anchors > 0 or bool(several_conditions(pair))
        return self.init == "ridge" and self.map != "mlp" and known

    def _check_searchable(self, pair: ModalityPair) -> None:
        """Raise where no sparse map can be searched for."""
        if not pair.n_anchors:
            raise AnchorError("init='search' needs an anchor, which tells the map from others that match as well.")
        if self.map == "mlp":
            raise ConfigError("init='search' finds a linear map, which map='mlp' cannot start at; use 'residual'.")
        widest = max(pair.x.shape[1], pair.y.shape[1])
        if widest > MOST_SEARCHED:
            raise ConfigError(
                f"init='search' is for at most {MOST_SEARCHED} features a side and got {widest}: reduce both to "
                f"n_components={MOST_SEARCHED}, or use init='ridge'."
            )

    def _start_at_found(self, pair: ModalityPair) -> None:
        """The linear part of the map that the search finds; remembers what it says of itself for the notes."""
        rng = np.random.default_rng(int(self.generator_.initial_seed()))
        x, y = (
            dense(cells[np.sort(rng.permutation(cells.shape[0])[:SEARCHED_CELLS])]).astype(float)
            for cells in (pair.x, pair.y)
        )
        found = search(x, y, pair.anchor_x.astype(float), pair.anchor_y.astype(float), curved=False)
        if found is None:
            raise FeatureError(
                "Source and target cells span spaces of different dimension, so that no invertible map connects them: "
                "drop features that depend on others, or use init='ridge'."
            )
        self._margin = found.figures["margin"]
        self._start_at(found.weight.T, found.offset)

    def _start_at(self, weight: np.ndarray, offset: np.ndarray) -> None:
        """Begin at the map x weight + offset, shapes (d, D) and (D,)."""
        net = self.module_
        scale_x, scale_y = (float(s) for s in net.scale)
        mean_x, mean_y = (mean.double().numpy() for mean in (net.mean_x, net.mean_y))
        bias = (offset + mean_x @ weight - mean_y) / scale_y
        for f in (net.f, net.average):
            layer = f.linear if isinstance(f, Residual) else f[0]  # type: ignore[index]
            with torch.no_grad():
                layer.weight.copy_(torch.as_tensor(weight.T * (scale_x / scale_y)))
                layer.bias.copy_(torch.as_tensor(bias))
