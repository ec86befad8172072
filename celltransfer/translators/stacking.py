"""The default method: several translators, weighted by how well they place anchors that they have not seen."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.data.pair import dense
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Arrays, Translator, get, make, register
from celltransfer.translators.baselines import column_means, several_conditions
from celltransfer.translators.left_out import finished, partner_ranks, unsaved
from celltransfer.translators.matching.consensus import FEW_ANCHORS
from celltransfer.translators.matching.transport import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.pair import ModalityPair

logger = logging.getLogger("celltransfer")

# Seconds that a fit may take in all, where nobody says otherwise.
BUDGET = 180.0
# Seeds of candidates are apart, so that no two of them share their random starts.
SEED_STEP = 1000
# Anchors from which candidates are compared, and the folds of the comparison.
FEWEST_ANCHORS, FOLDS = 3, 5
# How much left-out anchors must say before the weights leave what is known without them, in anchors.
PRIOR_ANCHORS = 2.0
# Cells whose translations are looked at for numbers that are not finite.
LOOKED_AT = 100
# Which part of the target components' scale is taken out before errors are added.
POWER = 0.5


@dataclass(frozen=True)
class Candidate:
    """A method, its options and its weight before any anchor was left out; `quick`: options in the comparison."""

    label: str
    method: str
    options: dict[str, Any]
    prior: float
    quick: dict[str, Any] = field(default_factory=dict)


# Anchors with which the matching that leans on them weighs as much as those that lean on the shapes, to begin with.
TRUSTED_ANCHORS = 100.0
# Matchings on components of their own scale, on those of more equal ones, and between; the pairs or conditions alone.
_FINE = {"powers": (0.5, 0.5), "penalty": 0.1, "smoothness": 0.002}
_SHARP = _FINE | {"entropy": 0.05, "n_regressions": 5}
_QUICK = {"n_starts": 4}
# What a condition alone says is sure, and most of it: a little of the matchings beside it can help and hardly hurts.
_OTHERS = [Candidate("ridge", "ridge", {}, 0.0), Candidate("condition mean", "condition_mean", {}, 7.0)]
_ANCHORED = {"weight_anchors": 0.5, "penalty": 3.0, "n_starts": 0}
# With few anchors a matching may end in a wrong optimum, so more starts are tried, and several matchings averaged.
_MANY = {"n_starts": 64}
TRIED_FEW = [
    Candidate("consensus", "consensus", {}, 1 / 3, _QUICK),
    Candidate("fine consensus", "consensus", _FINE | _MANY, 1 / 3, _QUICK),
    Candidate("medium consensus", "consensus", {"powers": (0.25, 0.25)} | _MANY, 1 / 3, _QUICK),
    *_OTHERS,
]


@register
class Auto(Translator):
    r"""Several translators, added with weights that anchors left out of their fits choose.

    The weights minimise the squared error of the sum on anchors that no part of it has seen,

    .. math:: \min_{w \ge 0} \sum_a \Big\|y_a - \sum_c w_c F_c^{(-a)}(x_a)\Big\|^2 + \tau \|w - w^0\|^2,

    in whitened target components (stacked regression). They start from :math:`w^0`, what is best where nothing can be
    compared: the consensus of matchings (`Consensus`), with conditions averaged with their mean cells. So few anchors
    rest on the shapes of both clouds, and many on the pairs, without a switch that a user would have to know.

    ``result_.notes`` says what was tried, how each candidate ranked left-out anchors, and the weights. Fits without
    some of the anchors, weighted by the others, are kept for the verdict (``left_out_``): the fits have not seen the
    anchors that they leave out; predictions of other anchors, which the weights rest on, come from fits that have.

    Reference: Wolpert 1992 and Breiman 1996 (stacked regressions).

    Parameters
    ----------
    methods
        Names of the candidates, of equal weight to begin with; ``None``: matchings that lean on the shapes and one that
        leans on the anchors (`Consensus`), ridge and, with conditions, their means.
    """

    name = "auto"
    matches_distributions = True
    uses_conditions = True
    uses_links = True
    needs_condition = True

    members_: list[Translator]
    weights_: np.ndarray
    centre_: np.ndarray

    def __init__(self, *, methods: Sequence[str] | None = None) -> None:
        self.methods = methods

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        limits = trainer or Trainer()
        clock = Clock(BUDGET if limits.max_seconds is None else limits.max_seconds)
        self.centre_ = column_means(pair.y).astype(np.float32)
        candidates = self._candidates(pair)
        comparing = pair.n_anchors >= FEWEST_ANCHORS and len(candidates) > 1
        self.members_ = []
        for i, each in enumerate(candidates):
            share = clock.share((len(candidates) - i) * (2 if comparing else 1))
            limited = replace(limits, max_seconds=share, checkpoint_dir=None, resume=False)
            self.members_.append(_fitted(each.method, each.options, pair, seed + SEED_STEP * i, limited))
        candidates, status, notes = self._sound(pair, candidates)
        self.weights_ = np.array([each.prior for each in candidates])
        self.left_out_ = None
        if comparing and clock.left() > clock.elapsed():
            try:
                folds = self._folds(pair, candidates, seed, limits, clock)
            except KeyboardInterrupt:  # what was fitted on all anchors is complete
                status, folds = Status.INTERRUPTED, []
            if folds:
                notes[0] = self._weigh(pair, candidates, folds, seed)
        self.repeats_ = self._alone(pair)
        if clock.left() == 0 and status is not Status.INTERRUPTED:
            status = Status.MAX_TIME
        if limits.checkpoint_dir is not None:
            notes.append("No checkpoint was written: candidates are fitted in seconds, and all of them again.")
        result = self.members_[0].result_
        return FitResult(
            status,
            n_steps=result.n_steps,
            seconds=clock.elapsed(),
            history=result.history,
            versions=result.versions,
            notes=[*notes, f"That took {clock.elapsed():.0f} s of a budget of {clock.elapsed() + clock.left():.0f} s."],
        )

    def _sound(self, pair: ModalityPair, candidates: list[Candidate]) -> tuple[list[Candidate], Status, list[str]]:
        """Candidates and members less those that diverged; how the first one ended, and what to say."""
        codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[:LOOKED_AT]
        cells = dense(pair.x[:LOOKED_AT])
        sound = [
            member.result_.status is not Status.DIVERGED and bool(np.isfinite(member.translate(cells, codes)).all())
            for member in self.members_
        ]
        if not any(sound):
            return candidates, Status.DIVERGED, ["All candidates diverged."]
        lost = [each.label for each, kept in zip(candidates, sound, strict=True) if not kept]
        self.members_ = [member for member, kept in zip(self.members_, sound, strict=True) if kept]
        candidates = _shared_out([each for each, kept in zip(candidates, sound, strict=True) if kept])
        notes = [_without_comparison(pair.n_anchors, candidates)]
        if lost:
            notes.append(f"{' and '.join(lost).capitalize()} diverged and is left out.")
        return candidates, self.members_[0].result_.status, notes

    def _candidates(self, pair: ModalityPair) -> list[Candidate]:
        """What is compared, the preferred ones first."""
        conditions = bool(several_conditions(pair))
        if isinstance(self.methods, str):
            raise ConfigError(f"methods={self.methods!r}; expected a list of names.")
        tried = _tried(pair.n_anchors)
        if self.methods is not None:
            tried = [Candidate(name, name, {}, 1.0) for name in self.methods]
        if not tried or self.name in [each.method for each in tried]:
            raise ConfigError(f"methods={self.methods!r}; expected names of other methods, one at least.")
        usable = [each for each in tried if _usable(get(each.method), pair, conditions)]
        if not usable:
            raise ConfigError(f"None of methods={self.methods!r} can be fitted with {pair.n_anchors} anchors.")
        return _shared_out(usable)

    def _folds(
        self, pair: ModalityPair, candidates: list[Candidate], seed: int, limits: Trainer, clock: Clock
    ) -> list[tuple[np.ndarray, list[Translator]]]:
        """Every candidate without every fold of the anchors; none where time runs out before all are done."""
        parts = np.array_split(np.random.default_rng([seed, 11]).permutation(pair.n_anchors), FOLDS)
        parts = [part for part in parts if len(part)]
        found = []
        for i, held in enumerate(parts):
            logger.info("Comparing methods: fold %d of %d, without %d of the anchors.", i + 1, len(parts), len(held))
            kept = replace(pair, anchors=np.delete(pair.anchors, held, axis=0))
            fits = []
            for c, each in enumerate(candidates):
                share = clock.share((len(parts) - i) * len(candidates) - c)
                limited = replace(unsaved(limits), max_seconds=share)
                own = seed + SEED_STEP * c + 1 + i
                fits.append(_fitted(each.method, each.options | each.quick, kept, own, limited))
            if clock.left() == 0:
                return []
            found.append((held, fits))
        return found

    def _weigh(
        self,
        pair: ModalityPair,
        candidates: list[Candidate],
        folds: list[tuple[np.ndarray, list[Translator]]],
        seed: int,
    ) -> str:
        """Choose the weights; and what to say about it."""
        frame = Frame.of(pair.y, POWER, np.random.default_rng([seed, 12]))
        codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[pair.anchors[:, 0]]
        truth = frame.place(pair.anchor_y)
        placed = np.empty((len(candidates), *truth.shape))
        ranks = np.empty((len(candidates), len(truth)))
        for held, fits in folds:
            own = None if codes is None else codes[held]
            for c, fitted in enumerate(fits):
                features = fitted.translate(pair.anchor_x[held], own)
                placed[c, held] = frame.place(features)
                finite = np.isfinite(features).all()
                ranks[c, held] = partner_ranks(features, pair.y, pair.anchors[held, 1]) if finite else 1.0
        prior = np.array([each.prior for each in candidates])
        self.weights_ = stack(placed, truth, prior)
        self.left_out_ = []
        for held, fits in folds:
            others = np.delete(np.arange(len(truth)), held)
            weights = stack(placed[:, others], truth[others], prior)
            self.left_out_.append((self._assembled(pair, fits, weights), held))
        return _comparison(candidates, ranks, self.weights_)

    def _alone(self, pair: ModalityPair) -> Sequence[Translator] | None:
        """The same with one matching of several, for each of them: fits that differ in nothing but their luck."""
        matched = [i for i, member in enumerate(self.members_) if member.matches_distributions and self.weights_[i]]
        if len(matched) < 2:
            return None
        total, found = self.weights_[matched].sum(), []
        for i in matched:
            weights = self.weights_.copy()
            weights[matched] = 0
            weights[i] = total
            found.append(self._assembled(pair, self.members_, weights))
        return found

    def _assembled(self, pair: ModalityPair, members: list[Translator], weights: np.ndarray) -> Auto:
        """Another fitted translator of this kind."""
        other = Auto(**self.get_config())
        other.n_features_in_, other.n_features_out_ = self.n_features_in_, self.n_features_out_
        other.condition_codes_ = self.condition_codes_
        other.members_, other.weights_ = members, weights
        other.centre_ = self.centre_
        return other

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        parts = [
            weight * (member.translate(x, condition) - self.centre_)
            for member, weight in zip(self.members_, self.weights_, strict=True)
            if weight > 0
        ]
        return np.asarray(sum(parts) + self.centre_)

    def _state(self) -> Arrays:
        about = [{"method": member.name, "options": member.get_config()} for member in self.members_]
        state = {
            "weights": self.weights_,
            "centre": self.centre_,
            "members": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        }
        for i, member in enumerate(self.members_):
            state |= {f"{i}/{name}": array for name, array in member.get_state().items()}
        return state

    def _load_state(self, state: Arrays) -> None:
        self.weights_, self.centre_ = state["weights"], state["centre"]
        self.members_ = []
        for i, each in enumerate(json.loads(state["members"].tobytes())):
            own = {name.removeprefix(f"{i}/"): array for name, array in state.items() if name.startswith(f"{i}/")}
            self.members_.append(make(each["method"], **each["options"]).set_state(own))


def stack(predictions: np.ndarray, truth: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Non-negative weights of predictions, shape (c,): least squares, drawn towards `prior` by a few anchors' worth.

    Predictions that are not all finite get none.

    Parameters
    ----------
    predictions
        What every candidate made of anchors that it had not seen, shape (c, k, d).
    truth
        The anchors, shape (k, d).
    prior
        Weights without any anchor, shape (c,).
    """
    from scipy.optimize import nnls

    finite = np.isfinite(predictions).all(axis=(1, 2))
    if not finite.all():
        weights = np.zeros(len(prior))
        if finite.any():
            kept = prior[finite]
            weights[finite] = stack(predictions[finite], truth, kept * prior.sum() / max(kept.sum(), 1e-12))
        return weights
    size = np.sqrt(np.mean(np.sum(np.square(truth, dtype=np.float64), axis=1)) + 1e-300)
    pull = np.sqrt(PRIOR_ANCHORS)
    columns = np.concatenate([predictions.reshape(len(predictions), -1) / size, pull * np.eye(len(prior))], axis=1)
    return np.asarray(nnls(columns.T, np.concatenate([truth.ravel() / size, pull * prior]))[0])


def _shared_out(candidates: list[Candidate]) -> list[Candidate]:
    """The same with weights of sum 1; equal ones, where those that had one are gone."""
    total = sum(each.prior for each in candidates)
    if total == 0:
        return [replace(each, prior=1 / len(candidates)) for each in candidates]
    return [replace(each, prior=each.prior / total) for each in candidates]


def _tried(k: int) -> list[Candidate]:
    """What is compared by default with k anchors."""
    if k < FEW_ANCHORS:
        return TRIED_FEW
    leaning = k / (k + TRUSTED_ANCHORS)
    sharp = _SHARP | {"weight_anchors": max(0.1, leaning)}  # fine matchings have more optima, which many anchors settle
    return [
        Candidate("consensus", "consensus", {}, (1 - leaning) / 2, _QUICK),
        Candidate("fine consensus", "consensus", sharp, (1 - leaning) / 2, _QUICK),
        Candidate("anchored consensus", "consensus", _ANCHORED, leaning),
        *_OTHERS,
    ]


def _usable(method: type[Translator], pair: ModalityPair, conditions: bool) -> bool:
    return pair.n_anchors >= method.min_anchors and (conditions or method.name != "condition_mean")


def _fitted(method: str, options: dict[str, Any], pair: ModalityPair, seed: int, trainer: Trainer) -> Translator:
    return finished(make(method, **options).fit_pair(pair, seed=seed, trainer=trainer))


def _without_comparison(k: int, candidates: list[Candidate]) -> str:
    used = " and ".join(each.label for each in candidates if each.prior > 0)
    if len(candidates) == 1:
        return f"{used.capitalize()}, the only candidate."
    if k < FEWEST_ANCHORS:
        return f"{used.capitalize()}, as fewer than {FEWEST_ANCHORS} anchors cannot tell methods apart."
    return f"{used.capitalize()}, not compared on left-out anchors for lack of time."


def _comparison(candidates: list[Candidate], ranks: np.ndarray, weights: np.ndarray) -> str:
    """What was tried, how it did, and what was made of it."""
    error = ranks.std(axis=1, ddof=1) / np.sqrt(ranks.shape[1])
    tried = "; ".join(
        f"{each.label} {rank:.2f} ± {sd:.2f}, weight {weight:.2f}"
        for each, rank, sd, weight in zip(candidates, ranks.mean(axis=1), error, weights, strict=True)
    )
    return (
        f"Weights by {ranks.shape[1]} left-out anchors (share of target cells nearer than the partner, 0 is best, "
        f"0.5 chance): {tried}. They start from what is best without any anchor, by {PRIOR_ANCHORS:.0f} anchors' "
        "worth, and need not sum to 1."
    )
