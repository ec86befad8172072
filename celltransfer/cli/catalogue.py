"""Commands that list and fetch what the package comes with."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from celltransfer.cli.session import print_columns, session

datasets_app = typer.Typer(help="List, fetch and export the registered datasets.", no_args_is_help=True)


def methods() -> None:
    """List the translators."""
    from celltransfer import translators

    for name in translators.available():
        cls = translators.get(name)
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        needs = f"{cls.min_anchors}+ anchors" + (f", {cls.min_conditions}+ conditions" if cls.min_conditions else "")
        print(f"{name:16} {needs:28} {summary}")


@datasets_app.command("list")
def list_datasets() -> None:
    """List the registered datasets; available: loads without the network."""
    with session(False):
        from celltransfer import datasets

        print_columns(datasets.list()[["name", "modalities", "n_obs", "available", "licence", "title"]])


@datasets_app.command("fetch")
def fetch_dataset(
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    out: Annotated[
        Path | None, typer.Option(help="Write it there: cells as MuData (.h5mu), images as AnnData (.h5ad).")
    ] = None,
) -> None:
    """Download and build a dataset; with --out write it to a file."""
    with session():
        from celltransfer.datasets import fetch, registry

        entry = registry.get(name)
        print(fetch.load(entry) if out is None else fetch.export(entry, out))
