"""Conditional laws on real co-assayed cells whose pairing is hidden: what inverse entropic OT is compared with.

`celltransfer benchmark` scores its log density and coverage; here are, for the same tasks, a mixture density network on
the anchors alone and, as chance, the same model without anchors: the law of all target cells, whatever the source. Log
densities are of the target recipe's features, in nats a cell; coverage is of measured values by the intervals that the
model states, as they come and calibrated.

    celltransfer benchmark run --methods ieot --anchors 10 50 200 --out ieot
    python benchmarks/laws.py run --out benchmarks/results/laws.csv
    python benchmarks/laws.py table ieot/results.csv benchmarks/results/laws.csv
    python benchmarks/laws.py curve ieot/results.csv --out calibration.png
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import celltransfer as ct
import pandas as pd
from celltransfer.benchmark.arms import ARMS
from celltransfer.data.pair import dense
from celltransfer.model.law import LEVELS
from celltransfer.validation import conditional
from matplotlib.figure import Figure

KEY = ["dataset", "part", "k", "seed"]
DATASETS = [name for name in ARMS if name != "simulate"]
# Settings of the mixture density network. The table shows the best for each data set and number of anchors, chosen on
# the cells that are scored: in the network's favour.
NETWORKS = [
    {"n_components": n, "weight_decay": decay, "hidden": hidden}
    for n, decay, hidden in [(1, 1e-4, (64,)), (1, 1e-2, (64,)), (5, 1e-4, (64,)), (5, 1e-2, (64,)), (5, 1e-2, (16,))]
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="score what the results file lacks")
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/laws.csv"))
    run.add_argument("--datasets", nargs="+", choices=list(ARMS), default=DATASETS)
    run.add_argument("--anchors", nargs="+", type=int, default=[10, 50, 200])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--part", choices=["dev", "test"], default="test")
    table = commands.add_parser("table", help="print the results as Markdown")
    table.add_argument("results", type=Path)
    table.add_argument("others", type=Path)
    curve = commands.add_parser("curve", help="draw stated against found coverage")
    curve.add_argument("results", type=Path)
    curve.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_tables(_ours(arguments.results), pd.read_csv(arguments.others))
    elif arguments.command == "curve":
        draw(_ours(arguments.results)).savefig(arguments.out, dpi=110)
    else:
        warnings.simplefilter("ignore")
        score_all(arguments)


def score_all(arguments: argparse.Namespace) -> None:
    done = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=KEY)
    known = set(done[KEY].itertuples(index=False, name=None))
    for name in arguments.datasets:
        mdata = ARMS[name].load()
        for seed in arguments.seeds:
            for k in arguments.anchors:
                if (name, arguments.part, k, seed) not in known:
                    try:
                        row = score(mdata, name, arguments.part, k, seed)
                    except ct.errors.AnchorError as error:  # fewer cells than anchors
                        print(f"{name} k={k} left out: {error}", flush=True)
                        continue
                    line = pd.DataFrame([row])
                    line.to_csv(
                        arguments.out, mode="a", header=not arguments.out.exists(), index=False, float_format="%.5g"
                    )
                    print(row, flush=True)


def score(mdata, name: str, part: str, k: int, seed: int) -> dict:
    """Mean log density of the true partners under networks on the anchors, and under the law of all target cells."""
    source, target = ARMS[name].source, ARMS[name].target
    task = ARMS[name].task(mdata, regime="disjoint", part=part, k=k, seed=seed)
    # The recipes are those of every method; ridge is fitted for its speed.
    how = {"source": source, "target": target, "anchors": task.anchors, "seed": seed, "verdict": False}
    model = ct.fit(task.mdata, method="ridge", **how)
    recipes = [model.recipes[side] for side in (source, target)]
    x, y = (dense(recipe.transform(task.mdata[side])) for recipe, side in zip(recipes, (source, target), strict=True))
    pairs = [
        task.mdata[side].obs_names.get_indexer(model.anchors[column])
        for side, column in ((source, "source_id"), (target, "target_id"))
    ]
    test_x, test_y = dense(recipes[0].transform(task.source_test)), dense(recipes[1].transform(task.truth))
    found = {}
    for i, settings in enumerate(NETWORKS):
        network = conditional.fit("mdn", x[pairs[0]], y[pairs[1]], x, y, seed=seed, **settings)
        found[f"mdn{i}"] = float(network.log_prob(test_x, test_y).mean())
    chance = ct.translators.make("ieot").fit(x, y, seed=seed)
    about = {"dataset": name, "part": part, "k": k, "seed": seed}
    return about | found | {"chance": float(chance.log_prob(test_x, test_y).mean())}


def _ours(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path)
    return rows[rows["method"] == "ieot"]


def print_tables(ours: pd.DataFrame, others: pd.DataFrame) -> None:
    """Log density and coverage, mean and standard deviation over seeds."""
    networks = [f"mdn{i}" for i in range(len(NETWORKS))]
    print("| dataset | k | ieot | network on the anchors | all target cells | seconds | peak MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (name, k), own in ours.groupby(["dataset", "k"], sort=False):
        other = others[(others["dataset"] == name) & (others["k"] == k)]
        network = _spread(other[other[networks].mean().idxmax()]) if len(other) else ""
        chance = _spread(other["chance"]) if len(other) else ""
        cost = f"{own['seconds'].mean():.0f} | {own['peak_mb'].max():.0f}"
        print(f"| {name} | {k} | {_spread(own['log_prob'])} | {network} | {chance} | {cost} |")
    print("\n| dataset | k | stated 50 % | 80 % | 95 % | calibrated 50 % | 80 % | 95 % |")
    print("|---|---:|" + "---:|" * 6)
    for (name, k), own in ours.groupby(["dataset", "k"], sort=False):
        shares = [
            _spread(own[f"coverage_{kind}@{level:.0%}"], 2) for kind in ("stated", "calibrated") for level in LEVELS
        ]
        print(f"| {name} | {k} | {' | '.join(shares)} |")


def _spread(values: pd.Series, digits: int = 1) -> str:
    return "" if values.isna().any() else f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def draw(rows: pd.DataFrame) -> Figure:
    """Share of measured values inside the intervals against the share they state, a panel per number of anchors."""
    ks = sorted(k for k in rows["k"].unique() if k >= 10)
    figure = Figure(figsize=(3.6 * len(ks), 3.8), layout="constrained")
    for ax, k in zip(figure.subplots(1, len(ks), sharey=True, squeeze=False)[0], ks, strict=True):
        ax.plot([0.4, 1], [0.4, 1], color="0.6", lw=1)
        for i, (name, own) in enumerate(rows[rows["k"] == k].groupby("dataset", sort=False)):
            for kind, style in (("stated", ":"), ("calibrated", "-")):
                if own[f"coverage_{kind}@{LEVELS[0]:.0%}"].notna().all():
                    shares = [own[f"coverage_{kind}@{level:.0%}"].mean() for level in LEVELS]
                    ax.plot(LEVELS, shares, style, marker="o", ms=4, color=f"C{i}", label=f"{name}, {kind}")
        ax.set(title=f"{k} anchors", xlabel="stated share", xticks=LEVELS)
        ax.legend(fontsize=6)
    figure.axes[0].set_ylabel("share of measured values inside")
    return figure


if __name__ == "__main__":
    main()
