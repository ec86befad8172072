"""Jobs side by side in processes.

`workers` live on from job to job, so that jobs share what they prepared: for suites. `side_by_side` gives every job a
process of its own, whose time and memory are measured and limited from outside: for the benchmark of methods.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from celltransfer.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_POLL = 0.05
_MAX_REASON = 300


def workers(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], processes: int = 1) -> Iterator[Any]:
    """What `work` makes of each job's arguments, as they end; in this process where one is enough."""
    if processes == 1 or len(jobs) < 2:
        yield from (work(*job) for job in jobs)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
        found = parallel(delayed(_elsewhere)(work, job, vars(settings)) for job in jobs)
    try:
        yield from found
    finally:
        found.close()


def _elsewhere(work: Callable[..., Any], job: tuple[Any, ...], own: dict[str, Any]) -> Any:
    """The same in another process: on one thread, and with the settings of this one."""
    import torch

    torch.set_num_threads(1)
    with settings.override(**own):
        return work(*job)


class _Interrupted(BaseException):
    """Ctrl-C in a job. A `KeyboardInterrupt` would end the fit alone, and the job go on as if it were complete."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a job, and not only the fit in it."""

    def interrupt(*_: Any) -> None:
        raise _Interrupted

    try:
        with _signalled(signal.SIGINT, signal.default_int_handler, interrupt):
            yield
    except _Interrupted:
        raise KeyboardInterrupt from None


@contextmanager
def _signalled(which: signal.Signals, usual: Any, handler: Callable[..., None]) -> Iterator[None]:
    """Another handler for a signal, where it has the usual one and this thread may set it."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(which) is usual
    if ours:
        signal.signal(which, handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(which, usual)


@dataclass
class Ended:
    """How a process ended.

    Attributes
    ----------
    status
        ``"ok"``, ``"failed"`` (an exit code), ``"killed"`` (a signal), ``"timeout"`` or ``"memory"`` (our limits).
    reason
        What happened, in one line; empty where nothing did.
    seconds, cpu_seconds
        Wall time and CPU time, of its children too.
    peak_mb
        Peak resident memory. NaN where the system does not say.
    load
        The machine's load average when it started.
    """

    status: str
    reason: str
    seconds: float
    cpu_seconds: float = float("nan")
    peak_mb: float = float("nan")
    load: float = float("nan")


@dataclass
class _Running:
    name: Any
    process: subprocess.Popen[bytes]
    log: BinaryIO
    start: float = field(default_factory=time.perf_counter)
    load: float = field(default_factory=lambda: os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"))


def side_by_side(
    commands: Iterable[tuple[Any, list[str], Path]],
    *,
    processes: int = 1,
    max_seconds: float | None = None,
    max_mb: float | None = None,
    threads: int = 1,
    env: dict[str, str] | None = None,
) -> Iterator[tuple[Any, Ended]]:
    """Run commands, each given with a name and a folder for its output, and give how they ended, as they end.

    Parameters
    ----------
    processes
        Commands at a time.
    max_seconds, max_mb
        What each may take, wall time and resident memory (looked at while it runs, on Linux); it is killed beyond.
    threads
        Threads of numerical libraries in each.
    env
        Environment variables that they get beside this process's.
    """
    limit = {name: str(threads) for name in _THREADS}
    waiting, running = iter(commands), list[_Running]()
    exhausted = False
    try:
        with _signalled(signal.SIGTERM, signal.SIG_DFL, _stop):
            while running or not exhausted:
                while not exhausted and len(running) < processes:
                    command = next(waiting, None)
                    if command is None:
                        exhausted = True
                    else:
                        running.append(_started(*command, os.environ | limit | (env or {})))
                for item in list(running):
                    ended = _ended(item, max_seconds, max_mb)
                    if ended is not None:
                        running.remove(item)
                        item.log.close()
                        yield item.name, ended
                time.sleep(_POLL)
    finally:
        for item in running:
            _kill(item.process)
            item.process.wait()
            item.log.close()


def _stop(*_: Any) -> None:
    """End this process in order, so that those it started end with it."""
    raise SystemExit(128 + signal.SIGTERM)


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def _started(name: Any, command: list[str], folder: Path, env: dict[str, str]) -> _Running:
    log = open(folder / "log", "w+b")
    # A session of its own, so that what it starts can be killed with it.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
    )
    return _Running(name, process, log)


def _ended(item: _Running, max_seconds: float | None, max_mb: float | None) -> Ended | None:
    """How a process ended; ``None`` while it runs. Kills what is beyond its limits."""
    seconds = time.perf_counter() - item.start
    status = reason = ""
    if max_seconds is not None and seconds > max_seconds:
        status, reason = "timeout", f"not done after {max_seconds:g} s"
    elif max_mb is not None and (used := _resident_mb(item.process.pid)) > max_mb:
        status, reason = "memory", f"took {used:.0f} MB, and may take {max_mb:g}"
    if status:
        _kill(item.process)
    usage = _waited(item.process, block=bool(status))
    if usage is None:
        return None
    code = item.process.returncode
    if not status:
        status = "ok" if code == 0 else "killed" if code < 0 else "failed"
        reason = "" if code == 0 else _reason(code, item.log)
    return Ended(status, reason, time.perf_counter() - item.start, *usage, load=item.load)


def _waited(process: subprocess.Popen[bytes], *, block: bool) -> tuple[float, float] | None:
    """CPU seconds and peak MB of a process that ended, or ``None``."""
    if not hasattr(os, "wait4"):
        code = process.wait() if block else process.poll()
        return None if code is None else (float("nan"), float("nan"))
    pid, state, usage = os.wait4(process.pid, 0 if block else os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(state)
    kilo = 1024 * 1024 if os.uname().sysname == "Darwin" else 1024
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / kilo


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    except ProcessLookupError:  # it ended by itself
        pass


def _reason(code: int, log: BinaryIO) -> str:
    """The signal or exit code, and the last line that the process wrote."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    said = f": {lines[-1].strip()}" if lines else ""
    if code == -signal.SIGKILL:
        said = ", as a machine out of memory does" + said
    what = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return (what + said)[:_MAX_REASON]


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
