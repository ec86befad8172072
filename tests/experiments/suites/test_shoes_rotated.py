from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.errors import ConfigError, DatasetError
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import images, shoes_rotated
from celltransfer.experiments.suites.shoes_rotated import ARMS, TABLE_6, ShoesRotated, make_task, split
from celltransfer.losses.jacobian import jacobian
from celltransfer.nn.images import NORMS, ChannelNorm, ImageDiscriminator, ImageMap, PositionMap, ResidualBlock
from torch import nn


class Local(nn.Module):
    """One 3 x 3 convolution after a normalisation, on flat 8 x 8 images."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 1), NORMS[norm](4), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, rows):
        return self.net(rows.view(-1, 1, 8, 8)).flatten(1)


@pytest.mark.parametrize(("norm", "local"), [("none", True), ("channel", True), ("instance", False)])
def test_only_instance_norm_couples_all_positions(norm, local):
    j = jacobian(Local(norm), torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))
    row, column = np.divmod(np.arange(64), 8)
    far = (abs(row[:, None] - row) > 1) | (abs(column[:, None] - column) > 1)
    share = float((j[:, torch.from_numpy(far)].abs() > 1e-9).float().mean())
    assert share == 0 if local else share > 0.95


def test_channel_norm_has_zero_mean_and_unit_variance_at_each_position():
    normed = ChannelNorm(16)(5 + 3 * torch.randn(2, 16, 4, 4))
    assert torch.allclose(normed.mean(1), torch.zeros(2, 4, 4), atol=1e-5)
    assert torch.allclose(normed.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-3)


def test_blocks_change_the_side_as_they_say():
    x = torch.randn(2, 3, 8, 8)
    sides = {how: ResidualBlock(3, 5, "channel", how)(x).shape for how in ("none", "down", "up")}
    assert sides == {"none": (2, 5, 8, 8), "down": (2, 5, 4, 4), "up": (2, 5, 16, 16)}


def test_a_position_map_can_turn_an_image():
    turn = PositionMap(16)
    turn.weight.data = torch.eye(16)[images.rotation_permutation(4)]
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(turn(x), torch.rot90(x, 1, (2, 3)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_networks_keep_flat_rows_and_bounds(norm, size):
    x = torch.randn(3, size * size)
    y = ImageMap(size, width=4, norm=norm)(x)
    assert y.shape == x.shape
    assert bool((y.abs() < 1).all())
    assert ImageDiscriminator(size, width=4)(x).shape == (3,)
    many, codes = ImageDiscriminator(size, width=4, n_conditions=3), torch.tensor([0, 2, 1])
    assert torch.allclose(many(x, codes), many.net(x.view(-1, 1, size, size))[torch.arange(3), codes])


def test_networks_refuse_sides_and_norms_they_do_not_know():
    for size in (4, 12, 28):
        with pytest.raises(ConfigError, match="doubled"):
            ImageMap(size)
    with pytest.raises(ConfigError, match="norm"):
        ImageMap(16, norm="batch")


def test_no_shoe_has_two_uses_and_anchors_are_nested():
    is_train = np.arange(5_000) < 4_000
    for seed in (0, 1):
        rows = split(is_train, seed)
        every = np.concatenate(dataclasses.astuple(rows))
        assert len(np.unique(every)) == len(every)
        assert is_train[np.concatenate([rows.source, rows.target, rows.anchors])].all()
        assert not is_train[np.concatenate([rows.test, rows.law])].any()
    fitted = np.concatenate([rows.source, rows.target, rows.anchors])
    dev = split(is_train, 100, dev=True)
    assert is_train[dev.test].all()
    assert not np.isin(np.concatenate([dev.test, dev.law]), fitted).any()
    assert not np.array_equal(split(is_train, 0).anchors, rows.anchors)


def test_jobs_are_all_arms_of_every_seed():
    jobs = ShoesRotated().jobs(2)
    assert len(jobs) == 2 * len(ARMS)
    assert {job["arm"] for job in jobs} == set(ARMS)
    assert [ARMS[arm].k for arm in TABLE_6] == [1, 2, 5, 10]


def rows_of(distances: dict[str, list[float]]) -> pd.DataFrame:
    """Rows with these perceptual distances by arm and seed; 1 for the other arms."""
    rng = np.random.default_rng(0)
    filled = {arm: distances.get(arm, [1.0] * len(distances["10 anchors"])) for arm in ARMS}
    frame = pd.DataFrame(
        [{"arm": arm, "seed": seed, "perceptual": v} for arm, vs in filled.items() for seed, v in enumerate(vs)]
    )
    frame["perceptual"] += 0.005 * rng.normal(size=len(frame))
    return frame.assign(te=0.1, te_sd=0.1, accuracy=0.9, energy_distance=0.0, seconds=1.0)


def test_claims_follow_the_rows():
    falling = {arm: [0.9 - 0.2 * i + 0.01 * s for s in range(3)] for i, arm in enumerate(TABLE_6)}
    good = {claim.text: claim.holds for claim in ShoesRotated().claims(rows_of(falling))}
    assert all(good.values())
    rising = {arm: [1.1 + 0.2 * i + 0.01 * s for s in range(3)] for i, arm in enumerate(TABLE_6)}
    bad = {claim.text: claim.holds for claim in ShoesRotated().claims(rows_of(rising))}
    assert not any(bad.values())
    unmatched = rows_of(falling)
    unmatched.loc[unmatched["arm"].isin(["no anchor", shoes_rotated.MEAN]), "energy_distance"] = 3.0
    unknown = [claim for claim in ShoesRotated().claims(unmatched) if claim.holds is None]
    assert [claim.text for claim in unknown] == ["Closer than with sparsity and no anchor."]
    assert "hardly matched" in unknown[0].found
    one = {claim.holds for claim in ShoesRotated().claims(rows_of({arm: v[:1] for arm, v in falling.items()}))}
    assert one == {None}


def test_table_counts_the_seeds_in_which_the_mean_shoe_is_closer():
    rows = rows_of({"10 anchors": [0.2, 0.2]})
    rows.loc[(rows["arm"] == "CycleGAN") & (rows["seed"] == 1), "te"] = 0.5
    worse = ShoesRotated().table(rows)["TE above the mean shoe's"]
    assert worse["CycleGAN"] == "1 of 2"
    assert (worse.drop("CycleGAN") == "0 of 2").all()


@pytest.fixture
def small(monkeypatch, real_dataset):
    real_dataset("fashion_mnist")
    sizes = shoes_rotated.Sizes(size=8, steps=3, width=4, n_probes=2, probed=2, decay=0.9)
    monkeypatch.setattr(shoes_rotated, "DEFAULT", sizes)
    monkeypatch.setattr(shoes_rotated, "N_TEST", 40)
    real = images.load_shoes
    monkeypatch.setattr(images, "load_shoes", lambda size: real(size, n=4_000))
    for cached in (shoes_rotated._shoes, shoes_rotated._classifier):
        cached.cache_clear()
    yield
    for cached in (shoes_rotated._shoes, shoes_rotated._classifier):
        cached.cache_clear()


def test_anchors_are_pairs_and_nothing_else_is(small):
    try:
        task = make_task(8, 5, seed=0, conditions=True)
    except DatasetError as error:
        pytest.skip(str(error))
    shoes, edges, turned = shoes_rotated._shoes(8)
    rows = split(shoes.split == "train", 0)
    assert np.array_equal(task.pair.anchor_x, edges[rows.anchors[:5]])
    assert np.array_equal(task.pair.anchor_y, turned[rows.anchors[:5]])
    assert task.pair.n_source == len(rows.source) + 5
    assert np.array_equal(
        task.pair.condition_x, np.searchsorted([5, 7, 9], shoes.labels[[*rows.source, *rows.anchors[:5]]])
    )


def test_suite_end_to_end(small, tmp_path):
    outcome = base.run("shoes_rotated", seeds=1, out=tmp_path, device="cpu")
    assert list(outcome.rows["arm"]) == list(ARMS)
    assert np.isfinite(outcome.rows[["te", "perceptual", "accuracy", "energy_distance"]].to_numpy(float)).all()
    assert list(outcome.table.index) == list(ARMS)
    assert len(outcome.claims) == 9
    assert outcome.figure is not None
    assert (tmp_path / "picture.png").stat().st_size > 0
    again = base.run("shoes_rotated", seeds=1, out=tmp_path, device="cpu")
    assert again.seconds == pytest.approx(outcome.seconds, rel=1e-4)


def test_full_size_is_the_papers(monkeypatch):
    assert (shoes_rotated.FULL.size, shoes_rotated.FULL.steps, shoes_rotated.FULL.n_probes) == (32, 100_000, 16)
    translator = shoes_rotated.make_translator(ARMS["10 anchors"], shoes_rotated.FULL)
    assert (translator.r1, translator.probe_size, translator.weight_structure > 0) == (3.0, 20, True)
    assert not translator.standardised
