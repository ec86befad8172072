"""Bias and variance of the masked probe of ||J||_1 against the size of its mask.

20 random Jacobians of 1024 x 1024 per density, standard Gaussian where they are not zero, and one of ones; 504 probes
each, as 63 points with 8 directions. Relative bias is estimate / truth - 1; relative variance is that of one probe over
the squared truth. `variance_of_8` is that of the mean of a point's 8 directions, whose masks do not overlap while
8 s <= 1024; independent masks would give `variance` / 8.

    python benchmarks/probe_bias.py --out benchmarks/results/probe_bias.csv --picture docs/images/probe_bias.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from celltransfer.losses.jacobian import sparse_probes

D = 1024
DENSITIES = {"1 %": 0.01, "5 %": 0.05, "20 %": 0.2, "dense": 1.0}
SIZES = [1, 2, 5, 10, 20, 51, 102, 205, 410, 1024]
N_PROBES, N_POINTS, N_JACOBIANS = 8, 63, 20
SCALES = {"gaussian": math.sqrt(math.pi / 2), "binary": 1.0}
# Relative bias of up to this counts as small where the claim of linear growth is checked.
SMALL = 0.35


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probe_bias.csv"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/probe_bias.png"))
    parser.add_argument("--jacobians", type=int, default=N_JACOBIANS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.jacobians)
    table = rows.groupby(["jacobian", "direction", "s"], sort=False).mean(numeric_only=True).reset_index()
    for path in (arguments.out, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False, float_format="%.5g")
    draw(table, arguments.picture)
    report(table)


def measure(n_jacobians: int) -> pd.DataFrame:
    generator, rows = torch.Generator().manual_seed(0), []
    for name, density in DENSITIES.items():
        for _ in range(n_jacobians):
            mask = torch.rand(D, D, generator=generator) < density
            rows += [
                {"jacobian": name} | row for row in curves(mask * torch.randn(D, D, generator=generator), generator)
            ]
    return pd.DataFrame(rows + [{"jacobian": "ones"} | row for row in curves(torch.ones(D, D), generator)])


def curves(jacobian: torch.Tensor, generator: torch.Generator) -> list[dict]:
    truth, rows = float(jacobian.abs().sum()), []
    for s in SIZES:
        for direction, scale in SCALES.items():
            z = sparse_probes((N_PROBES, N_POINTS, D), s, generator, torch.device("cpu"), direction)
            relative = D / s * scale * (z @ jacobian.T).abs().sum(dim=-1) / truth
            rows.append(
                {
                    "direction": direction,
                    "s": s,
                    "bias": float(relative.mean()) - 1,
                    "variance": float(relative.var(dim=1).mean()),
                    "variance_of_8": float(relative.mean(dim=0).var()),
                }
            )
    return rows


def report(table: pd.DataFrame) -> None:
    """The claims: variance falls with s, bias grows linearly; and what a dense Jacobian gives."""
    for column in ("bias", "variance", "variance_of_8"):
        wide = table.pivot_table(index=["jacobian", "direction"], columns="s", values=column, sort=False)
        print(f"\nrelative {column}\n{wide.to_string(float_format='{:.2g}'.format)}")
    print("\nVariance up to s = 102: slope on log-log axes. Bias: a line through 0, while the bias is small.")
    for (name, direction), curve in table.groupby(["jacobian", "direction"], sort=False):
        low = curve[curve["s"] <= 102]
        slope = np.polyfit(np.log(low["s"]), np.log(low["variance"].clip(lower=1e-12)), 1)[0]
        small = curve[curve["bias"] > -SMALL]
        print(f"{name:6} {direction:9} variance ~ s^{slope:.2f}   {linearity(small)}")


def linearity(curve: pd.DataFrame) -> str:
    if len(curve) < 3:
        return f"bias beyond {SMALL:.0%} from s = {SIZES[len(curve)]} on"
    s, bias = (curve["s"] - 1).to_numpy(float), curve["bias"].to_numpy()
    slope = (s @ bias) / (s @ s)
    unexplained = np.square(bias - slope * s).sum() / max(np.square(bias).sum(), 1e-12)
    return f"bias {slope:+.1e} (s - 1), R^2 {1 - unexplained:.3f}, up to s = {int(curve['s'].max())}"


def draw(table: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for colour, (name, curves_) in enumerate(table[table["jacobian"] != "ones"].groupby("jacobian", sort=False)):
        for direction, curve in curves_.groupby("direction", sort=False):
            style = {"color": f"C{colour}", "linestyle": "-" if direction == "gaussian" else ":", "marker": "."}
            label = None if direction == "binary" else name if name == "dense" else f"{name} of entries"
            axes[0].plot(curve["s"], curve["bias"], **style)
            axes[1].plot(curve["s"], curve["variance"].where(curve["variance"] > 1e-9), label=label, **style)
    axes[1].plot([], [], "k-", label="gaussian")
    axes[1].plot([], [], "k:", label="binary")
    axes[0].set(xscale="log", ylabel="relative bias", xlabel=f"non-zero coordinates s of {D}")
    axes[1].set(xscale="log", yscale="log", ylabel="relative variance of one probe", xlabel="s")
    axes[1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
