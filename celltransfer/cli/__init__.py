"""Command line: h5mu in, h5mu out. Results go to stdout, everything else to stderr.

Exit codes: 0 success, 1 the input or the machine was at fault (one clear message), 2 wrong usage,
3 the verdict was not good enough, or a suite's claim does not hold (`--strict`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from celltransfer.cli import benchmark, catalogue, cells, models, suites

app = typer.Typer(
    help="Translate single cells between modalities from unpaired cells and a handful of anchors.",
    epilog="Exit codes: 0 success, 1 unusable input or failed writing, 2 wrong usage, "
    "3 not identified, or a claim that does not hold (--strict).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from celltransfer._version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Translate single cells between modalities from unpaired cells and a handful of anchors."""


for command in (models.demo, models.fit, models.translate):
    app.command()(command)
app.command("report")(models.evaluate)
app.command("evaluate", hidden=True)(models.evaluate)  # its earlier name
app.command()(cells.conditions)
app.command()(cells.interpolate)
app.command()(cells.counterfactual)
app.command()(catalogue.methods)
app.command()(suites.validate)
app.add_typer(catalogue.datasets_app, name="datasets")
app.add_typer(benchmark.benchmark_app, name="benchmark")
