from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from celltransfer.metrics import controls
from celltransfer.metrics.controls import CONTROLS, ControlData, without_depth
from celltransfer.metrics.scores import foscttm
from celltransfer.translators.regression import PENALTIES, best_scaling, cca, mlp, pls, ridge


@pytest.fixture
def data():
    """A linear world: three labels, depth in the first target coordinate, conditions in the second."""
    rng = np.random.default_rng(0)
    n, n_eval, d = 300, 80, 6
    labels = rng.integers(3, size=n + n_eval)
    x = rng.normal(size=(n + n_eval, d)) + 3 * np.eye(d)[labels]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = x @ rng.normal(size=(d, 4)) + 0.3 * rng.normal(size=(n + n_eval, 4))
    y -= y.mean(axis=0)
    names = np.array(["a", "b", "c"], dtype=object)[labels]
    depth = rng.normal(size=n + n_eval)
    world = ControlData(
        x=x[:n], y=y[:n], anchors=np.column_stack([np.arange(30)] * 2), x_eval=x[n:], x_scale=np.ones(d),
        depth_x=depth[:n], depth_y=depth[:n], depth_eval=depth[n:], pairs_x=x[:n], pairs_y=y[:n],
        condition_y=names[:n], condition_eval=names[n:],
        labels_x=names[:n], labels_y=names[:n], labels_eval=names[n:],
    )  # fmt: skip
    return world, y[n:]


def test_every_control_predicts_every_cell_and_is_reproducible(data):
    world, truth = data
    for name, control in CONTROLS.items():
        points = control(world, 3)
        assert points.shape == truth.shape, name
        np.testing.assert_array_equal(points, control(world, 3), err_msg=name)


def test_order_of_the_controls_in_a_linear_world(data):
    world, truth = data
    score = {name: foscttm(control(world, 0), truth) for name, control in CONTROLS.items()}
    assert score["reference"] <= score["ridge"] + 0.01 < score["label_oracle"] < score["chance"]
    assert score["labels_only"] < 0.35
    assert score["condition_mean"] < 0.35
    for blind in ("chance", "depth", "depth_reversed"):
        assert score[blind] == pytest.approx(0.5, abs=0.07)
    shuffled = [foscttm(controls.shuffled_anchors(world, seed), truth) for seed in range(20)]
    assert np.mean(shuffled) == pytest.approx(0.5, abs=0.1)


def test_controls_that_do_not_apply_say_so(data):
    world, _ = data
    bare = replace(
        world, anchors=np.empty((0, 2), int), condition_y=None, condition_eval=None,
        labels_x=None, labels_y=None, labels_eval=None,
    )  # fmt: skip
    silent = {name for name, control in CONTROLS.items() if control(bare, 0) is None}
    assert silent == {"condition_mean", "ridge", "pls", "shuffled_anchors", "labels_only", "label_oracle"}


def test_depth_finds_depth_and_regression_removes_it(data):
    world, _ = data
    rng = np.random.default_rng(1)
    truth = np.outer(np.tanh(world.depth_eval), np.ones(4)) + 0.2 * rng.normal(size=(80, 4))
    follows = replace(world, y=np.outer(np.tanh(world.depth_y), np.ones(4)))
    matched = controls.depth(follows)
    assert foscttm(matched, truth, "euclidean") < 0.2
    assert foscttm(controls.depth(follows, sign=-1), truth, "euclidean") > 0.6
    left = [without_depth(values, world.depth_eval) for values in (matched, truth)]
    assert foscttm(*left) == pytest.approx(0.5, abs=0.1)


def test_unknown_labels_are_not_a_class(data):
    world, truth = data
    some = world.labels_x.copy()
    some[::4] = None
    partly = replace(world, labels_x=some, labels_y=some, labels_eval=np.full(80, None, dtype=object))
    assert foscttm(controls.labels_only(partly), truth) < 0.35
    assert controls.label_oracle(partly) is None


def test_reference_never_predicts_a_training_cell_it_has_seen(data):
    world, _ = data
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(40, 4))
    world = replace(world, pairs_x=rng.normal(size=(40, 6)), pairs_y=noise)
    inside = replace(world, x_eval=world.pairs_x, eval_pairs=np.arange(40))
    assert foscttm(controls.reference(inside), noise) > 0.38


def test_ridge_leave_one_out_is_exact():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 3))

    def refit(penalty):
        errors = []
        for i in range(12):
            a, b = np.delete(x, i, axis=0), np.delete(y, i, axis=0)
            beta = np.linalg.solve(a.T @ a + penalty * np.eye(5), a.T @ b)
            errors.append((y[i] - x[i] @ beta) ** 2)
        return np.mean(errors)

    errors = [refit(penalty) for penalty in PENALTIES]
    fitted = ridge(x, y)
    assert fitted.error == pytest.approx(min(errors))
    best = PENALTIES[int(np.argmin(errors))]
    np.testing.assert_allclose(fitted.predict(x), x @ np.linalg.solve(x.T @ x + best * np.eye(5), x.T @ y))


def test_one_pair_gives_a_direction():
    rng = np.random.default_rng(4)
    x, y, new = rng.normal(size=(1, 5)), rng.normal(size=(1, 3)), rng.normal(size=(7, 5))
    for fit in (ridge, pls):
        points = fit(x, y).predict(new)
        assert np.linalg.matrix_rank(points, tol=1e-9) == 1
        assert (np.sign(points @ y[0]) == np.sign(new @ x[0])).all()


@pytest.mark.parametrize("fit", [ridge, pls, cca, mlp])
def test_regressors_recover_a_linear_map(fit):
    rng = np.random.default_rng(5)
    x, new, beta = rng.normal(size=(400, 5)), rng.normal(size=(200, 5)), rng.normal(size=(5, 3))
    points = fit(x, x @ beta + 0.1 * rng.normal(size=(400, 3))).predict(new)
    assert foscttm(points, new @ beta) < 0.05


def test_pls_with_all_components_is_least_squares():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    y += 5 * x @ rng.normal(size=(4, 3))
    np.testing.assert_allclose(pls(x, y).predict(x), x @ np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-8)


def test_scaling_is_chosen_by_what_is_left_out():
    rng = np.random.default_rng(7)
    scale, beta = np.logspace(0, -2, 30), np.zeros((30, 3))
    beta[:2] = rng.normal(size=(2, 3))
    x, new = rng.normal(size=(15, 30)), rng.normal(size=(500, 30))
    y = x @ beta + 0.3 * rng.normal(size=(15, 3))
    chosen, whitened = best_scaling(ridge, x, y, scale), ridge(x, y)
    assert chosen.error < whitened.error
    assert foscttm(chosen.predict(new), new @ beta) < foscttm(whitened.predict(new), new @ beta)
