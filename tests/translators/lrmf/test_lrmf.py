"""Likelihood-ratio minimizing flows as a translator: what they find, choose, say and refuse."""

from math import inf

import numpy as np
import pytest
import torch
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError, FeatureError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators import make
from celltransfer.translators.lrmf.lrmf import LRMF, split
from celltransfer.verdict.alignment import alignment

torch.set_num_threads(1)
SHORT = Trainer(max_steps=30, check_every=10, batch_size=64, device="cpu", progress=False)


def correlated(n=600, seed=0, d=3):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(np.float32)


def small(**options):
    return make("lrmf", **{"hidden": (8, 8), "hidden_density": (8, 8), "blocks": 2, "blocks_density": 2} | options)


def fit(f, x, y, anchors=None, trainer=SHORT, seed=0):
    return f.fit(x, y, anchors, seed=seed, trainer=trainer)


def test_gaussian_family_is_solved_and_matches_the_moments_of_its_training_cells():
    x, y = correlated(seed=1), correlated(seed=2)
    f = fit(make("lrmf", density="gaussian"), x, y)
    assert f.result_.status is Status.SOLVED
    assert f.families_ == ("affine", "gaussian")
    moved, cells = f.translate(x[f.held_.train_x]), y[f.held_.train_y]
    np.testing.assert_allclose(moved.mean(0), cells.mean(0), atol=1e-3)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(cells.T), atol=1e-2)


def test_minimising_finds_what_the_closed_form_says():
    x = correlated(2000, 1, d=2)
    y = (x @ np.array([[1.5, 0.4], [0.4, 0.7]]) + [1, -1]).astype(np.float32)[
        np.random.default_rng(0).permutation(2000)
    ]
    trainer = Trainer(max_steps=1500, batch_size=2000, check_every=100, patience=inf, device="cpu", progress=False)
    trained = fit(
        make("lrmf", transform="affine", density="gaussian", start="identity", lr=0.01), x, y, trainer=trainer
    )
    solved = fit(make("lrmf", density="gaussian"), x, y)
    np.testing.assert_allclose(trained.translate(x), solved.translate(x), atol=0.05 * y.std())
    assert trained.result_.history["held_out_loss"][-1][1] == pytest.approx(0, abs=0.02)


def test_flows_bend_what_affine_maps_cannot_and_the_loss_comes_down():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2)).astype(np.float32)
    y = rng.normal(size=(1000, 2)).astype(np.float32)
    y[:, 1] += y[:, 0] ** 2
    trainer = Trainer(max_steps=200, batch_size=256, check_every=50, patience=inf, device="cpu", progress=False)
    f = fit(small(transform="realnvp", density="realnvp", hidden=(16, 16), lr=5e-3), x, y, trainer=trainer)
    moved, history = f.translate(x), dict(f.result_.history["monitor"])
    assert np.corrcoef(moved[:, 0] ** 2, moved[:, 1])[0, 1] > 0.6
    assert min(history.values()) < 0.5 * history[0]


def test_anchors_turn_the_start():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = rng.normal(size=(1000, 3)).astype(np.float32)
    y = (x @ rotation.T).astype(np.float32)
    order = rng.permutation(1000)
    anchors = np.column_stack([order[:6], np.arange(6)])
    f = fit(make("lrmf", density="gaussian"), x, y[order], anchors)
    assert np.square(f.translate(x) - y).mean() < 0.1
    blind = fit(make("lrmf", density="gaussian"), x, y[order])
    assert np.square(blind.translate(x) - y).mean() > 0.3


def test_identity_start_without_steps_is_the_identity():
    x, y = correlated(seed=1), correlated(seed=1) + 0.1
    f = fit(small(transform="realnvp", density="gaussian", start="identity"), x, y, trainer=Trainer(max_steps=0))
    np.testing.assert_allclose(f.translate(x), x, atol=1e-4)


def test_auto_takes_the_density_that_held_out_target_cells_favour():
    rng = np.random.default_rng(0)
    gauss = rng.normal(size=(600, 2)).astype(np.float32)
    lumps = (np.where(rng.random((600, 1)) < 0.5, -3, 3) + 0.2 * rng.normal(size=(600, 2))).astype(np.float32)
    trainer = Trainer(max_steps=100, batch_size=64, device="cpu", progress=False)
    f = fit(small(), gauss, lumps, trainer=trainer)
    assert f.families_ == ("realnvp", "realnvp")
    assert any("highest likelihood" in note for note in f.result_.notes)
    assert fit(small(), lumps, gauss[:, :1].repeat(2, 1) + 0.5 * gauss, trainer=SHORT).families_[1] == "gaussian"


def test_one_feature_falls_back_to_the_gaussian():
    x = correlated(d=1)
    assert fit(make("lrmf"), x, 2 * x + 1).families_ == ("affine", "gaussian")


def test_the_map_has_fewer_parameters_than_the_density_unless_the_user_says_otherwise():
    x = correlated(d=4)
    for family in ("realnvp", "spline"):
        net = fit(make("lrmf", density=family), x, x, trainer=Trainer(max_steps=1, batch_size=32)).module_
        counts = [sum(p.numel() for p in part.parameters()) for part in (net.transform, net.shared)]
        assert counts[0] < counts[1]


def test_a_flexible_map_under_a_weak_density_is_said_to_be_that():
    """methods.md: two lumps under a Gaussian; moving them together drives the loss below zero."""
    rng = np.random.default_rng(0)
    x = (np.where(rng.random((1500, 1)) < 0.5, -3, 3) + 0.3 * rng.normal(size=(1500, 2))).astype(np.float32)
    y = rng.normal(size=(1500, 2)).astype(np.float32)
    trainer = Trainer(max_steps=300, batch_size=256, patience=inf, device="cpu", progress=False)
    f = fit(small(transform="realnvp", density="gaussian", hidden=(32, 32), lr=5e-3), x, y, trainer=trainer)
    assert f.result_.history["held_out_loss"][-1][1] < -0.05
    assert any("below zero it cannot be read" in note for note in f.result_.notes)
    assert "too weak" in f.explain("unlike supports")


def far_apart(gap):
    rng = np.random.default_rng(0)
    lumps = np.where(rng.random((2, 800, 1)) < 0.5, -2, 2) + 0.3 * rng.normal(size=(2, 800, 2))
    return (lumps[0] + gap).astype(np.float32), lumps[1].astype(np.float32)


def test_vanished_gradients_are_said_of_far_sets_and_of_no_others():
    trainer = Trainer(max_steps=150, batch_size=128, patience=inf, device="cpu", progress=False)
    x, y = far_apart(40)
    f = fit(small(transform="shift", density="realnvp", start="identity", lr=1e-3), x, y, trainer=trainer)
    found = alignment(f.translate(x), y)
    assert (found.level, found.cause) == ("not aligned", "disjoint")
    assert "gradient has vanished" in f.explain(found.cause)


@pytest.mark.parametrize("case", ["too little capacity", "unlike supports"])
def test_converged_maps_that_cannot_do_better_have_not_vanished(case):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1500, 2)).astype(np.float32)
    if case == "unlike supports":
        x[: len(x) // 3] = 6 + 0.3 * x[: len(x) // 3]
    else:
        y[:, 1] += y[:, 0] ** 2
    f = fit(make("lrmf", transform="affine", density="realnvp"), x, y, trainer=Trainer(max_steps=60, progress=False))
    found = alignment(f.translate(x), y)
    assert found.level == "not aligned"
    assert "vanished" not in f.explain(found.cause)
    assert "capacity is what lacks" in f.explain(found.cause) or "below zero" in f.explain(found.cause)


def test_where_all_cells_are_anchors_some_are_held_out_as_pairs():
    x = correlated(200, 1)
    pairs = np.column_stack([np.arange(200)] * 2)
    f = fit(make("lrmf", density="gaussian"), x, 2 * x, pairs)
    held_x, held_y = f.held_out_
    assert len(held_x) == len(held_y) == 40
    np.testing.assert_array_equal(held_x, held_y)
    assert np.isfinite(f.result_.history["held_out_loss"][-1][1])
    kept, _ = split(ModalityPair(x, 2 * x, pairs), np.random.default_rng(0))
    assert not np.isin(kept.anchors[:, 0], held_x).any()
    few = split(ModalityPair(x, 2 * x, pairs[:50]), np.random.default_rng(0))[0]
    assert few.n_anchors == 50


def test_a_handful_of_cells_is_fitted_without_a_figure():
    x = correlated(6, 1)
    f = fit(make("lrmf"), x, 2 * x)
    assert np.isfinite(f.translate(x)).all()
    assert "held_out_loss" not in f.result_.history
    assert any("too few cells" in note for note in f.result_.notes)


def test_a_time_limit_is_said_and_a_resumed_fit_goes_on(tmp_path):
    x, y = correlated(400, 1), correlated(400, 2) ** 2
    how = {"batch_size": 32, "check_every": 10, "device": "cpu", "progress": False, "checkpoint_dir": tmp_path}
    cut = fit(small(), x, y, trainer=Trainer(max_steps=40, max_seconds=0, **how))
    assert cut.result_.status is Status.MAX_TIME
    assert any("time limit" in note for note in cut.result_.notes)
    first = fit(small(density="realnvp"), x, y, trainer=Trainer(max_steps=40, max_seconds=0, **how))
    assert first.result_.n_steps == 0
    again = fit(small(density="realnvp"), x, y, trainer=Trainer(max_steps=40, resume=True, **how))
    assert again.result_.n_steps == 40


def test_refits_owe_the_anchors_nothing_but_themselves():
    x, y = correlated(300, 1), correlated(300, 2)
    pairs = np.column_stack([np.arange(10)] * 2)
    f = fit(small(density="realnvp"), x, y, pairs)
    again = fit(f.refit(), x, y, pairs[:5])
    assert again.families_ == f.families_
    np.testing.assert_array_equal(again.held_out_[0], f.held_out_[0])
    v = f.module_.target(torch.as_tensor(y))
    torch.testing.assert_close(again.density_("B").log_prob(v), f.density_("B").log_prob(v))


def test_resuming_goes_on_where_the_fit_stopped(tmp_path):
    x, y = correlated(300, 1), correlated(300, 2) ** 2

    def trainer(steps, **how):
        return Trainer(max_steps=40, batch_size=32, check_every=10, device="cpu", progress=False, patience=inf, **how)

    whole = fit(small(density="realnvp"), x, y, trainer=trainer(40))
    f = small(density="realnvp")
    count, losses = [0], LRMF.losses

    class Stopped(KeyboardInterrupt):
        pass

    def until(self, *args):
        count[0] += 1
        if count[0] > 20:
            raise Stopped
        return losses(self, *args)

    f.losses = until.__get__(f)
    try:
        fit(f, x, y, trainer=trainer(40, checkpoint_dir=tmp_path, checkpoint_every=20))
    except Stopped:
        pass
    again = fit(small(density="realnvp"), x, y, trainer=trainer(40, checkpoint_dir=tmp_path, resume=True))
    np.testing.assert_allclose(again.translate(x), whole.translate(x), atol=1e-5)
    assert again.result_.history["held_out_loss"][-1][1] == pytest.approx(
        whole.result_.history["held_out_loss"][-1][1], abs=1e-4
    )


def test_density_accessor_gives_private_and_shared_models():
    x, y = correlated(seed=1), correlated(seed=2)
    f = fit(make("lrmf", density="gaussian"), x, y)
    v = f.module_.target(torch.as_tensor(y))
    torch.testing.assert_close(f.density_("S").log_prob(v), f.density_("B").log_prob(v))
    assert f.density_("A") is not f.density_("B")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "planar"}, "transform='planar'"),
        ({"density": "planar"}, "density='planar'"),
        ({"start": "random"}, "start='random'"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"weight_anchor": float("nan")}, "weight_anchor=nan"),
        ({"lr_density": -1}, "lr_density=-1"),
        ({"blocks": 0}, "blocks=0"),
        ({"hidden": 3}, "hidden=3"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        fit(make("lrmf", **options), correlated(), correlated())


def test_unequal_widths_are_refused():
    with pytest.raises(FeatureError, match="got 3 and 2"):
        fit(make("lrmf"), correlated(d=3), correlated(d=2))
