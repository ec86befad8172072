"""Results in a folder: nothing lost, nothing run twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from celltransfer import __version__
from celltransfer.errors import ConfigError, InputError
from celltransfer.experiments import grid as benchmark
from celltransfer.experiments import peers
from celltransfer.experiments.grid import rows as results
from celltransfer.experiments.grid import runner
from celltransfer.experiments.processes import Ended

if TYPE_CHECKING:
    from pathlib import Path


def _jobs(*names: str, seeds: int = 2) -> list[benchmark.Job]:
    return benchmark.jobs([benchmark.arm("simulate")], names, anchors=[5], seeds=range(seeds))


def _row(job: benchmark.Job, **values: Any) -> dict[str, Any]:
    about = {"status": "ok", "reason": "", "versions": "celltransfer 0", "celltransfer": __version__}
    return job.key | about | {"foscttm": 0.25} | values


def _add(store: results.Results, rows: list[dict[str, Any]], cells: Path | None = None) -> None:
    rows, arrays, instead = store.found(rows, cells or store.folder / "nothing.npz")
    store.add(rows, arrays, instead=instead)


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    store, jobs = results.Results(tmp_path), _jobs("ridge", "pls")
    assert store.left(jobs) == jobs
    _add(store, [_row(jobs[0])])
    _add(store, [_row(jobs[1], status="failed", reason="no")])
    assert store.left(jobs) == jobs[2:]
    assert results.Results(tmp_path).left(jobs, "failed") == jobs[1:]
    assert store.left(jobs, "all") == jobs
    with pytest.raises(ConfigError, match="redo='nothing'"):
        store.left(jobs, "nothing")


def test_rows_of_another_version_do_not_count(tmp_path: Path) -> None:
    store, jobs = results.Results(tmp_path), _jobs("ridge")
    _add(store, [_row(jobs[0], celltransfer="0.0.0")])
    assert store.left(jobs) == jobs
    _add(store, [_row(jobs[0], foscttm=0.5)])
    rows = benchmark.load(tmp_path)
    assert rows["foscttm"].tolist() == [0.5]


def test_skipped_counts_unless_a_peer_was_missing(tmp_path: Path) -> None:
    store, jobs = results.Results(tmp_path), _jobs("ridge", "pls", seeds=1)
    _add(store, [_row(jobs[0], status="skipped", versions="celltransfer 0")])
    _add(store, [_row(jobs[1], status="skipped", versions="")])
    assert store.left(jobs) == jobs[1:]


def test_controls_are_one_job_with_many_rows(tmp_path: Path) -> None:
    store, (job,) = results.Results(tmp_path), _jobs("controls", seeds=1)
    _add(store, [_row(job, status="timeout", reason="slow")])
    assert store.left([job], "failed") == [job]
    _add(store, [_row(job, method="control: chance"), _row(job, method="control: reference")])
    assert store.left([job], "failed") == []
    assert set(benchmark.load(tmp_path)["method"]) == {"control: chance", "control: reference"}


def test_values_and_new_columns_survive(tmp_path: Path) -> None:
    store, jobs = results.Results(tmp_path), _jobs("ridge")
    _add(store, [_row(jobs[0], foscttm=0.123456789, reason='a "b", c', x=float("nan"))])
    _add(store, [_row(jobs[1], evidence_new=2.0)])
    rows = benchmark.load(tmp_path / "results.csv")
    assert rows["foscttm"].tolist() == [0.123457, 0.25]
    assert rows["reason"].tolist() == ['a "b", c', ""]
    assert rows["evidence_new"].isna().tolist() == [True, False]
    assert rows.attrs["folder"] == str(tmp_path)


def test_several_may_write_at_once(tmp_path: Path) -> None:
    jobs = _jobs("ridge", "pls", seeds=20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: _add(results.Results(tmp_path), [_row(job)]), jobs))
    assert results.Results(tmp_path).left(jobs) == []


def test_scores_per_cell_are_found_again(tmp_path: Path) -> None:
    store, jobs = results.Results(tmp_path / "out"), _jobs("ridge")
    for i, job in enumerate(jobs):
        np.savez(tmp_path / "cells.npz", **{"ridge/foscttm": np.full(3, i, np.float32)})
        _add(store, [_row(job)], tmp_path / "cells.npz")
    rows = benchmark.load(tmp_path / "out")
    found = results.per_cell(rows, "ridge", "foscttm", [1, 0])
    np.testing.assert_array_equal(found, [[1, 1, 1], [0, 0, 0]])
    assert results.per_cell(rows, "ridge", "mse", [0]) is None
    assert results.per_cell(rows, "ridge", "foscttm", [0, 5]) is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'dataset'"):
        results.Results(tmp_path).left(_jobs("ridge"))
    with pytest.raises(InputError, match="no column 'dataset'"):
        benchmark.load(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        benchmark.load(tmp_path / "nothing.csv")


def test_reference_share_is_the_way_from_chance_to_the_ceiling(tmp_path: Path) -> None:
    store, (job,) = results.Results(tmp_path), _jobs("controls", seeds=1)
    _add(
        store,
        [
            _row(job, method="control: chance", foscttm=0.5),
            _row(job, method="control: reference", foscttm=0.1),
            _row(job, method="ridge", foscttm=0.2),
        ],
    )
    assert benchmark.load(tmp_path)["reference_share"].tolist() == pytest.approx([0, 1, 0.75])


def test_job_that_leaves_nothing_is_a_row(tmp_path: Path) -> None:
    (job,) = _jobs("ridge", seeds=1)
    (row,) = runner._rows(job, tmp_path, Ended("killed", "killed by SIGKILL", 3.0, 2.0, 100.0, 0.5))
    assert (row["status"], row["reason"], row["total_seconds"]) == ("killed", "killed by SIGKILL", 3.0)
    (row,) = runner._rows(job, tmp_path, Ended("ok", "", 3.0))
    assert (row["status"], row["reason"]) == ("failed", "it ended without a result")
    assert runner.describe(row).endswith("ridge: failed, it ended without a result")


def test_peers_that_are_missing_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "names", lambda: ["absent"])
    monkeypatch.setattr(peers, "missing", lambda name: "absent is not installed")
    said: list[str] = []
    rows = benchmark.run(_jobs("absent"), tmp_path, tell=said.append)
    assert rows["status"].tolist() == ["skipped"] * 2
    assert said == ["2 of 2 jobs to run.", "absent: skipped, absent is not installed"]


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processes=0"):
        benchmark.run([], tmp_path, processes=0)


def test_job_beyond_its_limits_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    rows = benchmark.run(_jobs("ridge"), tmp_path, max_seconds=0.3, processes=2, tell=said.append)
    assert rows["status"].tolist() == ["timeout"] * 2
    assert set(rows["reason"]) == {"not done after 0.3 s"}
    assert said[-1].startswith("CPU hours: 0.00 (ridge 0.00)")
    assert benchmark.run(_jobs("ridge"), tmp_path, max_seconds=0.3)["status"].tolist() == ["timeout"] * 2
