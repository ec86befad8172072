"""Dynamic transport as a translator: what it finds, says, weighs, undoes and refuses."""

import numpy as np
import pytest
import torch
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError, FeatureError, InputError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators import make
from celltransfer.translators.lrmf.loss import moment_map

torch.set_num_threads(1)
SHORT = Trainer(max_steps=10, batch_size=64, device="cpu", progress=False)


def trainer(steps):
    return Trainer(max_steps=steps, batch_size=128, device="cpu", progress=False)


def normal(n, seed, scale=(1.0, 1.0), shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, 2)) * scale + shift).astype(np.float32)


def fit(x, y, anchors=None, *, steps=150, **options):
    how = {"start": "identity", "steps": 3, "hidden": (32,), "lr": 1e-2} | options
    return make("dont", **how).fit(x, y, anchors, trainer=trainer(steps))


@pytest.fixture(scope="module")
def moved():
    x, y = normal(800, 0), normal(800, 1, (1.5, 0.7), (2.0, -1.0))
    return x, y, fit(x, y, discrepancy="sinkhorn")


def test_it_finds_the_map_of_least_motion_and_says_that_cells_arrive(moved):
    x, y, f = moved
    w, b = moment_map(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert np.square(f.translate(x) - (x @ w.T + b)).mean() < 0.05 * y.var(0).mean()
    assert f.result_.status is Status.CONVERGED
    assert f.result_.history["arrived"][-1][1] == 1
    exact = float(np.square(x @ w.T + b - x).mean() / y.var(0).mean())
    assert f.result_.history["transport_cost"][-1][1] == pytest.approx(exact, rel=0.2)


def test_the_path_starts_at_the_cells_and_ends_at_their_translations(moved):
    x, _, f = moved
    points = f.path(x[:20], [0.0, 1 / 3, 0.5, 1.0])
    np.testing.assert_allclose(points[0], x[:20], atol=1e-5)
    np.testing.assert_allclose(points[-1], f.translate(x[:20]), atol=1e-5)
    steps = [np.linalg.norm(b - a, axis=1).mean() for a, b in zip(points, points[1:], strict=False)]
    assert max(steps) < np.linalg.norm(points[-1] - points[0], axis=1).mean()


def test_it_is_undone_and_stays_below_its_bound(moved):
    x, y, f = moved
    assert f.invertible
    np.testing.assert_allclose(f.inverse(f.translate(x)), x, atol=1e-4)
    np.testing.assert_allclose(f.translate(f.inverse(y)), y, atol=1e-4)
    history = f.result_.history
    assert history["lipschitz"][-1][1] <= 0.9
    assert history["round_trip"][-1][1] < 1e-4


def test_a_cost_that_never_yields_keeps_cells_back_and_the_fit_says_so():
    x, y = normal(600, 0), normal(600, 1, shift=3.0)
    f = fit(x, y, weight_cost=5.0, least_cost=1.0)
    assert f.result_.status is Status.MAX_STEPS
    assert f.result_.history["arrived"][-1][1] == 0
    assert any("NOT arrived" in note for note in f.result_.notes)
    assert np.linalg.norm(f.translate(x).mean(0) - x.mean(0)) < 2


def test_the_multiplier_falls_linearly_to_its_floor():
    f = make("dont", weight_cost=2.0, least_cost=0.01)
    f.max_steps_ = 100
    assert f.multiplier(0) == 2
    assert f.multiplier(45) == pytest.approx(1.0)
    assert f.multiplier(95) == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("discrepancy", ["mmd", "sinkhorn", "gan"])
def test_conditions_are_matched_one_by_one(discrepancy):
    """Overall the laws are equal; within conditions they are swapped."""
    codes = np.arange(600) % 2
    x = normal(600, 0, (0.3, 0.3)) + np.where(codes, 1.0, -1.0)[:, None].astype(np.float32)
    y = normal(600, 1, (0.3, 0.3)) - np.where(codes, 1.0, -1.0)[:, None].astype(np.float32)
    how = {"start": "identity", "steps": 3, "hidden": (32,), "lr": 1e-2, "discrepancy": discrepancy, "lipschitz": None}
    f = make("dont", **how).fit(x, y, condition_x=codes, condition_y=codes, trainer=trainer(150))
    side = np.sign(f.translate(x).mean(1))
    assert np.mean(side == np.where(codes, -1, 1)) > 0.9


def test_anchors_pull_where_matching_is_content_with_anything():
    x = normal(400, 0)
    y = x[:, ::-1].copy()
    rows = np.column_stack([np.arange(40)] * 2)
    errors = [np.square(fit(x, y, anchors, weight_anchor=3.0).translate(x) - y).mean() for anchors in (None, rows)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
def test_cheap_directions_take_the_motion():
    """A square of four blobs, the target its other diagonal: either coordinate can be flipped."""
    rng = np.random.default_rng(0)
    side = np.where(rng.random(800) < 0.5, 1.0, -1.0)[:, None]
    x = (np.hstack([side, side]) + 0.15 * rng.normal(size=(800, 2))).astype(np.float32)
    y = (np.hstack([side, -side]) + 0.15 * rng.normal(size=(800, 2))).astype(np.float32)
    for cheap in (0, 1):
        weights = [1.0, 1.0]
        weights[cheap] = 0.01
        f = fit(x, y, cost_weights=weights, discrepancy="sinkhorn", steps=200, lipschitz=None, weight_cost=3.0)
        flipped = (np.sign(f.translate(x)) != np.sign(x)).mean(0)
        assert flipped[cheap] > 0.9
        assert flipped[1 - cheap] < 0.1


def test_state_has_no_discriminator_and_comes_back():
    x, y = normal(100, 0), normal(100, 1, shift=1.0)
    f = make("dont", discrepancy="gan").fit(x, y, trainer=SHORT)
    assert not [name for name in f.get_state() if "discriminator" in name]
    again = make("dont", **f.get_config()).set_state(f.get_state())
    np.testing.assert_array_equal(again.path(x, [0.5]), f.path(x, [0.5]))
    np.testing.assert_array_equal(again.inverse(y), f.inverse(y))


def test_there_is_no_inverse_where_the_start_has_none():
    x, y = normal(100, 0), np.hstack([normal(100, 1), normal(100, 2)])
    f = make("dont").fit(x, y, trainer=SHORT)
    assert not f.invertible
    with pytest.raises(ConfigError, match="no inverse"):
        f.inverse(y)


def test_a_refit_takes_the_weights_that_an_attribute_gave():
    x, y = normal(200, 0), normal(200, 1)
    codes = (x[:, 0] > 0).astype(int), (y[:, 0] > 0).astype(int)
    pair = ModalityPair(x, y, attribute_x=codes[0], attribute_y=codes[1], shared=True)
    f = make("dont", cost_attribute="side").fit_pair(pair, trainer=SHORT)
    np.testing.assert_allclose(f.module_.costs, [0.01, 1.0])
    assert "1 of 2 target features tell 'side'" in f.result_.notes[0]
    assert f.refit().get_config()["cost_weights"] == pytest.approx([0.01, 1.0])
    assert f.refit().get_config()["cost_attribute"] is None


@pytest.mark.parametrize(("n", "steps", "why"), [(100, 0, "not yet fallen"), (100, 50, "cannot be told from 10")])
def test_cells_that_seem_near_have_not_arrived_by_that(n, steps, why):
    x, y = normal(n, 0), normal(n, 1)
    f = fit(x, y, steps=steps)
    assert f.result_.status is Status.MAX_STEPS
    assert "arrived" not in f.result_.history
    assert any(why in note for note in f.result_.notes)


def test_steps_that_cannot_be_undone_are_no_way_back():
    x, y = normal(600, 0), normal(600, 1)
    f = fit(x, y, steps=1, lipschitz=None, gain=30.0)
    assert not f.invertible
    assert any("cannot all be undone" in note for note in f.result_.notes)
    f.invertible = True  # as a caller may find out who insists
    with pytest.raises(InputError, match="cannot be undone for these 600"):
        f.inverse(f.translate(x))
    again = make("dont", **f.get_config()).set_state(f.get_state())
    assert not again.invertible


def test_the_way_back_wants_target_cells(moved):
    with pytest.raises(FeatureError, match="fitted on 2"):
        moved[2].inverse(np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("times", [[], [np.nan], [0.5, 1.2], [-0.1]])
def test_times_are_between_0_and_1(moved, times):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        moved[2].path(moved[0][:3], times)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"steps": 2.5}, ConfigError, "whole number"),
        ({"hidden": 128}, ConfigError, "widths"),
        ({"decay": 2.0}, ConfigError, "from 0 to 1"),
        ({"least_cost": 2.0}, ConfigError, "share"),
        ({"cost_floor": 0.0}, ConfigError, "above 0"),
        ({"discrepancy": "wasserstein"}, ConfigError, "one of sinkhorn, mmd, gan"),
        ({"start": "nowhere"}, ConfigError, "one of auto"),
        ({"p": 1.0}, ConfigError, "above 1"),
        ({"steps": 0}, ConfigError, "at least one"),
        ({"epsilon": 0.0}, ConfigError, "above 0"),
        ({"lipschitz": 0.0}, ConfigError, "no bound"),
        ({"weight_cost": -1.0}, ConfigError, "at least 0"),
        ({"cost_weights": [1.0, 0.0]}, ConfigError, "small ones"),
        ({"cost_weights": [1.0]}, FeatureError, "1 cost_weights for 2"),
        ({"cost_attribute": "phase"}, ConfigError, "cost_weights_from"),
        ({"cost_attribute": "phase", "cost_weights": [1.0, 1.0]}, ConfigError, "give one of them"),
    ],
)
def test_what_means_nothing_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        make("dont", **options).fit(normal(50, 0), normal(50, 1), trainer=SHORT)


def test_the_identity_needs_the_same_features():
    with pytest.raises(FeatureError, match="got 2 and 4"):
        make("dont", start="identity").fit(normal(50, 0), np.hstack([normal(50, 1)] * 2), trainer=SHORT)


def test_methods_without_a_path_name_one_that_has_it():
    x = normal(50, 0)
    f = make("ridge").fit(x, x, np.column_stack([np.arange(9)] * 2))
    with pytest.raises(ConfigError, match='has one: "dont"'):
        f.path(x, [0.5])
