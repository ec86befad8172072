"""Many starts, compared without a pair, averaged."""

import numpy as np
import pytest
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConditionError, ConfigError
from celltransfer.metrics.scores import foscttm
from celltransfer.train import Status, Trainer
from celltransfer.translators import make
from celltransfer.translators.matching import consensus
from celltransfer.translators.matching.consensus import Comparison
from celltransfer.translators.matching.transport import Clouds

NO_PAIRS = np.empty((0, 2), np.int64)


def skewed(n, rng):
    """Cells of an asymmetric cloud: every direction has a variance and a skew of its own."""
    return rng.gamma(np.array([0.3, 0.6, 1.0, 2.0]), size=(n, 4)) * np.array([4, 2.5, 1.5, 0.8])


def turned(rng, d=4, out=6):
    """A map that keeps lengths, shape (d, out)."""
    return np.linalg.qr(rng.normal(size=(out, out)))[0][:d]


def planted(k, seed=0, n=800):
    """Unpaired cells of two modalities, k pairs, and where the source cells truly belong."""
    rng = np.random.default_rng(seed)
    turn = turned(rng)
    x, latent = skewed(n, rng), skewed(n - 50, rng)
    latent[:k] = x[:k]
    return x, latent @ turn, np.column_stack([np.arange(k)] * 2), x @ turn


@pytest.mark.slow
def test_one_anchor_and_the_shapes_find_what_one_anchor_does_not():
    x, y, anchors, truth = planted(1, n=400)
    ours, pairs_alone = (
        foscttm(f.fit(x, y, anchors).translate(x)[1:], truth[1:])
        for f in (make("consensus", n_starts=8), make("ridge"))
    )
    assert pairs_alone > 0.2
    assert ours < 0.1


def test_random_starts_alone_find_what_one_anchor_does_not(monkeypatch):
    monkeypatch.setattr(consensus, "GROMOV_SECONDS", (np.inf, np.inf))  # no time for other shapes
    x, y, anchors, truth = planted(1)
    f = make("consensus", n_starts=10).fit(x, y, anchors)
    assert len(f.result_.history["cost"]) == 11
    assert foscttm(f.translate(x)[1:], truth[1:]) < 0.1


@pytest.mark.parametrize("side", ["source", "target"])
def test_cells_that_only_one_side_has_do_not_mislead(side):
    x, y, anchors, truth = planted(10)
    latent = x if side == "source" else y
    kept = latent[:, 0] < np.quantile(latent[:, 0], 0.85)
    kept[:10] = True
    known = (x[kept], y) if side == "source" else (x, y[kept])
    f = make("consensus", n_starts=2).fit(*known, anchors)
    scored = kept[: len(x)] if side == "source" else np.ones(len(x), bool)
    scored = scored & (np.arange(len(x)) >= 10)
    assert foscttm(f.translate(x)[scored], truth[scored]) < 0.1


def test_evidence_ranks_the_truth_above_its_mirror_image():
    rng = np.random.default_rng(0)
    turn = turned(rng)
    pair = ModalityPair(skewed(1000, rng), skewed(900, rng) @ turn, NO_PAIRS)
    clouds = Clouds.of(pair, (0.0, 0.0), 0.1, rng)
    comparison = Comparison.draw(clouds, rng)
    mirror = np.diag([-1.0, -1.0, 1.0, 1.0])
    right, wrong = (
        comparison.badness((clouds.frame_x.back @ m @ clouds.frame_y.forward).astype(np.float32))
        for m in (turn, mirror @ turn)
    )
    assert len(right) == 3
    assert all(a < b for a, b in zip(right, wrong, strict=True))


def test_a_conditions_mean_cell_goes_to_its_mean_cell():
    rng = np.random.default_rng(0)
    code_x, code_y = np.arange(600) % 3, np.arange(570) % 3
    x = rng.normal(size=(600, 4)) + 5 * np.eye(3, 4)[code_x]
    y = rng.normal(size=(570, 5)) + 5 * np.eye(3, 5)[[2, 0, 1]][code_y]
    f = make("consensus", n_starts=2).fit(x, y, NO_PAIRS, condition_x=code_x, condition_y=code_y)
    out = f.translate(x, code_x)
    for code in range(3):
        np.testing.assert_allclose(out[code_x == code].mean(axis=0), y[code_y == code].mean(axis=0), atol=0.2)
    assert np.isfinite(f.translate(x[:2], np.array([0, 9]))).all()
    with pytest.raises(ConditionError, match="condition codes"):
        f.translate(x)


def test_cells_are_matched_within_conditions():
    """Two conditions at one place in both modalities, the second one mirrored: only within conditions are they told."""
    rng = np.random.default_rng(3)
    turn, sign = turned(rng), np.array([1.0, -1.0])
    code_x, code_y = np.repeat([0, 1], 500), np.repeat([0, 1], 450)
    x, latent = (skewed(len(codes), rng) * sign[codes][:, None] for codes in (code_x, code_y))
    k = 3
    latent[:k] = x[:k]
    anchors = np.column_stack([np.arange(k)] * 2)
    f = make("consensus", n_starts=4).fit(x, latent @ turn, anchors, condition_x=code_x, condition_y=code_y)
    out, truth = f.translate(x, code_x), x @ turn
    for code in (0, 1):
        assert foscttm(out[code_x == code], truth[code_x == code]) < 0.1


def test_time_limits_leave_a_usable_map():
    x, y, anchors, _ = planted(3)
    f = make("consensus", n_starts=10**6).fit(x, y, anchors, trainer=Trainer(max_seconds=0.5))
    assert f.result_.status is Status.MAX_TIME
    assert f.result_.seconds < 3
    assert np.isfinite(f.translate(x)).all()


def test_a_start_left_out_for_lack_of_time_is_said(monkeypatch):
    x, y, anchors, _ = planted(8, n=80)
    whole = make("consensus", n_starts=1).fit(x, y, anchors).result_
    monkeypatch.setattr(consensus, "GROMOV_SECONDS", (np.inf, np.inf))
    short = make("consensus", n_starts=1).fit(x, y, anchors).result_
    assert whole.status is not Status.MAX_TIME
    assert short.status is Status.MAX_TIME
    assert len(short.history["cost"]) == len(whole.history["cost"]) - 1


def test_the_head_start_of_links_is_measured_within_conditions():
    rng = np.random.default_rng(0)
    code = np.arange(200) % 2
    x, y = rng.normal(size=(2, 200, 3))
    far = 50 * code[:, None] * np.array([1.0, 0, 0])
    anchors = np.column_stack([np.arange(40)] * 2)
    links = np.zeros((3, 3))
    links[0, 0] = 1  # says which condition a cell is of, and nothing else
    without = ModalityPair(x + far, y + far, anchors, links=links)
    within = ModalityPair(
        x + far, y + far, anchors, condition_x=code, condition_y=code, conditions=("a", "b"), links=links
    )
    assert consensus._support(without) > 4
    assert abs(consensus._support(within)) < 3


def test_one_result_per_start():
    x, y, anchors, _ = planted(3, n=200)
    result = make("consensus", n_starts=2).fit(x, y, anchors).result_
    assert len(result.history["cost"]) == 4, "the anchors, the shapes, and two random starts"
    assert "4 matchings" in result.notes[0]


@pytest.mark.parametrize(
    ("n_x", "n_y", "k"), [(2, 2, 0), (2, 2, 1), (2, 300, 1), (30, 30, 30)], ids=["two", "pair", "uneven", "all pairs"]
)
def test_few_cells(n_x, n_y, k):
    x, y, anchors, _ = planted(30, n=350)
    f = make("consensus", n_starts=1).fit(x[:n_x], y[:n_y], anchors[:k])
    assert np.isfinite(f.translate(x)).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constant_features_give_the_mean():
    x, y, anchors, _ = planted(5, n=200)
    f = make("consensus", n_starts=1).fit(np.ones_like(x), y, anchors)
    np.testing.assert_allclose(f.translate(np.ones_like(x)).mean(axis=0), y.mean(axis=0), atol=y.std())
    f = make("consensus", n_starts=1).fit(x, np.ones_like(y), anchors)
    np.testing.assert_allclose(f.translate(x), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("option", "value"),
    [("weight_anchors", 1.0), ("penalty", 0.0), ("smoothness", -1), ("n_starts", -1), ("powers", (0.5, 2.0))],
)
def test_wrong_options_are_named(option, value):
    with pytest.raises(ConfigError, match=option):
        make("consensus", **{option: value}).fit(np.eye(5), np.eye(5))
