"""One anchor, two unpaired clouds: the sparse map is found, and through the public door as well."""

import anndata as ad
import celltransfer as ct
import mudata as md
import numpy as np
import pytest
from celltransfer.errors import AnchorError, ConfigError, FeatureError
from celltransfer.train.loop import Trainer
from celltransfer.translators import make
from celltransfer.translators.adversarial.one_anchor import search

N = 3000


def dependent(z):
    """The source: its second coordinate leans on the first."""
    return np.column_stack([z[:, 0], z[:, 0] / 2 + z[:, 1]])


def uniform(truth, seed, anchor=(0.7, -0.45)):
    """Cells of both sides, the anchor first, and what the source cells are translated to; truth acts on columns."""
    rng = np.random.default_rng(seed)
    first = dependent(np.array([anchor]))
    x = np.vstack([first, dependent(rng.uniform(-1, 1, (N, 2)))])
    y = np.vstack([first, dependent(rng.uniform(-1, 1, (N, 2)))]) @ truth.T
    return x, y, x @ truth.T


def skewed(d, seed):
    """A sparse mixing of d exponential coordinates, its cells, and an anchor all of whose coordinates differ."""
    rng = np.random.default_rng(seed)
    truth = np.eye(d)[rng.permutation(d)]
    truth += 0.6 * truth @ np.roll(np.eye(d), 1, axis=1)
    first = np.linspace(0.2, 2.5, d)[None]
    x, other = (np.vstack([first, rng.exponential(size=(N, d))]) for _ in range(2))
    return x, other @ truth.T, x @ truth.T


def error(found, truth):
    return float(((found - truth) ** 2).sum(axis=1).mean() / truth.var(axis=0).sum())


@pytest.mark.parametrize("truth", [[[0, 2], [2, 0]], [[0, -1.5], [0.7, 0]]], ids=["permutation", "signs"])
def test_the_map_is_found_from_one_anchor(truth):
    x, y, right = uniform(np.array(truth, float), 0)
    found = search(x, y, x[:1], y[:1])
    assert error(found(x), right) < 0.01
    assert found.figures["entries"] == 2


@pytest.mark.parametrize("d", [3, 6])
def test_the_map_is_found_in_more_dimensions(d):
    x, y, right = skewed(d, seed=d)
    assert error(search(x, y, x[:1], y[:1], curved=False)(x), right) < 0.01


def test_a_curve_on_every_output_is_found():
    x, y, right = uniform(np.array([[0, 1.0], [1, 0]]), 0)

    def bend(cells):
        return cells + 0.5 * np.cos(2 * cells)

    found = search(x, bend(y), x[:1], bend(y[:1]))
    assert found.curves is not None
    assert error(found(x), bend(right)) < 0.02


def test_the_same_seed_gives_the_same_bits():
    x, y, _ = skewed(3, 0)
    one, other = (search(x, y, x[:1], y[:1], seed=4) for _ in range(2))
    assert one.weight.tobytes() == other.weight.tobytes()


def test_an_anchor_on_a_symmetry_leaves_another_map_as_likely():
    truth = np.array([[0, 2.0], [2, 0]])
    apart, centre = (uniform(truth, 0, anchor) for anchor in ((0.7, -0.45), (0.0, 0.0)))
    margins = [search(x, y, x[:1], y[:1], curved=False).figures["margin"] for x, y, _ in (apart, centre)]
    assert margins[0] > 10 > margins[1]


def test_clouds_of_different_rank_are_connected_by_nothing():
    x, y, _ = skewed(3, 0)
    assert search(x, y[:, :2], x[:1], y[:1, :2]) is None


def test_fit_finds_the_map_from_one_anchor():
    x, y, right = uniform(np.array([[0, 2.0], [2, 0]]), 0)
    sides = {"a": ad.AnnData(x.astype(np.float32)), "b": ad.AnnData(y.astype(np.float32))}
    for name, side in sides.items():
        side.obs_names = ["shared-cell", *(f"{name}-cell{i}x" for i in range(N))]
    mdata = md.MuData(sides)
    how = {"method": "jacobian", "init": "search", "recipes": {"a": "none", "b": "none"}, "verdict": False}
    model = ct.fit(mdata, source="a", target="b", anchors=["shared-cell"], **how)
    model.translate(mdata)
    assert error(mdata["b_from_a"].X, right) < 0.05


def test_a_fit_says_that_its_anchor_lies_on_a_symmetry():
    x, y, _ = uniform(np.array([[0, 2.0], [2, 0]]), 0, anchor=(0.0, 0.0))
    f = make("jacobian", init="search").fit(x, y, np.array([[0, 0]]), trainer=Trainer(max_steps=5, progress=False))
    assert any("symmetry" in note for note in f.result_.notes)


def test_what_cannot_be_searched_is_refused_by_name():
    x, y, _ = skewed(3, 0)
    one = np.array([[0, 0]])
    with pytest.raises(AnchorError, match="needs an anchor"):
        make("jacobian", init="search").fit(x, y)
    with pytest.raises(ConfigError, match="mlp"):
        make("jacobian", init="search", map="mlp").fit(x, y, one)
    with pytest.raises(ConfigError, match="at most 12 features"):
        make("jacobian", init="search").fit(np.tile(x, 5), y, one)
    with pytest.raises(FeatureError, match="different dimension"):
        make("jacobian", init="search").fit(x, y[:, :2], one)
