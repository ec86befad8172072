"""Commands that fit, use and judge models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celltransfer.cli.files import (
    MissingFeatures,
    MuDataInput,
    MuDataOutput,
    check_output,
    read_mudata,
    split_names,
    table,
    table_or_name,
    write_text,
)
from celltransfer.cli.session import conclude, say, session
from celltransfer.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from mudata import MuData

    from celltransfer.model.model import TransferModel
    from celltransfer.reporting import Report


def _named_values(items: list[str] | None) -> list[str] | None:
    for item in items or []:
        if not item.partition("=")[1]:
            raise typer.BadParameter(f"expected NAME=VALUE, got {item!r}.")
    return items


def _recipes(items: list[str] | None) -> list[str] | None:
    """One name alone is the recipe of both modalities."""
    alone = items is not None and len(items) == 1 and "=" not in items[0]
    for item in items or []:
        modality, _, name = item.partition("=")
        if not (item.strip() if alone else modality.strip() and name.strip()):
            raise typer.BadParameter(f"one NAME alone, or MODALITY=NAME for each; got {item!r}.")
    return items


def _report_file(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in {".md", ".json", ".html"}:
        raise typer.BadParameter(f"the report is written as .md, .json or .html, not {path.name!r}.")
    return path


Source = Annotated[str | None, typer.Option(help="Modality to translate from; the first of two if not given.")]
Target = Annotated[str | None, typer.Option(help="Modality to translate to; the second of two if not given.")]
Method = Annotated[str, typer.Option(help="Translator, see `celltransfer methods`.")]
Prior = Annotated[str | None, typer.Option(help="Translator that proposes pairs to the method.")]
Conditions = Annotated[str | None, typer.Option(help="obs column(s) known for every cell, comma separated.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", help="Option of the method, NAME=VALUE; may be repeated.", callback=_named_values),
]
Model = Annotated[Path, typer.Option("--model", help="Folder of a saved model.")]
Backward = Annotated[
    bool, typer.Option("--backward", help="From target cells to the source, where the method has a way back.")
]
KeyAdded = Annotated[str | None, typer.Option(help="Name of the new modality.")]
Counts = Annotated[bool, typer.Option(help="Write expected counts, where the recipe knows them.")]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", help="Also write the report to FILE.md, .json or .html.", callback=_report_file),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the report to FILE, as JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 unless the verdict is 'identified'.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Time for the fit, its verdict included, in seconds.", min=0)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is decided along the way.")]


def demo(
    dataset: Annotated[str, typer.Option(help="Registered dataset; the default needs no network.")] = "simulate",
    source: Source = None,
    target: Target = None,
    anchors: Annotated[int, typer.Option(help="Number of co-assayed cells that training may see.", min=0)] = 10,
    method: Method = "auto",
    prior: Prior = None,
    conditions: Conditions = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    option: Options = None,
    counts: Counts = True,
    out: Annotated[Path, typer.Option(help="Folder for the model, the MuData, the report and the picture.")] = Path(
        "celltransfer-demo"
    ),
    report: ReportFile = None,
    json_file: JsonFile = None,
    picture: Annotated[
        bool, typer.Option(help="Draw cells in one UMAP, and write the report as a page with pictures.")
    ] = True,
    strict: Strict = False,
) -> None:
    """Run the main job: unpair a co-assay, fit, translate, write the MuData, report, draw."""
    with session():
        from celltransfer import datasets

        _check_model_folder(out / "model", overwrite=True)
        full = datasets.load(dataset)
        source, target = _direction(full, source, target)
        mdata = datasets.unpair(full, anchors, source=source, target=target, seed=seed)
        model = _fit(
            mdata, source, target, anchors, method, prior, conditions, "train", seed, device, max_seconds, option
        )
        model.translate(mdata, counts=counts)
        # The whole co-assay, for the ceiling: the pairs that the model was not shown.
        result = _report(model, full)
        _save(model, mdata, out)
        _write_report(result, report, json_file, out / "report.md", out / "report.json")
        written = ["model", "translated.h5mu", "report.md", "report.json"]
        if picture:
            _draw(model, mdata, out / "translation.png", seed)
            result.to_html(out / "report.html")
            written += ["translation.png", "report.html"]
        _show(result)
        say(f"Written to {out}/: {', '.join(written)}")
        conclude(model, strict)


def fit(
    data: MuDataInput,
    model_dir: Annotated[Path, typer.Option("--model", help="Folder to save the model in.")],
    source: Source = None,
    target: Target = None,
    anchors: Annotated[
        str | None,
        typer.Option(help="A number, a boolean obs column, or a CSV with columns source_id,target_id; default: all."),
    ] = None,
    method: Method = "auto",
    prior: Prior = None,
    conditions: Conditions = None,
    links: Annotated[
        str | None,
        typer.Option(
            help="Feature links: a CSV with columns source,target[,weight], or the column of the target's var that "
            "names the source feature."
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Preprocessing, MODALITY=NAME; may be repeated. NAME alone: one recipe, fitted on the cells of both "
            "modalities (two conditions of one, see `celltransfer conditions`).",
            callback=_recipes,
        ),
    ] = None,
    train: Annotated[str | None, typer.Option(help="obs column that marks the training cells.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    option: Options = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing model.")] = False,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Fit a translator and save it."""
    with session(verbose):
        _check_model_folder(model_dir, overwrite=overwrite)
        mdata, recipes = read_mudata(data), recipe[0] if recipe and "=" not in recipe[0] else _pairs(recipe)
        model = _fit(
            mdata,
            source,
            target,
            _anchors(anchors),
            method,
            prior,
            conditions,
            train,
            seed,
            device,
            max_seconds,
            option,
            recipes,
            table_or_name(links),
        )
        model.save(model_dir, overwrite=overwrite)
        print(model)
        conclude(model, strict)


def translate(
    data: MuDataInput,
    model_dir: Model,
    out: MuDataOutput,
    key_added: KeyAdded = None,
    backward: Backward = False,
    counts: Counts = True,
    std: Annotated[bool, typer.Option(help="Write standard deviations, where the method knows them.")] = True,
    reject: Annotated[
        float | None, typer.Option(help="Mark cells whose confidence is below this.", min=0, max=1)
    ] = None,
    on_missing: MissingFeatures = None,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Translate the source cells of a MuData with a saved model."""
    with session(verbose):
        from celltransfer.data.writeback import write_h5mu
        from celltransfer.model.io import load

        check_output(out)
        model, mdata = load(model_dir), read_mudata(data)
        model = model.backward if backward else model
        how = {"counts": counts, "std": std, "reject": reject, "on_missing": on_missing}
        model.translate(mdata, key_added=key_added, **how)  # type: ignore[arg-type]
        write_h5mu(mdata, out)
        key = key_added or f"{model.target}_from_{model.source}"
        print(f"{out}: {key} {mdata.mod[key].n_obs} x {mdata.mod[key].n_vars}, verdict {model.verdict_.level}")
        if reject is not None:
            print(
                f"{int(mdata.mod[key].obs['translation_rejected'].sum())} cells rejected: confidence below {reject:g}"
            )
        if std and model.translator.gives_distribution:
            print(model.calibration_.describe())
        conclude(model, strict)


def evaluate(
    data: MuDataInput,
    model_dir: Model,
    labels: Annotated[str | None, typer.Option(help="obs column with cell labels, for the scores by label.")] = None,
    groups: Annotated[str | None, typer.Option(help="More obs columns to score by, comma separated.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV with columns source_id,target_id: true partners with different barcodes.", exists=True),
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Fit again with fewer anchors, for a curve.")] = False,
    max_seconds: Annotated[float, typer.Option(help="Time for the fits of the curve.", min=0)] = 120,
    seed: Seed = 0,
    report: ReportFile = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures to FILE.")] = None,
    csv_folder: Annotated[Path | None, typer.Option("--csv", help="Also write every table to FOLDER.")] = None,
    json_file: JsonFile = None,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Report on a saved model: scores on the co-assayed cells of a MuData, controls beside it."""
    with session(verbose):
        from celltransfer.model.io import load

        for file in (report, html, json_file):
            check_output(file)
        model = load(model_dir)
        result = _report(
            model,
            read_mudata(data),
            labels=labels,
            groups=split_names(groups) if groups else None,
            pairs=None if pairs is None else table(pairs),
            curve=curve,
            max_seconds=max_seconds,
            seed=seed,
        )
        _write_report(result, report, json_file)
        if html is not None:
            write_text(result.to_html(), html)
        if csv_folder is not None:
            result.to_csv(csv_folder)
        _show(result)
        conclude(model, strict)


def _fit(
    mdata: MuData,
    source: str | None,
    target: str | None,
    anchors: Any,
    method: str,
    prior: str | None,
    conditions: str | None,
    train: str | None,
    seed: int,
    device: str,
    max_seconds: float | None,
    option: list[str] | None,
    recipes: dict[str, str] | str | None = None,
    links: pd.DataFrame | str | None = None,
) -> TransferModel:
    from celltransfer.api import fit as fit_model
    from celltransfer.train.loop import Trainer

    return fit_model(
        mdata,
        source=source,
        target=target,
        anchors=anchors,
        method=method,
        prior=prior,
        conditions=split_names(conditions) if conditions else None,
        links=links,
        recipes=recipes,
        train=train,
        seed=seed,
        trainer=Trainer(device=device, max_seconds=max_seconds),
        **{name: _value(text) for name, text in _pairs(option).items()},
    )


def _anchors(text: str | None) -> Any:
    """A number, a table in a file, or the name of an obs column."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return table_or_name(text)


def _direction(mdata: MuData, source: str | None, target: str | None) -> tuple[str, str]:
    """Modalities to translate between; the dataset's own where nothing is said."""
    from celltransfer.data.cells import check_mudata, choose_modalities

    check_mudata(mdata)
    info = mdata.uns.get("celltransfer_dataset", {})
    if source is None and target is None:
        source, target = info.get("source"), info.get("target")
    return choose_modalities(mdata, source, target)


def _check_model_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse before the fit what saving would refuse after it."""
    if path.exists() and not overwrite:
        raise WriteError(f"{path} exists; pass --overwrite to replace it.")
    if path.exists() and not (path / "model.json").is_file():
        raise WriteError(f"{path} exists and is no celltransfer model; it is not overwritten.")


def _pairs(items: list[str] | None) -> dict[str, str]:
    return {name: value for name, _, value in (item.partition("=") for item in items or [])}


def _value(text: str) -> Any:
    """Numbers, booleans, null and lists as in JSON; anything else is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _report(model: TransferModel, mdata: MuData, **options: Any) -> Report:
    from celltransfer.reporting import report

    return report(model, mdata, **options)


def _save(model: TransferModel, mdata: MuData, out: Path) -> None:
    from celltransfer.data.writeback import write_h5mu

    model.save(out / "model", overwrite=True)
    write_h5mu(mdata, out / "translated.h5mu")


def _draw(model: TransferModel, mdata: MuData, path: Path, seed: int) -> None:
    from celltransfer import pl
    from celltransfer.data.writeback import atomic_path

    color = mdata.uns.get("celltransfer_dataset", {}).get("labels") or None
    figure = pl.translation(mdata, model, color=color, seed=seed)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=130)


def _write_report(result: Report, path: Path | None, json_file: Path | None, *more: Path) -> None:
    forms: dict[str, Callable[[], str]] = {".json": result.to_json, ".html": result.to_html}
    files = [(file, forms.get(file.suffix.lower(), result.to_markdown)) for file in (path, *more) if file is not None]
    if json_file is not None:
        files.append((json_file, result.to_json))
    for file, form in files:
        write_text(form(), file)


def _show(result: Report) -> None:
    """A drawn table on a terminal, Markdown in a pipe."""
    if not sys.stdout.isatty():
        print(result.to_markdown(), end="")
        return
    from rich.console import Console

    Console().print(result.to_rich())
