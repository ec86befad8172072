"""Time of the masked probe of E||J_f||_1, forward and backward, against what it cannot beat and what it replaces.

f is d -> d (ReLU) -> d (tanh), K = 8 probes. `bare` is f itself, forward and backward, on a ready stack of K + 1 copies
of the batch. `loop` calls f once per probe, and once for the values at the points; `pairs` calls it twice per probe.
`exact` is the full Jacobian. All run in turn within a repeat, on one thread, and ratios are medians over repeats of
ratios within one. On a CPU the clock is that thread's own, and freed memory is kept, so that neither what else the
machine does nor the arm before matters much. Rows that the results file has are skipped.

    python benchmarks/probe.py --out benchmarks/results/probe.csv
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from celltransfer.losses.jacobian import exact_l1, probe_l1, sparse_probes
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

K, STEP = 8, 1e-2
# Entries of the Jacobians of a batch beyond which the exact norm is not tried.
LARGEST_EXACT = 2**24
KEY = ["device", "d", "batch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probe.csv"))
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 256, 1024, 4096])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20, help="per size, at least 3 repeats")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=KEY)
    known = set(done[KEY].itertuples(index=False, name=None))
    for d in arguments.dims:
        for batch in arguments.batches:
            if (arguments.device, d, batch) not in known:
                row = measure(d, batch, torch.device(arguments.device), arguments.seconds)
                done = pd.concat([done, pd.DataFrame([row])]).sort_values(KEY)
                done.to_csv(arguments.out, index=False, float_format="%.4g")
    show(done)


def measure(d: int, batch: int, device: torch.device, seconds: float) -> dict:
    times = interleaved(arms(d, batch, device), device, seconds)
    bare = times["bare"]
    about = {"device": device.type, "d": d, "batch": batch, "bare_ms": 1e3 * np.median(bare), "repeats": len(bare)}
    ratios = {name: np.median(t / bare) for name, t in times.items() if name != "bare"}
    loop = {"loop_over_difference": np.median(times["loop"] / times["difference"])}
    return about | ratios | loop | {"torch": torch.__version__, "machine": machine(device)}


def arms(d: int, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
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
        return sum(probe_l1(f, x, n_probes=1, step=STEP, generator=generator) for _ in range(K)) / K

    named = {
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


def interleaved(named: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, np.ndarray]:
    """Seconds of every arm in every repeat, after a warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in named}
    for run in named.values():
        timed(run, device)
    end = time.perf_counter() + seconds
    while len(times["bare"]) < 3 or (time.perf_counter() < end and len(times["bare"]) < 200):
        for name, run in named.items():
            times[name].append(timed(run, device))
    return {name: np.array(t) for name, t in times.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
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


def machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, one thread"


def show(results: pd.DataFrame) -> None:
    columns = ["bare_ms", "difference", "derivative", "sampling", "loop", "pairs", "exact", "loop_over_difference"]
    print("Times over that of the bare stacked call (in ms):\n")
    print("| device | d | batch | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (len(columns) + 2))
    for _, row in results.iterrows():
        cells = ["" if pd.isna(row.get(c)) else f"{row[c]:.3g}" for c in columns]
        print(f"| {row['device']} | {row['d']} | {row['batch']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
