"""RNA of A549 cells before dexamethasone translated to 3 h after, within one modality; against real cells of 3 h.

    python benchmarks/conditions.py run --out benchmarks/results/conditions.csv
    python benchmarks/conditions.py table benchmarks/results/conditions.csv

No cell is measured at both times, so there is no true partner. Cells are judged as a population: by their distance to
real cells of 3 h that no fit has seen, and by the genes that a Wilcoxon test calls different from real untreated cells.
All cells, translated or real, are decoded from the same components (the ceiling is also given as measured), since what
is decoded has less noise than what is measured. Every seed divides the cells anew: untreated ones into cells to fit
and cells to translate, treated ones into cells to fit, to judge by, and to take for the ceiling.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import celltransfer as ct
import numpy as np
import pandas as pd
import torch
from celltransfer.markdown import markdown_table
from celltransfer.metrics.scores import classifier_auc, energy_distance
from celltransfer.nn.flows import moments
from celltransfer.train.loop import Trainer
from celltransfer.translators.lrmf.loss import moment_map
from scipy.stats import mannwhitneyu

if TYPE_CHECKING:
    from anndata import AnnData

KEY, BEFORE, AFTER = "treatment_time", 0, 3
SEEDS = range(5)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fit and score everything")
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/conditions.csv"))
    table = commands.add_parser("table", help="print the results as Markdown")
    table.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "table":
        rows = pd.read_csv(arguments.results)
        print("\n".join([*markdown_table(summary(rows)), "", *markdown_table(paired(rows))]))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [row for seed in SEEDS for row in one_seed(seed)]
    pd.DataFrame(rows).to_csv(arguments.out, index=False, float_format="%.4g")


def one_seed(seed: int) -> list[dict[str, Any]]:
    """Scores of all methods and controls."""
    parts = divide(ct.datasets.a549_scicar_peaks()["rna"], seed)
    models = {name: fitted(parts, seed, *what) for name, what in METHODS.items()}
    recipe = next(recipe for model in models.values() for recipe in model.recipes.values())
    latent = {
        name: np.asarray(recipe.transform(cells)) for name, cells in zip(Parts._fields[1:], parts[1:], strict=True)
    }
    trained = [np.asarray(recipe.transform(cells)) for cells in parts.fit.mod.values()]
    found = {IDENTITY: latent["before"], CEILING: latent["other"]}
    found[SHIFT] = latent["before"] + trained[1].mean(0) - trained[0].mean(0)
    found[GAUSSIAN] = _gaussian(trained, latent["before"])
    notes = {}
    for name, model in models.items():
        started = time.perf_counter()
        found[name] = model.latent(parts.before)
        notes[name] = {
            "seconds": model.result_.seconds + time.perf_counter() - started,
        } | {name: model.result_.history[name][-1][1] for name in FIGURES if name in model.result_.history}
    if "sparse mixing" in models:
        found |= _decoded(models["sparse mixing"].translator, trained, latent["before"])
    real = [recipe.normalize(cells) for cells in (parts.before, parts.judge, parts.other)]
    real = [cells.toarray() if hasattr(cells, "toarray") else np.asarray(cells) for cells in real]
    truth = different(real[0], real[1])
    base = recipe.inverse_transform(latent["before"])
    rows = []
    for name, z in found.items():
        genes = different(base, recipe.inverse_transform(z))
        rows.append({"seed": seed, "method": name} | scores(z, latent, genes, truth) | notes.get(name, {}))
    genes = different(real[0], real[2])
    rows.append({"seed": seed, "method": MEASURED} | scores(latent["other"], latent, genes, truth))
    return rows


def divide(rna: AnnData, seed: int) -> Parts:
    """The cells of a seed."""
    rng = np.random.default_rng(seed)
    before, after = (rng.permutation(np.flatnonzero(rna.obs[KEY] == time)) for time in (BEFORE, AFTER))
    split, thirds = 2 * len(before) // 3, np.array_split(after, 3)
    fit = ct.pp.conditions(rna[np.concatenate([before[:split], thirds[0]])], KEY, BEFORE, AFTER)
    size = min(map(len, (before[split:], thirds[1], thirds[2])))
    return Parts(fit, *(rna[rows[:size]].copy() for rows in (before[split:], thirds[1], thirds[2])))


def fitted(parts: Parts, seed: int, method: str, options: dict[str, Any]) -> ct.TransferModel:
    """A translation of the first condition into the second."""
    trainer = Trainer(device="cpu", progress=False)
    return ct.fit(
        parts.fit, recipes="rna", anchors=0, method=method, seed=seed, trainer=trainer, verdict=False, **options
    )


def different(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed strength of the difference of every gene, -log10 p of a Wilcoxon test with the sign of b - a."""
    p = mannwhitneyu(a, b, axis=0, method="asymptotic").pvalue
    sign = np.sign(b.mean(0) - a.mean(0))
    return np.nan_to_num(sign * -np.log10(np.maximum(p, 1e-300)))


def scores(z: np.ndarray, latent: dict[str, np.ndarray], genes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
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


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds."""
    columns = {
        "energy_distance": "energy distance",
        "classifier_auc": "AUC",
        "variance_ratio": "variance ratio",
        "motion": "squared motion",
        "overlap": f"top {TOP} genes shared",
        "correlation": "correlation of gene scores",
        "seconds": "seconds",
    }
    grouped = rows.groupby("method", sort=False)[list(columns)]
    mean, sd = grouped.mean(), grouped.std()
    text = {title: [_text(m, s) for m, s in zip(mean[name], sd[name], strict=True)] for name, title in columns.items()}
    return pd.DataFrame(text, index=mean.index)


def paired(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences from the mean shift on the same cells: mean, spread, and the seeds in which it is lower."""
    columns = {"energy_distance": "energy distance", "correlation": "correlation of gene scores"}
    found: dict[str, dict[str, str]] = {}
    for name, title in columns.items():
        by_seed = rows.pivot(index="seed", columns="method", values=name)
        for method in rows["method"].unique():
            gap = (by_seed[method] - by_seed[SHIFT]).dropna()
            text = f"{gap.mean():+.3f} ± {gap.std():.2g}, lower in {(gap < 0).sum()} of {len(gap)}"
            found.setdefault(method, {})[f"{title}, against the mean shift"] = text
    return pd.DataFrame.from_dict(found, orient="index").drop(index=SHIFT).rename_axis("method")


def _text(mean: float, sd: float) -> str:
    return "" if np.isnan(mean) else f"{mean:.3g} ± {sd:.2g}"


def _gaussian(trained: list[np.ndarray], cells: np.ndarray) -> np.ndarray:
    """The affine map of least motion between the moments of the training cells."""
    known = [value.double().numpy() for side in trained for value in moments(torch.as_tensor(side))]
    w, b = moment_map(*known)
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


if __name__ == "__main__":
    main()
