import numpy as np
import pytest
import scipy.sparse as sp
import torch
from celltransfer.data.batches import Batches
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConditionError


def numbered_pair(n=200, k=3, **conditions):
    """Co-assayed cells in the same order on both sides; feature 0 is the cell's number."""
    cells = np.arange(n, dtype=np.float32)[:, None]
    anchors = np.column_stack([np.arange(k), np.arange(k)])
    return ModalityPair(cells, cells, anchors, **conditions)


def test_source_and_target_are_drawn_independently():
    pair, size = numbered_pair(), 50
    batches = Batches(pair, size, seed=0)
    draws = [batches.draw() for _ in range(200)]
    coincidences = np.mean([(b.x == b.y).float().mean() for b in draws])
    assert coincidences < 3 / 200  # chance: 1 / 200
    overlap = np.mean([len(np.intersect1d(b.x.numpy(), b.y.numpy())) for b in draws])
    assert overlap == pytest.approx(size**2 / 200, rel=0.15)
    order = [np.corrcoef(b.x[:, 0], b.y[:, 0])[0, 1] for b in draws]
    assert abs(np.mean(order)) < 0.05


def test_every_cell_is_drawn_equally_often():
    batches = Batches(numbered_pair(), 50, seed=0)
    seen = np.concatenate([batches.draw().x[:, 0].numpy() for _ in range(8)])
    assert (np.bincount(seen.astype(int)) == 2).all()


def test_anchor_pairs_stay_pairs():
    batch = Batches(numbered_pair(k=7), 50).draw()
    assert batch.xa.shape == (7, 1)
    assert torch.equal(batch.xa, batch.ya)


def test_batches_hold_equal_condition_mixes():
    rng = np.random.default_rng(0)
    codes_x, codes_y = rng.choice(3, 200, p=[0.6, 0.3, 0.1]), rng.choice(3, 200, p=[0.2, 0.2, 0.6])
    batches = Batches(numbered_pair(condition_x=codes_x, condition_y=codes_y), 32, seed=1)
    for _ in range(20):
        batch = batches.draw()
        of_y = codes_y[batch.y[:, 0].numpy().astype(int)]
        assert len(batch.x) == len(batch.y)
        np.testing.assert_array_equal(of_y, batch.condition.numpy())
        np.testing.assert_array_equal(codes_x[batch.x[:, 0].numpy().astype(int)], batch.condition.numpy())


def test_conditions_without_counterpart_are_not_drawn():
    codes_x, codes_y = np.repeat([0, 1], 100), np.repeat([1, 2], 100)
    batches = Batches(numbered_pair(condition_x=codes_x, condition_y=codes_y), 32)
    assert set(batches.draw().condition.tolist()) == {1}
    with pytest.raises(ConditionError, match="share no condition"):
        Batches(numbered_pair(condition_x=codes_x * 0, condition_y=codes_y), 32)


def test_sparse_and_dense_features_give_the_same_batches():
    rng = np.random.default_rng(0)
    x, y = rng.poisson(0.3, (60, 5)), rng.poisson(0.3, (80, 4))
    a = Batches(ModalityPair(x, y), 16, seed=3).draw()
    b = Batches(ModalityPair(sp.csr_matrix(x), sp.csr_matrix(y)), 16, seed=3).draw()
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)


def test_draws_continue_from_their_state():
    pair = numbered_pair(condition_x=np.arange(200) % 2, condition_y=np.arange(200) % 2)
    first, second = Batches(pair, 48, seed=0), Batches(pair, 48, seed=9)
    for _ in range(5):
        first.draw()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        a, b = first.draw(), second.draw()
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.xa, b.xa)
