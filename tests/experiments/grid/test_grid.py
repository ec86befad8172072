"""Which jobs there are, and how methods are named."""

from __future__ import annotations

import pytest
from celltransfer import translators
from celltransfer.errors import ConfigError
from celltransfer.experiments import grid as benchmark
from celltransfer.experiments.grid import methods
from celltransfer.experiments.grid import plan as grid


def _keys(jobs: list[benchmark.Job]) -> list[tuple]:
    return [tuple(job.key.values()) for job in jobs]


def test_every_combination_once_and_seed_by_seed() -> None:
    arms = [benchmark.arm("simulate"), benchmark.arm("pbmc10k_cite")]
    jobs = benchmark.jobs(arms, ["ridge", "pls"], regimes=["disjoint", "shared"], anchors=[1, 10], seeds=[0, 1])
    keys = _keys(jobs)
    assert len(keys) == len(set(keys)) == 2 * 2 * 2 * 2 * 2
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_small_data_are_scored_in_the_shared_regime_whatever_was_asked_for() -> None:
    jobs = benchmark.jobs([benchmark.arm("scgem")], ["ridge"], regimes=["disjoint", "shared"], anchors=[1], seeds=[0])
    assert [job.regime for job in jobs] == ["shared"]


def test_backward_arm_translates_the_other_way() -> None:
    arm = benchmark.arm("snare_cortex:backward")
    assert (arm.source, arm.target, arm.name) == ("atac", "rna", "snare_cortex:backward")
    assert arm == benchmark.arm("snare_cortex").backward


def test_slices_name_known_data_and_methods() -> None:
    for name in benchmark.slices():
        assert benchmark.slice_jobs(name)
    table = benchmark.slice_jobs("table")
    default = grid.default_method()
    assert {job.k for job in table} == {0, 1, 10, 50}
    assert {job.seed for job in table} == set(range(5))
    shared = {(job.arm.name, job.method.name) for job in table if job.regime == "shared"}
    assert ("pbmc10k_cite", default) in shared
    assert ("pbmc10k_cite", "ridge") not in shared
    assert len(_keys(table)) == len(set(_keys(table)))


def test_values_replace_those_of_a_slice() -> None:
    jobs = benchmark.slice_jobs("core", arms=[benchmark.arm("simulate")], names=["ridge"], anchors=[5], seeds=[3])
    assert _keys(jobs) == [("simulate", "disjoint", "test", 5, 3, "ridge")]
    assert benchmark.slice_jobs("smoke", names=["ridge"], backward=True)[0].arm.source == "atac"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regimes": ["both"]}, "regime='both'"),
        ({"part": "train"}, "part='train'"),
        ({"anchors": [-1]}, "0 or more"),
        ({"names": ["nothing"]}, "no method 'nothing'"),
        ({"names": ["ieot(nonsense=1)"]}, "no option 'nonsense'"),
        ({"names": ["ieot(joint)"]}, "'joint' is no option"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    how = {"names": ["ridge"]} | values
    with pytest.raises(ConfigError, match=message):
        benchmark.jobs([benchmark.arm("simulate")], how.pop("names"), **how)


def test_unknown_data_and_slices_are_named() -> None:
    with pytest.raises(ConfigError, match="no dataset 'nothing'"):
        benchmark.arm("nothing:backward")
    with pytest.raises(ConfigError, match="no slice 'nothing'"):
        benchmark.slice_jobs("nothing")


def test_methods_with_options_are_called_by_them() -> None:
    spec = "ieot(potential=joint, penalty=0.5, n_cost=3)"
    method = methods.method(spec)
    assert (method.name, method.kind, method.runs) == (spec, "own", "ieot")
    assert method.options == {"potential": "joint", "penalty": 0.5, "n_cost": 3}
    assert methods._options("m", "a=[1, 2], b=x") == {"a": [1, 2], "b": "x"}
    assert methods._options("m", " ") == {}


def test_variants_and_groups() -> None:
    for variant in methods.VARIANTS.values():
        translators.make(variant.runs, **variant.options)
    assert methods.method("ieot (paper)").max_steps == 3000
    assert {"ridge", "fgw"} <= {method.name for method in methods.methods(["ours", "ridge"])}
    assert {method.kind for method in methods.methods(["peers"])} == {"peer"}
