"""Data that methods are compared on: registered co-assays, in either direction, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from mudata import MuData

    from celltransfer.metrics.protocol import Task
    from celltransfer.metrics.splits import Regime

BACKWARD = ":backward"


@dataclass(frozen=True)
class Arm:
    """One direction of one co-assay, and what the protocol must know of it.

    Attributes
    ----------
    name
        What it is called in results.
    data
        Name of a registered data set, or path of a MuData file.
    source, target
        Modalities to translate from and to.
    labels
        obs column for the label scores and controls, which methods never see.
    condition
        obs column that methods may use.
    links
        var column that names the feature behind every feature, which methods may use.
    transductive
        Score the training cells, anchors left out: for data too small to hold cells out. ``"shared"`` regime only.
    n_components
        Dimensions of the scoring space, at most.
    kinds
        Normalisation by modality where its name does not say it, see `celltransfer.metrics.protocol.make_task`.
    """

    name: str
    data: str
    source: str
    target: str
    labels: str | None = None
    condition: str | None = None
    links: str | None = None
    transductive: bool = False
    n_components: int = 20
    kinds: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def backward(self) -> Arm:
        """The other direction."""
        return replace(self, name=self.name + BACKWARD, source=self.target, target=self.source)

    def regime(self, wanted: Regime) -> Regime:
        """The regime it can be scored in where `wanted` was asked for."""
        return "shared" if self.transductive else wanted

    def load(self) -> MuData:
        """The co-assayed cells."""
        if not self.data.lower().endswith(".h5mu"):
            from celltransfer import datasets

            return datasets.load(self.data)
        import mudata

        return mudata.read_h5mu(self.data)

    def task(self, mdata: MuData, *, regime: Regime, part: str, k: int, seed: int) -> Task:
        """The problem that a method is given."""
        from celltransfer.metrics import protocol

        return protocol.make_task(
            mdata,
            self.source,
            self.target,
            regime=self.regime(regime),
            n_anchors=k,
            seed=seed,
            part=part,  # type: ignore[arg-type]
            transductive=self.transductive,
            condition=self.condition,
            labels=self.labels,
            kinds=self.kinds or None,
            n_components=self.n_components,
        )


_SNARE = Arm("snare_cortex", "snare_cortex", "rna", "atac", "cell_type")
_A549 = Arm("a549_scicar", "a549_scicar", "rna", "atac", "treatment_time")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("pbmc10k_cite", "pbmc10k_cite", "rna", "protein", "cell_type"),
        _SNARE,
        replace(_SNARE, name="snare_cortex+links", links="linked_gene"),
        _A549,
        replace(_A549, name="a549_scicar+time", condition="treatment_time"),
        replace(_A549, name="a549_scicar_peaks", data="a549_scicar_peaks"),
        Arm("scgem", "scgem", "rna", "methylation", "cell_type", transductive=True, n_components=5),
        Arm("simulate", "simulate", "rna", "atac", "cell_type"),
    )
}


def arm(name: str) -> Arm:
    """The arm of this name; ``NAME:backward`` is its other direction."""
    plain = name.removesuffix(BACKWARD)
    if plain not in ARMS:
        raise ConfigError(f"There is no dataset {plain!r} in the benchmark; there are {', '.join(ARMS)}.")
    return ARMS[plain] if plain == name else ARMS[plain].backward


def own_arm(
    path: Path,
    source: str | None = None,
    target: str | None = None,
    labels: str | None = None,
    condition: str | None = None,
    kinds: dict[str, str] | None = None,
) -> Arm:
    """The arm of a user's own co-assay in a MuData file."""
    import mudata

    from celltransfer.data.cells import choose_modalities, obs_column
    from celltransfer.errors import InputError

    if path.suffix.lower() != ".h5mu":
        raise InputError(f"{path.name!r} is no MuData file (.h5mu).")
    try:
        mdata = mudata.read_h5mu(path, backed="r")
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as a MuData: {error}") from error
    source, target = choose_modalities(mdata, source, target)
    for column in (labels, condition):
        if column is not None:
            obs_column(mdata, source, column)
    n_both = len(mdata.mod[source].obs_names.intersection(mdata.mod[target].obs_names))
    if not n_both:
        raise InputError(f"No cell of {path.name!r} is in both {source!r} and {target!r}: there is no truth to score.")
    name = path.stem if condition is None else f"{path.stem}+{condition}"
    return Arm(name, str(path.resolve()), source, target, labels, condition, kinds=kinds or {})
