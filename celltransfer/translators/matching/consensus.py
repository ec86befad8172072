"""Consensus of matchings: anchors and the shapes of both clouds, coupled from many starts, in seconds and on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.pair import dense
from celltransfer.errors import ConfigError
from celltransfer.train.outcome import FitResult, Status
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Arrays, Translator, register
from celltransfer.translators.baselines import column_means
from celltransfer.translators.holdout import condition_codes
from celltransfer.translators.left_out import partner_ranks
from celltransfer.translators.matching import transport
from celltransfer.translators.matching.gromov import FusedGromov, geodesics
from celltransfer.translators.matching.transport import Clouds
from celltransfer.translators.regression import linear_map, ridge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sklearn.kernel_ridge import KernelRidge

    from celltransfer.data.pair import ModalityPair
    from celltransfer.train.loop import Trainer

# Fewer anchors than this leave much open: more starts are tried, and more optima averaged.
FEW_ANCHORS = 6
# Entropy of the plans while starts are tried, and when their average is refined.
ANNEALING, SETTLED = (0.1, 0.05), (0.05, 0.05)
# Cells a side and rounds: of every start, and of the refinement; cells that regressions are fitted on.
TRIAL, TRIAL_ROUNDS, REFINED, REFINED_ROUNDS, REGRESSED = 500, 15, 1000, 8, 1500
# Cells a side on which starts are compared, and fewest of a condition for that.
COMPARED, FEWEST = 600, 20
# Cells a side of the Gromov-Wasserstein start, where anchors are few and where they are not.
GROMOV = (500, 250)
# Share of their weight that anchors keep beside links, which orient the map: single pairs add more noise than news.
BESIDE_LINKS = 0.1
# What that start takes at most, on a busy core; where less time is left it is left out, which is said.
GROMOV_SECONDS = (5.0, 2.0)
# Lengths of the random parts of starts, in lengths of what the anchors say.
SPREADS = (0.2, 0.5, 1.0)
# How alike two rounds of the refinement must translate for the fit to have converged.
AGREEMENT = 0.98


@dataclass(frozen=True)
class Candidate:
    """A matched map, shape (d, D), and how badly it couples the clouds: one figure per criterion."""

    map: np.ndarray
    badness: tuple[float, ...]


@register
class Consensus(Translator):
    r"""Optimal transport and regression in turn, from many starts, averaged over those that couple best.

    A map M from source to target components, and a plan P between the translated and the target cells, improve each
    other: P solves entropic optimal transport with cost :math:`1 - \cos(x_i M, y_j)`, M regresses the target on the
    source under P, with the anchors' share of the evidence mixed in. That climbs
    :math:`\max_P \|X^\top P Y\|`, the inner-product form of Gromov-Wasserstein, and like it has many optima. So it
    starts from the ridge regression on the anchors, from fused Gromov-Wasserstein on a few hundred cells, and from
    random maps that agree with the anchors, as samples of what the anchors leave open. The optima are compared
    without any pair by how well they couple the clouds (cost of the plan, covariance under it, distortion of
    geodesics), averaged with weights by that, refined on larger batches, and extended by kernel regression.

    Feature links are one more start, and what a map has in common with them one more criterion. Their optimum has a
    head start of as many standard errors as they alone place the anchors nearer to their partners than chance would.
    So links that the clouds and the anchors contradict lose to other starts.

    Where conditions are known, cells are matched within them, and every condition's mean cell is translated to its
    mean cell. Memory grows with the batch, time linearly with its rounds, neither with the number of cells.

    References: Alaux et al. 2019 and Grave et al. 2019 (plans and maps in turn); Vayer et al. 2020 (fused
    Gromov-Wasserstein); Flamary et al. 2021 (POT).

    Parameters
    ----------
    n_starts
        Random starts; ``None``: 24 for fewer than 6 anchors, 8 otherwise.
    temperature
        How much worse than the best an optimum may be for its weight in the average to fall by e, in standard
        deviations of the criteria.
    weight_anchors
        Share of the evidence that the anchors are, in [0, 1); with feature links, a tenth of that.
    penalty
        Ridge penalty of the maps, as a share of the mean variance of the source components.
    powers
        Which part of their own scale is taken out of source and target components: 0 none, 1 all.
    smoothness
        Penalty of the kernel regression per cell; 0 would interpolate.
    entropy
        Of the plan whose mean partners are regressed.
    n_regressions
        Kernel regressions, each of the partners that the one before finds.
    """

    name = "consensus"
    matches_distributions = True
    uses_conditions = True
    uses_links = True
    needs_condition = True

    arrays_: Arrays

    def __init__(
        self,
        *,
        n_starts: int | None = None,
        temperature: float = 1.5,
        weight_anchors: float = 0.1,
        penalty: float = 0.3,
        powers: tuple[float, float] = (0.0, 0.0),
        smoothness: float = 0.01,
        entropy: float = 0.1,
        n_regressions: int = 1,
    ) -> None:
        self.n_starts, self.temperature = n_starts, temperature
        self.weight_anchors, self.penalty, self.powers = weight_anchors, penalty, powers
        self.smoothness, self.entropy, self.n_regressions = smoothness, entropy, n_regressions

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self._check()
        clock = Clock(trainer.max_seconds if trainer else None)
        rng = np.random.default_rng(seed)
        share = self.weight_anchors * (1.0 if pair.links is None else BESIDE_LINKS)
        clouds = Clouds.of(pair, (self.powers[0], self.powers[1]), share, rng)
        comparison = Comparison.draw(clouds, rng)
        candidates, in_time = self._candidates(pair, clouds, comparison, rng, clock)
        head_start = 0.0 if clouds.links is None else _support(pair)
        weights = credit(candidates, self.temperature, head_start)
        maps = np.array([each.map / max(float(np.linalg.norm(each.map)), 1e-12) for each in candidates])
        averaged = np.tensordot(weights, maps, axes=1)
        before = self._match(clouds, averaged, rng, REFINED, REFINED_ROUNDS, SETTLED)
        refined = self._match(clouds, before, rng, REFINED, 2, SETTLED)
        self._extend(pair, clouds, refined, rng)
        agreement = _alike(clouds.draw(COMPARED, rng), before, refined)
        settled = Status.CONVERGED if agreement > AGREEMENT else Status.MAX_STEPS
        return FitResult(
            settled if in_time else Status.MAX_TIME,
            n_steps=len(candidates) * TRIAL_ROUNDS + REFINED_ROUNDS + 2,
            seconds=clock.elapsed(),
            history={
                "cost": [(i, candidate.badness[0]) for i, candidate in enumerate(candidates) if candidate.badness]
            },
            versions={"pot": version("pot")},
            notes=[
                f"{len(candidates)} matchings were averaged, by how well they couple the clouds; that comes to "
                f"{1 / np.sum(weights**2):.1f} of equal weight."
            ],
        )

    def _check(self) -> None:
        if not 0 <= self.weight_anchors < 1:
            raise ConfigError(f"weight_anchors={self.weight_anchors}; the anchors' share of the evidence is in [0, 1).")
        for name in ("penalty", "smoothness", "temperature", "entropy", "n_regressions"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a positive number.")
        if self.n_starts is not None and self.n_starts < 0:
            raise ConfigError(f"n_starts={self.n_starts}; expected 0 or more.")
        if len(self.powers) != 2 or not all(0 <= power <= 1 for power in self.powers):
            raise ConfigError(f"powers={self.powers}; expected two numbers in [0, 1], of source and target.")

    def _match(
        self,
        clouds: Clouds,
        start: np.ndarray,
        rng: np.random.Generator,
        size: int,
        rounds: int,
        epsilon: tuple[float, float],
    ) -> np.ndarray:
        return transport.match(clouds, start, rng, size=size, n_iter=rounds, epsilon=epsilon, penalty=self.penalty)

    def _candidates(
        self, pair: ModalityPair, clouds: Clouds, comparison: Comparison, rng: np.random.Generator, clock: Clock
    ) -> tuple[list[Candidate], bool]:
        """Matched maps from all starts, or from those that time allows (at least one); and whether it allowed all."""
        found: list[Candidate] = []
        all_starts = True
        for start in self._starts(pair, clouds, rng, clock):
            if start is None:
                all_starts = False
                continue
            # The refinement and the regression take about as long as eight starts.
            if found and clock.left() < clock.elapsed() * 8 / len(found):
                return found, False
            matched = self._match(clouds, start, rng, TRIAL, TRIAL_ROUNDS, ANNEALING)
            found.append(Candidate(matched, comparison.badness(matched)))
        return found, all_starts

    def _starts(
        self, pair: ModalityPair, clouds: Clouds, rng: np.random.Generator, clock: Clock
    ) -> Iterator[np.ndarray | None]:
        """What the anchors say, what the shapes say (``None`` for lack of time), random maps that fit the anchors."""
        k = pair.n_anchors
        if clouds.links is not None:
            yield clouds.links
        said = _anchor_map(clouds) if k else np.zeros((len(clouds.frame_x.sd), len(clouds.frame_y.sd)))
        length = np.linalg.norm(said)
        if length > 0:
            said = said / length
            yield said
        # Its regression between thousands of raw features would take minutes.
        narrow = max(pair.x.shape[1], pair.y.shape[1]) < transport.WIDE
        if len(clouds.groups) == 1 and narrow:
            in_time = clock.left() > GROMOV_SECONDS[k >= FEW_ANCHORS]
            yield _gromov_map(pair, clouds, int(rng.integers(2**31))) if in_time else None
        n_starts = self.n_starts if self.n_starts is not None else (24 if k < FEW_ANCHORS else 8)
        for i in range(n_starts):
            noise = rng.normal(size=said.shape) * clouds.frame_x.sd[:, None] * clouds.frame_y.sd
            noise = _without(noise, clouds.anchors.x)
            yield said + SPREADS[i % len(SPREADS)] * noise / max(float(np.linalg.norm(noise)), 1e-12)

    def _extend(self, pair: ModalityPair, clouds: Clouds, matched: np.ndarray, rng: np.random.Generator) -> None:
        """Kernel regression of the cells' mean partners under the matched map, then under the regression itself."""
        translate: Callable[[np.ndarray], np.ndarray] = lambda x: x @ matched  # noqa: E731
        for _ in range(self.n_regressions):
            model = self._regression(clouds, translate, rng)
            translate = model.predict
        groups = clouds.groups
        self.arrays_ = {
            "mean_x": clouds.frame_x.mean,
            "forward_x": clouds.frame_x.forward,
            "mean_y": clouds.frame_y.mean,
            "back_y": clouds.frame_y.back,
            "cells": model.X_fit_.astype(np.float32),
            "weights": model.dual_coef_.astype(np.float32),
            "gamma": np.array(model.gamma),
            "codes": np.array([] if pair.condition_x is None else [group.code for group in groups], dtype=np.int64),
            "group_x": np.stack([group.mean_x for group in groups]),
            "group_y": np.stack([group.mean_y for group in groups]),
        }

    def _regression(
        self, clouds: Clouds, translate: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
    ) -> KernelRidge:
        """Kernel regression of the mean partners that the plan gives translated cells, and of the anchors'."""
        from sklearn.kernel_ridge import KernelRidge
        from sklearn.metrics.pairwise import euclidean_distances

        batches = clouds.draw(REGRESSED, rng)
        x = np.concatenate([batch.x for batch in batches])
        y = np.concatenate([batch.partners(translate(batch.x), self.entropy) for batch in batches])
        anchors, n = clouds.anchors, len(x)
        k = len(anchors.x)
        weights = np.concatenate([np.ones(n), np.full(k, anchors.share * n / max(k, 1))])
        some = x[rng.permutation(n)[:300]]
        gamma = 1 / max(float(np.median(euclidean_distances(some, squared=True))), 1e-12)
        model = KernelRidge(alpha=self.smoothness * n, kernel="rbf", gamma=gamma)
        return model.fit(np.concatenate([x, anchors.x]), np.concatenate([y, anchors.y]), sample_weight=weights)

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        from sklearn.metrics.pairwise import rbf_kernel

        state = self.arrays_
        placed = (x - state["mean_x"]) @ state["forward_x"]
        offset = np.zeros((len(x), state["group_y"].shape[1]))
        if len(state["codes"]):
            assert condition is not None
            for code, mean_x, mean_y in zip(state["codes"], state["group_x"], state["group_y"], strict=True):
                own = condition == code
                placed[own] -= mean_x
                offset[own] = mean_y
        kernel = rbf_kernel(placed, state["cells"], gamma=float(state["gamma"]))
        return np.asarray((kernel @ state["weights"] + offset) @ state["back_y"] + state["mean_y"])

    def _state(self) -> Arrays:
        return dict(self.arrays_)

    def _load_state(self, state: Arrays) -> None:
        names = ("mean_x", "forward_x", "mean_y", "back_y", "cells", "weights", "gamma", "codes", "group_x", "group_y")
        self.arrays_ = {name: state[name] for name in names}


@dataclass(frozen=True)
class Comparison:
    """Cells on which matched maps are compared, and their geodesics, by condition."""

    batches: list[transport.Batch]
    shapes: list[tuple[np.ndarray, np.ndarray]]
    links: np.ndarray | None

    @classmethod
    def draw(cls, clouds: Clouds, rng: np.random.Generator) -> Comparison:
        """Random cells of the conditions that have enough."""
        drawn = [batch for batch in clouds.draw(COMPARED, rng) if min(len(batch.x), len(batch.y)) >= FEWEST]
        return cls(drawn, [(geodesics(batch.x, 15), geodesics(batch.y, 15)) for batch in drawn], clouds.links)

    def badness(self, matched: np.ndarray) -> tuple[float, ...]:
        """Cost of the plan, minus the covariance under it, its distortion of geodesics; minus agreement with links."""
        totals = np.zeros(3)
        for batch, (shape_x, shape_y) in zip(self.batches, self.shapes, strict=True):
            translated = batch.x @ matched
            plan = batch.plan(translated, SETTLED[1]).astype(np.float64)
            costs = transport.cosine_cost(translated + batch.mean_y, batch.y + batch.mean_y)
            cost = float((plan * costs).sum())
            covariance = float(np.linalg.norm(batch.x.T @ plan @ batch.y))
            distortion = float(
                (shape_x**2).mean() + (shape_y**2).mean() - 2 * ((shape_x @ plan) * (plan @ shape_y)).sum()
            )
            totals += batch.share * np.array([cost, -covariance, distortion])
        if not self.batches:
            return ()
        return tuple(totals) if self.links is None else (*totals, -_alike(self.batches, matched, self.links))


def credit(candidates: list[Candidate], temperature: float, head_start: float = 0.0) -> np.ndarray:
    """Weights of candidates by their criteria, standardised and added, less the head start of the first; of sum 1."""
    values = np.array([candidate.badness for candidate in candidates])
    if not values.size:  # too few cells to compare anything
        return np.full(len(candidates), 1 / len(candidates))
    total = ((values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)).sum(axis=1)
    total[0] -= head_start
    weights = np.exp(-(total - total.min()) / temperature)
    return np.asarray(weights / weights.sum())


def _anchor_map(clouds: Clouds) -> np.ndarray:
    """Ridge regression on the anchors, between frames."""
    x = clouds.anchors.x.astype(np.float64)
    weight, _ = linear_map(ridge, x, clouds.anchors.y.astype(np.float64), clouds.frame_x.sd)
    return weight


def _support(pair: ModalityPair) -> float:
    """By how many standard errors links alone place the anchors nearer to their partners than chance would."""
    if pair.links is None or not pair.n_anchors:
        return 0.0
    codes_x, codes_y = condition_codes(pair)
    found = []
    for code in np.unique(codes_x[pair.anchors[:, 0]]):  # links need not tell conditions apart, which are known
        own = pair.anchors[codes_x[pair.anchors[:, 0]] == code]
        x, y = (pair.x[codes_x == code], np.flatnonzero(codes_y == code))
        cells = pair.y[y]
        placed = (dense(pair.x[own[:, 0]]) - column_means(x)) @ pair.links + column_means(cells)
        found.append(partner_ranks(placed, cells, np.searchsorted(y, own[:, 1])))
    ranks = np.concatenate(found)
    return float((0.5 - ranks.mean()) * np.sqrt(12 * len(ranks)))


def _gromov_map(pair: ModalityPair, clouds: Clouds, seed: int) -> np.ndarray:
    """Fused Gromov-Wasserstein on a few cells, extended by ridge regression, between frames, of length 1."""
    quick = replace(pair, condition_x=None, condition_y=None, conditions=())
    fitted = FusedGromov(max_cells=GROMOV[pair.n_anchors >= FEW_ANCHORS], n_starts=2).fit_pair(quick, seed=seed)
    assert isinstance(fitted, FusedGromov)
    between = clouds.frame_x.back @ fitted.arrays_["weight"] @ clouds.frame_y.forward
    return np.asarray(between / max(float(np.linalg.norm(between)), 1e-12))


def _without(noise: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """The part of a map, shape (d, D), that does not move the anchors, shape (k, d), up to a little."""
    if not len(anchors):
        return noise
    gram = anchors.astype(np.float64) @ anchors.T
    ridged = gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))
    return np.asarray(noise - anchors.T @ np.linalg.solve(ridged, anchors @ noise))


def _alike(batches: list[transport.Batch], first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two maps' translations of the same cells."""
    x = np.concatenate([batch.x for batch in batches])
    with np.errstate(invalid="ignore"):
        found = np.corrcoef((x @ first).ravel(), (x @ second).ravel())[0, 1]
    return float(np.nan_to_num(found, nan=1.0))  # constants agree
