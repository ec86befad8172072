"""Collect the evidence of many fits beside the hidden truth, fit the constants of the estimate, and judge it.

    python benchmarks/verdicts.py collect --out benchmarks/results/verdicts.csv
    python benchmarks/verdicts.py fit benchmarks/results/verdicts.csv
    python benchmarks/verdicts.py judge benchmarks/results/verdicts.csv

Constants are fitted on dev cells alone. `judge` fits them anew without each dataset in turn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import celltransfer as ct
import numpy as np
import pandas as pd
from celltransfer.metrics import protocol
from celltransfer.verdict.estimate import (
    NEIGHBOURS,
    PRIOR_RANGE,
    USABLE_FOSCTTM,
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
KEY = ["dataset", "part", "k", "seed", "method"]


def load(name: str):
    if name in REAL:
        return ct.datasets.load(name), *REAL[name]
    return ct.datasets.simulate(n_obs=2000, n_genes=200, n_peaks=400, seed=7, **SIMULATED[name]), "rna", "atac", {}


def collect(arguments: argparse.Namespace) -> None:
    done = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=KEY)
    known = set(done[KEY].itertuples(index=False, name=None))
    for name in arguments.datasets:
        mdata, source, target, options = load(name)
        for k in arguments.anchors:
            for seed in arguments.seeds:
                todo = [m for m in arguments.methods if (name, arguments.part, k, seed, m) not in known]
                if not todo:
                    continue
                try:
                    task = protocol.make_task(
                        mdata, source, target, n_anchors=k, seed=seed, part=arguments.part, **options
                    )
                except ct.errors.AnchorError as error:  # fewer cells than anchors
                    print(f"{name} k={k} left out: {error}", flush=True)
                    continue
                for method in todo:
                    row = one(task, method, seed)
                    if row is not None:
                        about = {"dataset": name, "part": arguments.part, "k": k, "seed": seed, "method": method}
                        append(about | row, arguments.out)


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
    times = {"fit_seconds": model.result_.seconds, "seconds": seconds, "level": model.verdict_.level}
    return truth | times | {f"e:{key}": value for key, value in model.verdict_.evidence.items()}


def _mispaired(task: protocol.Task, seed: int) -> pd.DataFrame:
    """The anchors with partners changed in a circle; a single one with any other target cell."""
    rng, partners = np.random.default_rng(seed), task.anchors["target_id"].to_numpy()
    order = np.roll(rng.permutation(len(partners)), 1)
    others = partners[np.roll(order, 1)][np.argsort(order)]
    if len(partners) == 1:
        others = rng.choice(task.mdata[task.target].obs_names.drop(partners), 1)
    return task.anchors.assign(target_id=others)


COLUMNS = [*KEY, *["n", "foscttm", "knn_accuracy@10", "knn_accuracy@50", "knn_share@10", "knn_share@50"]]
COLUMNS += ["confidence_spearman", "fit_seconds", "seconds", "level"]
EVIDENCE = [
    *["n_anchors", "reference_cells", "held_out_anchors", "held_out_rank", "held_out_sd", "held_out_near@10"],
    *["held_out_near@50", "refit_disagreement", "self_rank", "twin_disagreement", "twin_low", "twin_high"],
    *["twin_distance", "distance", "variance_ratio", "distance_ratio", "shape_ratio"],
    *["depth_agreement", "depth_explained"],
]


def append(row: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = pd.DataFrame([row]).reindex(columns=COLUMNS + [f"e:{name}" for name in EVIDENCE])
    line.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.5g")
    values = {key: row.get(f"e:{key}", np.nan) for key in ("held_out_rank", "self_rank", "twin_disagreement")}
    print(
        f"{row['dataset']:18} k={row['k']:<3} seed={row['seed']} {row['method']:14} foscttm {row['foscttm']:.3f} "
        + " ".join(f"{key} {value:.3f}" for key, value in values.items())
        + f" confidence {row.get('confidence_spearman', np.nan):+.2f} {row['fit_seconds']:.1f} {row['seconds']:.1f} s",
        flush=True,
    )


def evidence_of(row: pd.Series) -> dict[str, float]:
    """Evidence of one row, as a verdict has it."""
    known = {name.removeprefix("e:"): value for name, value in row.items() if str(name).startswith("e:")}
    return {name: float(value) for name, value in known.items() if np.isfinite(value)}


def fit_constants(rows: pd.DataFrame) -> Constants:
    """Constants from evidence and truth, all datasets with the same weight."""
    found = [evidence_of(row) for _, row in rows.iterrows()]
    expected, truth = rows["e:self_rank"].to_numpy(), rows["foscttm"].to_numpy()
    share = 1 / rows.groupby("dataset")["k"].transform("size").to_numpy()
    line = np.polyfit(expected, truth, 1, w=np.sqrt(share))
    # How far the prior is off on data that it has not seen.
    off = np.empty(len(rows))
    for name in rows["dataset"].unique():
        own = (rows["dataset"] == name).to_numpy()
        others = np.polyfit(expected[~own], truth[~own], 1, w=np.sqrt(share[~own]))
        off[own] = truth[own] - np.clip(np.polyval(others, expected[own]), *PRIOR_RANGE)
    k = rows["e:n_anchors"].to_numpy()
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
    gap, weight = (truth - rows["e:held_out_rank"].to_numpy())[of], share[of]
    shift = float(np.average(gap, weights=weight))
    sampling = np.array([anchor_variance(e) for e, own in zip(found, of, strict=True) if own])
    return shift, float(np.sqrt(max(np.average((gap - shift) ** 2 - sampling, weights=weight), 0.02**2)))


def _fit_knn(rows: pd.DataFrame, count: int) -> tuple[float, float]:
    """Exponent and strength of the relation of kNN accuracy to FOSCTTM."""
    truth, share = rows[f"knn_share@{count}"].to_numpy(), count / rows["e:reference_cells"].to_numpy()
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
        parts.append(own.drop(columns="level").join(table[columns]).assign(level=[conclude(e)[0] for e in found]))
    return pd.concat(parts)


def print_judgement(rows: pd.DataFrame) -> None:
    """How well the estimates do, and how well the dataset's own median would."""
    truth, guess = rows["foscttm"], rows["foscttm_estimate"]
    trivial = rows.groupby("dataset")["foscttm"].transform("median")
    wrong = truth > USABLE_FOSCTTM
    print("| | estimate | dataset's own median |")
    print("|---|---:|---:|")
    print(f"| Spearman, pooled | {spearman(guess, truth):.2f} | {spearman(trivial, truth):.2f} |")
    groups = [g for _, g in rows.groupby(["dataset", "k"]) if len(g) > 3]
    inside = [spearman(g["foscttm_estimate"], g["foscttm"]) for g in groups]
    print(f"| Spearman within dataset and k, mean of {len(inside)} groups | {np.nanmean(inside):.2f} | 0 |")
    print(f"| AUROC for FOSCTTM > 0.35 | {auroc(guess, wrong):.2f} | {auroc(trivial, wrong):.2f} |")
    print(f"| mean absolute error | {(guess - truth).abs().mean():.3f} | {(trivial - truth).abs().mean():.3f} |")
    for name in ("foscttm", "knn_accuracy"):
        value = truth if name == "foscttm" else rows["knn_share@10"]
        held = (rows[f"{name}_low"] <= value) & (value <= rows[f"{name}_high"])
        print(f"| intervals that hold the truth, {name} | {held.mean():.0%} | |")
    print("\n| k | fits | Spearman | AUROC | error | bias | interval holds | its width |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for k, g in rows.groupby("k"):
        gap = g["foscttm_estimate"] - g["foscttm"]
        held = (g["foscttm_low"] <= g["foscttm"]) & (g["foscttm"] <= g["foscttm_high"])
        print(
            f"| {k} | {len(g)} | {spearman(g['foscttm_estimate'], g['foscttm']):.2f} "
            f"| {auroc(g['foscttm_estimate'], g['foscttm'] > USABLE_FOSCTTM):.2f} | {gap.abs().mean():.3f} "
            f"| {gap.mean():+.3f} | {held.mean():.0%} | {(g['foscttm_high'] - g['foscttm_low']).mean():.2f} |"
        )
    print("\n| dataset | Spearman | AUROC | error | bias |")
    print("|---|---:|---:|---:|---:|")
    for name, g in rows.groupby("dataset", sort=False):
        gap = g["foscttm_estimate"] - g["foscttm"]
        print(
            f"| {name} | {spearman(g['foscttm_estimate'], g['foscttm']):.2f} "
            f"| {auroc(g['foscttm_estimate'], g['foscttm'] > USABLE_FOSCTTM):.2f} | {gap.abs().mean():.3f} "
            f"| {gap.mean():+.3f} |"
        )
    print("\n| true FOSCTTM | " + " | ".join(LEVELS) + " |\n|---|" + "---:|" * len(LEVELS))
    bins = pd.cut(truth, [0, 0.2, 0.3, 0.35, 0.45, 1], labels=["to 0.2", "to 0.3", "to 0.35", "to 0.45", "above"])
    for name, g in rows.groupby(bins, observed=True):
        print(f"| {name} | " + " | ".join(str(int((g["level"] == level).sum())) for level in LEVELS) + " |")


def spearman(a: pd.Series, b: pd.Series) -> float:
    return float(a.corr(b, method="spearman"))


def auroc(score: pd.Series, positive: pd.Series) -> float:
    """Share of pairs of a positive and a negative that the score orders rightly; NaN without both."""
    n, m = int(positive.sum()), int((~positive).sum())
    return float((score.rank()[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


LEVELS = ["identified", "ambiguous", "failed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("collect", help="add the rows that the file lacks")
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/verdicts.csv"))
    run.add_argument("--datasets", nargs="+", default=[*REAL, *SIMULATED])
    run.add_argument("--anchors", nargs="+", type=int, default=[0, 1, 3, 10, 50])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    methods = ["ridge", "pls", "fgw", "chance", "ridge shuffled", "fgw shuffled"]
    run.add_argument("--methods", nargs="+", default=methods, help='names of methods; with " shuffled": wrong anchors')
    run.add_argument("--part", choices=["dev", "test"], default="dev")
    for command, text in (("fit", "print the constants"), ("judge", "print how well they do on data left out")):
        read = commands.add_parser(command, help=text)
        read.add_argument("results", type=Path)
        read.add_argument("--part", choices=["dev", "test"], default="dev", help="cells that are judged")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.command == "collect":
        collect(arguments)
        return
    rows = pd.read_csv(arguments.results)
    dev = rows[rows["part"] == "dev"]
    if arguments.command == "fit":
        print(fit_constants(dev))
    else:
        real = rows[rows["dataset"].isin(REAL) & (rows["part"] == arguments.part)]
        print_judgement(judged(real, dev))


if __name__ == "__main__":
    main()
