"""Baselines that learn a conditional law: from pairs alone, or from pairs and unpaired cells.

All standardise inside, hold out pairs of some sources, and return the state that did best on those: by likelihood where
the law has one, by squared error for regression, and by the energy score for adversarial laws. So none overfits for
want of stopping, and all get as much care as the method they are compared with. Held-out likelihoods of few pairs hang
on their outliers, and may end training long before samples are best; ``stop_by="energy_score"`` judges densities by it,
too.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from celltransfer.errors import ConfigError
from celltransfer.experiments.suites.conditional_models import MODELS, Batch, Model
from celltransfer.train.loop import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NAMES", "Law", "fit"]

NAMES = tuple(MODELS)
# Variance below which a feature is constant.
CONSTANT = 1e-12
# Values (samples times cells times features) drawn at a time.
DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Training:
    """How long and on what to train.

    Attributes
    ----------
    steps, batch_size
        Steps at most, and cells of every kind in a step.
    held_out
        Share of the sources with pairs that stopping is judged on; 0 trains all steps on all pairs.
    check_every, patience
        Steps between checks, and checks without improvement after which training ends.
    stop_by
        ``"likelihood"``, where there is one, or ``"energy_score"``.
    """

    steps: int = 3000
    batch_size: int = 128
    held_out: float = 0.15
    check_every: int = 50
    patience: int = 20
    stop_by: str = "likelihood"


class Law:
    """A fitted conditional law of target cells given a source cell.

    Attributes
    ----------
    name
        What made it.
    steps
        The step whose state it is.
    """

    def __init__(self, name: str, model: Model, x: _Scale, y: _Scale, steps: int) -> None:
        self.name, self.steps = name, steps
        self._model, self._x, self._y = model.eval(), x, y

    @torch.no_grad()
    def sample(self, x: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
        """Draw `n` target cells for each source cell, shape (n, cells, D); `n` equal ones where it is no law."""
        rows = max(1, DRAWN_AT_ONCE // (n * len(self._y.mean)))
        with seeded(seed):
            drawn = [self._y.inverse(self._model.draw(part, n)) for part in self._x.transform(x).split(rows)]
        return torch.cat(drawn, dim=1).numpy()

    @torch.no_grad()
    def log_prob(self, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """Log densities of rows that belong together, shape (cells,); ``None`` where there is no density."""
        found = self._model.log_prob(self._x.transform(x), self._y.transform(y))
        return None if found is None else found.numpy() - float(self._y.sd.log().sum())


def fit(
    name: str, xp: np.ndarray, yp: np.ndarray, x: np.ndarray, y: np.ndarray, *, seed: int = 0, **settings: Any
) -> Law:
    """Fit a baseline.

    Parameters
    ----------
    name
        ``"regression"``, ``"mdn"`` (mixture density network) and ``"cnf"`` (conditional normalising flow) learn from
        pairs alone; ``"cgan"`` (conditional GAN) from unpaired source cells, too; ``"ugan_l2"`` (unconditional GAN and
        squared error on pairs), ``"cnf_ss"`` and ``"cgmm_ss"`` (equation 21) from everything.
    xp, yp
        Pairs, shapes (k, d) and (k, D); a source with several targets is repeated.
    x, y
        Unpaired cells, shapes (n, d) and (m, D).
    seed
        Of the split, the batches and the weights.
    **settings
        Of `Training`, and of the model.

    Raises
    ------
    ConfigError
        There is no such baseline or setting.
    """
    if name not in MODELS:
        raise ConfigError(f"There is no baseline {name!r}; there are {', '.join(NAMES)}.")
    of_training = {field.name for field in fields(Training)} & set(settings)
    training = Training(**{key: settings.pop(key) for key in of_training})
    scale_x, scale_y = _Scale.fit(np.vstack([xp, x])), _Scale.fit(np.vstack([yp, y]))
    rng = np.random.default_rng(seed)
    held = _held_out(xp, training.held_out, rng)
    pairs = scale_x.transform(xp), scale_y.transform(yp)
    train, test = ((pairs[0][rows], pairs[1][rows]) for rows in (~held, held))
    unpaired = scale_x.transform(x), scale_y.transform(y)
    with seeded(seed):
        try:
            model = MODELS[name](train[0], unpaired[1], **settings)
        except TypeError as error:
            raise ConfigError(f"Baseline {name!r} got settings {sorted(settings)}: {error}") from error
        best, steps = _train(model, _batches((*train, *unpaired), training, rng), test, training)
    return Law(name, best, scale_x, scale_y, steps)


@dataclass(frozen=True)
class _Scale:
    """Standard units and back."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def fit(cls, points: np.ndarray) -> _Scale:
        variance = points.var(axis=0, dtype=np.float64)
        sd = np.sqrt(np.where(variance > CONSTANT, variance, 1.0))
        return cls(_tensor(points.mean(axis=0, dtype=np.float64)), _tensor(sd))

    def transform(self, points: np.ndarray) -> Tensor:
        return (_tensor(points) - self.mean) / self.sd

    def inverse(self, points: Tensor) -> Tensor:
        return points * self.sd + self.mean


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))


def _held_out(xp: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Pairs whose source is held out, with all of that source's targets: truth values, shape (k,)."""
    _, source = np.unique(xp, axis=0, return_inverse=True)
    n = int(source.max()) + 1
    held = rng.permutation(n)[: min(max(int(round(share * n)), 1), n - 1) if share > 0 else 0]
    return np.isin(source.ravel(), held)


def _batches(data: tuple[Tensor, ...], training: Training, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches of pairs and, independently of them and of each other, of unpaired source and target cells."""
    xp, yp, x, y = data
    while True:
        pairs, source, target = (_rows(len(part), training.batch_size, rng) for part in (xp, x, y))
        yield Batch(xp[pairs], yp[pairs], x[source], y[target])


def _rows(n: int, size: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(np.arange(n) if n <= size else rng.choice(n, size, replace=False))


def _train(
    model: Model, batches: Iterator[Batch], test: tuple[Tensor, Tensor], training: Training
) -> tuple[Model, int]:
    """The state that did best on the held-out pairs, or the last where none are held out, and its step."""
    x, y = test
    best, best_score, best_step = model, float("inf"), training.steps
    for step in range(1, training.steps + 1):
        model.step(next(batches))
        if step % training.check_every or not len(x):
            continue
        model.eval()
        score = model.held_out_score(x, y, training.stop_by)
        model.train()
        if score < best_score:
            best, best_score, best_step = deepcopy(model), score, step
        elif step - best_step >= training.patience * training.check_every and best is not model:
            break
    return best, best_step
