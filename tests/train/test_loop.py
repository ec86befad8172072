import math
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from celltransfer.data.batches import Batches
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError, ModelFormatError
from celltransfer.train.checkpoint import CHECKPOINT, fingerprint
from celltransfer.train.loop import Trainer, seeded
from celltransfer.train.outcome import Status
from celltransfer.train.stopping import Clock, EarlyStopping, Interruption
from celltransfer.translators import make
from torch import nn


class Regression:
    """Least squares with noise in the loss: the smallest thing the loop can train."""

    def __init__(self, lr=0.05, monitored=False, fail_at=None, interrupt_at=None, ctrl_c_at=None, seed=0):
        with seeded(seed):
            self.module_ = nn.Linear(3, 2)
        self.generator_ = torch.Generator().manual_seed(seed)
        self.lr, self.monitored = lr, monitored
        self.fail_at, self.interrupt_at, self.ctrl_c_at = fail_at, interrupt_at, ctrl_c_at
        self.checked = []

    def players(self):
        return {"map": torch.optim.Adam(self.module_.parameters(), lr=self.lr)}

    def losses(self, player, batch, step):
        if step == self.interrupt_at:
            raise KeyboardInterrupt
        if step == self.ctrl_c_at:
            signal.raise_signal(signal.SIGINT)
        error = (self.module_(batch.xa) - batch.ya).square().mean()
        noise = torch.randn((), generator=self.generator_) * self.module_.weight.sum()
        return {"error": error * (math.nan if step == self.fail_at else 1), "noise": 0.01 * noise}

    def after_step(self, step):
        pass

    def monitor(self):
        self.checked.append(self.module_.weight.detach().clone())
        return float(len(self.checked) != 3) if self.monitored else None


def batches(seed=0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    pairs = np.column_stack([np.arange(40), np.arange(40)])
    return Batches(ModalityPair(x, x @ rng.normal(size=(3, 2)), pairs), 16, seed=seed)


def train(task, **limits):
    return Trainer(**{"max_steps": 60, "check_every": 10, "progress": False, "device": "cpu"} | limits).run(
        task, batches()
    )


def test_losses_fall_and_the_result_says_what_happened():
    result = train(Regression(), max_steps=200)
    losses = [value for _, value in result.history["error"]]
    assert losses[-1] < 0.3 * losses[0]
    assert result.status is Status.MAX_STEPS
    assert result.n_steps == 200
    assert result.device == "cpu"
    assert {"torch", "celltransfer"} <= set(result.versions)


def test_time_limit():
    assert train(Regression(), max_seconds=0.0).status is Status.MAX_TIME


def test_divergence_restores_the_last_finite_state():
    task = Regression(fail_at=35)
    result = train(task)
    assert result.status is Status.DIVERGED
    assert torch.isfinite(task.module_.weight).all()
    finite = Regression()
    train(finite, max_steps=30)
    assert torch.equal(task.module_.weight, finite.module_.weight)


def test_early_stopping_returns_the_best_state():
    task = Regression(monitored=True)
    result = train(task, patience=2)
    assert result.status is Status.CONVERGED
    assert result.n_steps == 40  # checked at 0, 10, 20 (best), 30, 40
    assert torch.equal(task.module_.weight, task.checked[2])


def test_interruption_leaves_a_usable_model():
    task = Regression(interrupt_at=25)
    result = train(task)
    assert result.status is Status.INTERRUPTED
    assert result.n_steps == 25
    assert torch.isfinite(task.module_(torch.ones(1, 3))).all()


def test_ctrl_c_waits_for_the_end_of_the_step_and_resuming_is_bit_identical(tmp_path):
    whole, broken, resumed = Regression(), Regression(ctrl_c_at=25), Regression(seed=5)
    train(whole)
    result = train(broken, checkpoint_dir=tmp_path)
    assert result.status is Status.INTERRUPTED
    assert result.n_steps == 26
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(resumed, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(whole.module_.weight, resumed.module_.weight)


def test_ctrl_c_in_the_last_step_is_not_lost():
    assert train(Regression(ctrl_c_at=59)).status is Status.INTERRUPTED


def test_an_exception_in_the_middle_of_a_step_leaves_the_checkpoint_before_it(tmp_path):
    whole, resumed = Regression(), Regression(seed=5)
    train(whole)
    train(Regression(interrupt_at=25), checkpoint_dir=tmp_path, checkpoint_every=10)
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 20
    train(resumed, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(whole.module_.weight, resumed.module_.weight)


def test_a_second_ctrl_c_takes_effect_at_once():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.seen
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_finished_run_is_returned_without_training(tmp_path):
    first, second = Regression(monitored=True), Regression(seed=5, monitored=True, fail_at=40)
    result = train(first, patience=2, checkpoint_dir=tmp_path)
    again = train(second, patience=2, checkpoint_dir=tmp_path, resume=True)
    assert (again.status, again.n_steps) == (Status.CONVERGED, result.n_steps)
    assert again.history == result.history
    assert torch.equal(first.module_.weight, second.module_.weight)


@pytest.mark.parametrize("half", [30, 37])
def test_resuming_is_bit_identical(tmp_path, half):
    whole, halved, resumed = Regression(), Regression(), Regression(seed=5)
    expected = train(whole, max_steps=80)
    train(halved, max_steps=half, checkpoint_dir=tmp_path)
    result = train(resumed, max_steps=80, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(whole.module_.weight, resumed.module_.weight)
    assert result.n_steps == 80
    assert result.history == expected.history
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_translator_resumes_bit_identically(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 120, 6)).astype(np.float32)
    anchors = np.column_stack([np.arange(4), np.arange(4)])
    common = {"device": "cpu", "batch_size": 32, "check_every": 5, "progress": False}
    config = {"map": "mlp", "hidden": (8,), "estimator": "probe"}
    whole = make("jacobian", **config).fit(x, y, anchors, trainer=Trainer(max_steps=20, **common))
    make("jacobian", **config).fit(x, y, anchors, trainer=Trainer(max_steps=10, checkpoint_dir=tmp_path, **common))
    resumed = make("jacobian", **config).fit(
        x, y, anchors, trainer=Trainer(max_steps=20, checkpoint_dir=tmp_path, resume=True, **common)
    )
    np.testing.assert_array_equal(whole.translate(x), resumed.translate(x))


def test_foreign_checkpoints_are_refused(tmp_path):
    torch.save({"module": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(ModelFormatError, match="does not belong"):
        train(Regression(), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="checkpoint_dir"):
        train(Regression(), resume=True)


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    return ModalityPair(
        rng.normal(size=(60, 4)), rng.normal(size=(50, 3)), np.array([[0, 0]]), np.arange(60) % 2, np.arange(50) % 2
    )


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("source cells", {"x": numbers(1).x}),
        ("target cells", {"y": numbers(1).y}),
        ("anchors", {"anchors": np.array([[0, 1]])}),
        ("source conditions", {"condition_x": np.arange(60) // 30}),
    ],
)
def test_checkpoints_of_other_data_are_refused(tmp_path, what, change):
    trainer = Trainer(max_steps=2, checkpoint_dir=tmp_path, resume=True, progress=False, device="cpu")
    # Without the guard: with conditions and a few anchors it would not train, and nothing would be resumed.
    make("jacobian", guard=False).fit_pair(numbers(), trainer=trainer)
    with pytest.raises(ModelFormatError, match=f"written with other {what}"):
        make("jacobian", guard=False).fit_pair(replace(numbers(), **change), trainer=trainer)


def test_checkpoints_of_other_seeds_and_options_are_refused(tmp_path):
    trainer = Trainer(max_steps=2, checkpoint_dir=tmp_path, resume=True, progress=False, device="cpu")
    make("jacobian", guard=False).fit_pair(numbers(), trainer=trainer)
    with pytest.raises(ModelFormatError, match="other options, seed"):
        make("jacobian", guard=False, lr=0.1).fit_pair(numbers(), seed=1, trainer=trainer)


def test_fingerprints_tell_sparse_matrices_apart():
    x = sp.random(30, 8, 0.3, format="csr", random_state=0)
    first, second = (fingerprint(ModalityPair(m, numbers().y[:, :2])) for m in (x, x.multiply(2).tocsr()))
    assert first["source cells"] != second["source cells"]
    assert first["target cells"] == second["target cells"]


def test_global_random_states_are_left_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    make("jacobian", map="mlp").fit(x, x, trainer=Trainer(max_steps=3, progress=False))
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_unknown_devices_are_refused():
    with pytest.raises(ConfigError, match="device='tpu9'"):
        train(Regression(), device="tpu9")
    with pytest.raises(ConfigError, match="not supported"):
        train(Regression(), device="meta")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_devices_this_machine_lacks_are_refused():
    with pytest.raises(ConfigError, match="no such device"):
        train(Regression(), device="mps")


def test_unknown_precisions_are_refused_by_their_name():
    trainer = Trainer(precision="64-true", device="cpu", progress=False)
    with pytest.raises(ConfigError, match="precision='64-true'"):
        make("jacobian").fit_pair(numbers(), trainer=trainer)


@pytest.mark.parametrize("map_", ["linear", "residual"])
def test_mixed_precision_trains(map_):
    trainer = Trainer(max_steps=4, precision="bf16-mixed", device="cpu", progress=False)
    f = make("jacobian", map=map_).fit_pair(numbers(), trainer=trainer)
    assert np.isfinite(f.translate(numbers().x)).all()


def test_patience_counts_checks_without_improvement():
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(v) for v in (3.0, 2.0, 2.0)] == [True, True, False]
    assert not stopping.exhausted
    stopping.update(2.5)
    assert stopping.exhausted
    assert stopping.best == 2.0


def test_infinite_patience_never_stops():
    assert train(Regression(monitored=True), patience=math.inf).n_steps == 60


def test_a_clock_divides_the_time_that_is_left():
    clock = Clock(100.0)
    assert clock.share(4) == pytest.approx(25, abs=0.1)
    assert Clock(0.0).left() == 0
    assert Clock(None).left() == math.inf
    assert Clock(None).share(3) is None


@pytest.mark.parametrize(
    "limits",
    [
        {"max_steps": -1},
        {"max_steps": 1.5},
        {"batch_size": 0},
        {"max_seconds": "10"},
        {"check_every": 0},
        {"max_steps": True},
    ],
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Trainer(**limits)
