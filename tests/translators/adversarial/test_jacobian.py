import math
import signal

import numpy as np
import pytest
import torch
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError, ModelFormatError
from celltransfer.losses.jacobian import exact_l1
from celltransfer.nn.blocks import Discriminator
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators import left_out, make
from celltransfer.translators.adversarial.jacobian import JacobianSparse
from celltransfer.translators.adversarial.structure import diverse_influence, orthogonality

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


def test_every_restart_is_a_run_of_its_own():
    x, y, _ = permuted()
    f = make("jacobian", init="random", restarts=3, **SHARP)
    f.fit(x, y, np.array([[0, 0]]), trainer=Trainer(max_steps=100, progress=False, device="cpu"))
    lowest = [value for _, value in f.result_.history["restarts"]]
    assert len(set(lowest)) == 3
    assert min(value for _, value in f.result_.history["monitor"]) in lowest


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
    monkeypatch.setattr(left_out, "gains", lambda *args: gains)
    f = make("jacobian").fit(*noise_pair(), trainer=TRAINER)
    assert f.result_.history["guard"][0][1] == pytest.approx(0.05)
    assert f.result_.history["guard_error"][0][1] == pytest.approx(gains.std(ddof=1) / math.sqrt(8))
    assert f.result_.status is Status.SOLVED


def test_a_refused_match_neither_reads_nor_writes_checkpoints(monkeypatch, tmp_path):
    monkeypatch.setattr(left_out, "gains", lambda *args: np.zeros(9))
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
    assert any("With fewer than" in note for note in f.result_.notes) == guarded
    means = np.array([f.translate(x[codes == code]).mean(axis=0) for code in range(3)])
    if guarded:
        np.testing.assert_allclose(means, [y[codes == code].mean(axis=0) for code in range(3)], atol=0.4)


STRUCTURES = {"sparse": exact_l1, "orthogonal": orthogonality, "diverse": diverse_influence}


def structured(map="mlp", steps=150, **options):
    """The end of a fit with hardly anything but structure to learn, and cells as its networks see them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    common = {"hidden": (16,), "init": "random", "weight_gan": 0.0, "weight_inverse": 1.0, "guard": False}
    f = make("jacobian", map=map, lr=1e-2, **common | options)
    f.monitor = lambda: None
    f.fit(x, y, trainer=Trainer(max_steps=steps, progress=False, device="cpu", batch_size=64, patience=math.inf))
    return f, f.scaled_source(torch.as_tensor(x[:50]).float())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("of", ["map", "reconstructor"])
def test_structure_is_asked_of_the_network_it_is_said_to_be_of(structure, of):
    found = {}
    for weight in (0.0, 3.0):
        f, x = structured(structure=structure, structure_of=of, weight_structure=weight, structure_start=1.0)
        net = f.module_
        assert net.reconstructor is not None
        asked, points = (net.f, x) if of == "map" else (net.reconstructor, net.f(x).detach())
        found[weight] = float(STRUCTURES[structure](asked, points).detach())
        assert ("structure" in f.result_.history) == bool(weight)
    assert found[3.0] < 0.5 * found[0.0]


def test_a_linear_reconstructor_gets_exact_zeros_and_the_map_does_not():
    """A dense map whose inverse is sparse."""
    back = np.array([[1.0, 0.8, 0.0], [0.0, -1.0, 0.8], [0.0, 0.0, 1.0]])
    x = np.random.default_rng(0).normal(size=(200, 3))
    f = make("jacobian", structure_of="reconstructor", weight_structure=0.2, weight_inverse=1.0, init="random", lr=1e-2)
    f.weight_gan, f.weight_anchor, f.monitor = 0.0, 3.0, lambda: None
    trainer = Trainer(max_steps=1200, progress=False, device="cpu", patience=math.inf)
    f.fit(x, x @ np.linalg.inv(back), np.column_stack([np.arange(200)] * 2), trainer=trainer)
    zeros = {name: getattr(f.module_, name)[0].weight.detach().numpy() == 0 for name in ("f", "reconstructor")}
    np.testing.assert_array_equal(zeros["reconstructor"], back.T == 0)
    assert not zeros["f"].any()
    assert "structure" not in f.result_.history


def test_structure_of_a_reconstructor_that_nothing_trains_is_refused():
    with pytest.raises(ConfigError, match="weight_inverse=0 leaves untrained"):
        make("jacobian", structure_of="reconstructor").fit(*noise_pair(), trainer=TRAINER)


def strengths(monkeypatch, steps=8, **options):
    """Weight of the structural term at every step of a fit."""
    seen, strength = {}, JacobianSparse._strength

    def recorded(self, step):
        seen[step] = strength(self, step)
        return seen[step]

    monkeypatch.setattr(JacobianSparse, "_strength", recorded)
    make("jacobian", guard=False, **options).fit(*noise_pair(), trainer=Trainer(max_steps=steps, progress=False))
    return np.array([seen[step] for step in range(steps)])


@pytest.mark.parametrize("map_", ["linear", "mlp"])
def test_structure_weighs_more_at_first_and_declines_until_half_time(monkeypatch, map_):
    found = strengths(monkeypatch, map=map_, weight_structure=0.2, structure_start=5.0)
    np.testing.assert_allclose(found / 0.2, [5, 4, 3, 2, 1, 1, 1, 1])


@pytest.mark.parametrize(("start", "checks"), [(1.0, [2, 4, 6, 8]), (5.0, [4, 6, 8])])
def test_no_state_of_the_first_half_is_kept_where_the_structure_is_stronger_there(start, checks):
    trainer = Trainer(max_steps=8, check_every=2, patience=1, progress=False, device="cpu")
    f = make("jacobian", init="random", structure_start=start, guard=False)
    monitor, seen = JacobianSparse.monitor, []

    def falling():
        """Worse at every check; what the method says of a state without a figure is kept."""
        figure = monitor(f)
        seen.append(figure)
        return None if figure is None else -float(len(seen))

    f.monitor = falling
    f.fit(*noise_pair(), trainer=trainer)
    assert [step for step, _ in f.result_.history["monitor"]] == checks


def run_that_ended(monitor, constraint, status=Status.MAX_STEPS, error=0.01):
    history = {"monitor": [(0, 1.0), (5, monitor)], "constraint": [(5, constraint)], "monitor_error": [(5, error)]}
    return FitResult(status, history=history)


def test_of_runs_that_match_equally_well_the_one_with_the_lowest_other_terms_is_kept():
    choose = make("jacobian").choose
    equal = [run_that_ended(0.100, 0.5), run_that_ended(0.125, 0.2), run_that_ended(0.110, 0.9)]
    assert choose(equal) == 1
    assert choose([*equal, run_that_ended(0.140, 0.0)]) == 1  # four sampling errors worse
    assert choose([run_that_ended(0.2, 0.1), run_that_ended(0.1, 0.5)]) == 1


def test_a_run_that_diverged_is_never_kept_before_one_that_did_not():
    choose = make("jacobian").choose
    diverged = run_that_ended(0.001, 0.0, Status.DIVERGED)
    assert choose([diverged, run_that_ended(0.5, 3.0), run_that_ended(0.5, 2.0)]) == 2
    wide = run_that_ended(0.1, 0.0, Status.DIVERGED, error=10.0)
    assert choose([wide, run_that_ended(0.5, 0.0), run_that_ended(0.1, 1.0)]) == 2
    assert choose([diverged, run_that_ended(0.5, 0.0, Status.DIVERGED)]) == 0


def test_restarts_know_their_terms_and_the_error_of_their_monitor():
    x, y, _ = permuted()
    f = make("jacobian", map="mlp", restarts=2, weight_structure=0.3, weight_anchor=2.0)
    f.fit(x, y, np.array([[0, 0]]), trainer=Trainer(max_steps=5, progress=False, device="cpu"))
    history = f.result_.history
    assert 0 < history["monitor_error"][0][1] < 0.2
    net, anchor = f.module_, f.scaled_source(torch.as_tensor(x[:1]))
    error = float((net.average(anchor) - f.scaled_target(torch.as_tensor(y[:1]))).square().mean().detach())
    assert history["constraint"][0][1] == pytest.approx(
        2 * error + 0.3 * float(exact_l1(net.f, f.scaled_source(torch.as_tensor(x))).detach()), rel=0.2
    )


def test_separate_discriminators_give_each_condition_its_own_logits():
    torch.manual_seed(0)
    y, codes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    critic = Discriminator(3, (8,), 3, separate=True)
    each = torch.stack([critic(y, torch.full((6,), code)) for code in range(3)], dim=1)
    torch.testing.assert_close(critic(y, codes), each[torch.arange(6), codes])
    critic(y, torch.zeros(6, dtype=torch.long)).sum().backward()
    last = critic.net[-1].weight.grad
    assert last[0].any()
    assert not last[1:].any()


@pytest.mark.parametrize(("conditional", "shape"), [("separate", (3, 4)), ("input", (1, 4))])
def test_both_kinds_of_conditional_discriminators_train(conditional, shape):
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(90, 2)), np.arange(90) % 3
    f = make("jacobian", conditional=conditional, hidden_discriminator=(4,), init="random", guard=False)
    f.fit(x, x, condition_x=codes, condition_y=codes, trainer=TRAINER)
    assert f.module_.discriminator.net[-1].weight.shape == shape
    assert f.module_.discriminator.net[0].in_features == (2 if conditional == "separate" else 5)
    assert np.isfinite(f.translate(x)).all()


def test_a_random_map_is_never_what_a_fit_returns():
    """Its distance to the target may well be lower than that of the first states after it."""
    x, y, _ = permuted()
    for options in ({"anchors": None}, {"anchors": np.array([[0, 0]]), "init": "random"}):
        anchors = options.pop("anchors")
        fits = [
            make("jacobian", **options).fit(x, y, anchors, seed=1, trainer=Trainer(max_steps=n, progress=False))
            for n in (0, 300)
        ]
        before, after = (f.translate(x) for f in fits)
        assert np.abs(before - after).max() > 0.5
        assert 0 not in dict(fits[1].result_.history["monitor"])


def test_a_fit_that_came_to_nothing_says_so(monkeypatch):
    monkeypatch.setattr(JacobianSparse, "monitor", lambda self: float(self._step))
    f = make("jacobian", guard=False).fit(*noise_pair(), trainer=Trainer(max_steps=20, check_every=5, progress=False))
    assert f.result_.history["monitor"][0] == (0, 0.0)
    assert "this is the start" in f.result_.notes[0]


def test_time_that_ends_within_the_schedule_is_told():
    trainer = Trainer(max_steps=10**6, max_seconds=0.2, progress=False)
    f = make("jacobian", structure_start=5.0, guard=False).fit(*noise_pair(), trainer=trainer)
    assert "times as strong as wanted" in f.result_.notes[0]
    assert not any("strong" in note for note in make("jacobian").fit(*noise_pair(), trainer=TRAINER).result_.notes)


def test_a_schedule_is_not_resumed_with_other_steps(tmp_path):
    pair = noise_pair()
    trainer = Trainer(max_steps=8, checkpoint_dir=tmp_path, resume=True, progress=False)
    f = make("jacobian", structure_start=5.0, guard=False)
    f.fit(*pair, trainer=trainer)
    with pytest.raises(ModelFormatError, match="other max_steps"):
        f.fit(*pair, trainer=Trainer(max_steps=16, checkpoint_dir=tmp_path, resume=True, progress=False))
    plain = make("jacobian", guard=False)
    plain.fit(*pair, trainer=Trainer(max_steps=8, checkpoint_dir=tmp_path / "plain", resume=True, progress=False))
    longer = Trainer(max_steps=16, checkpoint_dir=tmp_path / "plain", resume=True, progress=False)
    assert plain.fit(*pair, trainer=longer).result_.n_steps == 16


def test_structure_is_asked_of_the_cells_of_every_condition(monkeypatch):
    rng, seen = np.random.default_rng(0), []
    codes = rng.integers(0, 4, 400)
    x = rng.normal(size=(400, 3)) + 10.0 * codes[:, None]
    where = "celltransfer.translators.adversarial.jacobian.exact_l1"
    monkeypatch.setattr(where, lambda f, x: seen.append(x) or exact_l1(f, x))
    f = make("jacobian", map="mlp", hidden=(8,), restarts=2)
    f.fit(x, x, condition_x=codes, condition_y=codes, trainer=Trainer(max_steps=2, progress=False))
    for points in seen:
        found = (points * f.module_.scale[0] + f.module_.mean_x).mean(1).div(10).round().clamp(0, 3)
        assert np.bincount(found.int().numpy(), minlength=4).min() >= 5


def test_restarts_of_a_linear_map_are_ranked_by_its_exact_norm():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 90)), rng.normal(size=(200, 5))
    f = make("jacobian", init="random", restarts=2, weight_structure=0.5).fit(x, y, trainer=TRAINER)
    norm = float(f.module_.f[0].weight.detach().abs().sum()) / 5
    assert f.result_.history["constraint"][0][1] == pytest.approx(0.5 * norm, rel=1e-5)


@pytest.mark.parametrize("option", ["restarts", "r1_every", "n_probes"])
def test_numbers_that_are_too_small_are_named(option):
    with pytest.raises(ConfigError, match=f"{option}=0; it is at least 1"):
        make("jacobian", **{option: 0}).fit(*noise_pair(), trainer=TRAINER)
