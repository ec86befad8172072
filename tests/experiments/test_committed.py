"""Rows in the repository are read by today's code, and their tables say what it says."""

from pathlib import Path

import pandas as pd
import pytest
from celltransfer.errors import ConfigError
from celltransfer.experiments import grid, suites

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/rows.csv"))


@pytest.mark.skipif(not FOLDERS, reason="only a checkout has results")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_tables_follow_from_rows(folder):
    outcome = suites.read(folder)
    assert outcome.name == folder.name
    assert outcome.to_markdown() == (folder / "table.md").read_text(encoding="utf-8")
    assert all(claim.found for claim in outcome.claims)


@pytest.mark.skipif(not FOLDERS, reason="only a checkout has results")
def test_every_suite_has_rows_of_every_claim_it_makes():
    assert {path.name for path in FOLDERS} == set(suites.suites().index)
    untold = [c for path in FOLDERS for c in suites.read(path).claims if c.found.startswith("nothing that was run")]
    assert not untold


@pytest.mark.skipif(not FOLDERS, reason="only a checkout has results")
@pytest.mark.parametrize("name", ["benchmark", "prior", "verdicts"])
def test_rows_of_the_benchmark_are_read(name):
    rows = grid.load(RESULTS / name)
    assert len(rows) > 100
    assert (rows["status"] == "ok").any()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rows\.csv cannot be read as rows of a suite"):
        suites.read(tmp_path)
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ConfigError, match="cannot be read as rows of a suite"):
        suites.read(tmp_path)
