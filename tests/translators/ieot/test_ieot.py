"""Inverse entropic OT as a translator: what it recovers, what it chooses, and what it does without anchors."""

import warnings

import numpy as np
import pytest
import torch
from celltransfer.errors import ConditionError, ConfigError, InputError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.train.stopping import Clock
from celltransfer.translators import make
from celltransfer.translators.ieot import settings as ieot_settings
from celltransfer.translators.ieot.ieot import IEOT, mean_direction

TRAINER = Trainer(max_steps=150, device="cpu", progress=False)
FIXED = {"n_potential": 6, "weight_unpaired": 0.2, "penalty": 2.0}


def linear(n=600, k=20, d=4, out=3, noise=0.1, seed=0):
    """Independent cells of both sides, y = x W + noise, and k anchors in front."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(d, out))
    cells = [rng.normal(size=(n, d)) for _ in range(2)]
    cells[1][:k] = cells[0][:k]
    y = cells[1] @ w + noise * rng.normal(size=(n, out))
    test = rng.normal(size=(500, d))
    anchors = np.column_stack([np.arange(k)] * 2)
    return cells[0].astype(np.float32), y.astype(np.float32), anchors, test.astype(np.float32), test @ w


def two_branches(n=1500, k=60, seed=0):
    """y is near +x or near -x with equal chance: a law with two modes, whose mean tells nothing."""
    rng = np.random.default_rng(seed)
    x, x2 = rng.normal(size=(2, n, 1)) * 1.5
    x2[:k] = x[:k]
    y = x2 * rng.choice([-1.0, 1.0], size=(n, 1)) + 0.15 * rng.normal(size=(n, 1))
    return x.astype(np.float32), y.astype(np.float32), np.column_stack([np.arange(k)] * 2)


def test_the_mean_follows_a_linear_map():
    x, y, anchors, test, truth = linear()
    f = IEOT(**FIXED | {"penalty": 0.5}).fit(x, y, anchors, trainer=Trainer(max_steps=400, progress=False))
    error = np.square(f.translate(test) - truth).sum() / np.square(truth - truth.mean(0)).sum()
    assert error < 0.1


def test_translations_depend_on_units_only_as_they_should():
    """Shifted and rescaled modalities give shifted and rescaled translations, draws and densities."""
    x, y, anchors, test, _ = linear(n=300)
    f, g = (IEOT(**FIXED) for _ in range(2))
    f.fit(x, y, anchors, trainer=TRAINER)
    g.fit(10 * x + 3, 0.1 * y - 2, anchors, trainer=TRAINER)
    np.testing.assert_allclose(g.translate(10 * test + 3), 0.1 * f.translate(test) - 2, atol=2e-3)
    np.testing.assert_allclose(g.std(10 * test + 3), 0.1 * f.std(test), atol=2e-3)
    own, other = f.log_prob(x[:50], y[:50]), g.log_prob(10 * x[:50] + 3, 0.1 * y[:50] - 2)
    np.testing.assert_allclose(other, own + 3 * np.log(10), atol=0.1)


def test_both_modes_are_found_where_the_mean_tells_nothing():
    x, y, anchors = two_branches(k=150)
    f = IEOT(n_potential=20, n_cost=2, weight_unpaired=0.2, penalty=0.1, floor=0.01)
    f.fit(x, y, anchors, trainer=Trainer(max_steps=400, progress=False))
    at = np.array([[2.0], [-2.0]], dtype=np.float32)
    drawn = f.sample(at, 400)[:, :, 0]
    assert (np.abs(drawn - 2.0) < 1).mean(axis=0).min() > 0.2
    assert (np.abs(drawn + 2.0) < 1).mean(axis=0).min() > 0.2
    assert f.std(at).min() > 1


def test_draws_and_closed_forms_agree():
    x, y, anchors, test, _ = linear(n=300)
    f = IEOT(**FIXED).fit(x, y, anchors, trainer=TRAINER)
    drawn = f.sample(test[:6], 20_000, seed=3)
    np.testing.assert_allclose(drawn.mean(axis=0), f.translate(test[:6]), atol=0.08)
    np.testing.assert_allclose(drawn.std(axis=0), f.std(test[:6]), rtol=0.05)
    covariance = f.covariance(test[:6])
    np.testing.assert_allclose(np.sqrt(covariance.diagonal(axis1=1, axis2=2)), f.std(test[:6]), rtol=1e-3)
    np.testing.assert_allclose(np.cov(drawn[:, 0].T), covariance[0], rtol=0.1, atol=0.05)
    np.testing.assert_array_equal(f.sample(test[:6], 3, seed=1), f.sample(test[:6], 3, seed=1))
    assert not np.array_equal(f.sample(test[:6], 3, seed=1), f.sample(test[:6], 3, seed=2))
    np.testing.assert_allclose(f.responsibilities(test[:6]).sum(axis=(1, 2)), 1, rtol=1e-5)


def test_blocks_do_not_matter():
    x, y, anchors, test, _ = linear(n=300)
    f = IEOT(**FIXED).fit(x, y, anchors, trainer=TRAINER)
    np.testing.assert_allclose(f.std(test, batch_size=7), f.std(test), rtol=1e-5)
    n = 4100  # more than a block
    many_x, many_y = np.resize(test, (n, 4)), np.resize(y, (n, 3))
    whole = f.log_prob(many_x, many_y)
    np.testing.assert_allclose(whole[4000:], f.log_prob(many_x[4000:], many_y[4000:]), atol=1e-3)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_few_anchors_take_the_defaults(k):
    x, y, anchors, test, _ = linear(n=200)
    f = IEOT().fit(x, y, anchors[:k], trainer=TRAINER)
    assert f.settings_[:3] == (ieot_settings.SIZES[0], ieot_settings.WEIGHTS[0], ieot_settings.PENALTIES[0])
    assert np.isfinite(f.translate(test)).all()
    assert any("Without anchors" in note for note in f.result_.notes) == (k == 0)
    assert (np.ptp(f.translate(test), axis=0) == 0).all() == (k == 0)  # the same for all, exactly


def test_without_anchors_every_cell_of_a_condition_has_its_mean():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], 300)
    x, y = rng.normal(size=(600, 3)), rng.normal(size=(600, 2)) + 4.0 * codes[:, None]
    f = IEOT(n_potential=6).fit(x, y, None, condition_x=codes, condition_y=codes, trainer=TRAINER)
    out = f.translate(x, codes)
    for code in (0, 1):
        np.testing.assert_allclose(out[codes == code], np.tile(y[codes == code].mean(0), (300, 1)), atol=0.3)


def test_settings_are_chosen_by_left_out_anchors_and_said():
    """A clear signal wants little penalty; without any, what is translated hardly varies."""
    x, y, anchors, test, _ = linear(n=300, k=40, noise=0.05)
    trainer, shuffled = Trainer(max_steps=200, progress=False), np.random.default_rng(1).permutation(y)
    clear, none = (IEOT().fit(x, target, anchors, trainer=trainer) for target in (y, shuffled))
    assert clear.settings_.penalty == min(ieot_settings.PENALTIES)
    assert none.settings_.penalty > min(ieot_settings.PENALTIES)
    assert any("left-out anchors" in note for note in clear.result_.notes)
    assert none.translate(test).std(axis=0).max() < 0.35 * clear.translate(test).std(axis=0).min()


def test_options_that_are_given_are_not_chosen():
    x, y, anchors, _, _ = linear(n=200)
    f = IEOT(weight_unpaired=0.7, penalty=3.0).fit(x, y, anchors, trainer=Trainer(max_steps=20, progress=False))
    assert f.settings_[1:3] == (0.7, 3.0)
    assert IEOT(**FIXED).fit(x, y, anchors, trainer=TRAINER).result_.notes == []


def test_anchors_that_repeat_a_source_are_left_out_together():
    x, y, _, _, _ = linear(n=200)
    x[:30] = np.repeat(x[:10], 3, axis=0)
    f = IEOT()
    f.n_features_in_, f.n_features_out_, f.n_conditions_, f.max_steps_, f.clock_ = 4, 3, 0, 10, Clock(None)
    from celltransfer.data.pair import ModalityPair

    pair = ModalityPair(x, y, np.column_stack([np.arange(30)] * 2))
    held = ieot_settings._Comparison(f, pair, np.random.default_rng(0)).held
    assert held.sum(dim=0).eq(1).all()
    for fold in held.bool().numpy():
        groups = fold.reshape(10, 3)
        assert (groups.all(axis=1) == groups.any(axis=1)).all()


def test_time_limits_hold_for_the_comparison_of_settings_too():
    x, y, anchors, test, _ = linear(n=300, d=20, out=10)
    f = IEOT().fit(x, y, anchors, trainer=Trainer(max_seconds=0.4, max_steps=4000, progress=False))
    assert f.result_.seconds < 1.5
    assert f.result_.status is Status.MAX_TIME
    assert any("no time to compare" in note for note in f.result_.notes)
    assert np.isfinite(f.translate(test)).all()


def test_settings_of_very_wide_features_are_not_compared():
    x, y, anchors, _, _ = linear(n=60, d=600, out=400)
    f = IEOT().fit(x, y, anchors, trainer=Trainer(max_steps=3, progress=False))
    assert any("so many features" in note for note in f.result_.notes)


def test_a_long_fit_has_converged():
    x, y, anchors, _, _ = linear(n=300)
    f = IEOT(**FIXED).fit(x, y, anchors, trainer=Trainer(max_steps=400, progress=False))
    assert f.result_.status is Status.CONVERGED


def test_the_papers_form_overfits_anchors_that_ours_does_not():
    """Ten anchors, networks, lambda = 1, two optimisers: held-out densities far below those of all cells."""
    x, y, anchors, test, truth = linear(k=10, d=20, out=5, noise=1.0)
    paper = {"towers": "mlp", "weight_unpaired": 1.0, "penalty": 0.0, "optimizers": "two", "potential": "joint"}
    rng = np.random.default_rng(5)
    measured = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in (("paper", paper | {"n_potential": 10, "lr": 1e-2}), ("ours", {})):
            f = IEOT(**options).fit(x, y, anchors, trainer=Trainer(max_steps=300, progress=False))
            found[name] = f.log_prob(test, measured).mean()
    chance = IEOT().fit(x, y, None, trainer=TRAINER).log_prob(test, measured).mean()
    assert found["ours"] >= chance - 0.2
    assert found["paper"] < chance - 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"towers": "tree"}, "towers='tree'"),
        ({"optimizers": "three"}, "optimizers='three'"),
        ({"potential": "none"}, "potential='none'"),
        ({"weight_unpaired": 2.0}, "from 0 to 1"),
        ({"floor": 0.0}, "no bound"),
        ({"penalty": "abc"}, "penalty='abc'"),
        ({"penalty": float("nan")}, "penalty=nan"),
        ({"n_potential": 5.5}, "whole number"),
        ({"n_cost": 0}, "n_cost=0"),
        ({"penalty": -1.0}, "penalty=-1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    x, y, anchors, _, _ = linear(n=60)
    with pytest.raises(ConfigError, match=message):
        make("ieot", **options).fit(x, y, anchors, trainer=TRAINER)


def test_features_that_do_not_vary_are_no_trouble():
    x, y, anchors, test, _ = linear(n=200)
    x[:, 1], y[:, 0] = 5.0, -1.0
    f = IEOT(**FIXED).fit(x, y, anchors, trainer=TRAINER)
    assert np.isfinite(f.translate(test)).all()
    np.testing.assert_allclose(f.translate(test)[:, 0], -1.0, atol=1e-3)
    assert f.std(test)[:, 0].max() < 0.02
    assert f.std(test)[:, 1].min() > 0.05


@pytest.mark.parametrize("towers", ["residual", "mlp"])
def test_networks_as_towers_are_saved_and_loaded(towers):
    x, y, anchors, test, _ = linear(n=200)
    f = IEOT(**FIXED, towers=towers, n_cost=2, hidden=(8,)).fit(x, y, anchors, trainer=TRAINER)
    again = make("ieot", **f.get_config()).set_state(f.get_state())
    np.testing.assert_array_equal(again.translate(test), f.translate(test))
    np.testing.assert_array_equal(again.std(test), f.std(test))


def test_conditions_are_matched_exactly_and_anchors_tell_cells_of_one_apart():
    """Unequal mixes of conditions, far apart in both modalities, in opposite order: no linear map of both exists."""
    rng = np.random.default_rng(0)
    codes_x, codes_y = np.repeat([0, 1], [400, 200]), np.repeat([0, 1], [200, 400])
    shift = np.array([[0.0, 3.0, 0.0], [0.0, -3.0, 0.0]])
    x = rng.normal(size=(600, 3)) + shift[codes_x]
    latent = rng.normal(size=(600, 3))
    anchors = np.column_stack([[0, 1, 2, 3, 400, 401, 402, 403], [0, 1, 2, 3, 200, 201, 202, 203]])
    latent[anchors[:, 1]] = (x - shift[codes_x])[anchors[:, 0]]
    y = latent[:, :1] * [1.0, 0.5] + 0.1 * rng.normal(size=(600, 2)) + np.array([[-2.0, 1.0], [2.0, 1.0]])[codes_y]
    f = IEOT(n_potential=6, weight_unpaired=0.2, penalty=1.0)
    f.fit(x, y, anchors, condition_x=codes_x, condition_y=codes_y, trainer=Trainer(max_steps=300, progress=False))
    out, truth = f.translate(x, codes_x), (x - shift[codes_x])[:, :1]
    for code in (0, 1):
        own = codes_x == code
        np.testing.assert_allclose(out[own].mean(axis=0), y[codes_y == code].mean(axis=0), atol=0.25)
        assert np.corrcoef(out[own, 0], truth[own, 0])[0, 1] > 0.8


def test_unequal_sides_start_from_all_target_cells():
    x, y, anchors, _, _ = linear(n=2000, k=8)
    few = x[:12]
    f = IEOT(**FIXED).fit(few, y, anchors, trainer=Trainer(max_steps=0, progress=False))
    whole = IEOT(**FIXED).fit(x, y, anchors, trainer=Trainer(max_steps=0, progress=False))
    own, other = (m.log_prob(x[:500], y[:500]).mean() for m in (f, whole))
    assert own == pytest.approx(other, abs=0.3)


def test_conditions_that_are_not_shared_are_an_error():
    x, y, anchors, _, _ = linear(n=60)
    with pytest.raises(ConditionError, match="share no condition"):
        IEOT().fit(x, y, anchors[:0], condition_x=np.zeros(60, int), condition_y=np.ones(60, int), trainer=TRAINER)
    with pytest.raises(InputError, match="one target cell"):
        IEOT().fit(x, y[:1], None, trainer=TRAINER)


def test_cells_that_are_all_anchors_are_fitted():
    x, y, _, test, _ = linear(n=60, k=60)
    f = IEOT(**FIXED).fit(x, y, np.column_stack([np.arange(60)] * 2), trainer=TRAINER)
    assert np.isfinite(f.translate(test)).all()


def test_networks_as_directions_have_mean_zero_too():
    x, y, anchors, _, _ = linear(n=400, k=30)
    f = IEOT(**FIXED | {"towers": "mlp", "hidden": (16,), "weight_unpaired": 1.0, "penalty": 0.1})
    f.fit(x, y, anchors, trainer=TRAINER)
    module = f.module_
    scaled = module.source(torch.as_tensor(x))
    typical = module.law.directions(scaled)[0].detach().norm(dim=-1).mean()
    assert float(mean_direction(module.law, scaled).detach().norm()) < 0.2 * float(typical)
