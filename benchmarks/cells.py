"""Score translators and controls on real co-assayed cells whose pairing is hidden.

For every dataset, number of anchors and seed: hide the pairing (`celltransfer.metrics.protocol.make_task`), fit each
method on the anchors and the unpaired cells, and score it on the held-out cells next to all controls. Rows that the
results file already has are skipped, so an interrupted run goes on where it stopped.

    python benchmarks/cells.py run --out benchmarks/results/cells.csv
    python benchmarks/cells.py table benchmarks/results/cells.csv
    python benchmarks/cells.py curve benchmarks/results/cells.csv benchmarks/results/jacobian.csv --out curve.png
    python benchmarks/cells.py compare ieot ridge
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import celltransfer as ct
import numpy as np
import pandas as pd
from celltransfer.law import LEVELS, Calibration
from celltransfer.metrics import bootstrap, protocol
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

# Dataset, source, target and what the protocol needs to know; scgem is too small to hold cells out.
_TIME = {"labels": "treatment_time"}
_TINY = {"labels": "cell_type", "regime": "shared", "transductive": True, "n_components": 5}
DATASETS = {
    "pbmc10k_cite": ("pbmc10k_cite", "rna", "protein", {"labels": "cell_type"}),
    "a549_scicar": ("a549_scicar", "rna", "atac", _TIME),
    "a549_scicar+time": ("a549_scicar", "rna", "atac", _TIME | {"condition": "treatment_time"}),
    "a549_scicar_peaks": ("a549_scicar_peaks", "rna", "atac", _TIME),
    "snare_cortex": ("snare_cortex", "rna", "atac", {"labels": "cell_type"}),
    "scgem": ("scgem", "rna", "methylation", _TINY),
}
METHODS = ["jacobian", "ridge", "pls", "fgw"]
# Options of methods run under a name of their own: the closed form of likelihood-ratio flows; inverse entropic OT as
# in the paper, and from there to ours.
_JOINT = {"potential": "joint", "weight_unpaired": 1.0}
_PAPER = _JOINT | {"towers": "mlp", "penalty": 0.0, "n_potential": 50, "n_cost": 25, "lr": 1e-3}
VARIANTS = {
    "ieot (paper)": ("ieot", _PAPER | {"optimizers": "two"}),
    "ieot (paper, one optimiser)": ("ieot", _PAPER),
    "ieot (linear, lambda 1)": ("ieot", _JOINT | {"penalty": 0.0, "n_potential": 20}),
    "ieot (linear, lambda 1, penalty)": ("ieot", _JOINT | {"n_potential": 20}),
    "ieot (joint)": ("ieot", {"potential": "joint"}),
    "lrmf (gaussian)": ("lrmf", {"density": "gaussian"}),
    "ieot (anchors only)": ("ieot", {"weight_unpaired": 0.0, "n_potential": 20, "potential": "joint"}),
}
STEPS = {"ieot (paper)": 3000, "ieot (paper, one optimiser)": 3000}
SCORES = [
    "foscttm",
    "foscttm_source_to_target",
    "foscttm_target_to_source",
    "knn_accuracy@10",
    "knn_accuracy@50",
    "knn_accuracy_cmae@50",
    "label_transfer_accuracy",
    "foscttm_within_label",
    "foscttm_depth_regressed",
    "energy_distance",
    "classifier_auc",
]
KEY = ["dataset", "part", "k", "seed", "method"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="score what the results file lacks")
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/cells.csv"))
    run.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    run.add_argument(
        "--methods", nargs="+", default=METHODS, help="names of methods, or of variants: " + ", ".join(VARIANTS)
    )
    run.add_argument("--anchors", nargs="+", type=int, default=[1, 10, 50])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--part", choices=["dev", "test"], default="test")
    run.add_argument("--no-controls", action="store_true")
    table = commands.add_parser("table", help="print the results as Markdown")
    table.add_argument("results", type=Path)
    table.add_argument("--score", default="foscttm", choices=SCORES)
    curve = commands.add_parser("curve", help="draw a score over the number of anchors")
    curve.add_argument("results", type=Path, nargs="+")
    curve.add_argument("--methods", nargs="+", default=["jacobian", "ridge", "fgw"])
    curve.add_argument("--score", default="foscttm", choices=SCORES)
    curve.add_argument("--out", type=Path, required=True)
    compare = commands.add_parser("compare", help="fit two methods, and print the paired differences of FOSCTTM")
    compare.add_argument("methods", nargs=2)
    compare.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=[n for n in DATASETS if n != "scgem"])
    compare.add_argument("--anchors", nargs="+", type=int, default=[10, 50])
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    compare.add_argument("--part", choices=["dev", "test"], default="test")
    arguments = parser.parse_args()
    if arguments.command == "compare":
        warnings.simplefilter("ignore")
        print_differences(arguments)
    elif arguments.command == "curve":
        # Of rows that several files hold, the last one's.
        rows = pd.concat([pd.read_csv(path) for path in arguments.results]).drop_duplicates(KEY, keep="last")
        draw_curves(rows, arguments.methods, arguments.score).savefig(arguments.out, dpi=110)
    elif arguments.command == "table":
        print_table(pd.read_csv(arguments.results), arguments.score)
    else:
        warnings.simplefilter("ignore")
        score_all(arguments)


def score_all(arguments: argparse.Namespace) -> None:
    done = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=KEY)
    known = set(done[KEY].itertuples(index=False, name=None))
    for name in arguments.datasets:
        mdata = ct.datasets.load(DATASETS[name][0])
        for seed in arguments.seeds:
            for k in arguments.anchors:
                wanted = [m for m in arguments.methods if (name, arguments.part, k, seed, m) not in known]
                controls = not arguments.no_controls and (name, arguments.part, k, seed, "control: chance") not in known
                try:
                    for row in score_task(mdata, name, arguments.part, k, seed, wanted, controls):
                        append(row, arguments.out)
                except ct.errors.AnchorError as error:  # fewer cells than anchors
                    print(f"{name} k={k} left out: {error}", flush=True)


def score_task(mdata, name: str, part: str, k: int, seed: int, methods: list[str], controls: bool) -> Iterator[dict]:
    if not methods and not controls:
        return
    _, source, target, options = DATASETS[name]
    task = protocol.make_task(mdata, source, target, n_anchors=k, seed=seed, part=part, **options)
    about = {"dataset": name, "part": part, "k": k, "seed": seed, "n": task.truth.n_obs}
    if controls:
        for control, scores in protocol.control_table(task, seed).items():
            yield about | {"method": f"control: {control}"} | {s: scores.values.get(s, np.nan) for s in SCORES}
    for method in methods:
        translator, settings = VARIANTS.get(method, (method, {}))
        if ct.translators.get(translator).min_anchors > k:
            continue
        start = time.perf_counter()
        model = ct.fit(
            task.mdata,
            source=source,
            target=target,
            anchors=task.anchors,
            method=translator,
            conditions=task.condition,
            seed=seed,
            trainer=ct.train.Trainer(max_steps=STEPS.get(method)),
            verdict=method not in VARIANTS or translator == "lrmf",
            **settings,
        )
        fitted = time.perf_counter()
        scores = protocol.score(task, model.translate_cells(task.source_test), spearman=False)
        evidence = model.verdict_.evidence
        yield (
            about
            | {"method": method}
            | {s: scores.values.get(s, np.nan) for s in SCORES}
            | law_scores(model, task)
            | {
                "fit_seconds": model.result_.seconds,
                "seconds": fitted - start,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "status": model.result_.status.value,
                "verdict": model.verdict_.level,
                "estimate": evidence.get("foscttm_estimate", np.nan),
                "estimate_low": evidence.get("foscttm_low", np.nan),
                "estimate_high": evidence.get("foscttm_high", np.nan),
                "alignment": "" if model.alignment_ is None else model.alignment_.level,
                "alignment_auc": evidence.get("alignment_auc", np.nan),
                "alignment_distance": evidence.get("alignment_distance", np.nan),
                "celltransfer": ct.__version__,
                "machine": f"{platform.machine()} python {platform.python_version()}",
            }
        )


LAW_SCORES = [
    *["log_prob", "std_ratio", "calibration_anchors"],
    *[f"coverage_{kind}@{level:.0%}" for kind in ("stated", "calibrated") for level in LEVELS],
]


def law_scores(model: ct.TransferModel, task: protocol.Task) -> dict:
    """Log density of the true partners in nats, and share of their values inside intervals, of methods with a law."""
    if not model.translator.gives_distribution:
        return {}
    calibration = model.calibration_
    found = {"log_prob": float(model.law.log_prob(task.source_test, task.truth).mean())}
    found |= {"std_ratio": calibration.ratio, "calibration_anchors": calibration.n_anchors}
    for kind, used in (("stated", Calibration(noise=calibration.noise)), ("calibrated", calibration)):
        model.calibration_ = used
        shares = model.law.coverage(task.source_test, task.truth) if kind == "stated" or used.calibrated else {}
        found |= {f"coverage_{kind}@{level:.0%}": share for level, share in shares.items()}
    model.calibration_ = calibration
    return found


COLUMNS = [
    *["dataset", "part", "k", "seed", "n", "method", *SCORES, *LAW_SCORES],
    *["fit_seconds", "seconds", "peak_mb", "status", "verdict", "estimate", "estimate_low", "estimate_high"],
    *["alignment", "alignment_auc", "alignment_distance"],
    *["celltransfer", "machine"],
]


def append(row: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = pd.DataFrame([row]).reindex(columns=COLUMNS)
    line.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.5g")
    print(
        f"{row['dataset']:18} k={row['k']:<3} seed={row['seed']} {row['method']:28} foscttm {row['foscttm']:.3f} "
        f"knn@50 {row['knn_accuracy@50']:.3f} {row.get('seconds', 0):6.1f} s {row.get('verdict', '')}",
        flush=True,
    )


def print_differences(arguments: argparse.Namespace) -> None:
    """Paired differences with 95 % intervals over cells and seeds; the cells scored must be the same for all seeds."""
    print("| dataset | k | first | second | difference | better | not below (tolerance .01) |")
    print("|---|---:|---:|---:|---:|---|---|")
    for name in arguments.datasets:
        mdata = ct.datasets.load(DATASETS[name][0])
        for k in arguments.anchors:
            first, second = (
                np.stack([_per_cell(mdata, name, arguments.part, k, seed, method) for seed in arguments.seeds])
                for method in arguments.methods
            )
            gap = bootstrap.difference(first, second)
            answers = [bootstrap.better(first, second), bootstrap.not_below(first, second)]
            print(
                f"| {name} | {k} | {np.nanmean(first):.3f} | {np.nanmean(second):.3f} | {gap.mean:+.3f} "
                f"({gap.low:+.3f} to {gap.high:+.3f}) | {' | '.join('yes' if a else 'no' for a in answers)} |",
                flush=True,
            )


def _per_cell(mdata, name: str, part: str, k: int, seed: int, method: str) -> np.ndarray:
    """FOSCTTM of every scored cell."""
    _, source, target, options = DATASETS[name]
    task = protocol.make_task(mdata, source, target, n_anchors=k, seed=seed, part=part, **options)
    how = {"source": source, "target": target, "anchors": task.anchors, "conditions": task.condition, "seed": seed}
    model = ct.fit(task.mdata, method=method, verdict=False, **how)
    return protocol.score(task, model.translate_cells(task.source_test), spearman=False).per_cell["foscttm"]


def print_table(results: pd.DataFrame, score: str) -> None:
    """Mean and standard deviation over seeds, methods in rows, numbers of anchors in columns, one table per dataset."""
    for name, rows in results.groupby("dataset", sort=False):
        n_seeds = rows["seed"].nunique()
        print(f"\n**{name}** ({rows['part'].iloc[0]}, {int(rows['n'].max())} cells, {n_seeds} seeds): {score}\n")
        cells = rows.groupby(["method", "k"], sort=False)[score].agg(["mean", "std"])
        wide = cells.apply(lambda c: f"{c['mean']:.3f} ± {c['std']:.3f}", axis=1).unstack("k").fillna("")
        wide = wide[sorted(wide.columns)]
        print("| method | " + " | ".join(f"k = {k}" for k in wide.columns) + " |")
        print("|---|" + "---:|" * wide.shape[1])
        for method, values in wide.iterrows():
            print(f"| {method} | " + " | ".join(values) + " |")


def draw_curves(results: pd.DataFrame, methods: list[str], score: str) -> Figure:
    """One panel per dataset: mean and standard deviation over seeds, between ceiling and chance."""
    names = list(dict.fromkeys(results["dataset"]))
    figure = Figure(figsize=(4.2 * 3, 3.4 * -(-len(names) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(names) // 3), 3, sharey=True).ravel()
    for ax, name in zip(axes, names, strict=False):
        rows = results[results["dataset"] == name]
        for control, style in (("reference", "-"), ("chance", ":")):
            values = rows.loc[rows["method"] == f"control: {control}", score]
            if len(values):
                ax.axhspan(values.mean() - values.std(), values.mean() + values.std(), color="0.9", lw=0)
                ax.axhline(
                    values.mean(), color="0.5", ls=style, label=f"{control} (all pairs)" if style == "-" else control
                )
        ticks = sorted(rows["k"].unique())
        for method, color in zip(methods, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=False):
            cells = rows[rows["method"] == method].groupby("k")[score].agg(["mean", "std"])
            at = np.searchsorted(ticks, cells.index)
            ax.errorbar(at, cells["mean"], cells["std"], color=color, marker="o", ms=4, capsize=2, label=method)
        ax.set_xticks(range(len(ticks)), ticks)
        ax.set(title=name, xlabel="anchors", ylabel=score)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
