"""One job of the benchmark, run in a process of its own: ``python -m celltransfer.experiments.grid.job FOLDER``.

FOLDER holds ``job.json``; rows go to ``rows.json`` and per-cell scores to ``cells.npz``, the rows last.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
import warnings
from dataclasses import asdict, fields
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer._version import __version__
from celltransfer.errors import AnchorError
from celltransfer.experiments.grid.arms import Arm
from celltransfer.experiments.grid.methods import CONTROL_PREFIX, Method
from celltransfer.experiments.grid.plan import Job

if TYPE_CHECKING:
    from celltransfer.metrics.protocol import Scores, Task
    from celltransfer.model.model import TransferModel

Row = dict[str, Any]
# Scores whose values per cell are kept, for paired comparisons.
PER_CELL = ("foscttm", "knn_accuracy@10", "knn_accuracy@50")
# Half precision, 2e-4 of a score, is far below what cells differ by.
_CELL_TYPE = np.float16
_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "pot")
_MAX_TEXT = 300


class Skipped(Exception):
    """The method cannot do this job; the message says why. `versions` of what was looked at."""

    def __init__(self, reason: str, versions: str = f"celltransfer {__version__}") -> None:
        super().__init__(reason)
        self.versions = versions


def run(job: Job, max_seconds: float = 900.0) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows of a job, and scores per cell by ``method/score``. Whatever goes wrong is a row that says what."""
    start = time.perf_counter()
    about = job.key | {"source": job.arm.source, "target": job.arm.target}
    try:
        for module in job.imports:
            import_module(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows, cells = _rows(job, max_seconds)
    except Skipped as reason:
        rows, cells = [{"status": "skipped", "reason": _text(reason), "versions": reason.versions}], {}
    except Exception as error:  # noqa: BLE001 - a method may fail in any way, and the grid goes on
        rows, cells = [{"status": "failed", "reason": _failure(error)}], {}
    rest = {"run_seconds": time.perf_counter() - start, "celltransfer": __version__, "machine": machine()}
    return [about | {"status": "ok", "reason": ""} | row | rest for row in rows], cells


def _rows(job: Job, max_seconds: float) -> tuple[list[Row], dict[str, np.ndarray]]:
    start = time.perf_counter()
    try:
        task = job.arm.task(job.arm.load(), regime=job.regime, part=job.part, k=job.k, seed=job.seed)  # type: ignore[arg-type]
    except AnchorError as error:
        raise Skipped(str(error)) from error
    about = {"n": task.truth.n_obs, "load_seconds": time.perf_counter() - start, "versions": _versions()}
    if job.method.kind == "controls":
        return _controls(task, job, about)
    start = time.perf_counter()
    if job.method.kind == "peer":
        prediction, found = _peer(job, task, max_seconds)
    else:
        model, found = _fitted(job, task)
        prediction = model.translate_cells(task.source_test)
        found |= _law(model, task)
    about |= {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()} | found
    from celltransfer.metrics import protocol

    scores = protocol.score(task, prediction, spearman=False)
    return [about | scores.values], _per_cell(job.arm, task, job.method.name, scores)


def _controls(task: Task, job: Job, about: Row) -> tuple[list[Row], dict[str, np.ndarray]]:
    from celltransfer.metrics import protocol

    start = time.perf_counter()
    table = protocol.control_table(task, job.seed)
    about |= {"seconds": (time.perf_counter() - start) / len(table), "peak_mb": peak_mb()}
    rows: list[Row] = []
    cells: dict[str, np.ndarray] = {}
    for name, scores in table.items():
        rows.append(about | {"method": CONTROL_PREFIX + name} | scores.values)
        cells |= _per_cell(job.arm, task, CONTROL_PREFIX + name, scores)
    return rows, cells


def _peer(job: Job, task: Task, max_seconds: float) -> tuple[Any, Row]:
    from celltransfer.experiments import peers

    if reason := peers.missing(job.method.runs):
        raise Skipped(reason, "")
    versions = peers.versions(job.method.runs)
    if reason := peers.applies(job.method.runs, task):
        raise Skipped(reason, versions)
    prediction = peers.translate(job.method.runs, task, seed=job.seed, max_seconds=max_seconds)
    return prediction, {"versions": versions}


def _fitted(job: Job, task: Task) -> tuple[TransferModel, Row]:
    from celltransfer import translators
    from celltransfer.api import fit
    from celltransfer.train.loop import Trainer

    cls, n_conditions = translators.get(job.method.runs), 0
    if cls.min_anchors > job.k:
        raise Skipped(f"needs {cls.min_anchors} or more anchors")
    if task.condition is not None:
        n_conditions = task.mdata.mod[task.source].obs[task.condition].nunique()
    if cls.min_conditions > n_conditions:
        raise Skipped(f"needs {cls.min_conditions} or more conditions")
    start = time.perf_counter()
    model = fit(
        task.mdata,
        source=task.source,
        target=task.target,
        anchors=task.anchors,
        method=job.method.runs,
        conditions=task.condition,
        links=job.arm.links,
        seed=job.seed,
        trainer=Trainer(max_steps=job.method.max_steps),
        verdict=job.method.verdict,
        **job.method.options,
    )
    evidence = {f"evidence_{name}": value for name, value in model.verdict_.evidence.items()}
    judged = {"verdict": model.verdict_.level, "reasons": _text(" ".join(model.verdict_.reasons))}
    return model, evidence | (judged if job.method.verdict else {}) | {
        "judged_seconds": time.perf_counter() - start,
        "fit_seconds": model.result_.seconds,
        "fit_status": model.result_.status.value,
        "notes": _text(" ".join(model.result_.notes)),
        "alignment": "" if model.alignment_ is None else model.alignment_.level,
    }


def _law(model: TransferModel, task: Task) -> Row:
    """Log density of the true partners in nats, and share of their values inside intervals, of methods with a law."""
    from celltransfer.model.law import Calibration

    if not model.translator.gives_distribution:
        return {}
    calibration = model.calibration_
    found = {"log_prob": float(model.law.log_prob(task.source_test, task.truth).mean())}
    found |= {"std_ratio": calibration.ratio, "calibration_anchors": calibration.n_anchors}
    for kind, used in (("stated", Calibration(noise=calibration.noise)), ("calibrated", calibration)):
        model.calibration_ = used
        shares = model.law.coverage(task.source_test, task.truth) if kind == "stated" or used.calibrated else {}
        found |= {f"coverage_{kind}@{level:.0%}": share for level, share in shares.items()}
    model.calibration_ = calibration
    return found


def _per_cell(arm: Arm, task: Task, name: str, scores: Scores) -> dict[str, np.ndarray]:
    """Scores by cell, in an order that all seeds share; NaN for training cells that are not scored."""
    if not arm.transductive:
        return {f"{name}/{score}": scores.per_cell[score].astype(_CELL_TYPE) for score in PER_CELL}
    rows = task.train_pairs[0].obs_names.get_indexer(task.source_test.obs_names)
    cells = {}
    for score in PER_CELL:
        values = np.full(task.train_pairs[0].n_obs, np.nan, _CELL_TYPE)
        values[rows] = scores.per_cell[score]
        cells[f"{name}/{score}"] = values
    return cells


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux
        import resource

        kilo = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo / 1024


def machine() -> str:
    """Processor, number of cores and Python."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _versions() -> str:
    return ", ".join([f"celltransfer {__version__}", *(f"{name} {metadata.version(name)}" for name in _PACKAGES)])


def _failure(error: Exception) -> str:
    """Kind and message of an error, and the line of code it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return _text(f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {error}")


def _text(value: Any) -> str:
    """One line of at most 300 characters."""
    return " ".join(str(value).split())[:_MAX_TEXT]


def to_json(job: Job) -> str:
    """A job as text."""
    return json.dumps(asdict(job))


def from_json(text: str) -> Job:
    """The job that `to_json` wrote."""
    values = json.loads(text)
    nested = {"arm": Arm(**values["arm"]), "method": Method(**values["method"]), "imports": tuple(values["imports"])}
    return Job(**{field.name: (values | nested)[field.name] for field in fields(Job)})


def main(folder: Path, max_seconds: float) -> None:
    """Run the job in `folder`."""
    job = from_json((folder / "job.json").read_text(encoding="utf-8"))
    rows, cells = run(job, max_seconds)
    if cells:
        np.savez_compressed(folder / "cells.npz", **cells)  # type: ignore[arg-type]
    (folder / "rows.part").write_text(json.dumps(rows, default=float), encoding="utf-8")
    (folder / "rows.part").rename(folder / "rows.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
