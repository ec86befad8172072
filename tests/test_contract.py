"""What every registered translator promises, checked on all of them, and on one from outside the package."""

import json
import random

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from celltransfer.errors import AnchorError, ConditionError, ConfigError, FeatureError, ModelFormatError, NotFittedError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import FitResult, Status
from celltransfer.translators import Translator, available, get, make, register
from celltransfer.translators.backward import Backward

D, OUT, K = 7, 4, 6
TRAINER = Trainer(max_steps=6, check_every=3, batch_size=32, device="cpu", progress=False)


@register
class Toy(Translator):
    """Third-party translator: the mean of the target."""

    name = "toy"

    def __init__(self, *, shift=0.0):
        self.shift = shift

    def _fit(self, pair, *, seed, trainer):
        self.mean_ = np.asarray(pair.y.mean(axis=0)).ravel()
        return FitResult(Status.SOLVED)

    def _translate(self, x, condition):
        return np.tile(self.mean_ + self.shift, (len(x), 1))

    def _state(self):
        return {"mean": self.mean_}

    def _load_state(self, state):
        self.mean_ = state["mean"]


ALL = available()


@pytest.fixture(params=ALL)
def name(request):
    return request.param


def width(name):
    """Target features to test `name` with."""
    return D if get(name).equal_widths else OUT


@pytest.fixture
def cells(name):
    """Makes cells that `name` can be fitted on."""

    def of(**how):
        return make_cells(**{"out": how.get("d", D) if get(name).equal_widths else OUT} | how)

    return of


def make_cells(n=90, m=80, seed=0, d=D, out=OUT):
    rng = np.random.default_rng(seed)
    latent_x, latent_y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    latent_y[:K] = latent_x[:K]
    x = np.maximum(latent_x @ rng.normal(size=(3, d)), 0)
    y = np.maximum(latent_y @ rng.normal(size=(3, out)), 0)
    return x.astype(np.float32), y.astype(np.float32), np.column_stack([np.arange(K), np.arange(K)])


def fitted(name, seed=0, data=None):
    return fit(name, *(data or make_cells(out=width(name))), seed=seed)


def fit(name, x, y, anchors, *, seed=0, f=None):
    """Fitted without conditions, unless the method needs them."""
    needed = get(name).min_conditions
    codes = (np.arange(x.shape[0]) % needed, np.arange(y.shape[0]) % needed) if needed else (None, None)
    f = f or make(name)
    return f.fit(x, y, anchors, condition_x=codes[0], condition_y=codes[1], seed=seed, trainer=TRAINER)


def test_translates_into_target_features(name, cells):
    x, _, _ = cells()
    out = fitted(name).translate(x)
    assert out.shape == (90, width(name))
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


def test_more_target_than_source_features(name, cells):
    data = cells(d=3, out=9)
    if get(name).equal_widths:
        with pytest.raises(FeatureError, match="got 3 and 9.*n_components=3"):
            fitted(name, data=data)
        return
    assert fitted(name, data=data).translate(data[0]).shape == (90, 9)


def test_sparse_features_give_what_dense_ones_give(name, cells):
    x, y, anchors = cells()
    f = fitted(name, data=(sp.csr_matrix(x), sp.csr_matrix(y), anchors))
    np.testing.assert_allclose(f.translate(sp.csr_matrix(x)), fitted(name).translate(x), atol=1e-4)


def test_inputs_are_not_changed(name, cells):
    data = cells()
    fitted(name, data=data)
    for before, after in zip(cells(), data, strict=True):
        np.testing.assert_array_equal(before, after)


def test_constructor_stores_its_arguments_and_nothing_else(name):
    f = make(name)
    assert vars(f) == f.get_config()


def test_configuration_round_trip(name):
    config = json.loads(json.dumps(make(name).get_config()))
    again = json.loads(json.dumps(make(name, **config).get_config()))
    assert again == config
    with pytest.raises(ConfigError, match="no option 'nonsense'"):
        make(name, nonsense=1)


def test_state_round_trip_is_bit_identical(name, cells):
    x, _, _ = cells()
    f = fitted(name)
    state = f.get_state()
    assert all(array.dtype != object for array in state.values())
    again = make(name, **json.loads(json.dumps(f.get_config()))).set_state(state)
    np.testing.assert_array_equal(again.translate(x), f.translate(x))


def test_state_does_not_alias_the_translator(name, cells):
    x, _, _ = cells()
    f = fitted(name)
    before = f.translate(x)
    state = f.get_state()
    again = make(name).set_state(state)
    for array in state.values():
        array.fill(np.nan if array.dtype.kind == "f" else 0)
    np.testing.assert_array_equal(f.translate(x), before)
    np.testing.assert_array_equal(again.translate(x), before)


def test_foreign_states_are_refused(name):
    with pytest.raises(ModelFormatError, match=name):
        make(name).set_state({"n_features": np.array([D, OUT]), "something": np.ones(3)}).translate(np.ones((2, D)))


def test_refitting_forgets(name, cells):
    x, y, anchors = cells(seed=3)
    f = fitted(name, data=cells(d=5))
    fit(name, x, y, anchors, f=f)
    np.testing.assert_array_equal(f.translate(x), fitted(name, data=(x, y, anchors)).translate(x))


def test_same_seed_same_result(name, cells):
    x, _, _ = cells()
    np.testing.assert_array_equal(fitted(name, seed=4).translate(x), fitted(name, seed=4).translate(x))


def test_global_random_states_are_left_alone(name, cells):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    f = fitted(name)
    make(name).set_state(f.get_state()).translate(cells()[0])
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_blocks_translate_like_the_whole(name, cells):
    x, _, _ = cells()
    f = fitted(name)
    np.testing.assert_allclose(f.translate(x, batch_size=7), f.translate(x), rtol=1e-4, atol=1e-5)


def test_inverse_undoes_the_translation_where_there_is_one(name, cells):
    x, _, _ = cells()
    f = fitted(name)
    if not f.invertible:
        with pytest.raises(ConfigError, match="no inverse"):
            f.inverse(f.translate(x))
        return
    back = f.inverse(f.translate(x), batch_size=7)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x, atol=1e-3 * np.abs(x).max())


def test_result_is_filled_with_finite_numbers(name):
    result = fitted(name, seed=2).result_
    assert (result.n_source, result.n_target, result.n_anchors, result.seed) == (90, 80, K, 2)
    assert isinstance(result.status, Status)
    assert all(np.isfinite(value) for rows in result.history.values() for _, value in rows)
    assert FitResult.from_dict(json.loads(json.dumps(result.to_dict()))).to_dict() == result.to_dict()


def test_wrong_width_is_refused(name):
    with pytest.raises(FeatureError, match=f"fitted on {D}"):
        fitted(name).translate(np.ones((2, D + 1)))


def test_flags_of_classes_are_plain(name):
    flags = [flag for flag, value in vars(Translator).items() if isinstance(value, bool)]
    assert "invertible" in flags
    for flag in flags:
        assert isinstance(getattr(get(name), flag), bool), flag
        assert isinstance(getattr(make(name), flag), bool), flag


def test_unfitted_is_refused(name):
    with pytest.raises(NotFittedError, match="fit"):
        make(name).translate(np.ones((2, D)))


def test_fewest_anchors(name, cells):
    x, y, anchors = cells()
    fewest = get(name).min_anchors
    assert fit(name, x, y, anchors[:fewest]).result_.n_anchors == fewest
    if fewest:
        with pytest.raises(AnchorError, match=f"needs {fewest} or more"):
            make(name).fit(x, y, anchors[: fewest - 1], trainer=TRAINER)


def test_fewest_conditions(name, cells):
    needed, (x, y, anchors) = get(name).min_conditions, cells()
    if not needed:
        return
    for codes in ({}, {"condition_x": np.zeros(90, int), "condition_y": np.arange(80) % 2}):
        with pytest.raises(ConditionError, match=f"needs {needed} or more"):
            make(name).fit(x, y, anchors, **codes, trainer=TRAINER)


def test_conditions_are_accepted(name, cells):
    x, y, anchors = cells()
    codes_x, codes_y = np.arange(90) % 2, np.arange(80) % 2
    f = make(name).fit(x, y, anchors, condition_x=codes_x, condition_y=codes_y, trainer=TRAINER)
    assert np.isfinite(f.translate(x, codes_x)).all()


def test_condition_codes_are_names_and_no_numbers(name, cells):
    x, y, anchors = cells()
    codes_x, codes_y = np.arange(90) % 2, np.arange(80) % 2
    f = make(name).fit(x, y, anchors, condition_x=codes_x, condition_y=codes_y, trainer=TRAINER)
    far = np.array([-3, 500_000])
    other = make(name).fit(x, y, anchors, condition_x=far[codes_x], condition_y=far[codes_y], trainer=TRAINER)
    np.testing.assert_array_equal(other.translate(x, far[codes_x]), f.translate(x, codes_x))
    again = make(name).set_state(other.get_state())
    np.testing.assert_array_equal(again.translate(x, far[codes_x]), f.translate(x, codes_x))
    assert sum(array.size for array in other.get_state().values()) < 100_000


def test_conditions_are_needed_only_where_the_method_says_so(name, cells):
    x, y, anchors = cells()
    codes = {"condition_x": np.arange(90) % 2, "condition_y": np.arange(80) % 2}
    f = make(name).fit(x, y, anchors, **codes, trainer=TRAINER)
    if not f.needs_condition:
        np.testing.assert_array_equal(f.translate(x), f.translate(x, codes["condition_x"]))
    else:
        with pytest.raises(ConditionError):
            f.translate(x)


@pytest.mark.parametrize("name", ["ridge", "pls", "condition_mean", "toy"])
def test_order_of_target_cells_does_not_matter(name, cells):
    """Here exactly; for methods that draw minibatches see the independence of draws in train/test_batches.py."""
    x, y, anchors = cells()
    order = np.random.default_rng(0).permutation(len(y))
    moved = np.column_stack([anchors[:, 0], np.argsort(order)[anchors[:, 1]]])
    np.testing.assert_allclose(
        fitted(name, data=(x, y[order], moved)).translate(x), fitted(name).translate(x), atol=1e-5
    )


class ByCondition(Toy):
    """Third-party translator with an inverse that depends on the condition; not registered."""

    name = "by_condition"
    uses_conditions = needs_condition = invertible = True

    def _translate(self, x, condition):
        return x + condition[:, None]

    def _inverse(self, y, condition):
        return y - condition[:, None]


def test_the_backward_view_gives_translators_the_codes_they_know():
    x = np.zeros((40, 3), np.float32)
    codes = np.repeat([3, 8], 20)
    f = ByCondition().fit(x, x, condition_x=codes, condition_y=codes)
    back = Backward(f)
    y = f.translate(x, codes)
    assert set(y[:, 0]) == {0.0, 1.0}  # codes as the translator counts them
    np.testing.assert_array_equal(back.translate(y, codes), x)
    np.testing.assert_array_equal(back.inverse(x, codes), y)
    with pytest.raises(ConditionError, match="condition codes"):
        back.translate(y)
