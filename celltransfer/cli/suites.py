"""The command that runs validation suites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from celltransfer.cli.session import print_columns, say, session


def validate(
    name: Annotated[str | None, typer.Argument(help="Suite to run; without it the suites are listed.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="The paper's sizes, hours without a GPU, instead of sizes for minutes.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm, instead of the suite's own number.", min=1)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for rows, table and picture; rows it has are not run again.  [default: "
            "celltransfer-validation/NAME]"
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="Runs at a time, each on one thread.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where a claim does not hold.")] = False,
) -> None:
    """Run an experiment from the papers and hold it against what they claim; without NAME, list them."""
    with session():
        from celltransfer.experiments import suites

        if name is None:
            print_columns(suites.suites().reset_index()[["name", "title", "reference"]])
            return
        folder = out or Path("celltransfer-validation") / name
        outcome = suites.run(name, full=full, seeds=seeds, out=folder, processes=processes, device=device)
        print(outcome.to_markdown(), end="")
        say(f"Written to {folder}/: {', '.join(path.name for path in outcome.written)}. Ran on {outcome.devices}.")
        if strict and outcome.contradicted:
            say(f"{len(outcome.contradicted)} of {len(outcome.claims)} claims do not hold, and --strict asks for all.")
            raise typer.Exit(3)
