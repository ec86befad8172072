"""Cells held out of the matching: which ones, how far translations are from them, and how sure that figure is."""

import numpy as np
import pytest
import torch
from celltransfer.data.pair import ModalityPair
from celltransfer.losses.discrepancy import energy_distance
from celltransfer.translators.holdout import FEWEST_CELLS, MOST_CELLS, HeldOut, condition_codes, split

CPU = torch.device("cpu")


def same(x):
    return x


def pair(n_x=400, n_y=300, anchors=(), codes_x=None, codes_y=None, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([anchors, anchors]) if len(anchors) else np.empty((0, 2), np.int64)
    x, y = rng.normal(size=(n_x, 2)), rng.normal(size=(n_y, 2)) + shift
    return ModalityPair(x.astype(np.float32), y.astype(np.float32), rows, codes_x, codes_y)


def held_out(pair, seed=0):
    return HeldOut(pair, split(pair, np.random.default_rng(seed)), same, same, CPU)


def test_a_tenth_is_held_out_and_no_cell_is_on_both_sides():
    rows = split(pair(), np.random.default_rng(0))
    assert (len(rows.held_x), len(rows.held_y)) == (40, 30)
    for train, held, n in ((rows.train_x, rows.held_x, 400), (rows.train_y, rows.held_y, 300)):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(n))
    # The two sides are drawn apart: nothing of the pairing shows in which rows are held out.
    assert set(rows.held_x) != set(rows.held_y)


def test_at_most_so_many_cells_are_held_out():
    rows = split(pair(20_000, 300), np.random.default_rng(0))
    assert MOST_CELLS - 1 <= len(rows.held_x) <= MOST_CELLS


def test_anchors_are_never_held_out():
    for seed in range(5):
        rows = split(pair(60, 60, anchors=np.arange(50)), np.random.default_rng(seed))
        assert min(rows.held_x) >= 50
        assert min(rows.held_y) >= 50
    everything = split(pair(20, 20, anchors=np.arange(20)), np.random.default_rng(0))
    assert len(everything.held_x) == len(everything.held_y) == 0


def test_rare_conditions_keep_two_cells_where_they_can():
    codes = np.repeat([0, 1, 2], [5000, 25, 5])
    rows = split(pair(5030, 5030, codes_x=codes, codes_y=codes), np.random.default_rng(0))
    assert np.bincount(codes[rows.held_x], minlength=3).tolist()[1:] == [2, 0]
    assert np.bincount(codes[rows.train_x]).min() == 5


def test_no_conditions_are_one_condition():
    for codes in condition_codes(pair(4, 3)):
        assert not codes.any()


def test_distance_is_the_energy_distance_of_the_held_out_cells():
    cells = pair(shift=1.0)
    rows = split(cells, np.random.default_rng(0))
    x, y = (torch.as_tensor(m[r]) for m, r in ((cells.x, rows.held_x), (cells.y, rows.held_y)))
    held = HeldOut(cells, rows, lambda x: 2 * x, lambda y: y - 1, CPU)
    assert held.distance(lambda x: x + 3) == pytest.approx(float(energy_distance(2 * x + 3, y - 1)))
    torch.testing.assert_close(held.source_cells(7), 2 * x[:7])


def test_distance_within_conditions_sees_what_the_whole_does_not():
    """Two conditions that change places: the law of all cells stays."""
    codes = np.arange(600) % 2
    x = np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32) + 4 * codes[:, None]
    told = held_out(ModalityPair(x, x, np.empty((0, 2), np.int64), codes, 1 - codes))
    blind = held_out(ModalityPair(x, x))
    assert abs(blind.distance(same)) < 0.2
    assert told.distance(same) > 3
    assert told.distance(lambda x: 4 - x) < 0.5
    assert sum(share for share, *_ in told.groups) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_many_small_conditions_of_one_law_are_within_the_sampling_error(seed):
    codes = np.arange(900) % 45
    held = held_out(pair(900, 900, codes_x=codes, codes_y=codes, seed=seed), seed)
    assert {len(y) for _, _, y in held.groups} == {2}
    assert held.n_cells == 90
    error = held.sampling_error(torch.Generator().manual_seed(seed))
    assert abs(held.distance(same)) < 3 * error
    assert held.distance(lambda x: x + 3) > 10 * error


def test_too_few_cells_are_not_compared():
    assert not held_out(pair(10 * FEWEST_CELLS - 10, 1000)).enough
    assert held_out(pair(10 * FEWEST_CELLS, 1000)).enough


@pytest.mark.parametrize(("conditions", "m"), [(1, 900), (3, 900), (1, 300)])
def test_sampling_error_is_the_spread_of_the_distance_between_samples_of_one_law(conditions, m):
    """Against repeated draws; the estimate itself is from 20 halves, so its mean over draws is compared."""
    distances, errors = [], []
    for seed in range(60):
        codes = np.arange(900) % conditions
        held = held_out(pair(900, m, codes_x=codes, codes_y=codes[:m], seed=seed), seed)
        distances.append(held.distance(same))
        errors.append(held.sampling_error(torch.Generator().manual_seed(seed)))
    spread = np.std(distances, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=0.35)
    assert abs(np.mean(distances)) < 3 * spread / np.sqrt(60)  # unbiased: 0 on average for one law
    assert np.std(errors) < 0.4 * np.mean(errors)
