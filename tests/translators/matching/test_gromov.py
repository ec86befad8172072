import numpy as np
import pytest
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.translators import make
from celltransfer.translators.matching.gromov import anchor_cost, geodesics


def arc(n, seed):
    """Cells along a curve, denser at one end, so that its two directions differ; and their position."""
    t = np.random.default_rng(seed).beta(1, 2.5, n)
    return t, np.column_stack([np.cos(3 * t), np.sin(3 * t)])


def bent(t):
    """The same curve in another space."""
    return np.column_stack([t, 0.3 * np.sin(2 * t), -t])


@pytest.mark.parametrize("extension", ["ridge", "knn"])
def test_anchors_and_shape_align_two_curves(extension):
    t, x = arc(150, 0)
    s, _ = arc(140, 1)
    y = bent(s)
    pairs = np.array([[i, int(np.abs(s - t[i]).argmin())] for i in (0, 1, 2)])
    f = make("fgw", extension=extension, n_neighbors=5).fit(x, y, pairs)
    assert np.corrcoef(f.translate(x)[:, 0], t)[0, 1] > 0.9
    assert f.result_.status.value == "converged"


def test_subsamples_keep_the_anchors():
    t, x = arc(400, 0)
    s, _ = arc(400, 1)
    pairs = np.array([[i, int(np.abs(s - t[i]).argmin())] for i in (5, 200, 399)])
    f = make("fgw", max_cells=100, n_neighbors=5, extension="knn").fit(x, bent(s), pairs)
    assert np.corrcoef(f.translate(x)[:, 0], t)[0, 1] > 0.85


def test_the_start_with_the_lowest_objective_is_kept():
    _, x = arc(60, 0)
    result = make("fgw", n_starts=3, n_neighbors=5).fit(x, x[::-1]).result_
    assert len(result.history["objective"]) == 3


def test_a_verdicts_refits_start_like_the_fit():
    _, x = arc(60, 0)
    pairs = np.column_stack([np.arange(3), np.arange(3)])
    for k in (2, 3):
        assert len(make("fgw", n_neighbors=5).fit(x, bent(x[:, 0]), pairs[:k]).result_.history["objective"]) == 1


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_parts_between_looks_at_the_clock_give_the_same_plan(epsilon):
    _, x = arc(50, 0)
    y = bent(arc(40, 1)[0])
    pairs = np.array([[0, 0], [1, 1], [2, 2]])
    whole, timed = (
        make("fgw", n_neighbors=5, epsilon=epsilon).fit(x, y, pairs, trainer=Trainer(max_seconds=seconds))
        for seconds in (None, 60.0)
    )
    np.testing.assert_allclose(timed.translate(x), whole.translate(x), atol=1e-3)
    assert timed.result_.status is whole.result_.status


def test_out_of_time():
    _, x = arc(100, 0)
    result = make("fgw", n_starts=10**6).fit(x, x[::-1], trainer=Trainer(max_seconds=0.5)).result_
    assert result.status.value == "max_time"
    assert result.seconds < 2


def test_geodesics_are_a_metric_even_across_components():
    cells = np.concatenate([np.zeros((5, 1)), np.full((5, 1), 100.0)]) + np.arange(10)[:, None]
    lengths = geodesics(cells, 2)
    assert np.isfinite(lengths).all()
    np.testing.assert_array_equal(lengths, lengths.T)
    assert lengths.mean() == pytest.approx(1)
    assert lengths[0, 9] > lengths[0, 4]


def test_a_single_cell_is_at_no_distance_from_itself():
    np.testing.assert_array_equal(geodesics(np.ones((1, 3)), 15), [[0.0]])


def test_anchor_cost_is_the_mean_squared_difference():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(anchor_cost(a, b), np.square(a[:, None] - b).mean(2), atol=1e-12)


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="alpha=0"):
        make("fgw", alpha=0).fit(np.eye(5), np.eye(5))
