"""Command line: h5mu in, h5mu out. Results go to stdout, everything else to stderr.

Exit codes: 0 success, 1 the input or the machine was at fault (one clear message), 2 wrong usage,
3 the verdict was not good enough (`--strict`).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celltransfer.errors import CelltransferError, InputError, VerdictWarning

if TYPE_CHECKING:
    from mudata import MuData

    from celltransfer.model import TransferModel
    from celltransfer.reporting import Report

app = typer.Typer(
    help="Translate single cells between modalities from unpaired cells and a handful of anchors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
datasets_app = typer.Typer(help="List, fetch and export the registered datasets.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")

Input = Annotated[Path, typer.Argument(help="MuData file (.h5mu).", exists=True, dir_okay=False)]
Source = Annotated[str | None, typer.Option(help="Modality to translate from; the first of two if not given.")]
Target = Annotated[str | None, typer.Option(help="Modality to translate to; the second of two if not given.")]
Method = Annotated[str, typer.Option(help="Translator, see `celltransfer methods`.")]
Conditions = Annotated[str | None, typer.Option(help="obs column(s) known for every cell, comma separated.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")]
Options = Annotated[list[str] | None, typer.Option("--option", "-O", help="Option of the method, NAME=VALUE.")]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the report to FILE.md or FILE.json.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 unless the verdict is 'identified'.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Stop training after this many seconds.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is decided along the way.")]


@contextmanager
def _session(verbose: bool = True) -> Iterator[None]:
    """Log to stderr, print warnings as one line, and turn our errors into one message and exit code 1."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("celltransfer").setLevel(logging.INFO if verbose else logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=VerdictWarning)  # printed with the result
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)  # type: ignore[assignment]
        try:
            yield
        except (CelltransferError, MemoryError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


@app.command()
def demo(
    dataset: Annotated[str, typer.Option(help="Registered dataset; the default needs no network.")] = "simulate",
    source: Source = None,
    target: Target = None,
    anchors: Annotated[int, typer.Option(help="Number of co-assayed cells that training may see.")] = 10,
    method: Method = "jacobian",
    conditions: Conditions = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_seconds: MaxSeconds = None,
    option: Options = None,
    out: Annotated[Path, typer.Option(help="Folder for the model, the MuData, the report and the picture.")] = Path(
        "celltransfer-demo"
    ),
    report: ReportFile = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    picture: Annotated[bool, typer.Option(help="Draw translated and true cells in one UMAP.")] = True,
    strict: Strict = False,
) -> None:
    """Run the main job: unpair a co-assay, fit, translate, write the MuData, report, draw."""
    with _session():
        from celltransfer import datasets, pl

        mdata = datasets.unpair(datasets.load(dataset), anchors, source=source, target=target, seed=seed)
        source, target = source or next(iter(mdata.mod)), target or list(mdata.mod)[1]
        model = _fit(mdata, source, target, anchors, method, conditions, "train", seed, device, max_seconds, option)
        model.translate(mdata, counts=False)
        result = _report(model, mdata)
        _save(model, mdata, out)
        if picture:
            info = mdata.uns.get("celltransfer_dataset", {})
            figure = pl.translation(mdata, model, color=info.get("labels") or None, seed=seed)
            figure.savefig(out / "translation.png", dpi=130)
        for path in (report, json_file, out / "report.md", out / "report.json"):
            _write_report(result, path)
        _show(result)
        print(f"Written to {out}/: {', '.join(sorted(p.name for p in out.iterdir()))}", file=sys.stderr)
        _exit(model, strict)


@app.command()
def fit(
    data: Input,
    model_dir: Annotated[Path, typer.Option("--model", help="Folder to save the model in.")],
    source: Source = None,
    target: Target = None,
    anchors: Annotated[
        str | None,
        typer.Option(help="A number, a boolean obs column, or a CSV with columns source_id,target_id; default: all."),
    ] = None,
    method: Method = "jacobian",
    conditions: Conditions = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Preprocessing, MODALITY=NAME.")] = None,
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
    with _session(verbose):
        mdata = _read(data)
        recipes = _pairs(recipe, "--recipe")
        model = _fit(
            mdata, source, target, _anchors(anchors), method, conditions, train, seed, device, max_seconds, option, recipes
        )
        model.save(model_dir, overwrite=overwrite)
        print(model)
        _exit(model, strict)


@app.command()
def translate(
    data: Input,
    model_dir: Annotated[Path, typer.Option("--model", help="Folder of a saved model.")],
    out: Annotated[Path, typer.Option(help="MuData file to write (.h5mu).")],
    key_added: Annotated[str | None, typer.Option(help="Name of the new modality.")] = None,
    counts: Annotated[bool, typer.Option(help="Write expected counts, where the recipe knows them.")] = False,
    on_missing: Annotated[str | None, typer.Option(help="error or zero: source features the file lacks.")] = None,
    verbose: Verbose = False,
) -> None:
    """Translate the source cells of a MuData with a saved model."""
    with _session(verbose):
        from celltransfer.data.writeback import write_h5mu
        from celltransfer.model import load

        mdata, model = _read(data), load(model_dir)
        model.translate(mdata, key_added=key_added, counts=counts, on_missing=on_missing)
        write_h5mu(mdata, out)
        key = key_added or f"{model.target}_from_{model.source}"
        print(f"{out}: {key} {mdata.mod[key].n_obs} x {mdata.mod[key].n_vars}, verdict {model.verdict_.level}")


@app.command()
def evaluate(
    data: Input,
    model_dir: Annotated[Path, typer.Option("--model", help="Folder of a saved model.")],
    report: ReportFile = None,
    strict: Strict = False,
    verbose: Verbose = False,
) -> None:
    """Score a saved model on the co-assayed cells of a MuData, controls beside it."""
    with _session(verbose):
        from celltransfer.model import load

        model = load(model_dir)
        result = _report(model, _read(data))
        _write_report(result, report)
        _show(result)
        _exit(model, strict)


@app.command()
def methods() -> None:
    """List the translators."""
    from celltransfer import translators

    for name in translators.available():
        cls = translators.get(name)
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        print(f"{name:16} {cls.min_anchors:>2}+ anchors  {summary}")


@datasets_app.command("list")
def list_datasets() -> None:
    """List the registered datasets."""
    with _session(False):
        from celltransfer import datasets

        print(datasets.list().to_string())


@datasets_app.command("fetch")
def fetch_dataset(
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    out: Annotated[Path | None, typer.Option(help="Write it as MuData file (.h5mu).")] = None,
) -> None:
    """Download and build a dataset; with --out write it to a file."""
    with _session():
        from celltransfer import datasets
        from celltransfer.data.writeback import write_h5mu

        mdata = datasets.load(name)
        if out is not None:
            write_h5mu(mdata, out)
        print(mdata)


def _fit(
    mdata: MuData,
    source: str | None,
    target: str | None,
    anchors: Any,
    method: str,
    conditions: str | None,
    train: str | None,
    seed: int,
    device: str,
    max_seconds: float | None,
    option: list[str] | None,
    recipes: dict[str, str] | None = None,
) -> TransferModel:
    from celltransfer.api import fit as fit_model
    from celltransfer.train.loop import Trainer

    return fit_model(
        mdata,
        source=source,
        target=target,
        anchors=anchors,
        method=method,
        conditions=conditions.split(",") if conditions else None,
        recipes=recipes,
        train=train,
        seed=seed,
        trainer=Trainer(device=device, max_seconds=max_seconds),
        **{name: _value(text) for name, text in _pairs(option, "--option").items()},
    )


def _read(path: Path) -> MuData:
    import mudata

    try:
        return mudata.read_h5mu(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a MuData: {error}") from error


def _anchors(text: str | None) -> Any:
    """A number, a CSV file, or the name of an obs column."""
    if text is None or text.isdigit():
        return None if text is None else int(text)
    if text.endswith((".csv", ".tsv", ".txt")):
        import pandas as pd

        try:
            return pd.read_csv(text, sep=None, engine="python", dtype=str)
        except (OSError, ValueError) as error:
            raise InputError(f"The anchor table {text} cannot be read: {error}") from error
    return text


def _pairs(items: list[str] | None, flag: str) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        name, sign, value = item.partition("=")
        if not sign:
            raise typer.BadParameter(f"{flag} takes NAME=VALUE, got {item!r}.")
        pairs[name] = value
    return pairs


def _value(text: str) -> Any:
    """Numbers, booleans, null and lists as in JSON; anything else is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _report(model: TransferModel, mdata: MuData) -> Report:
    from celltransfer.reporting import report

    return report(model, mdata)


def _save(model: TransferModel, mdata: MuData, out: Path) -> None:
    from celltransfer.data.writeback import write_h5mu

    model.save(out / "model", overwrite=True)
    write_h5mu(mdata, out / "translated.h5mu")


def _write_report(result: Report, path: Path | None) -> None:
    from celltransfer.data.writeback import atomic_path

    if path is None:
        return
    if path.suffix not in {".md", ".json"}:
        raise typer.BadParameter(f"--report writes .md or .json, got {path.name!r}.")
    with atomic_path(path) as part:
        part.write_text(result.to_json() if path.suffix == ".json" else result.to_markdown())


def _show(result: Report) -> None:
    """A table for the eye on a terminal, Markdown in a pipe."""
    if not sys.stdout.isatty():
        print(result.to_markdown())
        return
    from rich.console import Console

    Console().print(result.to_rich())


def _exit(model: TransferModel, strict: bool) -> None:
    if strict and model.verdict_.level != "identified":
        raise typer.Exit(3)
