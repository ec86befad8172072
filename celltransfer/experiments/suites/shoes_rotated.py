"""Suite ``shoes_rotated``: edges to shoes turned by 90 degrees, from a handful of anchors.

Shoes are the sandals, sneakers and ankle boots of Fashion-MNIST. The source is the edges of one half of the training
shoes, the target the turned pictures of the other half, so that no source image has its counterpart among the target;
anchors are shoes of neither half. A convolution cannot turn an image: the `PositionMap` of the networks can, and has to
learn it. It helps every arm, as all share the networks: what differs is the loss.

The paper works in the latent space of a photograph autoencoder with four kinds of shoes; here are grey pixels and three
kinds. Its weights do not carry over, as R is a mean per output here, so options were chosen anew: on training shoes
that no fit sees, with one seed (100), by the perceptual distance to their true counterparts. Each method had twelve
configurations:

- anchored, 10 anchors: weight_structure .01, .1, .2, .5; weight_anchor 3, 10, 30; weight_inverse 0, 3; structure_start
  1, 3, 8; lr 1e-3, 2e-3; batches of 16, 32; 600 and 1,200 steps;
- CycleGAN and DIMENSION, each: weight_cycle .1, .3, 1, 3, 10; lr 1e-3, 2e-3; r1 1, 3; batches of 16, 32; the
  non-saturating and the least-squares GAN; 600 and 1,200 steps.

Used is the best one of 600 steps: .182 anchored, .245 CycleGAN, .148 DIMENSION; the best of 1,200 steps had .180, .300
and .144. Every other arm, no sparsity and the other normalisations included, takes the anchored method's options.
Without anchors most fits stay near a constant for all 600 steps, with sparsity or without, and so does one of three
with a single anchor. Their energy distance tells: they have not matched, and say nothing of what matching leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from celltransfer.data.pair import ModalityPair, dense
from celltransfer.experiments.claims import Says
from celltransfer.experiments.figures import of_first_seed, strips
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites import images
from celltransfer.experiments.tables import seconds
from celltransfer.metrics.scores import energy_distance
from celltransfer.nn.images import ImageDiscriminator, ImageMap
from celltransfer.train.loop import Trainer
from celltransfer.translators import make
from celltransfer.translators.adversarial.base import AdversarialTranslator
from celltransfer.translators.adversarial.cycle import CycleGan, Dimension
from celltransfer.translators.adversarial.jacobian import JacobianSparse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from celltransfer.experiments.tables import Column

MOST_ANCHORS = 10
# Training shoes that no fit sees, on which options were chosen.
N_DEV = 1_000
# Test shoes that are translated; as many others stand for the target's distribution.
N_TEST = 1_000
# Shoes in the picture.
N_SHOWN = 8
# How much worse a distance may be and still count as comparable.
MARGIN = 1.1


@dataclass(frozen=True)
class Sizes:
    """How large a run is: `probed` images of a batch, in `n_probes` directions each, measure the Jacobian."""

    size: int
    steps: int
    width: int
    n_probes: int
    probed: int
    decay: float


DEFAULT = Sizes(size=16, steps=600, width=16, n_probes=4, probed=4, decay=0.99)
FULL = Sizes(size=32, steps=100_000, width=64, n_probes=16, probed=16, decay=0.999)
BATCH = 16


@dataclass(frozen=True)
class Arm:
    """One row of the table: what is fitted on how many anchors, and how it differs from the method's defaults here."""

    kind: str
    k: int = 0
    norm: str = "channel"
    changes: dict[str, Any] = field(default_factory=dict)


MEAN, DIMENSION = "chance: the mean shoe", "DIMENSION, class known"
ARMS = {
    "1 anchor": Arm("jacobian", 1),
    "2 anchors": Arm("jacobian", 2),
    "5 anchors": Arm("jacobian", 5),
    "10 anchors": Arm("jacobian", 10),
    "10 anchors, no sparsity": Arm("jacobian", 10, changes={"weight_structure": 0.0}),
    "no anchor": Arm("jacobian"),
    "no anchor, no sparsity": Arm("jacobian", changes={"weight_structure": 0.0}),
    "10 anchors, instance norm": Arm("jacobian", 10, "instance"),
    "10 anchors, no norm": Arm("jacobian", 10, "none"),
    "CycleGAN": Arm("cyclegan"),
    DIMENSION: Arm("dimension"),
    "10 anchors alone, network": Arm("supervised", 10),
    "10 anchors alone, ridge": Arm("ridge", 10),
    "ceiling: all pairs": Arm("all pairs"),
    "chance: a shoe at random": Arm("random"),
    MEAN: Arm("mean"),
}
TABLE_6 = ["1 anchor", "2 anchors", "5 anchors", "10 anchors"]

_BOTH: dict[str, Any] = {"r1": 3.0, "r1_every": 4, "weight_gan": 1.0, "lr": 2e-3, "lr_discriminator": 2e-3}
_JACOBIAN: dict[str, Any] = {
    "map": "mlp",
    "init": "random",
    "weight_anchor": 3.0,
    "weight_structure": 0.1,
    "structure_start": 8.0,
    "estimator": "difference",
    "probe_size": 20,
}


class Convolutional(AdversarialTranslator):
    """Convolutional maps and discriminators on images as they are, from -1 to 1.

    Attributes
    ----------
    norm, width
        As in `ImageMap`; set before the fit.
    probed
        Images of a batch on which the Jacobian is probed.
    """

    standardised = False
    norm: str = "channel"
    width: int = 16
    probed: int = BATCH

    def make_map(self, n_in: int, n_out: int) -> nn.Module:
        """An untrained encoder and decoder."""
        return ImageMap(round(n_in**0.5), self.width, norm=self.norm)

    def make_discriminator(self, n_in: int) -> nn.Module:
        """An untrained discriminator, with an output for every condition."""
        return ImageDiscriminator(round(n_in**0.5), self.width, self.n_conditions_)


class ConvolutionalJacobian(Convolutional, JacobianSparse):
    """The anchored Jacobian-sparse translator on images."""

    def _structure(self, x: Tensor, fake: Tensor) -> Tensor:
        return super()._structure(x[: self.probed], fake[: self.probed])


class ConvolutionalCycleGan(Convolutional, CycleGan):
    """CycleGAN on images."""


class ConvolutionalDimension(Convolutional, Dimension):
    """DIMENSION on images."""


_UNMATCHED: dict[str, Any] = {"weight_gan": 0.0, "weight_structure": 0.0}
# By kind: class, and options beside those that all have.
_METHODS: dict[str, tuple[Callable[..., Convolutional], dict[str, Any]]] = {
    "jacobian": (ConvolutionalJacobian, _JACOBIAN),
    "supervised": (ConvolutionalJacobian, _JACOBIAN | _UNMATCHED),
    "all pairs": (ConvolutionalJacobian, _JACOBIAN | _UNMATCHED),
    "cyclegan": (ConvolutionalCycleGan, {"weight_cycle": 3.0}),
    "dimension": (ConvolutionalDimension, {"weight_cycle": 1.0}),
}


class ShoesRotated(Suite):
    """Edges of shoes to other shoes, turned, with few anchors and with the methods that use none."""

    name = "shoes_rotated"
    title = "Edges to turned shoes from a handful of anchors"
    reference = "Single-anchor alignment by Jacobian sparsity, section 5.2.2, tables 1 and 6."
    columns: ClassVar[Mapping[str, Column]] = {
        "perceptual distance": "perceptual",
        "TE": "te",
        "class kept": "accuracy",
        "energy distance": "energy_distance",
        "seconds": seconds,
    }

    def arms(self) -> list[str]:
        """All of them."""
        return list(ARMS)

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Translate held-out shoes by one arm and score them."""
        arm, seed, sizes = ARMS[job["arm"]], job["seed"], FULL if self.full else DEFAULT
        task = make_task(sizes.size, arm.k, seed, conditions=arm.kind == "dimension")
        translated = translations(arm, task, seed, sizes, self.device)
        shown = {"source": task.source, "truth": task.truth, "translated": translated}
        arrays = {name: rows[:N_SHOWN].astype(np.float16) for name, rows in shown.items()} if seed == 0 else {}
        return measure(translated, task), arrays

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Distances to the truth, and seeds in which a constant does better."""
        table, te = super().table(rows), rows.pivot(index="seed", columns="arm", values="te")
        worse = te.gt(te[MEAN], axis=0).sum()[table.index]
        table.insert(4, "TE above the mean shoe's", [f"{n} of {len(te)}" for n in worse])
        return table

    def says(self) -> list[Says]:
        """Table 6, the normalisation, the other methods, and what sparsity, anchors and matching add."""
        best = TABLE_6[-1]
        closer = {
            "10 anchors, no sparsity": "Sparsity helps.",
            "no anchor": "Closer than with sparsity and no anchor.",
            "no anchor, no sparsity": "Closer than by matching alone.",
            "10 anchors alone, network": "Matching helps: closer than the same network on anchors.",
        }
        return [
            Says(
                "The perceptual distance tends to fall with the number of anchors (table 6).",
                _slope,
                None,
                "<",
                0,
                what="perceptual distance a doubling",
            ),
            Says(
                "It falls at every step, from 1 to 2, 5 and 10 (table 6).", "perceptual", TABLE_6[1:], "<", TABLE_6[:-1]
            ),
            _closer(best, "10 anchors, instance norm", "Channel norm beats instance norm (section 5.2)."),
            _closer(best, "CycleGAN", "Closer to the truth than CycleGAN (table 1)."),
            Says(
                f"Comparable to DIMENSION, which knows all classes: at most {MARGIN - 1:.0%} further (table 1).",
                _over_dimension,
                None,
                "<",
                MARGIN,
                what="perceptual distance over DIMENSION's",
            ),
            *(_closer(best, arm, text) for arm, text in closer.items()),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure | None:
        """Edges, the truth, and every arm's translations of the same shoes, first seed; a row each."""
        found = of_first_seed(arrays, ARMS)
        if not found:
            return None
        first = next(iter(found.values()))
        lines = {"edges": first["source"], "truth": first["truth"]}
        lines |= {arm: values["translated"] for arm, values in found.items()}
        return strips(lines, width=0.5 * N_SHOWN + 3.0, height=0.6)


@dataclass(frozen=True)
class Task:
    """What is fitted on, and held-out shoes.

    Attributes
    ----------
    pair
        Edges and turned shoes, of different shoes but for the anchors.
    all_x, all_y
        Edges and turned shoe of every training shoe, row by row: for the ceiling.
    source, truth, labels
        Held-out shoes: edges, turned pictures, classes.
    law
        Turned pictures of other held-out shoes.
    """

    pair: ModalityPair
    all_x: np.ndarray
    all_y: np.ndarray
    source: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    law: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Rows of the shoes by their use; no shoe has two, and the anchors are always the first of one list."""

    source: np.ndarray
    target: np.ndarray
    anchors: np.ndarray
    test: np.ndarray
    law: np.ndarray


def split(is_train: np.ndarray, seed: int, *, dev: bool = False) -> Rows:
    """Draw the halves and the anchors; with `dev`, held-out shoes are those of the training set kept for choosing."""
    train, test = (np.random.default_rng(0).permutation(np.flatnonzero(part)) for part in (is_train, ~is_train))
    n_held = min(N_TEST, len(test) // 2)
    if dev:
        n_held, test = N_DEV // 2, train[:N_DEV]
    order = np.random.default_rng([seed, 90]).permutation(train[N_DEV:])
    source, target = np.array_split(order[MOST_ANCHORS:], 2)
    return Rows(source, target, order[:MOST_ANCHORS], test[:n_held], test[n_held : 2 * n_held])


def make_task(size: int, k: int, seed: int, *, conditions: bool = False, dev: bool = False) -> Task:
    """The task with the first `k` anchors of a seed; with `conditions` the classes of all shoes are known."""
    shoes, edges, turned = _shoes(size)
    rows = split(shoes.split == "train", seed, dev=dev)
    of_x, of_y = (np.concatenate([part, rows.anchors[:k]]) for part in (rows.source, rows.target))
    anchors = np.column_stack([len(rows.source) + np.arange(k), len(rows.target) + np.arange(k)])
    codes = [np.searchsorted(np.unique(shoes.labels), shoes.labels[part]) for part in (of_x, of_y)]
    names = tuple(str(value) for value in np.unique(shoes.labels))
    known: dict[str, Any] = {"condition_x": codes[0], "condition_y": codes[1], "conditions": names}
    pair = ModalityPair(edges[of_x], turned[of_y], anchors, **(known if conditions else {}))
    every = np.concatenate([rows.source, rows.target])
    held = edges[rows.test], turned[rows.test], shoes.labels[rows.test], turned[rows.law]
    return Task(pair, edges[every], turned[every], *held)


def translations(arm: Arm, task: Task, seed: int, sizes: Sizes, device: str) -> np.ndarray:
    """What an arm makes of the held-out edges, shape (n, D)."""
    pair, target = task.pair, dense(task.pair.y)
    if arm.kind == "random":
        return target[np.random.default_rng([seed, 91]).integers(len(target), size=len(task.source))]
    if arm.kind == "mean":
        return np.repeat(target.mean(axis=0, keepdims=True), len(task.source), axis=0)
    if arm.kind in ("ridge", "supervised"):
        pair = _paired(pair.anchor_x, pair.anchor_y)
    elif arm.kind == "all pairs":
        pair = _paired(task.all_x, task.all_y)
    translator = make("ridge") if arm.kind == "ridge" else make_translator(arm, sizes)
    return translator.fit_pair(pair, seed=seed, trainer=_trainer(sizes.steps, device)).translate(task.source)


def make_translator(arm: Arm, sizes: Sizes) -> Convolutional:
    """The untrained translator of an arm that has networks."""
    kind, own = _METHODS[arm.kind]
    probes = {} if kind is not ConvolutionalJacobian else {"n_probes": sizes.n_probes}
    translator = kind(**_BOTH | {"decay": sizes.decay} | own | probes | arm.changes)
    translator.norm, translator.width, translator.probed = arm.norm, sizes.width, sizes.probed
    return translator


def _trainer(steps: int, device: str) -> Trainer:
    """Exactly these steps."""
    return Trainer(
        max_steps=steps,
        batch_size=BATCH,
        patience=float("inf"),
        check_every=max(steps // 6, 1),
        device=device,
        progress=False,
    )


def measure(translated: np.ndarray, task: Task) -> Scores:
    """Distances of translations to the truth and of their distributions, and whether they keep their class."""
    classifier = _classifier(images.side(translated))
    upright, truth = images.rotate(translated, -1), images.rotate(task.truth, -1)
    error = np.sqrt(np.square(translated - task.truth).mean(axis=1))
    return {
        "te": float(error.mean()),
        "te_sd": float(error.std()),
        "perceptual": float(images.perceptual_distance(classifier, upright, truth).mean()),
        "accuracy": classifier.accuracy(upright, task.labels),
        "energy_distance": energy_distance(translated, task.law),
    }


@lru_cache(maxsize=1)
def _shoes(size: int) -> tuple[images.Shoes, np.ndarray, np.ndarray]:
    """All shoes, their edges, and the shoes turned."""
    shoes = images.load_shoes(size)
    return shoes, images.edges(shoes.images), images.rotate(shoes.images)


@lru_cache(maxsize=1)
def _classifier(size: int) -> images.Classifier:
    """One judge for all arms and seeds, trained on upright training shoes."""
    shoes, _, _ = _shoes(size)
    train = shoes.split == "train"
    return images.Classifier(epochs=3).fit(shoes.images[train], shoes.labels[train])


def _paired(x: np.ndarray, y: np.ndarray) -> ModalityPair:
    """Nothing but anchors."""
    return ModalityPair(x, y, np.column_stack([np.arange(len(x))] * 2))


def _by_seed(rows: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Perceptual distances, a row per seed and a column per arm."""
    return rows.pivot(index="seed", columns="arm", values="perceptual")[arms]


def _slope(rows: pd.DataFrame) -> pd.Series:
    """By how much the distance changes when the number of anchors doubles."""
    distances = _by_seed(rows, TABLE_6)
    doublings = np.log2([ARMS[arm].k for arm in TABLE_6])
    return pd.Series(np.polyfit(doublings, distances.to_numpy().T, 1)[0], index=distances.index)


def _over_dimension(rows: pd.DataFrame) -> pd.Series:
    distances = _by_seed(rows, [TABLE_6[-1], DIMENSION])
    return distances[TABLE_6[-1]] / distances[DIMENSION]


def _closer(arm: str, other: str, text: str) -> Says:
    """That an arm's perceptual distance is below another's, which must have matched.

    To beat an arm whose distribution is nearer a constant's than the target's shows nothing.
    """

    def unmatched(rows: pd.DataFrame) -> str:
        energy = rows.groupby("arm")["energy_distance"].mean()
        if other in energy and energy[other] > energy[MEAN] / 2:
            return f"the other has hardly matched: energy distances {energy[arm]:.2f} and {energy[other]:.2f}."
        return ""

    return Says(text, "perceptual", arm, "<", other, unless=unmatched)
