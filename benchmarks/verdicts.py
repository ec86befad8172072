"""Collect the evidence of many fits beside the hidden truth, fit the constants of the estimate, and judge it.

    python benchmarks/verdicts.py collect
    python benchmarks/verdicts.py fit
    python benchmarks/verdicts.py judge [test]

Rows are in benchmarks/results/verdicts, which `celltransfer benchmark verdicts` reads, too. `collect` adds those that
it lacks. Constants are fitted on dev cells alone. `judge` fits them anew without each dataset in turn.
"""

from __future__ import annotations

import sys
import time
import warnings
from itertools import product
from pathlib import Path

import celltransfer as ct
import numpy as np
import pandas as pd
from celltransfer.experiments.grid import load
from celltransfer.experiments.grid.rows import Results
from celltransfer.experiments.grid.verdicts import auroc, spearman
from celltransfer.markdown import markdown_table
from celltransfer.metrics import protocol
from celltransfer.verdict.estimate import (
    NEIGHBOURS,
    PRIOR_RANGE,
    Constants,
    anchor_variance,
    conclude,
    estimate,
    knn_of_foscttm,
    left_out_group,
)

_TINY = {"regime": "shared", "transductive": True, "n_components": 5}
REAL = {
    "pbmc10k_cite": ("rna", "protein", {}),
    "snare_cortex": ("rna", "atac", {}),
    "a549_scicar": ("rna", "atac", {}),
    "a549_scicar_peaks": ("rna", "atac", {}),
    "scgem": ("rna", "methylation", _TINY),
}
# Few types are near to symmetric; low depths leave little to find.
SIMULATED = {
    "simulated deep": {"rna_depth": 2000.0, "atac_depth": 2000.0},
    "simulated": {},
    "simulated shallow": {"rna_depth": 150.0, "atac_depth": 80.0},
    "simulated two types": {"n_types": 2, "n_programs": 6, "rna_depth": 800.0, "atac_depth": 800.0},
    "simulated many types": {"n_types": 12, "n_programs": 16, "rna_depth": 800.0, "atac_depth": 500.0},
}
# The prior is never taken to be better than this.
MIN_PRIOR_SPREAD = 0.08
SMALL = {"fgw": {"max_cells": 500}}
OUT = Path(__file__).parent / "results" / "verdicts"
METHODS = ("ridge", "pls", "fgw", "chance", "ridge shuffled", "fgw shuffled")  # with " shuffled": wrong anchors
ANCHORS, SEEDS = (0, 1, 3, 10, 50), (0, 1)


def data(name: str):
    if name in REAL:
        return ct.datasets.load(name), *REAL[name]
    return ct.datasets.simulate(n_obs=2000, n_genes=200, n_peaks=400, seed=7, **SIMULATED[name]), "rna", "atac", {}


def collect(part: str = "dev") -> None:
    """Add the rows that the folder lacks."""
    store = Results(OUT)
    done = store.finished()
    for name in (*REAL, *SIMULATED):
        mdata, source, target, options = data(name)
        for k, seed in product(ANCHORS, SEEDS):
            key = {"dataset": name, "regime": options.get("regime", "disjoint"), "part": part, "k": k, "seed": seed}
            todo = [m for m in METHODS if store.key(key | {"method": m}) not in done]
            try:
                task = protocol.make_task(mdata, source, target, n_anchors=k, seed=seed, part=part, **options)
            except ct.errors.AnchorError as error:  # fewer cells than anchors
                print(f"{name} k={k} left out: {error}", flush=True)
                continue
            for method in todo:
                row = one(task, method, seed)
                if row is not None:
                    about = {"status": "ok", "versions": "", "celltransfer": ct.__version__}
                    store.add(store.found([key | {"method": method} | row | about], OUT / "no cells")[0])
                    print(*key.values(), method, f"foscttm {row['foscttm']:.3f} {row['seconds']:.1f} s", flush=True)


def one(task: protocol.Task, method: str, seed: int) -> dict | None:
    """Evidence and truth of one fit; with shuffled anchors where the method's name says so."""
    name, _, wrong = method.partition(" ")
    if ct.translators.get(name).min_anchors > len(task.anchors) or (wrong and task.anchors.empty):
        return None
    anchors = _mispaired(task, seed) if wrong else task.anchors
    start = time.perf_counter()
    model = ct.fit(
        task.mdata,
        source=task.source,
        target=task.target,
        anchors=anchors,
        method=name,
        seed=seed,
        **SMALL.get(name, {}),
    )
    seconds = time.perf_counter() - start
    translated = model.translate_cells(task.source_test)
    found = protocol.score(task, translated, spearman=False)
    truth = {"foscttm": found["foscttm"], "n": task.truth.n_obs}
    ranks = found.per_cell["foscttm_source_to_target"]
    for count in (10, 50):
        truth[f"knn_accuracy@{count}"] = found[f"knn_accuracy@{count}"]
        # Of as many cells as the verdict speaks of.
        share = count / model.verdict_.evidence.get("reference_cells", 1000)
        truth[f"knn_share@{count}"] = float((ranks <= share).mean())
    if "translation_confidence" in translated.obs:
        confidence = translated.obs["translation_confidence"]
        truth["confidence_spearman"] = float(
            confidence.corr(pd.Series(found.per_cell["foscttm"], confidence.index), method="spearman")
        )
    times = {"fit_seconds": model.result_.seconds, "seconds": seconds, "verdict": model.verdict_.level}
    return truth | times | {f"evidence_{key}": value for key, value in model.verdict_.evidence.items()}


def _mispaired(task: protocol.Task, seed: int) -> pd.DataFrame:
    """The anchors with partners changed in a circle; a single one with any other target cell."""
    rng, partners = np.random.default_rng(seed), task.anchors["target_id"].to_numpy()
    order = np.roll(rng.permutation(len(partners)), 1)
    others = partners[np.roll(order, 1)][np.argsort(order)]
    if len(partners) == 1:
        others = rng.choice(task.mdata[task.target].obs_names.drop(partners), 1)
    return task.anchors.assign(target_id=others)


def evidence_of(row: pd.Series) -> dict[str, float]:
    """Evidence of one row, as a verdict has it."""
    known = {name.removeprefix("evidence_"): value for name, value in row.items() if str(name).startswith("evidence_")}
    return {name: float(value) for name, value in known.items() if np.isfinite(value)}


def fit_constants(rows: pd.DataFrame) -> Constants:
    """Constants from evidence and truth, all datasets with the same weight."""
    found = [evidence_of(row) for _, row in rows.iterrows()]
    expected, truth = rows["evidence_self_rank"].to_numpy(), rows["foscttm"].to_numpy()
    share = 1 / rows.groupby("dataset")["k"].transform("size").to_numpy()
    line = np.polyfit(expected, truth, 1, w=np.sqrt(share))
    # How far the prior is off on data that it has not seen.
    off = np.empty(len(rows))
    for name in rows["dataset"].unique():
        own = (rows["dataset"] == name).to_numpy()
        others = np.polyfit(expected[~own], truth[~own], 1, w=np.sqrt(share[~own]))
        off[own] = truth[own] - np.clip(np.polyval(others, expected[own]), *PRIOR_RANGE)
    k = rows["evidence_n_anchors"].to_numpy()
    groups = [k < 1, (k >= 1) & (k < 3), k >= 3]
    spread = [float(np.sqrt(np.average(off[g] ** 2, weights=share[g]))) if g.any() else 0.15 for g in groups]
    gaps = [_gap(rows, found, truth, share, group) for group in range(3)]
    shift, error = (tuple(round(gap[i], 3) for gap in gaps) for i in (0, 1))
    exponents, strength = zip(*(_fit_knn(rows, count) for count in NEIGHBOURS), strict=True)
    spread = [round(max(value, MIN_PRIOR_SPREAD), 3) for value in spread]
    exponents = tuple(round(value, 2) for value in exponents)
    slope, intercept = (round(float(value), 3) for value in line)
    return Constants(intercept, slope, tuple(spread), shift, error, exponents, round(min(strength)))


def _gap(rows: pd.DataFrame, found: list, truth: np.ndarray, share: np.ndarray, group: int) -> tuple[float, float]:
    """Mean of truth less left-out rank, and its standard deviation beyond that of sampling anchors."""
    of = [e["held_out_anchors"] > 0 and left_out_group(e["held_out_anchors"]) == group for e in found]
    gap, weight = (truth - rows["evidence_held_out_rank"].to_numpy())[of], share[of]
    shift = float(np.average(gap, weights=weight))
    sampling = np.array([anchor_variance(e) for e, own in zip(found, of, strict=True) if own])
    return shift, float(np.sqrt(max(np.average((gap - shift) ** 2 - sampling, weights=weight), 0.02**2)))


def _fit_knn(rows: pd.DataFrame, count: int) -> tuple[float, float]:
    """Exponent and strength of the relation of kNN accuracy to FOSCTTM."""
    truth, share = rows[f"knn_share@{count}"].to_numpy(), count / rows["evidence_reference_cells"].to_numpy()
    grid = np.linspace(0.2, 3, 57)
    curves = np.array(
        [[knn_of_foscttm(f, min(s, 1), p) for f, s in zip(rows["foscttm"], share, strict=True)] for p in grid]
    )
    losses = np.square(curves - truth).mean(axis=1)
    best = int(losses.argmin())
    return float(grid[best]), float(np.mean(curves[best] * (1 - curves[best])) / max(losses[best], 1e-6) - 1)


def judged(rows: pd.DataFrame, learn_from: pd.DataFrame) -> pd.DataFrame:
    """Estimates and levels for every row of a real dataset, by constants fitted without that dataset."""
    parts = []
    for name, own in rows.groupby("dataset", sort=False):
        constants = fit_constants(learn_from[learn_from["dataset"] != name])
        found = [(e := evidence_of(row)) | estimate(e, constants) for _, row in own.iterrows()]
        table = pd.DataFrame(found, index=own.index)
        columns = [c for c in table if c.startswith(("foscttm_", "knn_accuracy_"))]
        parts.append(own.drop(columns="verdict").join(table[columns]).assign(verdict=[conclude(e)[0] for e in found]))
    return pd.concat(parts)


def figures(rows: pd.DataFrame) -> dict[str, float]:
    """How the estimates of some fits lie beside the truth."""
    gap = rows["foscttm_estimate"] - rows["foscttm"]
    held = (rows["foscttm_low"] <= rows["foscttm"]) & (rows["foscttm"] <= rows["foscttm_high"])
    return {
        "fits": len(rows),
        "Spearman": spearman(rows, "foscttm_estimate"),
        "AUROC": auroc(rows, "foscttm_estimate"),
        "error": float(gap.abs().mean()),
        "bias": float(gap.mean()),
        "interval holds": float(held.mean()),
        "its width": float((rows["foscttm_high"] - rows["foscttm_low"]).mean()),
    }


def print_judgement(rows: pd.DataFrame) -> None:
    """How well the estimates do, and how well the dataset's own median would."""
    trivial = rows.assign(median=rows.groupby("dataset")["foscttm"].transform("median"))
    inside = [spearman(g, "foscttm_estimate") for _, g in rows.groupby(["dataset", "k"]) if len(g) > 3]
    found = {"all": figures(rows)} | {f"k = {k}": figures(g) for k, g in rows.groupby("k")}
    found |= {str(name): figures(g) for name, g in rows.groupby("dataset", sort=False)}
    _print(pd.DataFrame.from_dict(found, orient="index"))
    error = (trivial["median"] - trivial["foscttm"]).abs().mean()
    print(
        f"\nThe dataset's own median: Spearman {spearman(trivial, 'median'):.2f}, AUROC {auroc(trivial, 'median'):.2f}"
    )
    print(f"and error {error:.3f}. Spearman within dataset and k, mean of {len(inside)}: {np.nanmean(inside):.2f}.")
    near = (rows["knn_accuracy_low"] <= rows["knn_share@10"]) & (rows["knn_share@10"] <= rows["knn_accuracy_high"])
    print(f"Intervals of kNN accuracy that hold the truth: {near.mean():.0%}.\n")
    bins = pd.cut(rows["foscttm"], [0, 0.2, 0.3, 0.35, 0.45, 1], labels=["to .2", "to .3", "to .35", "to .45", "above"])
    _print(pd.crosstab(bins, rows["verdict"]).rename_axis("true FOSCTTM"))


def _print(table: pd.DataFrame) -> None:
    print("\n".join(markdown_table(table)))


def main() -> None:
    command, *more = sys.argv[1:] or ["judge"]
    warnings.simplefilter("ignore")
    if command == "collect":
        collect(*more)
        return
    rows = load(OUT)
    dev = rows[rows["part"] == "dev"]
    if command == "fit":
        print(fit_constants(dev))
        return
    real = rows[rows["dataset"].isin(REAL) & (rows["part"] == (more or ["dev"])[0])]
    print_judgement(judged(real, dev))


if __name__ == "__main__":
    main()
