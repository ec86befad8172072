import numpy as np
import pytest
from celltransfer.errors import ConfigError
from celltransfer.train.loop import Trainer
from celltransfer.translators import make

TRAINER = Trainer(max_steps=20, progress=False, device="cpu")


def blobs(n, rng):
    """Non-Gaussian coordinates with laws of their own, so that only the right permutation matches."""
    columns = [
        rng.exponential(1.0, n),
        rng.uniform(-1, 1, n) ** 3 * 3,
        rng.choice([-1.0, 2.0], n) + 0.1 * rng.normal(size=n),
    ]
    return np.column_stack(columns).astype(np.float32)


def test_one_anchor_and_sparsity_recover_a_scaled_permutation():
    rng = np.random.default_rng(0)
    x, other = blobs(3000, rng), blobs(3000, rng)
    truth = np.zeros((3, 3))
    truth[0, 2], truth[1, 0], truth[2, 1] = 1.5, -1.0, 0.7
    y = other @ truth
    y[0] = x[0] @ truth
    weights = {"weight_sparse": 0.05, "weight_gan": 1.0, "weight_anchor": 3.0, "r1": 0.3}
    f = make("jacobian", lr_discriminator=4e-3, guard=False, restarts=5, **weights)
    f.fit(x, y, np.array([[0, 0]]), trainer=Trainer(max_steps=1200, progress=False, device="cpu", patience=100))
    # Bad minima are common and seen without the truth: runs differ, and the chosen one is right.
    monitors = [value for _, value in f.result_.history["restarts"]]
    assert min(monitors) < 0.02 < max(monitors)
    error = np.sqrt(np.square(f.translate(x) - x @ truth).mean() / np.square(x @ truth).mean())
    assert error < 0.15


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
    f = make("jacobian", lr=5e-3, init="random", weight_sparse=0.0, guard=False)
    f.fit(x, y, condition_x=codes_x, condition_y=codes_y, trainer=Trainer(max_steps=600, progress=False, patience=100))
    assert np.corrcoef(f.translate(x, codes_x)[:, 0], x[:, 0])[0, 1] < -0.9


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="map='cubic'"):
        make("jacobian", map="cubic").fit(np.ones((5, 2)), np.ones((5, 2)))
