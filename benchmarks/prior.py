"""Methods alone, priors alone, and methods on the pairs that priors propose, on the development part of real co-assays.

    python benchmarks/prior.py run --out benchmarks/results/prior.csv
    python benchmarks/prior.py table benchmarks/results/prior.csv

Options of `primed` were chosen on these tasks: they show what a prior does for a method, not what to expect elsewhere.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import celltransfer as ct
import numpy as np
import pandas as pd
import torch
from celltransfer import translators
from celltransfer.benchmark.arms import ARMS
from celltransfer.data.pair import ModalityPair
from celltransfer.metrics import protocol
from celltransfer.translators.pseudo_anchors import propose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mudata import MuData

DATASETS = ["pbmc10k_cite", "scgem", "a549_scicar_peaks", "snare_cortex"]
# With its features the slowest of them.
ONE_SEED = "snare_cortex"
SEEDS, ANCHORS = (100, 101, 102), (1, 10, 50)
# By label: name and options. The guard of "jacobian" would hand back its start, which is ridge on the same pairs.
METHODS = {"ridge": ("ridge", {}), "jacobian, no guard": ("jacobian", {"guard": False}), "ieot": ("ieot", {})}
PRIORS = ("consensus", "fgw")
# A method and its prior; priors alone are methods, too.
ARM_PAIRS = [(name, "") for name in (*PRIORS, *METHODS)] + [(name, prior) for name in METHODS for prior in PRIORS]
# Short fits, the same for all: a prior's worth is a comparison.
SHORT = ct.train.Trainer(max_steps=200, device="cpu", progress=False)
N_PAIRS = 300
KEY = ["dataset", "k", "seed", "method", "prior"]
SCORES = ["foscttm", "knn_accuracy@10", "knn_accuracy@50"]
COLUMNS = [*KEY, *SCORES, "seconds", "status", "celltransfer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the fits that the results file lacks")
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/prior.csv"))
    run.add_argument("--datasets", nargs="+", default=DATASETS)
    table = commands.add_parser("table", help="print the results as Markdown")
    table.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_table(pd.read_csv(arguments.results))
    else:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        run_all(arguments.out, arguments.datasets)


def run_all(out: Path, datasets: list[str]) -> None:
    """Append the rows that `out` does not hold yet, task by task."""
    done = pd.read_csv(out).fillna({"prior": ""}) if out.exists() else pd.DataFrame(columns=KEY)
    known = set(done[KEY].itertuples(index=False, name=None))
    for seed in SEEDS:
        for dataset in datasets:
            for k in ANCHORS:
                arms = [arm for arm in ARM_PAIRS if (dataset, k, seed, *arm) not in known]
                if not arms or (dataset == ONE_SEED and seed != SEEDS[0]):
                    continue
                task = ARMS[dataset].task(_cells(dataset), regime="disjoint", part="dev", k=k, seed=seed)
                rows = [dict(zip(KEY[:3], (dataset, k, seed), strict=True)) | row for row in compare(task, seed, arms)]
                lines = pd.DataFrame(rows).reindex(columns=COLUMNS)
                lines.to_csv(out, mode="a", header=not out.exists(), index=False, float_format="%.4g")
                print(dataset, k, seed, *(f"{r['method']}/{r['prior']} {r['foscttm']:.3f}" for r in rows), flush=True)


@cache
def _cells(dataset: str) -> MuData:
    return ARMS[dataset].load()


def compare(task: protocol.Task, seed: int, arms: list[tuple[str, str]]) -> Iterator[dict]:
    """Rows of one task. A prior is fitted once, for all methods: they get the pairs that `primed` would give them."""
    model, pair = _prepared(task, seed)
    fits = {prior: _fit(prior, {}, pair, seed) for prior in PRIORS}
    for label, prior in arms:
        if label in fits:
            fitted, seconds = fits[label]
        else:
            method, options = METHODS[label]
            drawn = translators.get(method).gives_distribution
            rng = np.random.default_rng([seed, 17])
            more = propose(pair, fits[prior][0], N_PAIRS, rng, drawn=drawn) if prior else pair
            fitted, seconds = _fit(method, options, more, seed)
        model.translator = fitted
        found = protocol.score(task, model.translate(task.source_test, counts=False, std=False), spearman=False)
        about = {"seconds": seconds, "status": fitted.result_.status.value, "celltransfer": ct.__version__}
        yield {"method": label, "prior": prior} | {name: found[name] for name in SCORES} | about


def _fit(method: str, options: dict, pair: ModalityPair, seed: int) -> tuple[translators.Translator, float]:
    """The fitted translator, and how long that took."""
    start = time.perf_counter()
    fitted = translators.make(method, **options).fit_pair(pair, seed=seed, trainer=SHORT)
    return fitted, time.perf_counter() - start


def _prepared(task: protocol.Task, seed: int) -> tuple[ct.TransferModel, ModalityPair]:
    """A model with the recipes of a fit, and what its translator was fitted on."""
    sides = (task.source, "source_id"), (task.target, "target_id")
    model = ct.fit(
        task.mdata,
        source=task.source,
        target=task.target,
        anchors=task.anchors,
        method="chance",
        seed=seed,
        verdict=False,
    )
    features = [model.recipes[name].transform(task.mdata[name]) for name, _ in sides]
    rows = [task.mdata[name].obs_names.get_indexer(task.anchors[column]) for name, column in sides]
    return model, ModalityPair(features[0], features[1], np.column_stack(rows))


def print_table(rows: pd.DataFrame) -> None:
    """Mean FOSCTTM over seeds, one line per method and prior."""
    rows = rows.fillna({"prior": ""})
    columns = [(dataset, k) for dataset in DATASETS for k in ANCHORS if dataset in set(rows["dataset"])]
    means = rows.groupby(["method", "prior", "dataset", "k"])["foscttm"].mean()
    print("| method | prior | " + " | ".join(f"{dataset} {k}" for dataset, k in columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for method, prior in ARM_PAIRS:
        cells = [means.get((method, prior, *column)) for column in columns]
        shown = ["" if value is None else f"{value:.3f}" for value in cells]
        print(f"| {method} | {prior or 'none'} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
