"""Any method on anchors and pseudo-anchors: pairs that another translator, the prior, proposes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from celltransfer.data.batches import shared_conditions
from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Arrays, Translator, get, make, register
from celltransfer.translators.holdout import condition_codes
from celltransfer.translators.left_out import finished, unsaved
from celltransfer.translators.matching import transport
from celltransfer.translators.matching.transport import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celltransfer.train.outcome import FitResult

# Which part of the target components' scale is taken out, entropy of the plans, and cells a side that are coupled.
POWER, EPSILON, BATCH = 0.5, 0.1, 1000
# Share of a condition's cells that pairs may take at most: methods want cells that are in no pair, too.
MOST = 0.5
# Methods that ask their anchors what to do, and would believe the proposed ones.
SELF_JUDGING = ("auto", "primed")
# What a method may have beside the contract, and a fitted `Primed` has where its method does.
ABILITIES = ("sample", "std", "covariance", "covariance_blocks", "log_prob", "responsibilities")


class _OfMethod:
    """A flag that is the method's on an instance, its fit's once there is one, and `default` on the class."""

    def __init__(self, default: int) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Primed | None, owner: type) -> Any:
        if instance is None:
            return self.default
        return getattr(instance.__dict__.get("member_", get(instance.method)), self.name)


class _OfEither(_OfMethod):
    """A flag that is up on an instance where it is the method's or the prior's."""

    def __get__(self, instance: Primed | None, owner: type) -> Any:
        return super().__get__(instance, owner) or (instance is not None and getattr(get(instance.prior), self.name))


@register
class Primed(Translator):
    r"""Any method, fitted on the anchors and on pseudo-anchors that a prior proposes.

    The prior, another translator, is fitted on the same cells and anchors. It translates random unpaired source
    cells, and entropic optimal transport with cost :math:`1 - \cos` couples the translations with as many unpaired
    target cells of their condition. The partner of a source cell is the mean target cell under that plan P; or, for
    methods that learn laws and would take the mean's lack of spread for that of cells, a real cell: that of a matching
    drawn from the plan (perturb and maximise: the assignment of largest :math:`\log P_{ij} + \gamma_{ij}`, with
    Gumbel noise :math:`\gamma`). The method sees such pairs as anchors among the true ones. Further rounds propose by
    the fitted method itself.

    Left-out anchors are left out of the prior as well, so verdicts are as honest as without it. What a method chooses
    by leaving anchors out itself (settings of ``"ieot"``, the guard of ``"jacobian"``), it chooses by proposed pairs.

    References: Lee 2013 (pseudo-labels); Papandreou and Yuille 2011 (perturb and maximise).

    Parameters
    ----------
    method
        Name of the method.
    options
        Its options.
    prior
        Name of the translator that proposes pairs: ``"consensus"``, ``"fgw"`` or any other.
    prior_options
        Its options.
    n_pairs
        Pairs to propose; fewer where that is half of the cells of a modality and condition.
    rounds
        Times that pairs are proposed and the method is fitted: the first by the prior, further ones by the fit before.
    partners
        ``"mean"`` or ``"drawn"``; ``None``: drawn for methods that give a law or test alignment, means for others.
    """

    name = "primed"
    uses_conditions = True
    matches_distributions = True
    needs_condition = _OfMethod(True)
    gives_distribution = _OfMethod(False)
    tests_alignment = _OfMethod(False)
    equal_widths = _OfMethod(False)
    invertible = _OfMethod(False)
    has_path = _OfMethod(False)
    uses_attribute = _OfMethod(False)
    uses_links = _OfEither(False)
    min_conditions = _OfMethod(0)

    member_: Translator

    def __init__(
        self,
        *,
        method: str = "ridge",
        options: Mapping[str, Any] | None = None,
        prior: str = "consensus",
        prior_options: Mapping[str, Any] | None = None,
        n_pairs: int = 300,
        rounds: int = 1,
        partners: str | None = None,
    ) -> None:
        self.method, self.options = method, options
        self.prior, self.prior_options = prior, prior_options
        self.n_pairs, self.rounds, self.partners = n_pairs, rounds, partners

    def __getattr__(self, name: str) -> Any:
        if name in ABILITIES and "member_" in self.__dict__:
            return getattr(self.member_, name)
        raise AttributeError(f"{type(self).__name__} of {self.__dict__.get('method')!r} has no {name!r}.")

    def check_options(self) -> None:
        """Refuse options that mean nothing, those of method and prior by name."""
        for role in ("method", "prior"):
            if getattr(self, role) in SELF_JUDGING:
                raise ConfigError(
                    f"{role}={getattr(self, role)!r} cannot be combined with a prior: "
                    'name a single method, such as "ridge", "jacobian" or "ieot", and a prior such as "consensus".'
                )
        self._unfitted()
        make(self.prior, **(self.prior_options or {}))
        for name in ("n_pairs", "rounds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}; expected a whole number of at least 1.")
        if self.partners not in (None, "mean", "drawn"):
            raise ConfigError(f"partners={self.partners!r}; it is 'mean' or 'drawn'.")

    def _unfitted(self) -> Translator:
        return make(self.method, **(self.options or {}))

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self.check_options()
        trainer = trainer or Trainer()
        clock, rng = Clock(trainer.max_seconds), np.random.default_rng([seed, 17])
        proposer = make(self.prior, **(self.prior_options or {}))
        limited = replace(unsaved(trainer), max_seconds=clock.share(1 + self.rounds))
        finished(proposer.fit_pair(pair, seed=seed, trainer=limited))
        for i in range(self.rounds):
            primed = propose(pair, proposer, self.n_pairs, rng, drawn=self._drawn())
            last = i == self.rounds - 1
            limited = replace(trainer if last else unsaved(trainer), max_seconds=clock.share(self.rounds - i))
            proposer = self._unfitted().fit_pair(primed, seed=seed, trainer=limited)
            if not last:
                finished(proposer)
        self.member_, result = proposer, proposer.result_
        # From here on codes are those of this translator's cells, for what is asked of the member alone.
        self.member_.condition_codes_ = self.condition_codes_
        self.held_out_ = self.member_.held_out_
        note = self._note(pair.n_anchors, primed.n_anchors - pair.n_anchors)
        return replace(result, seconds=clock.elapsed(), notes=[note, *result.notes])

    def _drawn(self) -> bool:
        """Whether partners are drawn cells."""
        method = get(self.method)
        default = "drawn" if method.gives_distribution or method.tests_alignment else "mean"
        return (self.partners or default) == "drawn"

    def _note(self, k: int, n: int) -> str:
        later = f" and, from the second of {self.rounds} rounds on, the method itself" if self.rounds > 1 else ""
        kind = "drawn" if self._drawn() else "mean"
        pairs = f"{n} pairs ({kind} partners) proposed by {self.prior}{later}"
        return f"{self.label}: {k} anchors, and {pairs}."

    @property
    def label(self) -> str:
        """Method and prior."""
        return f"{self.method} x {self.prior}"

    @property
    def cost_attribute(self) -> str | None:
        """Obs column that an option of the method names."""
        return (self.options or {}).get("cost_attribute")

    @property
    def scheduled(self) -> bool:
        """The method's."""
        return self.member_.scheduled

    def refit_config(self) -> dict[str, Any]:
        """The same, with the method's."""
        return self.get_config() | {"options": self.member_.refit_config()}

    def explain(self, cause: str) -> str:
        """What the method knows."""
        return self.member_.explain(cause)

    def path(self, x: Matrix, times: Sequence[float]) -> np.ndarray:
        """The method's."""
        self._check_fitted()
        return self.member_.path(x, times)

    def path_back(self, y: Matrix, times: Sequence[float]) -> np.ndarray:
        """The way back of the method itself, where it has one."""
        self._check_fitted()
        return self.member_.path_back(y, times)

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        return self.member_._translate(x, condition)

    def _inverse(self, y: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        return self.member_._inverse(y, condition)

    def _state(self) -> Arrays:
        return {f"member/{name}": array for name, array in self.member_.get_state().items()}

    def _load_state(self, state: Arrays) -> None:
        own = {name.removeprefix("member/"): array for name, array in state.items()}
        self.member_ = self._unfitted().set_state(own)


def propose(
    pair: ModalityPair, translator: Translator, n_pairs: int, rng: np.random.Generator, *, drawn: bool
) -> ModalityPair:
    """`pair` with pairs among its anchors that `translator`, fitted on it, proposes: `n_pairs` at most.

    No row is in two pairs, and partners share their condition. Partners are rows of ``pair.y`` where they are `drawn`;
    mean cells are added to it as rows of their own.
    """
    frame = Frame.of(pair.y, POWER, rng)
    sources, partners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    means = [np.empty((0, pair.y.shape[1]), np.float32)]
    for x, y in _chosen(pair, n_pairs, rng):
        cells, codes = dense(pair.y[y]), None if pair.condition_x is None else np.asarray(pair.condition_x)[x]
        plan = transport.plan(frame.place(translator.translate(pair.x[x], codes)), frame.place(cells), EPSILON)
        sources.append(x)
        if drawn:
            partners.append(y[draw(plan, rng)])
        else:
            means.append(plan @ cells / np.maximum(plan.sum(axis=1, keepdims=True), 1e-30))
    rows, added = np.concatenate(sources), np.concatenate(means)
    targets = np.concatenate([*partners, pair.n_target + np.arange(len(added))])
    return _with_pairs(pair, np.column_stack([rows, targets]), added)


def draw(plan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Column of every row in a matching drawn from a square plan, shape (n,)."""
    from scipy.optimize import linear_sum_assignment

    score = np.log(np.maximum(plan, 1e-30)) + rng.gumbel(size=plan.shape)
    return np.asarray(linear_sum_assignment(score, maximize=True)[1])


def _chosen(pair: ModalityPair, n_pairs: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random rows of both sides that are no anchors, as many of each, in batches of one condition."""
    codes_x, codes_y = condition_codes(pair)
    for code, share in zip(*shared_conditions(codes_x, codes_y), strict=True):
        x, y = (
            rng.permutation(np.setdiff1d(np.flatnonzero(codes == code), anchors))
            for codes, anchors in zip((codes_x, codes_y), pair.anchors.T, strict=True)
        )
        n = min(round(n_pairs * float(share)), int(MOST * len(x)), int(MOST * len(y)))
        parts = max(-(-n // BATCH), 1)
        yield from zip(np.array_split(x[:n], parts), np.array_split(y[:n], parts), strict=True)


def _with_pairs(pair: ModalityPair, rows: np.ndarray, added: np.ndarray) -> ModalityPair:
    """`pair` with more anchors; some of their target cells are `added` below the others, those of the last rows."""
    anchors, y = np.concatenate([pair.anchors, rows]), pair.y
    codes, attribute = pair.condition_y, pair.attribute_y
    if len(added):
        y = sp.vstack([y, sp.csr_matrix(added)], format="csr") if sp.issparse(y) else np.concatenate([y, added])
        codes = None if codes is None else np.concatenate([codes, np.asarray(pair.condition_x)[rows[:, 0]]])
        attribute = None if attribute is None else np.concatenate([attribute, np.full(len(added), -1)])
    return replace(pair, y=y, anchors=anchors, condition_y=codes, attribute_y=attribute)
