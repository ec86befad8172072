"""The grid: which jobs there are. A job is one method on one problem: data, regime, anchors, seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from celltransfer import translators
from celltransfer.errors import ConfigError
from celltransfer.experiments.grid.arms import Arm, arm
from celltransfer.experiments.grid.methods import CONTROLS, Method, methods

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = ["dataset", "regime", "part", "k", "seed", "method"]


@dataclass(frozen=True)
class Job:
    """One method on one problem. Plain values, so that another process can run it.

    Attributes
    ----------
    arm, regime, part, k, seed, method
        What identifies it.
    imports
        Modules to import first, such as one that registers a translator.
    """

    arm: Arm
    regime: str
    part: str
    k: int
    seed: int
    method: Method
    imports: tuple[str, ...] = ()

    @property
    def key(self) -> dict[str, Any]:
        """Columns that identify its row."""
        values = (self.arm.name, self.regime, self.part, self.k, self.seed, self.method.name)
        return dict(zip(KEY, values, strict=True))


def default_method() -> str:
    """The method that `celltransfer.fit` takes where none is named."""
    return "auto" if "auto" in translators.available() else "jacobian"


@dataclass(frozen=True)
class Slice:
    """A named part of the grid.

    Attributes
    ----------
    about
        What it is for.
    datasets, methods, anchors, seeds
        What is run in the disjoint regime; `seeds` is their number.
    shared
        Methods that are run in the shared regime, too.
    """

    about: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    anchors: tuple[int, ...]
    seeds: int
    shared: tuple[str, ...] = field(default=())


def slices() -> dict[str, Slice]:
    """Named parts of the grid."""
    default = default_method()
    return {
        "smoke": Slice("simulated cells, in a minute", ("simulate",), ("ridge", "pls", CONTROLS), (10, 50), 2),
        "core": Slice(
            "the question in short, an hour on one core",
            ("pbmc10k_cite", "snare_cortex", "a549_scicar+time", "scgem"),
            (CONTROLS, "ridge", "fgw", default),
            (1, 10, 50),
            3,
        ),
        "table": Slice(
            "what is committed",
            ("pbmc10k_cite", "snare_cortex", "a549_scicar", "a549_scicar+time", "scgem"),
            (CONTROLS, "ours", "peers"),
            (0, 1, 10, 50),
            5,
            (CONTROLS, default),
        ),
    }


def jobs(
    arms: Sequence[Arm],
    names: Sequence[str],
    *,
    regimes: Sequence[str] = ("disjoint",),
    anchors: Sequence[int] = (1, 10, 50),
    seeds: Sequence[int] = (0, 1, 2),
    part: str = "test",
    imports: Sequence[str] = (),
) -> list[Job]:
    """All jobs of these values, seed by seed, so that an interrupted grid has few seeds of everything."""
    for what, given, known in (("regime", regimes, ("disjoint", "shared")), ("part", (part,), ("dev", "test"))):
        wrong = [value for value in given if value not in known]
        if wrong:
            raise ConfigError(f"{what}={wrong[0]!r} is not known; choose {' or '.join(map(repr, known))}.")
    if min((*anchors, *seeds), default=0) < 0:
        raise ConfigError("Numbers of anchors and seeds are 0 or more.")
    chosen = methods(list(names))
    found: dict[tuple[Any, ...], Job] = {}
    for seed, one, regime, k, method in product(seeds, arms, regimes, anchors, chosen):
        job = Job(one, one.regime(regime), part, k, seed, method, tuple(imports))  # type: ignore[arg-type]
        found.setdefault(tuple(job.key.values()), job)
    return list(found.values())


def slice_jobs(name: str, **changes: Any) -> list[Job]:
    """Jobs of a named slice; `changes` (`arms`, `names`, `backward` and options of `jobs`) replace what it says."""
    if name not in slices():
        raise ConfigError(f"There is no slice {name!r}; there are {', '.join(slices())}.")
    part = slices()[name]
    arms = changes.pop("arms", None) or [arm(dataset) for dataset in part.datasets]
    if changes.pop("backward", False):
        arms = [one.backward for one in arms]
    names, regimes = changes.pop("names", None), changes.pop("regimes", None)
    how = {"anchors": part.anchors, "seeds": range(part.seeds)} | changes
    found = jobs(arms, names or part.methods, regimes=regimes or ("disjoint",), **how)
    if regimes is None and part.shared:
        shared = [m for m in part.shared if names is None or m in names]
        found += jobs(arms, shared, regimes=("shared",), **how)
    keys = {tuple(job.key.values()): job for job in found}
    return list(keys.values())
