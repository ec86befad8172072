"""Commands about conditions: two of one modality as two, cells on their way, cells under another condition."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from celltransfer.cli.files import (
    AnnDataOutput,
    CellsInput,
    MuDataInput,
    MuDataOutput,
    check_output,
    names,
    read_anndata,
    read_cells,
    read_mudata,
    write_h5ad,
)
from celltransfer.cli.models import Counts, KeyAdded, Model, Strict, Verbose  # noqa: TC001 - typer reads annotations
from celltransfer.cli.session import conclude, session
from celltransfer.errors import ModalityError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from celltransfer.model import TransferModel


def conditions(
    data: CellsInput,
    key: Annotated[str, typer.Option(help="obs column with the condition of every cell.")],
    source: Annotated[str, typer.Option(help="Value of the column to translate from.")],
    target: Annotated[str, typer.Option(help="Value of the column to translate to.")],
    out: MuDataOutput,
    modality: Annotated[str | None, typer.Option(help="Modality to take, of a MuData.")] = None,
) -> None:
    """Make two modalities of the cells of one under two conditions, to be fitted with --anchors 0."""
    if (data.suffix == ".h5ad") != (modality is None):
        raise typer.BadParameter("a MuData needs it, and an AnnData (.h5ad) has none.", param_hint="--modality")
    with session():
        from celltransfer import pp
        from celltransfer.data.writeback import write_h5mu

        check_output(out)
        adata = _cells_of(data, modality, key)
        known = _labels(adata, key)
        mdata = pp.conditions(adata, key, _level([source], known), _level([target], known))
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
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Write source cells on their way to the target, for methods that have a path (dont)."""
    with session(verbose):
        from celltransfer.files import load

        check_output(out)
        chosen = None if features is None else names(features)
        model = load(model_dir)
        path = model.interpolate(read_cells(data), steps, features=chosen)
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
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Write cells as they would be under another condition, for methods that tell (sparse_mixing)."""
    with session(verbose):
        from celltransfer.data.writeback import write_h5mu
        from celltransfer.files import load

        check_output(out)
        model, mdata = load(model_dir), read_mudata(data)
        before = dict(mdata.mod)
        model.counterfactual(mdata, condition=_to(model, to), modality=modality, key_added=key_added, counts=counts)
        write_h5mu(mdata, out)
        key, made = next((name, part) for name, part in mdata.mod.items() if part is not before.get(name))
        print(f"{out}: {key} {made.n_obs} x {made.n_vars}, verdict {model.verdict_.level}")
        conclude(model, strict)


def _cells_of(path: Path, modality: str | None, key: str) -> AnnData:
    """The cells of an AnnData, or of a modality, with a column that may stand in the MuData only."""
    from celltransfer.data import cells

    if modality is None:
        return read_anndata(path)
    mdata = read_mudata(path)
    if modality not in mdata.mod:
        raise ModalityError(f"{path} has no modality {modality!r}: {', '.join(mdata.mod)}.")
    adata = cells.check_modality(mdata, modality)
    adata.obs[key] = cells.obs_column(mdata, modality, key)
    return adata


def _labels(adata: AnnData, key: str) -> set[str]:
    """Levels of a column as text; none where there is no such column."""
    from celltransfer.data.cells import condition_label

    return set(map(condition_label, adata.obs[key].dropna().unique())) if key in adata.obs else set()


def _to(model: TransferModel, text: str) -> str:
    """The level of the model's conditions that a text means; several columns have their values between commas."""
    several = len(model.conditions) > 1 and text not in model.levels
    return _level(text.split(",") if several else [text], model.levels)


def _level(parts: Sequence[str], known: Sequence[str] | set[str]) -> str:
    """The known level with these values, each as written or as the number it is: 3 is 3.0; else what was asked for."""
    if len(parts) > 1:
        parts = [part.replace("|", r"\|") for part in parts]
    levels = ["|".join(forms) for forms in product(*map(_forms, parts))]
    return next((level for level in levels if level in known), levels[0])


def _forms(text: str) -> tuple[str, ...]:
    from celltransfer.data.cells import condition_label

    try:
        return text, condition_label(float(text))
    except ValueError:
        return (text,)
