"""The suite's leak is a leak, and nothing else of it is; a small run from end to end on the real cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from celltransfer.data.batches import Batches
from celltransfer.data.pair import ModalityPair
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import a549
from celltransfer.metrics.scores import foscttm
from celltransfer.train.loop import Trainer

SMALL = {"map": "linear", "init": "random", "guard": False, "weight_anchor": 0.0, "weight_structure": 0.0}


def made(n: int = 400, seed: int = 0) -> tuple[ModalityPair, np.ndarray]:
    """Pairs in one order, of a source that every rotation leaves as it is; and the map."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    return ModalityPair(x, x @ rotation), rotation


def correlation(batches: Batches) -> float:
    """Of x and y in the rows of twenty batches."""
    drawn = [batches.draw() for _ in range(20)]
    x, y = (np.concatenate([getattr(batch, side).numpy() for batch in drawn]) for side in "xy")
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def test_aligned_batches_hold_the_same_cells_and_others_do_not():
    values = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    pair = ModalityPair(values, values)
    assert abs(correlation(Batches(pair, 64, seed=3))) < 0.1
    assert correlation(a549.aligned(Batches(pair, 64, seed=3))) == pytest.approx(1.0)


@pytest.mark.parametrize("translator", [a549.MatchedMeans, a549.MatchedEnergy])
def test_statistics_of_aligned_batches_give_the_pairs_away(translator):
    pair, rotation = made()
    test = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    found = {}
    for trainer in (Trainer, a549.AlignedTrainer):
        fitted = translator(**SMALL, weight_gan=0.0, lr=1e-2)
        limits = {"max_steps": 400, "batch_size": 16, "check_every": 400, "patience": float("inf")}
        fitted.fit_pair(pair, seed=1, trainer=trainer(**limits, device="cpu", progress=False))
        found[trainer] = foscttm(fitted.translate(test), test @ rotation)
    assert found[a549.AlignedTrainer] < 0.02
    assert found[Trainer] > 0.2


def test_aligned_batches_give_the_pairs_away_to_a_discriminator_of_single_cells():
    pair, rotation = made(seed=0)
    test = np.random.default_rng(9).normal(size=(200, 5)).astype(np.float32)
    limits = {"max_steps": 300, "batch_size": 8, "check_every": 300, "patience": float("inf")}
    options = SMALL | {"weight_gan": 1.0, "lr": 1e-2, "lr_discriminator": 1e-2}
    found = {}
    for trainer in (Trainer, a549.AlignedTrainer):
        fitted = a549.AsPublished(**options).fit_pair(pair, trainer=trainer(**limits, device="cpu", progress=False))
        found[trainer] = foscttm(fitted.translate(test), test @ rotation)
    assert found[a549.AlignedTrainer] < found[Trainer] - 0.15


def test_as_published_matches_every_cell_and_keeps_the_last_state():
    pair, _ = made(100)
    seen = []

    class Watched(a549.AsPublished):
        def map_losses(self, x, fake, batch, step):
            seen.append(batch.x.numpy())
            return super().map_losses(x, fake, batch, step)

    fitted = Watched(**SMALL).fit_pair(
        pair, trainer=Trainer(max_steps=4, batch_size=25, check_every=1, device="cpu", progress=False)
    )
    assert len(np.unique(np.concatenate(seen), axis=0)) == 100
    assert "monitor" not in fitted.result_.history


def test_jobs_differ_and_the_leak_is_named():
    jobs = a549.A549OneAnchor().jobs(2)
    keys = [tuple(job.values()) for job in jobs]
    assert len(set(keys)) == len(keys)
    trained = {(job["arm"], job["loaders"]) for job in jobs if job["arm"] in a549.ARMS}
    assert trained == {(arm, loaders) for arm in a549.ARMS for loaders in (a549.INDEPENDENT, a549.LEAK)}
    assert "leak" in a549.LEAK
    assert [job["loaders"] for job in jobs if job["regime"] == "disjoint"] == [a549.INDEPENDENT] * 2
    assert {job["seed"] for job in jobs} == {0, 1}
    assert len(a549.A549OneAnchor(full=True).jobs(None)) > len(a549.A549OneAnchor().jobs(None))


def test_the_suite_is_listed():
    assert base.get("a549_one_anchor") is a549.A549OneAnchor


def test_leaking_cells_are_in_one_order_and_those_of_the_task_are_not(real_dataset):
    mdata = real_dataset("a549_scicar")
    problem = a549.task(0)
    leaking = a549._in_one_order(problem)
    assert leaking.mod["rna"].n_obs == leaking.mod["atac"].n_obs == 1534
    assert list(leaking.mod["rna"].obs_names) == list(leaking.mod["atac"].obs_names)
    names = list(problem.target_names[problem.mdata.mod["atac"].obs_names])
    assert np.mean(np.array(names) == problem.mdata.mod["rna"].obs_names) < 0.01
    assert problem.truth.n_obs == 340
    assert set(problem.truth.obs_names) == set(mdata.obs_names[mdata.obs["split"] == "test"])


@pytest.mark.parametrize("loaders", [a549.INDEPENDENT, a549.LEAK])
def test_an_arm_is_trained_and_scored(real_dataset, monkeypatch, loaders):
    real_dataset("a549_scicar")
    train = a549.train
    monkeypatch.setattr(a549, "train", lambda *args, **kwargs: train(*args, **kwargs | {"steps": 2}))
    job = {"arm": "both", "loaders": loaders, "regime": "shared", "seed": 0}
    found, _ = a549.A549OneAnchor(device="cpu").run(job)
    assert found["n"] == 340
    assert found["status"] == "max_steps"
    assert 0.3 < found["foscttm"] < 0.7
    assert 0.3 < found["foscttm_train"] < 0.7


def test_a_constant_is_chance_but_not_by_the_accuracy_of_yang(real_dataset):
    real_dataset("a549_scicar")
    job = {"arm": "constant: mean target cell", "loaders": "none", "regime": "shared", "seed": 0}
    constant, _ = a549.A549OneAnchor().run(job)
    assert constant["foscttm"] == constant["foscttm_train"] == pytest.approx(0.5)
    assert constant["knn@50"] == pytest.approx(50 / 340)
    assert constant["cmae_features@50"] > 0.5


def made_rows(gain: float) -> pd.DataFrame:
    """Rows as the runner has them; `gain` is what the leak gives."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(a549.A549OneAnchor().jobs(3))
    for name in ("knn", "cmae", "cmae_features"):
        for k in a549.KS:
            rows[f"{name}@{k}"] = k / 340 + rng.uniform(0, 0.01, len(rows))
    for name in ("foscttm", "foscttm_train"):
        rows[name] = 0.5 - gain * (rows["loaders"] == a549.LEAK) + rng.uniform(-0.01, 0.01, len(rows))
    rows[["pearson", "non_zero", "n"]] = 0.1, 1.0, 340.0
    return rows


def test_a_leak_is_claimed_where_there_is_one():
    suite = a549.A549OneAnchor()
    for gain in (0.1, 0.0):
        claims = suite.claims(made_rows(gain))
        about = [claim.holds for claim in claims if "FOSCTTM" in claim.found]
        assert len(about) == 3
        assert all(holds is True for holds in about) == (gain > 0)
    chance = next(claim for claim in claims if "above chance" in claim.text)
    assert chance.holds is not True


def test_table_and_picture_show_every_arm(tmp_path):
    suite, rows = a549.A549OneAnchor(), made_rows(0.1)
    table = suite.table(rows)
    assert set(table.index) == set(rows["arm"])
    assert set(table["loaders"]) == {a549.INDEPENDENT, a549.LEAK, "none"}
    figure = suite.draw(rows, {})
    figure.savefig(tmp_path / "picture.png", dpi=120)
    assert (tmp_path / "picture.png").stat().st_size < 200_000
