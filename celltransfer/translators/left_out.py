"""The guard: whether matching helps beyond the start it begins from, asked of anchors that are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.train.outcome import Status
from celltransfer.translators.baselines import column_means

if TYPE_CHECKING:
    from celltransfer.train.loop import Trainer
    from celltransfer.train.stopping import Clock
    from celltransfer.translators.base import Translator

# Anchors from which the guard works, and its folds.
FEWEST_ANCHORS, FOLDS = 6, 3
# Target cells among which a left-out partner is ranked.
RANK_CELLS = 1000


def gains(translator: Translator, pair: ModalityPair, seed: int, trainer: Trainer, clock: Clock) -> np.ndarray:
    """The start's rank of every left-out anchor's partner minus the matched map's, shape (k,); > 0: match.

    Parameters
    ----------
    translator
        Says method and options; fits of its own kind are made with ``guard=False``.
    pair, seed, trainer
        As for the fit.
    clock
        Its time is divided among the trials and the fit that follows.
    """
    folds = np.array_split(np.random.default_rng(seed).permutation(pair.n_anchors), FOLDS)
    quiet = unsaved(trainer)
    found = []
    for i, fold in enumerate(folds):
        limited = replace(quiet, max_seconds=clock.share(FOLDS + 1 - i))
        before = _trial_ranks(translator, pair, fold, seed, replace(quiet, max_steps=0))
        found.append(before - _trial_ranks(translator, pair, fold, seed, limited))
    return np.concatenate(found)


def partner_ranks(prediction: np.ndarray, y: Matrix, partners: np.ndarray) -> np.ndarray:
    """Share of other target cells whose direction from the mean is nearer to each prediction than its partner's, (k,).

    Ties count half, so that a prediction that says nothing is at 0.5.
    """
    rows = np.unique(np.concatenate([partners, np.linspace(0, y.shape[0] - 1, RANK_CELLS).astype(int)]))
    mean = column_means(y)
    cells, prediction = dense(y[rows]) - mean, prediction - mean
    cells = cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1e-12)
    scores = prediction @ cells.T
    own = np.take_along_axis(scores, np.searchsorted(rows, partners)[:, None], axis=1)
    nearer, as_near = (scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1
    return np.asarray((nearer + as_near / 2) / max(len(rows) - 1, 1))


def finished(fitted: Translator) -> Translator:
    """The fit itself; raises where the user has interrupted it, as others were to build on it."""
    if fitted.result_.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return fitted


def unsaved(trainer: Trainer) -> Trainer:
    """The same without checkpoints and progress, for what is no part of the fit proper."""
    return replace(trainer, checkpoint_dir=None, resume=False, progress=False)


def _trial_ranks(
    translator: Translator, pair: ModalityPair, left_out: np.ndarray, seed: int, trainer: Trainer
) -> np.ndarray:
    """Ranks of the left-out anchors' partners after a fit without them; the worst, 1, where it diverged."""
    kept = replace(pair, anchors=np.delete(pair.anchors, left_out, axis=0))
    trial = type(translator)(**translator.get_config() | {"guard": False}).fit_pair(kept, seed=seed, trainer=trainer)
    if finished(trial).result_.status is Status.DIVERGED:
        return np.ones(len(left_out))
    x, y = pair.anchors[left_out].T
    return partner_ranks(trial.translate(pair.x[x]), pair.y, y)
