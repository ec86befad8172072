"""What `celltransfer.fit` does after the fit: refits without anchors, verdict, alignment, calibration, warnings."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from celltransfer.data.pair import ModalityPair, dense
from celltransfer.errors import CelltransferError, CelltransferWarning, VerdictWarning
from celltransfer.model.confidence import Confidence
from celltransfer.train.outcome import Status, Verdict
from celltransfer.translators.base import make

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.model.model import TransferModel
    from celltransfer.train.loop import Trainer
    from celltransfer.train.stopping import Clock
    from celltransfer.translators.base import Translator

logger = logging.getLogger("celltransfer")

# Refits for the verdict: as many as cost little, see `_judge`.
CHEAP_SECONDS, MANY_FOLDS, FEW_FOLDS = 0.5, 20, 4
# Refits of methods without steps may take so long together, as long as there are two of them.
REFIT_SECONDS = 10.0
# Cells a side without which there is no cloud to judge by.
FEWEST_CELLS = 4
# Cells that are translated forth and back.
TRIED = 500
# What the search for symmetries may take.
SEARCH_SECONDS = 3.0


def settle(
    model: TransferModel,
    pair: ModalityPair,
    cells: tuple[AnnData, AnnData],
    trainer: Trainer,
    clock: Clock,
    seed: int,
    judged: bool,
) -> None:
    """Judge and calibrate a fitted model, and say how the fit ended.

    Parameters
    ----------
    model
        The model; its result gets the verdict, and it gets its calibration.
    pair
        What its translator was fitted on.
    cells
        The source and target cells of `pair`.
    trainer, clock
        Limits of the refits, and what is left of the time.
    seed
        Seed of the fit.
    judged
        Whether a verdict is wanted.
    """
    translator = model.translator
    open_question = _unsettled(translator, pair, clock, seed)
    translator.result_.notes += open_question
    refits: list[tuple[Translator, np.ndarray]] = []
    try:
        translator.result_.verdict = _judge(model, pair, cells, trainer, clock, seed, refits) if judged else _unjudged()
        if judged and translator.tests_alignment:
            _add_alignment(translator, pair, clock, seed)
        if judged and translator.invertible:
            _add_round_trip(translator.result_.verdict, translator, pair)
    except KeyboardInterrupt:  # the fit itself is complete
        translator.result_.verdict = Verdict("ambiguous", ["Interrupted while the fit was judged, so it is not."])
    translator.result_.verdict.reasons += open_question
    if translator.gives_distribution:
        _calibrate(model, pair, cells[1], refits, seed)
    translator.left_out_ = translator.repeats_ = None


def _unsettled(translator: Translator, pair: ModalityPair, clock: Clock, seed: int) -> list[str]:
    """What matching leaves open and the anchors do not settle: one sentence, or none.

    Not asked of many anchors, as more than the leading components together lie in no symmetry's fixed set; of a fit
    that matched nothing; where conditions are matched one by one, which settles symmetries that exchange them, or
    where feature links orient the map; nor of thousands of raw features, or when time is short.
    """
    from celltransfer.verdict import symmetries

    matched = translator.matches_distributions and translator.result_.status is not Status.SOLVED
    by_condition = translator.uses_conditions and pair.condition_x is not None
    oriented = by_condition or (translator.uses_links and pair.links is not None)
    few = 0 < pair.n_anchors <= symmetries.N_COMPONENTS
    if not (matched and few) or oriented or sp.issparse(pair.x) or clock.left() < SEARCH_SECONDS:
        return []
    found = symmetries.ambiguity(pair.x, pair.anchors[:, 0], seed)
    return [] if found is None else [found]


class _NoEvidence(Exception):
    """The refits cannot tell anything about the fit; the message says why."""


def _judge(
    model: TransferModel,
    pair: ModalityPair,
    cells: tuple[AnnData, AnnData],
    trainer: Trainer,
    clock: Clock,
    seed: int,
    refits: list[tuple[Translator, np.ndarray]],
) -> Verdict:
    """The verdict; leaves in `refits` the fits it rests on, and the anchors that each was fitted without."""
    from celltransfer.metrics import readout
    from celltransfer.verdict import evidence

    translator, result = model.translator, model.result_
    if result.status is Status.INTERRUPTED:
        return Verdict("ambiguous", [f"The fit was interrupted, and not judged. {result.advice}"])
    # Cheap fits are repeated without every anchor or two, others at most four times, with a quarter of the steps.
    cheap = result.seconds < min(CHEAP_SECONDS, clock.left() / MANY_FOLDS)
    many = MANY_FOLDS if cheap else FEW_FOLDS if hasattr(translator, "training") else _affordable(result.seconds)
    folds = max(min(many, pair.n_anchors), evidence.N_HALVES)
    steps = result.n_steps if cheap else result.n_steps // 4
    short = replace(trainer, max_steps=max(steps, 1), progress=False, checkpoint_dir=None, resume=False)

    def refit(without: ModalityPair, fold: int) -> Translator:
        logger.info("Judging the fit: refit %d of %d, without some of the anchors.", fold + 1, folds)
        whole = without.n_source == pair.n_source  # and not a part of the cells
        again = translator.refit() if whole else make(translator.name, **translator.refit_config())
        limited = replace(short, max_seconds=clock.share(folds - fold))
        fitted = _refitted(again, without, limited, clock, seed + 1 + fold)
        if whole:
            refits.append((fitted, np.flatnonzero(~np.isin(pair.anchors[:, 0], without.anchors[:, 0]))))
        return fitted

    broken = evidence.broken_off(translator)
    if broken is not None:
        return broken
    if min(pair.n_source, pair.n_target) < FEWEST_CELLS:
        return Verdict("ambiguous", [f"Fewer than {FEWEST_CELLS} cells a side cannot be judged."])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        try:
            space = readout.of_recipes(model.recipes[model.source], model.recipes[model.target], cells, seed)
            found = evidence.examine(translator, pair, refit, seed=seed, max_folds=folds, readout=space)
        except _NoEvidence as reason:
            return Verdict("ambiguous", [str(reason)])
    if pair.shared and not pair.n_anchors and found.evidence:
        return _without_partners(found.evidence)
    model.confidence_ = Confidence(found.translated, found.doubt)
    verdict = evidence.verdict_of(found)
    if result.status is Status.MAX_TIME and translator.scheduled:
        verdict.reasons.append(
            f"The fit was stopped by time after {result.n_steps} steps, in the middle of a schedule; the fits it was "
            "judged by went through a whole one of no more steps, and may be better or worse than it."
        )
    return verdict


def _without_partners(evidence: dict[str, float]) -> Verdict:
    """The verdict within one modality where no cell is known on both sides: there is no accuracy to estimate.

    Refits that start at the cells themselves agree by construction, so what they expect of each other is left out, too.
    """
    reason = (
        "Source and target share their features, and no cell is known on both sides: nothing tells whether a cell goes "
        "where it would have gone, nor is there a partner to be near to. What can be told is whether the translated "
        "cells as a whole are like the target's."
    )
    return Verdict("ambiguous", [reason], {name: value for name, value in evidence.items() if name != "self_rank"})


def _affordable(seconds: float) -> int:
    """Number of refits by a method that knows no steps, each of which takes as long as the fit."""
    return int(np.clip(REFIT_SECONDS / seconds, 1, FEW_FOLDS))


def _refitted(translator: Translator, pair: ModalityPair, trainer: Trainer, clock: Clock, seed: int) -> Translator:
    """Fit `translator`, unless time has run out; a fit that broke off is no evidence for anything."""
    if clock.left() == 0:
        raise _NoEvidence("The time limit came before the fit could be judged: raise `max_seconds`.")
    try:
        status = translator.fit_pair(pair, seed=seed, trainer=trainer).result_.status
    except CelltransferError as error:
        raise _NoEvidence(f"The fit was not judged, as a refit to some of its data failed. {error}") from error
    if status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    if status is Status.DIVERGED:
        raise _NoEvidence(f"A refit without some of the anchors diverged, so the fit was not judged. {status.advice}")
    return translator


def _add_alignment(translator: Translator, pair: ModalityPair, clock: Clock, seed: int) -> None:
    """Test the alignment, and let it count in the verdict.

    Left-out anchors tell about the map itself and decide where there are enough. Without them, a fit that set out to
    make cells alike and did not has failed; and one that did may still have taken any of the maps that do.
    """
    from celltransfer.verdict.translated import of_fit

    result, verdict = translator.result_, translator.result_.verdict
    assert verdict is not None
    if result.status in (Status.INTERRUPTED, Status.DIVERGED):
        return
    if clock.left() == 0:
        verdict.reasons.append("The time limit came before translated cells were compared with target cells.")
        return
    found = of_fit(translator, pair, seed)
    reason = f"Translated cells against target cells: {found.level}. {' '.join(found.reasons)}"
    if found.level == "not aligned":
        reason = f"{reason} {translator.explain(found.cause)}".rstrip()
    result.alignment = found.to_dict()
    verdict.evidence |= {f"alignment_{name}": value for name, value in found.evidence.items()}
    if verdict.level == "ambiguous" and found.level == "not aligned" and not verdict.evidence["held_out_anchors"]:
        verdict.level = "failed"
    if verdict.level == "ambiguous" and found.level == "aligned":
        reason += " That alone does not tell the right map from others that match as well."
    verdict.reasons.append(reason)


def _add_round_trip(verdict: Verdict, translator: Translator, pair: ModalityPair) -> None:
    """Root mean square error of cells translated forth and back, in units of their spread, or that there is no way."""
    rows = slice(0, TRIED)
    x = dense(pair.x[rows])
    codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[rows]
    try:
        back, lost = translator.inverse(translator.translate(x, codes), codes), "they come back as no numbers."
    except CelltransferError as error:
        back, lost = np.full_like(x, np.nan), str(error)
    missed = float(np.sqrt(np.square(back - x).mean() / max(float(x.var(axis=0).mean()), 1e-12)))
    verdict.evidence["round_trip_failed"] = float(not np.isfinite(missed))
    if np.isfinite(missed):
        verdict.evidence["round_trip"] = missed
    else:
        verdict.reasons.append(f"Translated cells cannot be taken back: {lost}")


def _calibrate(
    model: TransferModel,
    pair: ModalityPair,
    target: AnnData,
    refits: list[tuple[Translator, np.ndarray]],
    seed: int,
) -> None:
    """Let left-out anchors say how wide the stated spread should be."""
    from celltransfer.model import law

    model.calibration_ = law.Calibration(noise=law.outside_noise(model.recipes[model.target], target, seed))
    if not refits:
        return

    def features(anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, AnnData]:
        rows = pair.anchors[anchors]
        codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[rows[:, 0]]
        return dense(pair.x[rows[:, 0]]), codes, target[rows[:, 1]]

    model.calibration_ = law.calibrate(model, refits, features)  # type: ignore[arg-type]


def _unjudged() -> Verdict:
    return Verdict("ambiguous", ["No evidence was gathered (verdict=False)."])


def tell(model: TransferModel) -> None:
    """Say how the fit ended, in the log, and as a warning where it should not be believed."""
    verdict = model.verdict_
    message = f"{model.translator.label}: {model.source} -> {model.target} {verdict.level}. {' '.join(verdict.reasons)}"
    if not model.doubtful:
        logger.info(message)
    else:
        warnings.warn(message, VerdictWarning, stacklevel=3)
