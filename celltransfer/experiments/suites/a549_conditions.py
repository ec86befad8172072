"""Suite ``a549_conditions``: RNA of A549 cells before dexamethasone to 3 h after, within one modality.

No cell is measured at both times, so there is no true partner. Cells are judged as a population: by their distance to
real cells of 3 h that no fit has seen, and by the genes that a Wilcoxon test calls different from real untreated cells.
All cells, translated or real, are decoded from the same components (the ceiling is also given as measured), since what
is decoded has less noise than what is measured. Every seed divides the cells anew: untreated ones into cells to fit
and cells to translate, treated ones into cells to fit, to judge by, and to take for the ceiling.

Claims were stated when its rows were there.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from celltransfer import datasets, pp
from celltransfer.api import fit
from celltransfer.experiments.claims import Says
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.metrics.scores import classifier_auc, energy_distance
from celltransfer.nn.flows import moments
from celltransfer.train.loop import Trainer
from celltransfer.translators.lrmf.loss import moment_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from celltransfer.experiments.tables import Column
    from celltransfer.model.model import TransferModel

KEY, BEFORE, AFTER = "treatment_time", 0, 3
# Genes called different: so many of either list with the smallest p-values.
TOP = 50
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dont": ("dont", {}),
    "dont, GAN": ("dont", {"discrepancy": "gan"}),
    "dont, Sinkhorn": ("dont", {"discrepancy": "sinkhorn"}),
    "sparse mixing": ("sparse_mixing", {"shared": True}),
    "sparse mixing, GAN": ("sparse_mixing", {"shared": True, "form": "gan"}),
}
# Figures of a fit that are kept where its history has them.
FIGURES = ("arrived", "round_trip", "lipschitz")
# The same autoencoder, moved by the difference of mean latents (as scGen does) or by ours; with and without what it
# does not explain of a cell.
ARITHMETIC, ARITHMETIC_KEPT = "arithmetic in the same autoencoder, decoded alone", "arithmetic, with the residual"
DECODED = "sparse mixing, decoded alone"
IDENTITY, SHIFT, GAUSSIAN = "control: identity", "mean shift (latent arithmetic)", "gaussian transport"
CEILING, MEASURED = "control: other real cells, decoded", "control: other real cells, as measured"


class Parts(NamedTuple):
    """Cells of one seed."""

    fit: Any
    before: AnnData
    judge: AnnData
    other: AnnData


class Ground(NamedTuple):
    """What all methods of a seed share: cells, recipe, components of cells to translate, judge by and compare with."""

    parts: Parts
    recipe: Any
    latent: dict[str, np.ndarray]
    trained: list[np.ndarray]
    real: list[np.ndarray]


class A549Conditions(Suite):
    """Translators of conditions, latent arithmetic, and controls."""

    name = "a549_conditions"
    title = "RNA of A549 before dexamethasone to 3 h after, against real cells"
    reference = "Ours: dynamic optimal neural translation and sparse mixing, on cells of which none is measured twice."
    seeds = 5
    by = ("method",)
    columns: ClassVar[Mapping[str, Column]] = {
        "energy distance": "energy_distance",
        "AUC": "classifier_auc",
        "variance ratio": ("variance_ratio", 2),
        "squared motion": ("motion", 2),
        f"top {TOP} genes shared": "overlap",
        "correlation of gene scores": "correlation",
        "seconds of the fit": ("fit_seconds", 1),
    }

    def arms(self) -> list[str]:
        """Controls, rivals and methods."""
        return [IDENTITY, CEILING, SHIFT, GAUSSIAN, *METHODS, ARITHMETIC, ARITHMETIC_KEPT, DECODED, MEASURED]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Translate cells of a seed by one method, and hold them against the cells to judge by."""
        method, ground = job["method"], prepared(job["seed"])
        truth = different(ground.real[0], ground.real[1])
        notes: Scores = {}
        if method == MEASURED:
            z, genes = ground.latent["other"], different(ground.real[0], ground.real[2])
        else:
            z, notes = translated(method, ground, job["seed"])
            base = ground.recipe.inverse_transform(ground.latent["before"])
            genes = different(base, ground.recipe.inverse_transform(z))
        return scores(z, ground.latent, genes, truth) | notes, {}

    def says(self) -> list[Says]:
        """Against the rival that needs no training."""
        methods = [(name,) for name in METHODS]
        return [
            Says(
                "Every method is nearer to treated cells than no motion.",
                "energy_distance",
                methods,
                "<",
                [(IDENTITY,)] * len(methods),
            ),
            *(Says(f"{name} is nearer than the mean shift.", "energy_distance", name, "<", SHIFT) for name in METHODS),
            *(Says(f"{name} ranks genes better.", "correlation", name, ">", SHIFT) for name in METHODS),
        ]


@lru_cache(maxsize=1)
def prepared(seed: int) -> Ground:
    """What methods of a seed share; the recipe is that of every fit."""
    parts = divide(datasets.load("a549_scicar_peaks")["rna"], seed)
    recipe = next(iter(fitted(seed, "chance", {}, parts).recipes.values()))
    named = zip(Parts._fields[1:], parts[1:], strict=True)
    latent = {name: np.asarray(recipe.transform(cells)) for name, cells in named}
    trained = [np.asarray(recipe.transform(cells)) for cells in parts.fit.mod.values()]
    real = [recipe.normalize(cells) for cells in (parts.before, parts.judge, parts.other)]
    return Ground(
        parts, recipe, latent, trained, [x.toarray() if hasattr(x, "toarray") else np.asarray(x) for x in real]
    )


def translated(method: str, ground: Ground, seed: int) -> tuple[np.ndarray, Scores]:
    """Components of the translated cells, and what is to be said of the fit."""
    before, trained = ground.latent["before"], ground.trained
    simple = {
        IDENTITY: lambda: before,
        CEILING: lambda: ground.latent["other"],
        SHIFT: lambda: before + trained[1].mean(0) - trained[0].mean(0),
        GAUSSIAN: lambda: _gaussian(trained, before),
    }
    if method in simple:
        return simple[method](), {}
    if method not in METHODS:
        return _decoded(_model(seed, "sparse mixing").translator, trained, before)[method], {}
    model = _model(seed, method)
    started = time.perf_counter()
    z = model.latent(ground.parts.before)
    history = model.result_.history
    notes: Scores = {name: history[name][-1][1] for name in FIGURES if name in history}
    return z, notes | {"fit_seconds": model.result_.seconds + time.perf_counter() - started}


@lru_cache(maxsize=1)
def _model(seed: int, name: str) -> TransferModel:
    return fitted(seed, *METHODS[name], prepared(seed).parts)


def divide(rna: AnnData, seed: int) -> Parts:
    """The cells of a seed."""
    rng = np.random.default_rng(seed)
    before, after = (rng.permutation(np.flatnonzero(rna.obs[KEY] == time)) for time in (BEFORE, AFTER))
    split, thirds = 2 * len(before) // 3, np.array_split(after, 3)
    fit = pp.conditions(rna[np.concatenate([before[:split], thirds[0]])], KEY, BEFORE, AFTER)
    size = min(map(len, (before[split:], thirds[1], thirds[2])))
    return Parts(fit, *(rna[rows[:size]].copy() for rows in (before[split:], thirds[1], thirds[2])))


def fitted(seed: int, method: str, options: dict[str, Any], parts: Parts) -> TransferModel:
    """A translation of the first condition into the second."""
    trainer = Trainer(device="cpu", progress=False)
    return fit(parts.fit, recipes="rna", anchors=0, method=method, seed=seed, trainer=trainer, verdict=False, **options)


def different(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed strength of the difference of every gene, -log10 p of a Wilcoxon test with the sign of b - a."""
    p = mannwhitneyu(a, b, axis=0, method="asymptotic").pvalue
    sign = np.sign(b.mean(0) - a.mean(0))
    return np.nan_to_num(sign * -np.log10(np.maximum(p, 1e-300)))


def scores(z: np.ndarray, latent: dict[str, np.ndarray], genes: np.ndarray, truth: np.ndarray) -> Scores:
    """Distance to the cells to judge by, motion, and how well different genes are recovered."""
    top = [set(np.argsort(-np.abs(strength))[:TOP]) for strength in (genes, truth)]
    both = sorted(top[0] & top[1])
    spread = float(latent["judge"].var(0).sum())
    return {
        "energy_distance": energy_distance(z, latent["judge"]),
        "classifier_auc": classifier_auc(z, latent["judge"]),
        "variance_ratio": float(z.var(0).sum()) / spread,
        "motion": float(np.square(z - latent["before"]).sum(1).mean()) / spread
        if len(z) == len(latent["before"])
        else np.nan,
        "overlap": sum(np.sign(genes[g]) == np.sign(truth[g]) for g in both) / TOP,
        "correlation": float(
            np.corrcoef(np.sign(genes) * np.sqrt(np.abs(genes)), np.sign(truth) * np.sqrt(np.abs(truth)))[0, 1]
        )
        if genes.any()
        else 0.0,
    }


def _gaussian(trained: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
    """The affine map of least motion between the moments of the training cells."""
    (mean, covariance), (mean_y, covariance_y) = (
        [value.double().numpy() for value in moments(torch.as_tensor(side))] for side in trained
    )
    w, b = moment_map(mean, covariance, mean_y, covariance_y)
    return (cells @ w.T + b).astype(np.float32)


def _decoded(translator: Any, trained: list[np.ndarray], cells: np.ndarray) -> dict[str, np.ndarray]:
    """Cells moved by the difference of the conditions' mean latents (Lotfollahi et al. 2019) and by ours, decoded."""
    net = translator.module_
    side = net.side(0)
    with torch.no_grad():
        z, before, after = (side.encode(torch.as_tensor(x))[0] for x in (cells, *trained))
        here, there = (net.domain(m, None, len(cells)) for m in (0, 1))
        shifted = side.expected(z + after.mean(0) - before.mean(0)).numpy()
        return {
            ARITHMETIC: shifted,
            ARITHMETIC_KEPT: cells + shifted - side.expected(z).numpy(),
            DECODED: side.expected(net.latents.moved(z, here, there)).numpy(),
        }
