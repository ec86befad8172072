"""The command line as it is used: files in, files out, exit codes, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import celltransfer as ct
import mudata
import numpy as np
import pandas as pd
import pytest
from celltransfer import cli
from celltransfer.cli import models
from celltransfer.datasets.unpairing import unpair
from celltransfer.errors import InputError
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import Claim, Suite
from mudata import MuData
from typer.testing import CliRunner

DEMO = ["demo", "--method", "ridge", "--anchors", "20", "--no-picture"]


def run(*args, code=0):
    """Run a command and check its exit code; whatever happens, the user sees no traceback."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def fails(*args):
    """Run a command that must fail with one line of error; returns that line."""
    result = run(*args, code=1)
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return last


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def full():
    return ct.datasets.simulate(n_obs=500, n_genes=60, n_peaks=90, n_types=3, seed=0)


@pytest.fixture(scope="module")
def data(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5mu"
    cells = unpair(full, 100, seed=0)
    for name in ("rna", "atac"):
        both = cells["rna"].obs_names.intersection(cells["atac"].obs_names)
        cells[name].obs["is_anchor"] = cells[name].obs_names.isin(both) & cells[name].obs["train"].to_numpy()
    cells.write_h5mu(path)
    return path


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    run("fit", data, "--model", path, "--method", "ridge", "--train", "train")
    return path


@pytest.fixture
def full_disk(monkeypatch):
    """Every MuData is written as far as a full disk allows."""

    def write(self, path, *args, **kwargs):
        path.write_bytes(b"the first megabyte")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MuData, "write_h5mu", write)


def test_demo_writes_everything_it_says(tmp_path):
    out = tmp_path / "demo"
    result = run(*DEMO, "--out", out, "--json", tmp_path / "r.json", "--report", tmp_path / "r.html")
    assert files(out) == ["model", "report.json", "report.md", "translated.h5mu"]
    assert result.stdout == (out / "report.md").read_text()
    assert result.stdout.startswith("# rna -> atac, method ridge, 20 anchors")
    assert re.search(r"^\| translation \|", result.stdout, flags=re.MULTILINE)
    assert "recipe 'rna'" in result.stderr
    assert "Written to" in result.stderr
    assert "Written to" not in result.stdout
    scores = json.loads((tmp_path / "r.json").read_text())
    assert scores == json.loads((out / "report.json").read_text())
    assert scores["about"]["n_anchors"] == 20
    assert scores["scores"]["translation"]["foscttm"] < 0.35
    assert "<table" in (tmp_path / "r.html").read_text()
    translated = mudata.read_h5mu(out / "translated.h5mu")
    assert "counts" in translated["atac_from_rna"].layers
    model = ct.load(out / "model")
    np.testing.assert_allclose(
        translated["atac_from_rna"].obsm["X_translated"], model.latent(translated["rna"]), atol=1e-5
    )


def test_demo_over_an_earlier_demo_and_backwards(tmp_path):
    run(*DEMO, "--out", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    result = run(*DEMO, "--out", tmp_path, "--source", "atac")
    assert result.stdout.startswith("# atac -> rna")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "rna_from_atac" in mudata.read_h5mu(tmp_path / "translated.h5mu").mod


def test_demo_refuses_a_folder_that_is_not_a_model_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("celltransfer.datasets.load", lambda _: pytest.fail("it had started"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chapter1.tex").write_text("years of work")
    assert "no celltransfer model" in fails(*DEMO, "--out", tmp_path)


def test_demo_draws(tmp_path):
    run("demo", "--method", "ridge", "--anchors", "20", "--dataset", "pbmc68k_panels", "--out", tmp_path)
    assert (tmp_path / "translation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.filterwarnings("ignore:method='ridge' fits without")
def test_demo_on_a_real_dataset(real_dataset, tmp_path):
    real_dataset("a549_scicar")
    args = ["--dataset", "a549_scicar", "--conditions", "treatment_time", "--anchors", "50"]
    result = run("demo", "--method", "ridge", *args, "--out", tmp_path)
    assert "condition mean" in result.stdout
    assert "340 co-assayed cells that training has not seen" in result.stdout
    assert "translation.png" in files(tmp_path)


def test_fit_translate_evaluate(data, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out.h5mu"
    fitted = run("fit", data, "--model", model, "--method", "ridge", "--train", "train", "--seed", "3")
    assert fitted.stdout.startswith("TransferModel(rna -> atac, method='ridge'")
    assert "verdict: identified" in fitted.stdout
    assert fitted.stderr == ""
    translated = run("translate", data, "--model", model, "--out", out)
    assert re.fullmatch(rf"{re.escape(str(out))}: atac_from_rna \d+ x 90, verdict identified\n", translated.stdout)
    evaluated = run("evaluate", data, "--model", model, "--report", tmp_path / "r.md", "--json", tmp_path / "r")
    assert evaluated.stdout == (tmp_path / "r.md").read_text()
    assert json.loads((tmp_path / "r").read_text())["about"]["seed"] == 3
    again = mudata.read_h5mu(out)
    assert list(again.mod) == ["rna", "atac", "atac_from_rna"]
    assert "counts" in again["atac_from_rna"].layers
    twice = run("translate", out, "--model", model, "--out", out, "--no-counts", "--key-added", "predicted")
    assert twice.stderr == ""
    assert "counts" not in mudata.read_h5mu(out)["predicted"].layers


def test_translate_backward(data, saved, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out.h5mu"
    run("fit", data, "--model", model, "--method", "lrmf", "--train", "train", "--option", "density=gaussian")
    translated = run("translate", data, "--model", model, "--out", out, "--backward")
    assert re.match(rf"{re.escape(str(out))}: rna_from_atac \d+ x", translated.stdout)
    assert "rna_from_atac" in mudata.read_h5mu(out).mod
    refused = run("translate", data, "--model", saved, "--out", tmp_path / "no.h5mu", "--backward", code=1)
    assert "no inverse" in refused.stderr
    assert not (tmp_path / "no.h5mu").exists()


def test_the_command_line_fits_what_python_fits(data, saved):
    cells = mudata.read_h5mu(data)
    model = ct.fit(cells, train="train", method="ridge")
    np.testing.assert_array_equal(model.latent(cells["rna"]), ct.load(saved).latent(cells["rna"]))


def test_a_prior_is_named_and_kept(data, tmp_path):
    out = tmp_path / "model"
    fitted = run("fit", data, "--model", out, "--method", "ridge", "--prior", "pls", "--train", "train")
    assert "ridge x pls: 100 anchors" in fitted.stdout
    assert ct.load(out).translator.get_config()["prior"] == "pls"


def test_anchors_as_number_column_and_table(data, tmp_path):
    cells = mudata.read_h5mu(data)
    names = cells["rna"].obs_names[cells["rna"].obs["is_anchor"]]
    pd.DataFrame({"source_id": names, "target_id": names}).head(30).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"source_id": names, "target_id": names}).head(30).to_csv(tmp_path / "a", index=False, sep="\t")
    for number, anchors in enumerate(["25", "is_anchor", tmp_path / "a.csv", tmp_path / "a"]):
        model = tmp_path / f"model{number}"
        run("fit", data, "--model", model, "--method", "ridge", "--train", "train", "--anchors", anchors)
        assert len(ct.load(model).anchors) == [25, 100, 30, 30][number]


def test_recipes_options_and_conditions(data, tmp_path):
    args = ["--train", "train", "--conditions", "condition", "--anchors", "20", "--source", "rna", "--target", "atac"]
    options = ["--recipe", "rna=rna", "--recipe", "atac=none", "-O", "weight_structure=0.5", "--max-seconds", "1"]
    run("fit", data, "--model", tmp_path / "m", "--method", "jacobian", *args, *options)
    model = ct.load(tmp_path / "m")
    assert model.recipes["atac"].kind == "none"
    assert model.conditions == ("condition",)
    assert model.translator.get_config()["weight_structure"] == 0.5


def test_option_values_are_what_they_look_like():
    assert [models._value(text) for text in ("1", "0.5", "true", "null", "[1, 2]", "auto")] == [
        1,
        0.5,
        True,
        None,
        [1, 2],
        "auto",
    ]


def test_evaluate_with_pairs_of_different_barcodes(full, tmp_path):
    cells = unpair(full, 100, seed=0)
    atac = cells["atac"].copy()
    atac.obs_names = "atac_" + atac.obs_names
    apart = MuData({"rna": cells["rna"].copy(), "atac": atac})
    apart.write_h5mu(tmp_path / "apart.h5mu")
    names = cells["rna"].obs_names[cells["rna"].obs_names.isin(cells["atac"].obs_names)]
    pairs = pd.DataFrame({"source_id": names, "target_id": "atac_" + names})
    train = cells["rna"].obs.loc[names, "train"].to_numpy()
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    pairs[train].to_csv(tmp_path / "anchors.csv", index=False)
    args = ["--model", tmp_path / "m"]
    run(
        "fit",
        tmp_path / "apart.h5mu",
        *args,
        "--method",
        "ridge",
        "--train",
        "train",
        "--anchors",
        tmp_path / "anchors.csv",
    )
    assert "the verdict is all that is known" in run("evaluate", tmp_path / "apart.h5mu", *args).stdout
    scored = run("evaluate", tmp_path / "apart.h5mu", *args, "--pairs", tmp_path / "pairs.csv", "--labels", "cell_type")
    assert f"Scored on {(~train).sum()} co-assayed cells" in scored.stdout
    assert "label oracle" in scored.stdout


def test_strict_exits_with_3_after_writing(data, saved, tmp_path):
    args = ["--method", "ridge", "--train", "train", "--anchors", "2"]
    result = run("fit", data, "--model", tmp_path / "m", *args, "--strict", code=3)
    assert "verdict: ambiguous" in result.stdout
    assert "--strict asks for 'identified'" in result.stderr
    assert files(tmp_path / "m") == ["arrays.safetensors", "model.json"]
    run("evaluate", data, "--model", tmp_path / "m", "--strict", code=3)
    run("evaluate", data, "--model", saved, "--strict")
    # Without --strict the warning stands alone.
    assert run("fit", data, "--model", tmp_path / "m2", *args).stderr.startswith("warning: the verdict is ambiguous.")


def test_an_existing_model_is_replaced_only_on_demand(data, saved, monkeypatch):
    before = (saved / "model.json").read_text()
    monkeypatch.setattr(models, "read_mudata", lambda _: pytest.fail("it had started"))
    assert "pass --overwrite" in fails("fit", data, "--model", saved, "--method", "ridge")
    assert (saved / "model.json").read_text() == before
    monkeypatch.undo()
    run("fit", data, "--model", saved, "--method", "ridge", "--train", "train", "--overwrite")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "gex"], "no modality 'gex'"),
        (["--method", "magic"], "no method 'magic'"),
        (["--anchors", "nowhere"], "no column 'nowhere'"),
        (["--anchors", "nowhere.csv"], "table nowhere.csv cannot be read"),
        (["--anchors", "-3"], "negative"),
        (["--anchors", "100000"], "only"),
        (["--conditions", "nowhere"], "no column 'nowhere'"),
        (["--recipe", "rna=proteome"], "no recipe 'proteome'"),
        (["--recipe", "protein=protein"], "does not have"),
        (["--recipe", "bogus"], "no recipe 'bogus'"),
        (["-O", "nonsense=1"], "no option 'nonsense'"),
    ],
)
def test_unusable_arguments_are_one_line(data, tmp_path, args, message):
    assert message in fails("fit", data, "--model", tmp_path / "m", "--method", "ridge", *args)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe\x80", b"source_id\n", b"one\ntwo\nthree\n", b"source_id,target_id\nx,y\n"]
)
def test_bad_anchor_files(data, tmp_path, content):
    (tmp_path / "anchors.csv").write_bytes(content)
    fails("fit", data, "--model", tmp_path / "m", "--method", "ridge", "--anchors", tmp_path / "anchors.csv")
    assert files(tmp_path) == ["anchors.csv"]


def test_unreadable_files(full, saved, tmp_path):
    text, h5ad, cut = tmp_path / "text.h5mu", tmp_path / "one.h5ad", tmp_path / "cut.h5mu"
    text.write_text("not HDF5")
    full["rna"].copy().write_h5ad(h5ad)
    full.copy().write_h5mu(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    for path in (text, h5ad, cut):
        assert f"{path} {'holds an AnnData' if path == h5ad else 'cannot be read as a MuData'}" in fails(
            "translate", path, "--model", saved, "--out", tmp_path / "o.h5mu"
        )
    assert files(tmp_path) == ["cut.h5mu", "one.h5ad", "text.h5mu"]


def test_missing_model_and_missing_modality(full, data, saved, tmp_path):
    assert "model.json is missing" in fails("translate", data, "--model", tmp_path / "no", "--out", tmp_path / "o.h5mu")
    assert "model.json is missing" in fails("evaluate", data, "--model", tmp_path / "no")
    MuData({"atac": full["atac"].copy(), "other": full["atac"].copy()}).write_h5mu(tmp_path / "x.h5mu")
    assert "'rna'" in fails("translate", tmp_path / "x.h5mu", "--model", saved, "--out", tmp_path / "o.h5mu")
    assert "'rna'" in fails("evaluate", tmp_path / "x.h5mu", "--model", saved)
    assert files(tmp_path) == ["x.h5mu"]


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--nonsense"],
        ["demo", "--anchors", "-1"],
        ["demo", "--report", "report.pdf"],
        ["fit", "no-such-file.h5mu", "--model", "m"],
        ["fit", "{data}"],
        ["fit", "{data}", "--model", "m", "-O", "weight_structure"],
        ["fit", "{data}", "--model", "m", "--recipe", "rna", "--recipe", "rna"],
        ["translate", "{data}", "--model", "m", "--out", "o.h5mu", "--on-missing", "guess"],
        ["evaluate", "{data}", "--model", "m", "--report", "report.pdf"],
        ["datasets", "fetch"],
        ["validate", "plane", "--seeds", "0"],
        ["validate", "plane", "--processes", "0"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_exits_with_2_before_anything_happens(data, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    result = run(*(arg.format(data=data) for arg in args), code=2)
    assert result.stdout == ""
    assert "Usage" in result.stderr
    assert files(tmp_path) == []


def test_a_full_disk_leaves_nothing_half_written(data, saved, tmp_path, full_disk):
    out = tmp_path / "out.h5mu"
    message = fails("translate", data, "--model", saved, "--out", out)
    assert "No space left on device" in message
    assert files(tmp_path) == []
    out.write_text("an earlier result")
    fails("translate", data, "--model", saved, "--out", out)
    assert files(tmp_path) == ["out.h5mu"]
    assert out.read_text() == "an earlier result"
    fails("datasets", "fetch", "pbmc68k_panels", "--out", tmp_path / "x.h5mu")
    assert files(tmp_path) == ["out.h5mu"]


def test_demo_on_a_full_disk(tmp_path, full_disk):
    assert "No space left" in fails(*DEMO, "--out", tmp_path)
    assert files(tmp_path) == ["model"]
    ct.load(tmp_path / "model")


def test_datasets(tmp_path):
    listed = run("datasets", "list").stdout.splitlines()
    assert listed[0].split()[:2] == ["name", "modalities"]
    assert [line.split()[0] for line in listed[1:]] == list(ct.datasets.list()["name"])
    fetched = run("datasets", "fetch", "simulate", "--out", tmp_path / "x.h5mu")
    assert fetched.stdout.startswith("MuData object")
    assert list(mudata.read_h5mu(tmp_path / "x.h5mu").mod) == ["rna", "atac"]
    assert "nowhere" in fails("datasets", "fetch", "nowhere")
    assert run("datasets", "fetch", "digits", "--out", tmp_path / "x.h5ad").stdout.startswith("AnnData object")
    assert "written as .h5ad" in fails("datasets", "fetch", "digits", "--out", tmp_path / "y.h5mu")
    assert "got AnnData" in fails("demo", "--dataset", "digits", "--out", tmp_path / "demo")
    assert files(tmp_path) == ["x.h5ad", "x.h5mu"]


def test_methods_and_help():
    listed = run("methods").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(ct.translators.available())
    assert run("--version").stdout == f"{ct.__version__}\n"
    commands = ["demo", "fit", "translate", "report", "conditions", "interpolate", "counterfactual", "validate"]
    commands += ["datasets", "datasets fetch"]
    for command in ("", *commands):
        assert "Usage" in run(*command.split(), "--help").stdout
    positions = [run("--help").stdout.index(f" {command} ") for command in commands if " " not in command]
    assert positions == sorted(positions)


class Tiny(Suite):
    """Two seeds, and a claim that does not hold at full size."""

    name, title, reference = "tiny", "A tiny suite", "Nowhere."

    def jobs(self, seeds):
        return [{"arm": "one", "seed": seed} for seed in range(seeds or 2)]

    def run(self, job):
        if job["seed"] == 3:
            raise InputError("three is too many")
        return {"score": 0.5 + job["seed"]}, {}

    def table(self, rows):
        return rows.groupby("arm")[["score"]].mean()

    def claims(self, rows):
        return [Claim("Small is beautiful.", "See above.", not self.full), Claim("Maybe.", "Nothing.", None)]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A registered suite, and the working directory to run it in."""
    get = base.get
    monkeypatch.setattr(base, "get", lambda name: Tiny if name == "tiny" else get(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_validate_lists_the_suites():
    listed = run("validate").stdout.splitlines()
    assert listed[0].split() == ["name", "title", "reference"]
    assert [line.split()[0] for line in listed[1:]] == list(ct.validation.suites().index)


def test_validate_runs_a_suite_and_goes_on_where_it_stopped(tiny):
    result = run("validate", "tiny", "--device", "cpu")
    out = tiny / "celltransfer-validation" / "tiny"
    assert files(out) == ["rows.csv", "table.md"]
    assert result.stdout == (out / "table.md").read_text()
    assert "| one | 1 |" in result.stdout
    assert "**holds:** Small is beautiful." in result.stdout
    last = result.stderr.splitlines()[-1]
    assert last == "Written to celltransfer-validation/tiny/: rows.csv, table.md. Ran on cpu."
    more = run("validate", "tiny", "--seeds", "3", "--out", out)
    assert "3 runs at default sizes" in more.stdout
    assert len(pd.read_csv(out / "rows.csv")) == 3
    error = fails("validate", "tiny", "--seeds", "5", "--out", out)
    assert error.startswith("error: three is too many In run arm-one_seed-3 of suite 'tiny'")
    assert len(pd.read_csv(out / "rows.csv")) == 3


def test_validate_strict_exits_with_3_where_a_claim_does_not_hold(tiny):
    assert "--strict" not in run("validate", "tiny", "--strict", "--out", "a").stderr
    result = run("validate", "tiny", "--strict", "--full", "--out", "b", code=3)
    assert "**does not hold:** Small is beautiful." in result.stdout
    assert result.stderr.splitlines()[-1].startswith("1 of 2 claims do not hold")
    assert "1 of 2" not in run("validate", "tiny", "--full", "--out", "b").stderr


@pytest.mark.parametrize(
    ("args", "message"), [(["nowhere"], "no suite 'nowhere'"), (["tiny", "--device", "warp"], "device='warp'")]
)
def test_validate_refuses_before_it_writes(tiny, args, message):
    assert message in fails("validate", *args)
    assert files(tiny) == []


def test_a_terminal_gets_a_table(data, saved, monkeypatch, capsys):
    report = ct.report(ct.load(saved), mudata.read_h5mu(data))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    models._show(report)
    shown = capsys.readouterr().out
    assert "│" in shown
    assert "translation" in shown


def test_logging_is_left_as_it_was(data, saved, capsys):
    import logging

    logger = logging.getLogger("celltransfer")
    before = logger.level, logger.propagate, list(logger.handlers)
    run("evaluate", data, "--model", saved, "--verbose")
    assert (logger.level, logger.propagate, logger.handlers) == before


def python(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "celltransfer", *map(str, args)],
        cwd=cwd,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_as_a_module(tmp_path):
    done = python("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: celltransfer" in done.stdout
    assert done.stderr == ""


def test_as_a_process(data, saved, tmp_path):
    done = python("evaluate", data, "--model", saved, "--report", "report.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "report.md").read_text()
    failed = python("translate", data, "--model", "nowhere", "--out", "o.h5mu", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: nowhere is not a celltransfer model")
    assert files(tmp_path) == ["report.md"]
