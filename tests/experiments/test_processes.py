"""Processes side by side: how they end, what they took, and what stops them."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from celltransfer.experiments.processes import Ended, side_by_side

if TYPE_CHECKING:
    from pathlib import Path


def _run(folder: Path, code: str, **limits: Any) -> Ended:
    return next(iter(side_by_side([("job", [sys.executable, "-c", code], folder)], **limits)))[1]


def test_measures_time_and_memory(tmp_path: Path) -> None:
    ended = _run(tmp_path, "x = b'1' * 80_000_000\nwhile __import__('time').process_time() < 0.3: pass")
    assert (ended.status, ended.reason) == ("ok", "")
    assert ended.seconds >= ended.cpu_seconds * 0.9 >= 0.25
    # Linux counts what the starting process held before it became the job's.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 80 < ended.peak_mb < ours + 500
    assert ended.load >= 0


def test_threads_and_environment_reach_the_process(tmp_path: Path) -> None:
    code = "import os; raise SystemExit(0 if os.environ['OMP_NUM_THREADS'] + os.environ['WORD'] == '1x' else 1)"
    assert _run(tmp_path, code, env={"WORD": "x"}).status == "ok"


def test_exit_code_comes_with_the_last_line(tmp_path: Path) -> None:
    ended = _run(tmp_path, "raise RuntimeError('too bad')")
    assert ended.status == "failed"
    assert "too bad" in ended.reason


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals")
def test_signal_is_named(tmp_path: Path) -> None:
    ended = _run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.status == "killed"
    assert "SIGKILL" in ended.reason
    assert "out of memory" in ended.reason


def test_too_slow_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    inner = f"import time; time.sleep(1.5); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    ended = _run(tmp_path, code, max_seconds=0.5)
    assert (ended.status, ended.reason) == ("timeout", "not done after 0.5 s")
    assert ended.seconds < 1.5
    time.sleep(1.6)
    assert not (tmp_path / "alive").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of others is looked at on Linux")
def test_too_large_is_stopped(tmp_path: Path) -> None:
    ended = _run(tmp_path, "x = b'1' * 400_000_000; __import__('time').sleep(20)", max_mb=200)
    assert ended.status == "memory"
    assert ended.reason.endswith("may take 200")
    assert ended.seconds < 10


def test_runs_as_many_at_a_time_as_asked(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.6)"
    commands = []
    for name in range(4):
        (tmp_path / str(name)).mkdir()
        commands.append((name, [sys.executable, "-c", code], tmp_path / str(name)))
    start = time.perf_counter()
    ended = dict(side_by_side(commands, processes=4))
    assert sorted(ended) == [0, 1, 2, 3]
    assert time.perf_counter() - start < sum(one.seconds for one in ended.values())


def test_leaving_early_stops_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow = f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')"
    commands = [("a", [sys.executable, "-c", ""], tmp_path / "a"), ("b", [sys.executable, "-c", slow], tmp_path / "b")]
    found = side_by_side(commands, processes=2)
    assert next(found)[0] == "a"
    found.close()  # type: ignore[attr-defined]
    time.sleep(1.8)
    assert not mark.exists()
