import math
import signal

import numpy as np
import pytest
import torch
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators import guard, make
from celltransfer.translators.jacobian import JacobianSparse

TRAINER = Trainer(max_steps=20, progress=False, device="cpu")


def blobs(n, rng):
    """Non-Gaussian coordinates with laws of their own, so that only the right permutation matches."""
    columns = [
        rng.exponential(1.0, n),
        rng.uniform(-1, 1, n) ** 3 * 3,
        rng.choice([-1.0, 2.0], n) + 0.1 * rng.normal(size=n),
    ]
    return np.column_stack(columns).astype(np.float32)


def permuted(seed=0):
    """Cells, those of a scaled permutation of their coordinates, and the permutation; the first ones are partners."""
    rng = np.random.default_rng(seed)
    x, other = blobs(3000, rng), blobs(3000, rng)
    truth = np.zeros((3, 3))
    truth[0, 2], truth[1, 0], truth[2, 1] = 1.5, -1.0, 0.7
    y = other @ truth
    y[0] = x[0] @ truth
    return x, y, truth


def relative_error(f, x, truth):
    return np.sqrt(np.square(f.translate(x) - x @ truth).mean() / np.square(x @ truth).mean())


SHARP = {"weight_structure": 0.05, "weight_gan": 1.0, "weight_anchor": 3.0, "r1": 0.3, "lr_discriminator": 4e-3}
LONG = Trainer(max_steps=1200, progress=False, device="cpu", patience=math.inf)


def test_one_anchor_and_sparsity_recover_a_scaled_permutation_with_exact_zeros():
    x, y, truth = permuted()
    f = make("jacobian", guard=False, **SHARP).fit(x, y, np.array([[0, 0]]), trainer=LONG)
    assert relative_error(f, x, truth) < 0.15
    jacobian = f.translate(np.eye(3, dtype=np.float32)) - f.translate(np.zeros((1, 3)))
    assert not jacobian[truth == 0].all()
    assert (jacobian[truth == 0] == 0).sum() >= 5
    assert (jacobian[truth != 0] != 0).all()


def test_restarts_keep_the_run_with_the_lowest_monitor():
    x, y, _ = permuted()
    f = make("jacobian", init="random", restarts=3, **SHARP)
    f.fit(x, y, np.array([[0, 0]]), trainer=Trainer(max_steps=100, progress=False, device="cpu"))
    lowest = [value for _, value in f.result_.history["restarts"]]
    assert len(set(lowest)) == 3
    assert min(value for _, value in f.result_.history["monitor"]) == min(lowest)


@pytest.mark.parametrize("map_", ["linear", "residual"])
def test_training_starts_at_the_ridge_solution(map_):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 6)), rng.normal(size=(90, 4))
    anchors = np.column_stack([np.arange(8), np.arange(8)])
    ridge = make("ridge").fit(x, y, anchors).translate(x)
    start = make("jacobian", map=map_, guard=False).fit(x, y, anchors, trainer=Trainer(max_steps=0, progress=False))
    np.testing.assert_allclose(start.translate(x), ridge, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"map": "mlp", "estimator": "difference"},
        {"map": "residual", "estimator": "probe"},
        {"gan": "least_squares", "init": "random"},
        {"weight_inverse": 1.0},
        {"weight_gan": 0.0},
    ],
)
def test_every_option_trains(config):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)), rng.normal(size=(70, 6))
    f = make("jacobian", **config).fit(x, y, np.array([[0, 0], [1, 1], [2, 2]]), trainer=TRAINER)
    assert np.isfinite(f.translate(x)).all()
    assert all(np.isfinite(value) for rows in f.result_.history.values() for _, value in rows)


def test_conditions_are_matched_one_by_one():
    """Conditions shift x and y in opposite directions: only matching within conditions finds the sign."""
    rng = np.random.default_rng(0)
    codes_x, codes_y = rng.integers(0, 2, 1000), rng.integers(0, 2, 1000)
    x = rng.normal(size=(1000, 1)) * 0.5 + (2.0 * codes_x - 1)[:, None]
    y = rng.normal(size=(1000, 1)) * 0.5 - (2.0 * codes_y - 1)[:, None]
    f = make("jacobian", lr=5e-3, init="random", weight_structure=0.0, guard=False)
    f.fit(x, y, condition_x=codes_x, condition_y=codes_y, trainer=Trainer(max_steps=600, progress=False, patience=100))
    assert np.corrcoef(f.translate(x, codes_x)[:, 0], x[:, 0])[0, 1] < -0.9


def test_the_monitor_compares_within_conditions():
    """Composition differs between the modalities: all cells together match best by a wrong map."""
    rng = np.random.default_rng(0)
    codes_x, codes_y = (rng.random(1500) < 0.2).astype(int), (rng.random(1500) < 0.8).astype(int)
    x = rng.normal(size=(1500, 2)) * 0.5 + 3.0 * codes_x[:, None]
    y = rng.normal(size=(1500, 2)) * 0.5 + 3.0 * codes_y[:, None]
    f = make("jacobian", lr=5e-3, init="random", weight_structure=0.0, weight_gan=1.0)
    f.fit(x, y, condition_x=codes_x, condition_y=codes_y, trainer=LONG)
    monitors = [value for _, value in f.result_.history["monitor"]]
    assert monitors[0] > 0.5
    assert min(monitors) < 0.05
    error = np.abs([(f.translate(x)[codes_x == c].mean(0) - y[codes_y == c].mean(0)) for c in (0, 1)])
    assert error.max() < 0.3


def test_held_out_cells_are_some_of_every_condition():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 400, p=[0.8, 0.15, 0.05])
    x = rng.normal(size=(400, 2))
    f = make("jacobian")
    f.n_features_in_ = f.n_features_out_ = 2
    f.n_conditions_ = 3
    pair = ModalityPair(x, x, np.array([[0, 1]]), codes, codes[::-1])
    rows_x, _ = f.configure(pair, torch.Generator().manual_seed(0))
    held = np.setdiff1d(np.arange(400), rows_x)
    np.testing.assert_allclose(np.bincount(codes[held]) / np.bincount(codes), 0.1, atol=0.05)
    assert 0 in rows_x
    assert sum(share for share, _, _ in f._held.groups) == pytest.approx(1)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_sparsity_of_an_mlp_is_in_its_loss_with_or_without_hidden_layers(hidden):
    x = np.random.default_rng(0).normal(size=(60, 3))
    f = make("jacobian", map="mlp", hidden=hidden).fit(x, x, trainer=TRAINER)
    assert "structure" in f.result_.history


def test_scales_are_right_where_means_are_large():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, 3)) + 3000).astype(np.float32)
    f = make("jacobian").fit(x, x, trainer=Trainer(max_steps=0, progress=False))
    np.testing.assert_allclose(f.module_.scale.numpy(), x.astype(np.float64).std(axis=0).mean(), rtol=0.02)


def noise_pair(k=9):
    """Anchors that nothing but chance links."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(120, 6)), rng.normal(size=(110, 5)), np.column_stack([np.arange(k), np.arange(k)])


def test_the_guard_asks_for_more_than_a_standard_error(monkeypatch):
    gains = np.array([0.5, -0.4] * 4)
    monkeypatch.setattr(guard, "gains", lambda *args: gains)
    f = make("jacobian").fit(*noise_pair(), trainer=TRAINER)
    assert f.result_.history["guard"][0][1] == pytest.approx(0.05)
    assert f.result_.history["guard_error"][0][1] == pytest.approx(gains.std(ddof=1) / math.sqrt(8))
    assert f.result_.status is Status.SOLVED


def test_a_refused_match_neither_reads_nor_writes_checkpoints(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "gains", lambda *args: np.zeros(9))
    (tmp_path / "checkpoint.pt").write_bytes(b"of something else")
    trainer = Trainer(max_steps=5, checkpoint_dir=tmp_path, resume=True, progress=False)
    assert make("jacobian").fit(*noise_pair(), trainer=trainer).result_.status is Status.SOLVED
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"of something else"


def interrupting(monkeypatch):
    """Ctrl-C in the third step of every training."""
    losses = JacobianSparse.losses

    def interrupted(self, player, batch, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return losses(self, player, batch, step)

    monkeypatch.setattr(JacobianSparse, "losses", interrupted)


def test_ctrl_c_in_the_guards_trials_is_not_swallowed(monkeypatch):
    interrupting(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make("jacobian", weight_gan=0.0).fit(*noise_pair(), trainer=TRAINER)


def test_ctrl_c_ends_all_restarts(monkeypatch):
    interrupting(monkeypatch)
    f = make("jacobian", weight_gan=0.0, guard=False, restarts=3).fit(*noise_pair(), trainer=TRAINER)
    assert f.result_.status is Status.INTERRUPTED
    assert len(f.result_.history["restarts"]) == 1


@pytest.mark.parametrize("config", [{}, {"guard": False, "restarts": 3}])
def test_time_limit_holds_for_trials_and_restarts_together(config):
    endless = Trainer(max_steps=10**6, max_seconds=1.0, patience=math.inf, progress=False)
    result = make("jacobian", **config).fit(*noise_pair(), trainer=endless).result_
    assert 0.5 < result.seconds < 2.0


def test_the_real_error_shows_when_building_fails():
    with pytest.raises(TypeError, match="hidden|int"):
        make("jacobian", map="mlp", hidden=("wide",)).fit(*noise_pair(), trainer=TRAINER)


def test_moving_to_a_device():
    f = make("jacobian").fit(*noise_pair(), trainer=TRAINER)
    assert f.to("cpu") is f
    with pytest.raises(ConfigError, match="device"):
        f.to("meta")


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="map='cubic'"):
        make("jacobian", map="cubic").fit(np.ones((5, 2)), np.ones((5, 2)))


@pytest.mark.parametrize(("guarded", "status"), [(True, "solved"), (False, "max_steps")])
def test_few_anchors_and_conditions_keep_the_start_that_cannot_be_improved_on_evidence(guarded, status):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 200)
    x, y = rng.normal(size=(200, 4)) + codes[:, None], rng.normal(size=(200, 3)) - codes[:, None]
    f = make("jacobian", guard=guarded).fit(x, y, condition_x=codes, condition_y=codes, trainer=TRAINER)
    assert f.result_.status.value == status
    assert bool(f.result_.notes) == guarded
    means = np.array([f.translate(x[codes == code]).mean(axis=0) for code in range(3)])
    if guarded:
        np.testing.assert_allclose(means, [y[codes == code].mean(axis=0) for code in range(3)], atol=0.4)
