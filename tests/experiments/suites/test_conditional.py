"""Conditional baselines: every one learns what it can learn, and densities are densities."""

import numpy as np
import pytest
import torch
from celltransfer.errors import ConfigError
from celltransfer.experiments.suites import conditional, laws
from celltransfer.experiments.suites.conditional import NAMES, fit
from celltransfer.experiments.suites.conditional_models import MODELS

STEPS = {"cnf_ss": 60, "cgan": 400, "ugan_l2": 200, "cnf": 120, "cgmm_ss": 150, "mdn": 200, "regression": 150}
FAST = {"cnf_ss": {"n_sources": 8, "batch_size": 64, "transforms": 2, "hidden": (32,), "lr": 1e-2}}
FAST |= {"cnf": {"transforms": 2, "hidden": (32,), "lr": 1e-2}, "mdn": {"lr": 3e-3}}
FAST |= {"cgmm_ss": {"towers": "linear", "lr": 0.02, "n_potential": 10, "n_cost": 2}}
DENSE = ("mdn", "cnf", "cnf_ss", "cgmm_ss")


def truth(x, rng, spread=0.2):
    """One mode, ten times as large as the source, off the origin."""
    return (10 * x @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + 50 + 10 * spread * rng.normal(size=x.shape)).astype("f4")


def task(n_pairs=200, seed=0):
    rng = np.random.default_rng(seed)
    xp, x, other = (rng.normal(size=(n, 2)).astype("f4") for n in (n_pairs, 300, 300))
    return xp, truth(xp, rng), x, truth(other, rng)


@pytest.fixture(scope="module")
def fitted():
    return {name: fit(name, *task(), seed=0, steps=STEPS[name], **FAST.get(name, {})) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_law_with_one_mode_is_found_by_all(fitted, name):
    x = np.random.default_rng(5).normal(size=(40, 2)).astype("f4")
    rng = np.random.default_rng(6)
    true = np.stack([truth(x, rng) for _ in range(50)])
    samples = fitted[name].sample(x, 50, seed=1)
    assert samples.shape == (50, 40, 2)
    chance = laws.energy_distance(true[:, ::-1], true).mean()
    assert laws.energy_distance(samples, true).mean() < 0.4 * chance


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_a_matter_of_the_seed_alone(fitted, name):
    x = np.zeros((3, 2), "f4")
    state = torch.get_rng_state()
    first, again, other = (fitted[name].sample(x, 4, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first == other).all() == (name == "regression")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", DENSE)
def test_densities_integrate_to_one_and_are_those_of_the_samples(fitted, name):
    x = np.array([[0.3, -0.5]], "f4")
    side = np.linspace(-10, 110, 100)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype("f4")
    density = np.exp(fitted[name].log_prob(np.repeat(x, len(grid), axis=0), grid))
    cell = (side[1] - side[0]) ** 2
    assert density.sum() * cell == pytest.approx(1, abs=0.08)
    mean = (density[:, None] * grid).sum(axis=0) * cell
    np.testing.assert_allclose(mean, fitted[name].sample(x, 4000, seed=0)[:, 0].mean(axis=0), atol=1.5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DENSE])
def test_others_have_no_density(fitted, name):
    assert fitted[name].log_prob(np.zeros((2, 2)), np.zeros((2, 2))) is None


@pytest.mark.parametrize("name", ["cgmm_ss", "mdn"])
def test_all_densities_at_once_are_those_of_pairs(name):
    x, y = torch.randn(5, 3), torch.randn(7, 2)
    model = MODELS[name](x, y, hidden=(8,))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        one_by_one = torch.stack([model.log_prob(x, row.expand(5, -1)) for row in y])
        torch.testing.assert_close(model.log_prob_of_all(x, y), one_by_one, rtol=1e-4, atol=1e-4)


def test_unpaired_target_cells_reach_the_loss_of_equation_21_only_where_they_are_weighed():
    from celltransfer.experiments.suites.conditional_models import Batch

    x, y, far = torch.randn(6, 2), torch.randn(6, 2), torch.randn(6, 2) + 20
    for weight, same in ((0.0, True), (1.0, False)):
        model = MODELS["mdn"](x, y, hidden=(8,), weight_unpaired=weight)
        near, away = (model.loss(Batch(x, y, x, other)).item() for other in (y, far))
        assert (near == away) == same


def test_a_regression_of_two_modes_is_in_neither_and_a_mixture_in_both():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype("f4")
    y = (x + 5 * rng.choice([-1, 1], size=(400, 1))).astype("f4")
    modes = np.stack([x + 5, x - 5])
    middle = fit("regression", x, y, x, y, steps=200).sample(x, 20, 0)
    assert not laws.modes_found(middle, modes, 2.0).any()
    found = fit("mdn", x, y, x, y, steps=300, lr=3e-3).sample(x, 50, 0)
    assert laws.modes_found(found, modes, 2.0).mean() > 0.9


def test_a_source_is_held_out_with_all_its_targets():
    xp = np.repeat(np.arange(10.0)[:, None], 7, axis=0)
    held = conditional._held_out(xp, 0.3, np.random.default_rng(0)).reshape(10, 7)
    assert (held.all(axis=1) | ~held.any(axis=1)).all()
    assert held.all(axis=1).sum() == 3
    assert not conditional._held_out(xp, 0.0, np.random.default_rng(0)).any()


def test_training_stops_and_gives_the_best_state():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 2)).astype("f4")  # nothing to learn
    settings = {"check_every": 10, "patience": 3, "lr": 1e-2}
    law = fit("regression", x, y, x, y, steps=2000, **settings)
    assert law.steps < 500
    assert fit("regression", x, y, x, y, steps=60, held_out=0.0, **settings).steps == 60


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ConfigError, match="regression"):
        fit("nothing", *task(20))
    with pytest.raises(ConfigError, match="depth"):
        fit("mdn", *task(20), depth=3)
