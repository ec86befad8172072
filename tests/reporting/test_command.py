"""`celltransfer report`: everything that Python's report has, from files to files."""

from __future__ import annotations

import pandas as pd
import pytest
from celltransfer.cli import app
from celltransfer.data.writeback import write_h5mu
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


@pytest.fixture(scope="module")
def files(cells, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_h5mu(cells.copy(), folder / "cells.h5mu")
    model.save(folder / "model")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_page_and_tables_are_written(files, result, tmp_path):
    done = run(
        "report",
        files / "cells.h5mu",
        *("--model", files / "model", "--html", tmp_path / "r.html", "--csv", tmp_path / "tables"),
        *("--groups", "split", "--curve", "--max-seconds", 0, "--report", tmp_path / "r.md"),
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == (tmp_path / "r.md").read_text(encoding="utf-8")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    table = pd.read_csv(tmp_path / "tables" / "table.csv", index_col=0)
    pd.testing.assert_frame_equal(table, result.table, atol=1e-6)
    groups = pd.read_csv(tmp_path / "tables" / "by_group.csv", index_col=[0, 1])
    assert list(groups.loc["split"].index) == ["test"]
    assert (tmp_path / "tables" / "curve.csv").is_file()


def test_an_unknown_column_is_one_line(files):
    done = run("report", files / "cells.h5mu", "--model", files / "model", "--groups", "nowhere")
    assert done.exit_code == 1
    assert "'nowhere'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
