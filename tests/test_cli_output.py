"""Files that a command could not write are refused before it does anything else."""

from __future__ import annotations

import celltransfer as ct
import pytest
from celltransfer import cli
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5mu"
    ct.datasets.simulate(n_obs=30, n_genes=5, n_peaks=5, n_types=2, seed=0).write_h5mu(path)
    return path


def fails(*args):
    """Run a command that must fail; returns what it says."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 1
    return result.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/o.h5mu", "Not a directory"),
        ("no/such/o.h5mu", "No such file or directory"),
        ("folder.h5mu", "it is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_first_and_by_its_name(data, tmp_path, name, reason):
    """Before the model, which there is none of, is looked for."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.h5mu").mkdir()
    said = fails("translate", data, "--model", tmp_path / "none", "--out", tmp_path / name)
    assert said.startswith(f"error: Cannot write {tmp_path / name}: {reason}")


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_the_report_too(data, tmp_path, option):
    file = tmp_path / "no" / "such" / "r.html"
    assert f"Cannot write {file}" in fails("report", data, "--model", tmp_path / "none", option, file)
