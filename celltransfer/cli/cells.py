"""Commands about conditions: two of one modality as two, cells on their way, cells under another condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from celltransfer.cli.files import (
    AnnDataOutput,
    CellsInput,
    MissingFeatures,
    MuDataInput,
    MuDataOutput,
    check_output,
    is_anndata,
    names,
    read_anndata,
    read_cells,
    read_mudata,
    split_names,
)
from celltransfer.cli.models import (  # noqa: TC001 - typer reads annotations
    Backward,
    Counts,
    KeyAdded,
    Model,
    Strict,
    Verbose,
)
from celltransfer.cli.session import conclude, say, session

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def conditions(
    data: CellsInput,
    key: Annotated[str, typer.Option(help="obs column with the condition of every cell.")],
    source: Annotated[str, typer.Option(help="Value of the column to translate from.")],
    target: Annotated[str, typer.Option(help="Value of the column to translate to.")],
    out: MuDataOutput,
    modality: Annotated[str | None, typer.Option(help="Modality to take, of a MuData.")] = None,
) -> None:
    """Make two modalities of the cells of one under two conditions, to be fitted with --anchors 0."""
    if is_anndata(data) != (modality is None):
        raise typer.BadParameter("a MuData needs it, and an AnnData (.h5ad) has none.", param_hint="--modality")
    with session():
        from celltransfer import pp
        from celltransfer.data.writeback import write_h5mu

        check_output(out, keep=data)
        mdata = pp.conditions(_cells_of(data, modality, key), key, source, target)
        write_h5mu(mdata, out)
        print(f"{out}: {', '.join(f'{name} {part.n_obs} x {part.n_vars}' for name, part in mdata.mod.items())}")


def interpolate(
    data: CellsInput,
    model_dir: Model,
    out: AnnDataOutput,
    steps: Annotated[int, typer.Option(help="Steps between the cells and their translation.", min=1)] = 5,
    features: Annotated[
        str | None, typer.Option(help="Target features to write: a file with one a line, or comma separated.")
    ] = None,
    backward: Backward = False,
    on_missing: MissingFeatures = None,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Write source cells on their way to the target, for methods that have a path (dont)."""
    with session(verbose):
        from celltransfer.data.writeback import write_h5ad
        from celltransfer.model.io import load

        check_output(out, keep=data)
        chosen = None if features is None else names(features)
        model = load(model_dir)
        model = model.backward if backward else model
        path = model.interpolate(read_cells(data), steps, features=chosen, on_missing=on_missing)  # type: ignore[arg-type]
        write_h5ad(path, out)
        n_cells = path.n_obs // (steps + 1)
        print(f"{out}: {n_cells} cells at {steps + 1} times x {path.n_vars}, verdict {model.verdict_.level}")
        conclude(model, strict)


def counterfactual(
    data: MuDataInput,
    model_dir: Model,
    to: Annotated[str, typer.Option(help="Condition to move to; of several columns, their values, comma separated.")],
    out: MuDataOutput,
    modality: Annotated[str | None, typer.Option(help="Modality to move; the model's source if not given.")] = None,
    key_added: KeyAdded = None,
    counts: Counts = True,
    on_missing: MissingFeatures = None,
    verbose: Verbose = False,
) -> None:
    """Write cells as they would be under another condition, for methods that tell (sparse_mixing)."""
    with session(verbose):
        from celltransfer.data.writeback import write_h5mu
        from celltransfer.model.io import load

        check_output(out)
        model, mdata = load(model_dir), read_mudata(data)
        before = dict(mdata.mod)
        model.counterfactual(
            mdata,
            condition=split_names(to) if len(model.conditions) > 1 and to not in model.levels and "," in to else to,
            modality=modality,
            key_added=key_added,
            counts=counts,
            on_missing=on_missing,  # type: ignore[arg-type]
        )
        write_h5mu(mdata, out)
        key, made = next((name, part) for name, part in mdata.mod.items() if part is not before.get(name))
        print(f"{out}: {key} {made.n_obs} x {made.n_vars}, verdict {made.uns['celltransfer']['verdict']}")
        say(" ".join(["warning:", made.uns["celltransfer"]["reasons"], *model.result_.notes]))


def _cells_of(path: Path, modality: str | None, key: str) -> AnnData:
    """The cells of an AnnData, or of a modality, with a column that may stand in the MuData only."""
    from celltransfer.data import cells

    if modality is None:
        return read_anndata(path)
    mdata = read_mudata(path)
    adata = cells.check_modality(mdata, modality)
    cells.check_agreement(mdata, modality, key)
    adata.obs[key] = cells.obs_column(mdata, modality, key)
    return adata
