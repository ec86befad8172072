"""Suite ``alignment_controls``: how often the alignment verdict is right, on real cells made unlike on purpose.

Two disjoint samples of one modality stand for source and target, and the source is distorted: in ways that a map can
undo (positive controls) and in ways that none can (negative controls). Each trial is fitted as a user would
(`celltransfer.fit` with method "lrmf"), and the verdict is the model's. The method "identity" is the same with a map
that cannot move, so that no estimate of a map comes between the construction and the verdict. A last part asks
`celltransfer.alignment` about other methods' translations of RNA to protein.

Truth is found without the verdict's cells, cut-offs or figures, from 750 fresh source cells, distorted and translated
alike, and 1,500 fresh target cells (300 and 600 for other methods). Four distances are taken: the energy distance of
all features at variance 1, that of whitened features, the same with a kernel as wide as half the way to the fifth
neighbour, which sees detail, and the energy distance of the feature that differs most. Each is divided by the 95 %
quantile that random halves of the fresh target cells reach, and a trial is aligned in truth where no such `excess` is
above 2. Between 0 and 2 lie small differences, too, that more cells would show. Claims were stated when its
rows were there.
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.spatial.distance import cdist

from celltransfer import datasets, pp
from celltransfer.api import fit
from celltransfer.data.pair import dense
from celltransfer.experiments.claims import Says, share
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.tables import first
from celltransfer.metrics import protocol
from celltransfer.metrics.scores import energy_distance
from celltransfer.train.loop import Trainer
from celltransfer.verdict import translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celltransfer.experiments.tables import Column
    from celltransfer.verdict.alignment import Alignment

# Data set, modality and number of components of every space; the first of ATAC goes with depth and is dropped.
SPACES = {
    "protein": ("pbmc10k_cite", "protein", None),
    "rna": ("pbmc10k_cite", "rna", 15),
    "atac": ("snare_cortex", "atac", 16),
}
# Whose cells stand in for the source's in the arm "other data".
OTHER = {"protein": "atac", "rna": "atac", "atac": "rna"}
ARMS = [
    *["none", "scale and shift", "affine, anchors", "affine", "bend"],
    *["type missing", "composition", "shuffled features", "other data", "noise"],
]
METHODS = ["ridge", "chance", "fgw", "ieot"]
AUTO_ARMS = ["none", "bend", "type missing"]
IDENTITY_ARMS = ["none", "type missing", "composition", "noise"]
# A map that starts at the identity and learns nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "lrmf gaussian": {"density": "gaussian"},
    "lrmf auto": {},
    "identity": {"density": "gaussian", "start": "identity", "lr": 0.0, "trainer": Trainer(max_steps=1)},
}
# Share of the cells that are of the missing type, nearly.
MISSING = 0.2
FIT, FRESH, ANCHORS = 1500, 750, 30
# Anchors of the methods that translate RNA to protein.
METHOD_ANCHORS = 50
NEIGHBOUR = 5
QUANTILE, TOLERANCE, NULL_SPLITS = 0.95, 2.0, 200
EXCESS = ["excess_joint", "excess_white", "excess_local", "excess_feature"]
LEVELS = ["aligned", "cannot be told", "not aligned"]


class AlignmentControls(Suite):
    """Maps of a modality to itself, undistorted and distorted, and other methods' translations."""

    name = "alignment_controls"
    title = "How often the alignment verdict is right"
    reference = "Ours: positive and negative controls of celltransfer.alignment, by construction."
    by = ("space", "method", "arm")
    columns: ClassVar[Mapping[str, Column]] = {
        "method": first("method"),
        "arm": first("arm"),
        "truly aligned": lambda group: f"{group['aligned'].sum()} of {len(group)}",
        **{
            name: partial(lambda name, group: _spread(group[name]), name) for name in (*EXCESS, "auc", "distance_share")
        },
        **{level: partial(lambda level, group: int((group["level"] == level).sum()), level) for level in LEVELS},
    }

    def jobs(self, seeds: int | None) -> list[Job]:
        """Maps of protein with every seed; the slow ones and other methods with two, other spaces with one."""
        found: list[tuple[str, str, str, int]] = []
        for seed in range(seeds or 5):
            own = [("protein", "identity", arm) for arm in IDENTITY_ARMS]
            own += [("protein", "lrmf gaussian", arm) for arm in ARMS]
            if seed < 2:
                own += [("rna to protein", method, "translated") for method in METHODS]
                own += [("protein", "lrmf auto", arm) for arm in AUTO_ARMS]
            if seed < 1:
                own += [(space, "identity", arm) for space in ("rna", "atac") for arm in IDENTITY_ARMS]
                own += [(space, "lrmf gaussian", arm) for space in ("rna", "atac") for arm in ARMS]
            found += [(*arm, seed) for arm in own]
        return [dict(zip((*self.by, "seed"), values, strict=True)) for values in found]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Verdict and truth of one trial."""
        if job["method"] in OPTIONS:
            return score_map(job["space"], job["method"], job["arm"], job["seed"]), {}
        return score_method(job["method"], job["seed"]), {}

    def says(self) -> list[Says]:
        """What a verdict is for: it is right more often than a coin, on either side of the truth."""
        right = partial(Says, arm=None, sense=">", than=0.5, what="right in")
        return [
            right(f"{name}: sets that are {words} in truth are called so.", figure=partial(_right, method, truth))
            for method, name in (("identity", "no map"), ("lrmf gaussian", "lrmf, Gaussian"))
            for truth, words in ((True, LEVELS[0]), (False, LEVELS[2]))
        ]


def _right(method: str, aligned: bool, rows: pd.DataFrame) -> pd.Series:
    own = rows[(rows["method"] == method) & (rows["aligned"].astype(bool) == aligned)]
    return own["level"] == (LEVELS[0] if aligned else LEVELS[2])


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdicts by method and truth, with the exact interval of the share that is right."""
    kind = rows["method"].where(rows["method"].isin(list(OPTIONS)), "others")
    lines = []
    for (name, truth), own in rows.groupby([kind, "aligned"], sort=False):
        words = LEVELS[0] if truth else LEVELS[2]
        right = own["level"] == words
        low, high = share(right)
        counts = {level: int((own["level"] == level).sum()) for level in LEVELS}
        lines.append(
            {"method": name, "in truth": words, "trials": len(own)}
            | counts
            | {"right": f"{right.mean():.0%} ({low:.0%} to {high:.0%})"}
        )
    return pd.DataFrame(lines).set_index("method")


def _spread(values: pd.Series) -> str:
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


@cache
def cells_of(space: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of all cells of a space, shape (n, d), and their cell types."""
    dataset, modality, n_components = SPACES[space]
    adata = datasets.load(dataset)[modality]
    recipe = getattr(pp, modality)(**({} if n_components is None else {"n_components": n_components}))
    return dense(recipe.fit(adata).transform(adata)).astype(np.float64), adata.obs["cell_type"].to_numpy(dtype=str)


class Trial(NamedTuple):
    """Distorted source cells and target cells, fit ones first; the first `k` of both are the same cells."""

    source: np.ndarray
    target: np.ndarray
    k: int


def make_trial(space: str, arm: str, seed: int) -> Trial:
    """Cells of one trial."""
    rng = np.random.default_rng([seed, ARMS.index(arm)])
    cells, types = cells_of(space)
    order = rng.permutation(len(cells))
    n_target = FIT + 2 * FRESH  # halves of the fresh ones are as many as fresh source cells
    target, pool = order[:n_target], order[n_target:]
    pool = pool[_kept(arm, types, pool, rng)]
    pool = pool[: FIT + FRESH]
    k = ANCHORS if arm == "affine, anchors" else 0
    pool[:k] = target[:k]
    source = _others(space, len(pool), rng) if arm == "other data" else cells[pool]
    return Trial(distort(source, arm, rng), cells[target], k)


def _kept(arm: str, types: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which source cells are there: without one type, or with half the cells of every other type."""
    names, counts = np.unique(types, return_counts=True)
    if arm == "type missing":
        return types[pool] != names[np.abs(counts / len(types) - MISSING).argmin()]
    if arm == "composition":
        thinned = np.isin(types[pool], names[np.argsort(-counts)][1::2])
        return ~thinned | (rng.random(len(pool)) < 0.5)
    return np.ones(len(pool), dtype=bool)


def _others(space: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Cells of another data set in as many features, with the means and variances of the space's own."""
    own, others = cells_of(space)[0], cells_of(OTHER[space])[0][:, : cells_of(space)[0].shape[1]]
    others = (others - others.mean(axis=0)) / others.std(axis=0) * own.std(axis=0) + own.mean(axis=0)
    return others[rng.choice(len(others), n, replace=False)]


def distort(x: np.ndarray, arm: str, rng: np.random.Generator) -> np.ndarray:
    """The same for every cell, fresh ones too."""
    d, mean, sd = x.shape[1], x.mean(axis=0), x.std(axis=0)
    z = (x - mean) / sd
    if arm == "scale and shift":
        z = z * np.exp(rng.uniform(-0.7, 0.7, d)) + rng.normal(size=d)
    elif arm.startswith("affine"):
        left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
        z = z @ left @ np.diag(np.exp(rng.uniform(-0.5, 0.5, d))) @ right + rng.normal(size=d)
    elif arm == "bend":
        # Slopes from 0.35 to 1.65, to either side: smooth, increasing, and far from a line.
        z = z + rng.choice([-1, 1], d) * 0.65 * np.log(np.cosh(z))
    elif arm == "shuffled features":
        z = rng.permuted(z, axis=0)
    elif arm == "noise":
        z = z + rng.normal(size=z.shape)
    return z * sd + mean


def score_map(space: str, method: str, arm: str, seed: int) -> Scores:
    """Verdict and truth of one fit."""
    trial = make_trial(space, arm, seed)
    a, b = (_anndata(side[:FIT], prefix) for side, prefix in ((trial.source, "a"), (trial.target, "b")))
    pairs = pd.DataFrame({"source_id": a.obs_names[: trial.k], "target_id": b.obs_names[: trial.k]})
    start = time.perf_counter()
    model = fit(
        MuData({"a": a, "b": b}),
        source="a",
        target="b",
        anchors=pairs if trial.k else 0,
        method="lrmf",
        recipes={"a": "none", "b": "none"},
        seed=seed,
        **OPTIONS[method],
    )
    seconds = time.perf_counter() - start
    translated = model.latent(_anndata(trial.source[FIT:], "fresh"))
    assert model.alignment_ is not None  # lrmf tests it
    return _row(model.alignment_, translated, trial.target[FIT:], seed) | {"k": trial.k, "fit_seconds": seconds}


def score_method(method: str, seed: int) -> Scores:
    """The same for `celltransfer.alignment` of another method; half the test cells are for the verdict."""
    mdata = datasets.load("pbmc10k_cite")
    task = protocol.make_task(mdata, "rna", "protein", n_anchors=METHOD_ANCHORS, seed=seed)
    rng = np.random.default_rng(seed)
    model = fit(
        task.mdata, source="rna", target="protein", anchors=task.anchors, method=method, seed=seed, verdict=False
    )
    # No cell gives both its source and its target, as in the fit.
    order, n = rng.permutation(task.truth.n_obs), task.truth.n_obs
    seen_x, seen_y, fresh_x, fresh_y = np.split(order, [n // 5, 2 * n // 5, 3 * n // 5])
    start = time.perf_counter()
    asked = MuData({"rna": task.source_test[seen_x].copy(), "protein": task.truth[seen_y].copy()})
    found = translated.alignment(model, asked, seed=seed)
    seconds = time.perf_counter() - start
    target = dense(model.recipes["protein"].transform(task.truth[fresh_y]))
    row = _row(found, model.latent(task.source_test[fresh_x]), target, seed)
    return row | {"k": METHOD_ANCHORS, "fit_seconds": seconds}


def _anndata(x: np.ndarray, prefix: str) -> AnnData:
    return AnnData(x.astype(np.float32), obs=pd.DataFrame(index=[f"{prefix}{i}" for i in range(len(x))]))


def _row(found: Alignment, translated: np.ndarray, target: np.ndarray, seed: int) -> Scores:
    excess = oracle(translated, target, seed)
    most = max(excess.values())
    verdict = {"level": found.level, "cause": found.cause, "family": found.family}
    return found.evidence | verdict | excess | {"excess": most, "aligned": most <= TOLERANCE}


def oracle(translated: np.ndarray, target: np.ndarray, seed: int) -> dict[str, float]:
    """Energy distances to fresh target cells, in what random halves of these reach at most, 95 times of 100."""
    rng, n = np.random.default_rng(seed), len(target)
    halves = np.zeros((NULL_SPLITS, n))
    for row in halves:
        row[rng.permutation(n)[: n // 2]] = 1
    centre, sd = target.mean(axis=0), target.std(axis=0)
    a, b = ((side - centre) / sd for side in (translated, target))
    values, vectors = np.linalg.eigh(np.cov(b.T))
    white = vectors / np.sqrt(values)
    joint = _joint(a, b, halves), _joint(a @ white, b @ white, halves), _joint(a @ white, b @ white, halves, local=True)
    return dict(zip(EXCESS, [*joint, _feature(a, b, halves)], strict=True))


def _joint(a: np.ndarray, b: np.ndarray, halves: np.ndarray, *, local: bool = False) -> float:
    of_b, across, of_a = (cdist(*sides) for sides in ((b, b), (a, b), (a, a)))
    if local:
        width = np.median(np.partition(of_b, NEIGHBOUR, axis=1)[:, NEIGHBOUR]) / 2
        of_b, across, of_a = (1 - np.exp(-((d / width) ** 2) / 2) for d in (of_b, across, of_a))
    n, m, half = len(a), len(b), len(b) // 2
    to_half = halves @ of_b
    one, between = (to_half * halves).sum(axis=1), (to_half * (1 - halves)).sum(axis=1)
    other = of_b.sum() - one - 2 * between
    rest = m - half
    null = 2 * between / (half * rest) - one / (half * (half - 1)) - other / (rest * (rest - 1))
    found = 2 * across.mean() - of_a.sum() / (n * (n - 1)) - of_b.sum() / (m * (m - 1))
    return float(found / np.quantile(null, QUANTILE))


def _feature(a: np.ndarray, b: np.ndarray, halves: np.ndarray) -> float:
    """Of the feature that stands out most; in one dimension the energy distance is twice the integral of (F - G)^2."""
    null, found = [], []
    for j, column in enumerate(b.T):
        order = np.argsort(column)
        one, other = (np.cumsum(h[:, order], axis=1) / h.sum(axis=1, keepdims=True) for h in (halves, 1 - halves))
        distance = 2 * (one - other)[:, :-1] ** 2 @ np.diff(column[order])
        null.append((distance - distance.mean()) / distance.std())
        found.append(energy_distance(a[:, [j]], b[:, [j]]) / distance.std())
    return max(found) / float(np.quantile(np.max(null, axis=0), QUANTILE))
