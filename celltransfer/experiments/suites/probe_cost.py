"""Suite ``probe_cost``: time of the masked probe of E||J_f||_1, forward and backward, against what it replaces.

f is d -> d (ReLU) -> d (tanh), K = 8 probes. `bare` is f itself, forward and backward, on a ready stack of K + 1 copies
of the batch, which no probe can beat. `loop` calls f once per probe, and once for the values at the points; `pairs`
calls it twice per probe. `exact` is the full Jacobian. All run in turn within a repeat, on one thread, and ratios are
medians over repeats of ratios within one. On a CPU the clock is that thread's own, and freed memory is kept, so that
neither what else the machine does nor the arm before matters much. Run it in one process.

Claims were stated when its rows were there.
"""

from __future__ import annotations

import ctypes
import platform
import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from celltransfer.experiments.claims import Says
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.losses.jacobian import exact_l1, probe_l1, sparse_probes
from celltransfer.train.loop import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from celltransfer.experiments.tables import Column

K, STEP = 8, 1e-2
# Entries of the Jacobians of a batch beyond which the exact norm is not tried.
LARGEST_EXACT = 2**24
DIMS, BATCHES = (64, 256, 1024, 4096), (16, 64, 256)
# Of measuring per size, at least 3 repeats.
SECONDS = 20.0


def _ratio(score: str) -> Callable[[pd.DataFrame], float]:
    return lambda group: float(group[score].mean())


class ProbeCost(Suite):
    """All ways to penalise a Jacobian, by size of the map and of the batch."""

    name = "probe_cost"
    title = "Time of a probed Jacobian penalty over that of the map itself"
    reference = "Single-anchor alignment by Jacobian sparsity, appendix D; the sizes are ours."
    seeds = 1
    by = ("d", "batch")
    columns: ClassVar[Mapping[str, Column]] = {
        "batch": lambda group: group["batch"].iloc[0],
        "bare, ms": _ratio("bare_ms"),
        "differences": _ratio("difference"),
        "derivative": _ratio("derivative"),
        "sampling": _ratio("sampling"),
        "loop": _ratio("loop"),
        "pairs": _ratio("pairs"),
        "exact": _ratio("exact"),
        "loop over differences": _ratio("loop_over_difference"),
    }

    def arms(self) -> list[tuple[int, int]]:
        """All sizes."""
        return [(d, batch) for d in DIMS for batch in BATCHES]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Time all ways at one size, on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        keep_freed_memory()
        try:
            times = interleaved(
                ways(job["d"], job["batch"], device := Trainer(device=self.device).resolve_device()), device
            )
        finally:
            torch.set_num_threads(threads)
        bare = times.pop("bare")
        found: Scores = {name: float(np.median(t / bare)) for name, t in times.items()}
        about: Scores = {"bare_ms": float(1e3 * np.median(bare)), "repeats": len(bare), "torch": str(torch.__version__)}
        return about | found | {"loop_over_difference": float(np.median(times["loop"] / times["difference"]))}, {}

    def says(self) -> list[Says]:
        """What the probe is for."""
        sizes = self.arms()
        return [
            Says(
                "Probing costs less than the exact norm, at every size that is tried.",
                _saved,
                sizes,
                "<",
                1,
                exact=True,
            ),
            Says(
                "One call for all probes is faster than one for each.",
                "loop_over_difference",
                sizes,
                ">",
                1,
                exact=True,
            ),
        ]


def _saved(rows: pd.DataFrame) -> pd.Series:
    return rows["difference"] / rows["exact"]


def ways(d: int, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.Tanh()).to(device)
    x, s, generator = torch.randn(batch, d, device=device), max(1, d // 10), torch.Generator(device).manual_seed(0)
    stack = x.repeat(K + 1, 1)

    def training(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            f.zero_grad()
            loss().backward()

        return run

    def loop() -> torch.Tensor:
        values, total = f(x), torch.zeros((), device=device)
        for _ in range(K):
            z = sparse_probes((1, batch, d), s, generator, device)[0]
            total = total + (f(x + STEP * z) - values).abs().mean()
        return total * d / (s * STEP * K)

    def pairs() -> torch.Tensor:
        return torch.stack([probe_l1(f, x, n_probes=1, step=STEP, generator=generator) for _ in range(K)]).mean()

    named: dict[str, Callable[[], object]] = {
        "bare": training(lambda: f(stack).abs().mean()),
        "difference": training(lambda: probe_l1(f, x, n_probes=K, step=STEP, generator=generator)),
        "derivative": training(lambda: probe_l1(f, x, n_probes=K, generator=generator)),
        "sampling": lambda: sparse_probes((K, batch, d), s, generator, device),
        "loop": training(loop),
        "pairs": training(pairs),
    }
    if batch * d * d <= LARGEST_EXACT:
        named["exact"] = training(lambda: exact_l1(f, x))
    return named


def interleaved(named: dict[str, Callable[[], object]], device: torch.device) -> dict[str, np.ndarray]:
    """Seconds of every way in every repeat, after a warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in named}
    for run in named.values():
        timed(run, device)
    end = time.perf_counter() + SECONDS
    while len(times["bare"]) < 3 or (time.perf_counter() < end and len(times["bare"]) < 200):
        for name, run in named.items():
            times[name].append(timed(run, device))
    return {name: np.array(t) for name, t in times.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def keep_freed_memory() -> None:
    """Stop glibc from returning memory to the system: an arm would pay page faults for what the one before freed."""
    if platform.system() == "Linux":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)  # the most it takes
