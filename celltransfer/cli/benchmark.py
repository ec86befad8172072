"""The commands that run the benchmark and read what it found."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from celltransfer.cli.session import print_columns, say, session
from celltransfer.errors import ConfigError, InputError

if TYPE_CHECKING:
    from celltransfer.experiments.grid import Job

benchmark_app = typer.Typer(
    help="Compare methods on co-assayed cells whose pairing is hidden: registered data, or your own pilot.",
    no_args_is_help=True,
)


class Part(StrEnum):
    """Cells that are scored."""

    dev = "dev"
    test = "test"


class Regime(StrEnum):
    """What the unpaired cells are."""

    disjoint = "disjoint"
    shared = "shared"


class Redo(StrEnum):
    """What is run again."""

    failed = "failed"
    all = "all"


class Lists(TyperCommand):
    """A command whose options that may be repeated also take several values at once: ``--seeds 0 1 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        several = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        repeated: list[str] = []
        option, n_values = "", 0
        for text in args:
            if text.startswith("-"):
                option, n_values = text, 0
            else:
                if option in several and n_values:
                    repeated.append(option)
                n_values += 1
            repeated.append(text)
        return super().parse_args(ctx, repeated)


Folder = Annotated[Path, typer.Argument(help="Folder that `benchmark run` wrote, or its results.csv.", exists=True)]
Slice = Annotated[
    str | None,
    typer.Argument(
        metavar="[SLICE]", help="Named part of the grid, see `celltransfer benchmark slices`; core if none is given."
    ),
]


@benchmark_app.command("run", cls=Lists)
def run(
    slice_: Slice = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; rows it has are not run again.")] = Path(
        "celltransfer-benchmark"
    ),
    datasets: Annotated[
        list[str] | None, typer.Option(help="Data sets; NAME:backward is the other direction.", metavar="NAME...")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods, 'METHOD(option=value, ...)', peers; 'ours' and 'peers' are all. Controls are always run.",
            metavar="NAME...",
        ),
    ] = None,
    anchors: Annotated[list[int] | None, typer.Option(help="Numbers of anchors.", metavar="K...", min=0)] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.", min=1)] = None,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.", min=0)] = 0,
    regimes: Annotated[list[Regime] | None, typer.Option(help="What the unpaired cells are.")] = None,
    part: Annotated[Part, typer.Option(help="Cells to score: dev for choices, test for what is reported.")] = Part.test,
    backward: Annotated[bool, typer.Option("--backward", help="The other direction of every data set.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Your own co-assayed cells (.h5mu), instead of --datasets.", exists=True)
    ] = None,
    source: Annotated[str | None, typer.Option(help="With --data: modality to translate from.")] = None,
    target: Annotated[str | None, typer.Option(help="With --data: modality to translate to.")] = None,
    labels: Annotated[str | None, typer.Option(help="With --data: obs column for scores by label.")] = None,
    conditions: Annotated[str | None, typer.Option(help="With --data: obs column that methods may use.")] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(help="With --data: MODALITY=rna, atac, protein, methylation or none.", metavar="NAME=KIND..."),
    ] = None,
    processes: Annotated[int, typer.Option(help="Jobs at a time, each in a process of its own.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each job.", min=1)] = 1,
    max_seconds: Annotated[float, typer.Option(help="Wall time of a job; it is stopped beyond.", min=1)] = 900,
    max_mb: Annotated[float | None, typer.Option(help="Memory of a job; it is stopped beyond.", min=1)] = None,
    redo: Annotated[Redo | None, typer.Option(help="Run again what failed, or all.")] = None,
    imports: Annotated[
        list[str] | None, typer.Option("--import", help="Module that registers translators of yours.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs, and run none.")] = False,
) -> None:
    """Score methods on hidden pairs, job by job; an interrupted run goes on where it stopped."""
    with session():
        from celltransfer.experiments import grid as benchmark
        from celltransfer.experiments.grid.methods import CONTROLS

        _import(imports)
        part_of_grid = benchmark.slices().get(slice_ or "core")
        if part_of_grid is None:
            raise ConfigError(f"There is no slice {slice_!r}; there are {', '.join(benchmark.slices())}.")
        own = {"source": source, "target": target, "labels": labels, "conditions": conditions, "kinds": kinds}
        given = [name for name, value in own.items() if value]
        if data is None and given:
            raise ConfigError(f"--{given[0]} says how to read --data, which is not given.")
        if data is not None and datasets:
            raise ConfigError("--data and --datasets are given; choose one.")
        if data is not None:
            arms = [benchmark.own_arm(data, source, target, labels, conditions, _kinds(kinds))]
        else:
            arms = [benchmark.arm(name) for name in datasets or []]
        names = list(methods) if methods else None
        how: dict[str, Any] = {"part": part.value, "imports": imports or ()}
        if anchors:
            how["anchors"] = anchors
        if seeds or first_seed:
            how["seeds"] = range(first_seed, first_seed + (seeds or part_of_grid.seeds))
        if names and CONTROLS not in names:
            names.insert(0, CONTROLS)
        wanted = [regime.value for regime in regimes] if regimes else None
        jobs = benchmark.slice_jobs(slice_ or "core", arms=arms, names=names, regimes=wanted, backward=backward, **how)
        if dry_run:
            _list(jobs)
            return
        benchmark.run(
            jobs,
            out,
            processes=processes,
            threads=threads,
            max_seconds=max_seconds,
            max_mb=max_mb,
            redo=redo.value if redo else None,
            tell=say,
        )
        say(f"Results in {out}/results.csv; `celltransfer benchmark table {out}` prints them.")


@benchmark_app.command("table", cls=Lists)
def table(
    results: Folder,
    scores: Annotated[list[str] | None, typer.Option(help="Scores; columns of the results.", metavar="NAME...")] = None,
    targets: Annotated[
        Path | None, typer.Option(help="CSV of figures to reach: dataset,k,target,score,regime.", exists=True)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Say how this method does against the others; '' says nothing.")
    ] = None,
) -> None:
    """Print the tables as Markdown, with what a method can claim against the others."""
    with session():
        from celltransfer.experiments.grid import compare, load
        from celltransfer.experiments.grid import report as tables
        from celltransfer.experiments.grid.plan import default_method

        rows = load(results)
        wanted = None if targets is None else tables.read_targets(targets)
        print(tables.report(rows, scores or tables.SCORES, wanted))
        first = default_method() if method is None else method
        said = compare.sentences(compare.compare(rows, first), first)
        if said:
            print(f"FOSCTTM of {first} against the others, 95 % intervals over cells and seeds:\n")
            print("\n".join(said))


@benchmark_app.command("compare", cls=Lists)
def compare_methods(
    results: Folder,
    first: Annotated[str, typer.Argument(help="Method.")],
    others: Annotated[
        list[str] | None,
        typer.Argument(help="Methods; 'best' is the best other. If none is given: best ridge pls fgw."),
    ] = None,
    score: Annotated[str, typer.Option(help="foscttm, knn_accuracy@10 or knn_accuracy@50.")] = "foscttm",
) -> None:
    """Print paired differences between a method and others, with intervals over cells and seeds."""
    with session():
        from celltransfer.experiments.grid import compare, load
        from celltransfer.markdown import markdown_table

        found = compare.compare(load(results), first, others or compare.OTHERS, score)
        if found.empty:
            raise InputError(
                f"{results} holds no scores per cell of {first!r} and another method on the same problems."
            )
        print("\n".join(markdown_table(found.set_index("dataset"))))


@benchmark_app.command("curves", cls=Lists)
def draw_curves(
    results: Folder,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("curves.png"),
    methods: Annotated[
        list[str] | None, typer.Option(help="Methods drawn as lines; other peers are the band.", metavar="NAME...")
    ] = None,
    score: Annotated[str, typer.Option(help="Score; a column of the results.")] = "foscttm",
    regime: Annotated[Regime | None, typer.Option(help="Draw this regime only.")] = None,
) -> None:
    """Draw a score over the number of anchors, between ceiling and chance."""
    with session():
        from celltransfer.data.writeback import atomic_path
        from celltransfer.experiments.grid import curves, load

        figure = curves.curves(load(results), methods, score, regime.value if regime else None)
        with atomic_path(out) as part:
            figure.savefig(part, dpi=130)
        say(f"Written to {out}.")


@benchmark_app.command("verdicts")
def judge_verdicts(
    results: Folder,
    by: Annotated[str, typer.Option(help="Column to split by: method, dataset or k.")] = "method",
    again: Annotated[bool, typer.Option(help="Conclude anew from the evidence, as this version would.")] = False,
) -> None:
    """Hold the verdicts against the truth: confusion table, order, intervals."""
    with session():
        from celltransfer.experiments.grid import load, verdicts

        rows = load(results)
        print(verdicts.report(verdicts.judge_again(rows) if again else rows, by), end="")


@benchmark_app.command("slices")
def list_slices() -> None:
    """List the named parts of the grid."""
    with session():
        import pandas as pd

        from celltransfer.experiments import grid as benchmark

        rows = [
            (name, len(benchmark.slice_jobs(name)), f"{part.about}: {', '.join(part.datasets)}")
            for name, part in benchmark.slices().items()
        ]
        print_columns(pd.DataFrame(rows, columns=["name", "jobs", "about"]))


@benchmark_app.command("peers")
def list_peers() -> None:
    """List the methods of others: whether they can run here, what they need, and what they were given."""
    with session():
        from celltransfer.experiments import peers

        for name in peers.names():
            about, missing = peers.about(name), peers.missing(name)
            print(f"{name}: {about['title']}, {about['licence']}. {missing or peers.versions(name)}")
            print(f"    {about['reference']}")
            print(f"    Needs {about['needs']}. Given: {about['given']}")


def _kinds(items: list[str] | None) -> dict[str, str]:
    for item in items or []:
        if "=" not in item:
            raise ConfigError(f"--kinds {item}: expected MODALITY=KIND, such as gex=rna.")
    return dict(item.split("=", 1) for item in items or [])


def _import(names: list[str] | None) -> None:
    """Import users' modules, from the current folder too, as the jobs will."""
    if names and "" not in sys.path:
        sys.path.insert(0, "")
    for name in names or []:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"--import {name}: {error}") from error


def _list(jobs: list[Job]) -> None:
    for job in jobs:
        print(" ".join(f"{name}={value}" for name, value in job.key.items()))
    say(f"{len(jobs)} jobs.")
