"""CycleGAN and DIMENSION: what matching of marginals leaves open, and what conditions and anchors settle."""

import numpy as np
import pytest
import torch
from celltransfer.errors import ConditionError, ConfigError
from celltransfer.losses.discrepancy import energy_distance
from celltransfer.train.loop import Trainer
from celltransfer.translators import make

SMALL = {
    "map": "linear",
    "hidden_discriminator": (32,),
    "weight_gan": 1.0,
    "r1": 0.3,
    "lr": 5e-3,
    "lr_discriminator": 5e-3,
}


def trainer(steps):
    """So many steps; of the start and the end the better match is kept."""
    return Trainer(
        max_steps=steps, progress=False, device="cpu", patience=float("inf"), check_every=max(steps, 1), batch_size=100
    )


def two_groups(n=800, seed=0):
    """One feature with a symmetric law: matching all cells fits f(x) = x as well as f(x) = -x."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    x, y = (0.5 * rng.normal(size=(n, 1)) + (2.0 * codes - 1)[:, None] for _ in range(2))
    return np.vstack([x, -x[::-1]]), np.vstack([y, -y[::-1]]), np.append(codes, 1 - codes[::-1])


def sign(f, x):
    return np.corrcoef(f.translate(x)[:, 0], x[:, 0])[0, 1]


def test_conditions_settle_a_sign_that_the_distributions_leave_open():
    x, y, codes = two_groups()
    found = {}
    for name, steps in (("dimension", 300), ("cyclegan", 30)):
        for turned in (False, True):
            f = make(name, weight_cycle=0.2, **SMALL)
            f.fit(x, y, condition_x=codes, condition_y=1 - codes if turned else codes, trainer=trainer(steps))
            found[name, turned] = f.translate(x)
            if name == "dimension":
                assert (sign(f, x) < -0.95) if turned else (sign(f, x) > 0.95)
    # The same cells: nothing tells CycleGAN the one task from the other.
    np.testing.assert_array_equal(found["cyclegan", False], found["cyclegan", True])


def test_cyclegan_does_not_look_at_conditions():
    x, y, codes = two_groups()
    codes_y = np.where(np.arange(len(y)) < 300, 0, 1)
    blind = make("cyclegan", **SMALL).fit(x, y, trainer=trainer(10))
    told = make("cyclegan", **SMALL).fit(x, y, condition_x=codes, condition_y=codes_y, trainer=trainer(10))
    np.testing.assert_array_equal(blind.translate(x), told.translate(x))
    assert blind.result_.history == told.result_.history


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_anchors_settle_it_too(side):
    x, y, _ = two_groups()
    y[:5] = side * x[:5]
    f = make("cyclegan", weight_cycle=0.2, weight_anchor=3.0, **SMALL)
    f.fit(x, y, np.column_stack([np.arange(5)] * 2), trainer=trainer(600))
    assert side * sign(f, x) > 0.95
    assert "anchor" in f.result_.history


def cells(seed=0):
    rng = np.random.default_rng(seed)
    x, y = (rng.exponential(size=(600, 3)) for _ in range(2))
    return x, y @ np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def round_trips(f, x, y):
    """Mean absolute errors of x -> y -> x and of y -> x -> y, in units of the networks."""
    net = f.module_
    source, target = f.scaled_source(torch.as_tensor(x).float()), f.scaled_target(torch.as_tensor(y).float())
    with torch.no_grad():
        there, back = net.reconstructor(net.f(source)) - source, net.f(net.reconstructor(target)) - target
    return np.array([float(there.abs().mean()), float(back.abs().mean())])


def test_the_cycle_term_makes_both_directions_consistent():
    x, y = cells()
    errors = [
        round_trips(make("cyclegan", weight_cycle=weight, **SMALL).fit(x, y, trainer=trainer(150)), x, y)
        for weight in (0.0, 10.0)
    ]
    assert (errors[1] < 0.3 * errors[0]).all()


def test_the_map_back_is_taught_by_a_critic_of_its_own():
    """Without the cycle term nothing else teaches it."""
    x, y = cells()

    def distance(f):
        source, target = f.scaled_source(torch.as_tensor(x).float()), f.scaled_target(torch.as_tensor(y).float())
        with torch.no_grad():
            return float(energy_distance(f.module_.reconstructor(target), source))

    before, after = (
        make("cyclegan", weight_cycle=0.0, **SMALL).fit(x, y, trainer=trainer(steps)) for steps in (0, 200)
    )
    assert distance(after) < 0.5 * distance(before)
    assert {"discriminator_source", "r1_source", "gan_source"} <= set(after.result_.history)
    for old, new in zip(before.module_.critic.parameters(), after.module_.critic.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_without_matching_there_are_no_discriminators_to_train():
    x, y = cells()
    f = make("cyclegan", **SMALL | {"weight_gan": 0.0}).fit(x, y, trainer=trainer(5))
    assert {"cycle"} == set(f.result_.history) - {"monitor"}


def test_dimension_asks_for_conditions_on_both_sides():
    x, y, codes = two_groups()
    with pytest.raises(ConditionError, match="2 or more conditions"):
        make("dimension").fit(x, y, trainer=trainer(1))
    with pytest.raises(ConditionError, match="got 1"):
        make("dimension").fit(x, y, condition_x=codes, condition_y=np.zeros_like(codes), trainer=trainer(1))


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="gan='wasserstein'"):
        make("cyclegan", gan="wasserstein").fit(*cells(), trainer=trainer(1))
