"""The commands, from a user's own cells to tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import celltransfer as ct
import pandas as pd
import pytest
from celltransfer import cli
from celltransfer.data.writeback import write_h5mu
from celltransfer.experiments import grid as benchmark
from celltransfer.experiments import peers
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


def _run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["benchmark", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_lists_take_several_values_at_once() -> None:
    words = ["--datasets", "simulate", "scgem", "--methods", "ridge", "fgw", "--anchors", 0, 1, "--seeds", 2]
    lines = _run("run", "--dry-run", *words).splitlines()
    assert len(lines) == 2 * 3 * 2 * 2  # controls come with methods
    assert "dataset=scgem regime=shared part=test k=1 seed=1 method=fgw" in lines
    again = ["--datasets", "simulate", "--datasets", "scgem", "--methods", "ridge", "--methods", "fgw"]
    assert _run("run", "--dry-run", *again, "--anchors", 0, "--anchors", 1, "--seeds", 2).splitlines() == lines


def test_slices_are_listed_and_run_by_name() -> None:
    assert [line.split()[0] for line in _run("slices").splitlines()] == ["name", *benchmark.slices()]
    lines = _run("run", "smoke", "--dry-run", "--part", "dev", "--backward", "--first-seed", 3).splitlines()
    assert lines[0] == "dataset=simulate:backward regime=disjoint part=dev k=10 seed=3 method=ridge"


def test_peers_are_listed() -> None:
    text = _run("peers")
    assert all(f"{name}: " in text for name in peers.names())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no slice 'nothing'"),
        (["--datasets", "nothing"], "no dataset 'nothing'"),
        (["--methods", "nothing"], "no method 'nothing'"),
        (["--import", "no_such_module"], "no_such_module"),
        (["--source", "rna"], "--source says how to read --data"),
        (["--data", __file__, "--datasets", "scgem"], "choose one"),
        (["--data", __file__, "--kinds", "gex"], "expected MODALITY=KIND"),
        (["--data", __file__], "no MuData file"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str) -> None:
    error = _run("run", *words, "--dry-run", code=1)
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error


def test_from_own_cells_to_tables(tmp_path: Path) -> None:
    data, out, picture = tmp_path / "pilot.h5mu", tmp_path / "out", tmp_path / "curves.png"
    write_h5mu(ct.datasets.simulate(n_obs=120, n_genes=30, n_peaks=40, seed=0), data)
    words = ["--data", data, "--labels", "cell_type", "--methods", "pls", "--anchors", 12, "--seeds", 1, "--out", out]
    _run("run", *words)
    rows = pd.read_csv(out / "results.csv")
    assert set(rows["status"]) == {"ok"}
    assert {"pls", "control: ridge"} <= set(rows["method"])
    assert (rows["process_peak_mb"] > 50).all()
    assert len(list((out / "cells").iterdir())) == 2
    before = (out / "results.csv").read_bytes()
    _run("run", *words)
    assert (out / "results.csv").read_bytes() == before
    assert "### pilot, rna to atac, disjoint regime: 30 cells scored, 1 seed" in _run("table", out, "--method", "pls")
    assert "| pilot | disjoint | 12 | control: ridge |" in _run("compare", out, "pls", "ridge")
    assert "1 runs with a verdict" in _run("verdicts", out / "results.csv")
    _run("curves", out, "--out", picture, "--methods", "pls")
    assert picture.stat().st_size > 5000
    assert "no scores per cell of 'fgw'" in _run("compare", out, "fgw", "ridge", code=1)
