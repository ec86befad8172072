import json

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import ConfigError
from celltransfer.metrics.protocol import leak_test, make_task
from celltransfer.train import Trainer
from celltransfer.translators import get, make
from celltransfer.translators.pseudo_anchors import MOST, draw, propose

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")
SHORT = Trainer(max_steps=30, device="cpu", progress=False)
D, OUT = 6, 5


def planted(n=240, k=6, seed=0, n_conditions=0):
    """Cells in clusters, each measured twice by a linear map and noise; the first `k` rows of both are the anchors."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(8, D))[rng.integers(8, size=n)] * 2 + rng.normal(size=(n, D)) * np.linspace(1, 0.2, D)
    weight = rng.normal(size=(D, OUT))
    y = latent @ weight + 0.1 * rng.normal(size=(n, OUT))
    codes = rng.integers(n_conditions, size=n) if n_conditions else None
    order = np.concatenate([np.arange(k), k + rng.permutation(n - k)])
    pair = ModalityPair(
        latent,
        y[order],
        np.column_stack([np.arange(k)] * 2),
        codes,
        None if codes is None else codes[order],
        conditions=tuple(map(str, range(n_conditions))),
    )
    return pair, y


@pytest.fixture(scope="module")
def prior():
    pair, truth = planted()
    return pair, truth, make("consensus", n_starts=6).fit_pair(pair)


def proposed_by(prior, drawn, n_pairs=60, seed=0):
    pair, _, translator = prior
    return propose(pair, translator, n_pairs, np.random.default_rng(seed), drawn=drawn)


@pytest.mark.parametrize("drawn", [True, False])
def test_proposed_partners_are_near_the_true_ones(prior, drawn):
    pair, truth, _ = prior
    more = proposed_by(prior, drawn)
    assert more.n_anchors == pair.n_anchors + 60
    np.testing.assert_array_equal(more.anchors[: pair.n_anchors], pair.anchors)
    rows, targets = more.anchors[pair.n_anchors :].T
    error = np.square(more.y[targets] - truth[rows]).sum(axis=1).mean()
    chance = np.square(truth[rows] - np.roll(truth[rows], 7, axis=0)).sum(axis=1).mean()
    assert error < 0.3 * chance


@pytest.mark.parametrize("drawn", [True, False])
def test_pairs_use_other_cells_than_anchors_each_once_and_leave_half_to_no_pair(prior, drawn):
    pair = prior[0]
    more = proposed_by(prior, drawn, n_pairs=10_000)
    own = more.anchors[pair.n_anchors :]
    assert len(own) == int(MOST * (pair.n_source - pair.n_anchors))
    for side in own.T:
        assert len(np.unique(side)) == len(side)
    assert not np.isin(own[:, 0], pair.anchors[:, 0]).any()
    assert (own[:, 1] < pair.n_target).all() if drawn else (own[:, 1] >= pair.n_target).all()
    np.testing.assert_array_equal(more.y[: pair.n_target], pair.y)


def test_pairs_lie_as_the_cells_do(prior):
    pair, more = prior[0], proposed_by(prior, False, n_pairs=110)
    rows = more.anchors[pair.n_anchors :, 0]
    np.testing.assert_allclose(pair.x[rows].mean(axis=0), pair.x.mean(axis=0), atol=0.6)
    np.testing.assert_allclose(pair.x[rows].std(axis=0), pair.x.std(axis=0), rtol=0.25)


@pytest.mark.parametrize("drawn", [True, False])
def test_partners_share_their_condition(drawn):
    pair, _ = planted(n_conditions=3)
    more = propose(pair, make("ridge").fit_pair(pair), 90, np.random.default_rng(0), drawn=drawn)
    own = more.anchors[pair.n_anchors :]
    assert 85 <= len(own) <= 95
    np.testing.assert_array_equal(more.condition_x[own[:, 0]], more.condition_y[own[:, 1]])


def test_drawn_matchings_follow_the_plan():
    plan = np.array([[0.45, 0.05], [0.05, 0.45]])
    rng = np.random.default_rng(0)
    straight = np.mean([draw(plan, rng)[0] == 0 for _ in range(400)])
    assert 0.8 < straight < 1  # mostly the better matching, and not always


def test_a_prior_helps_where_anchors_are_few():
    pair, truth = planted(n=400, k=3)
    rest = slice(3, None)

    def error(translator):
        return np.square(translator.fit_pair(pair).translate(pair.x)[rest] - truth[rest]).mean()

    assert error(make("primed", prior_options={"n_starts": 2}, n_pairs=150)) < 0.7 * error(make("ridge"))


def test_the_note_names_method_and_prior():
    pair, _ = planted()
    result = make("primed", method="pls", prior="fgw", n_pairs=40, rounds=2).fit_pair(pair).result_
    assert result.notes[0] == (
        "pls x fgw: 6 anchors, and 40 pairs (mean partners) proposed by fgw and, from the second of 2 rounds on, "
        "the method itself."
    )
    assert result.n_anchors == 6


def test_without_anchors_the_prior_is_all_there_is():
    pair, _ = planted(k=0)
    f = make("primed", method="ridge", prior="fgw", n_pairs=50).fit_pair(pair)
    assert f.translate(pair.x).std() > 0


def test_sparse_targets_get_mean_partners_too():
    from scipy import sparse

    pair, _ = planted()
    thin = ModalityPair(sparse.csr_matrix(pair.x), sparse.csr_matrix(pair.y), pair.anchors)
    whole, rows = (make("primed", prior="ridge", n_pairs=40).fit_pair(p).translate(pair.x) for p in (pair, thin))
    np.testing.assert_allclose(rows, whole, atol=1e-3)


def test_what_the_method_can_do_its_primed_kind_can():
    assert [make("primed", method=name).gives_distribution for name in ("ieot", "ridge")] == [True, False]
    assert make("primed", method="lrmf").invertible
    assert make("primed", method="lrmf").tests_alignment
    assert make("primed", method="lrmf").equal_widths
    assert get("primed").min_conditions == 0
    assert not hasattr(make("primed", method="ieot"), "log_prob")  # before the fit


def test_a_law_of_cells_with_conditions_survives_its_file():
    pair, _ = planted(n_conditions=2)
    codes = pair.condition_x * 2 + 1  # 1 and 3
    f = make("primed", method="ieot", options={"penalty": 1.0, "n_potential": 4, "weight_unpaired": 1.0}, prior="ridge")
    f.fit(pair.x, pair.y, pair.anchors, condition_x=codes, condition_y=pair.condition_y * 2 + 1, trainer=SHORT)
    again = make("primed", **json.loads(json.dumps(f.get_config()))).set_state(f.get_state())
    for name in ("translate", "std"):
        np.testing.assert_array_equal(*(getattr(each, name)(pair.x, condition=codes) for each in (f, again)))
    assert f.log_prob(pair.x[:6], pair.y[:6], codes[:6]).shape == (6,)
    assert f.sample(pair.x[:4], 3, codes[:4]).shape == (3, 4, OUT)


def test_an_inverse_is_passed_on():
    pair, _ = planted()
    x = pair.x[:, :OUT]
    options = {"density": "gaussian"}
    f = make("primed", method="lrmf", options=options, prior="ridge", n_pairs=40).fit(
        x, pair.y, pair.anchors, trainer=SHORT
    )
    np.testing.assert_allclose(f.inverse(f.translate(x)), x, atol=1e-2)
    assert all(held.max() < n for held, n in zip(f.held_out_ or (), (pair.n_source, pair.n_target), strict=False))


def test_a_start_without_inverse_leaves_none_and_the_path_is_passed_on():
    pair, _ = planted()
    f = make("primed", method="dont", prior="ridge", n_pairs=40).fit_pair(pair, trainer=SHORT)
    assert f.invertible is False
    assert f.has_path
    np.testing.assert_allclose(f.path(pair.x[:5], [1.0])[0], f.translate(pair.x[:5]), atol=1e-5)
    with pytest.raises(ConfigError, match="no inverse"):
        f.inverse(pair.y)
    with pytest.raises(ConfigError, match="has no path"):
        make("primed", prior="ridge", n_pairs=40).fit_pair(pair).path(pair.x, [0.5])


def test_what_method_or_prior_look_at_is_passed_on():
    assert make("primed", method="dont", prior="ridge").uses_links
    assert make("primed", method="pls", prior="consensus").uses_links
    pair, _ = planted()
    codes = (pair.x[:, 0] > 0).astype(int), (pair.y[:, 0] > 0).astype(int)
    told = ModalityPair(pair.x, pair.y, pair.anchors, attribute_x=codes[0], attribute_y=codes[1])
    f = make("primed", method="dont", options={"cost_attribute": "side"}, prior="ridge", n_pairs=40)
    assert f.uses_attribute
    assert f.cost_attribute == "side"
    f.fit_pair(told, trainer=SHORT)
    assert f.refit().fit_pair(pair, trainer=SHORT).options["cost_weights"] == f.member_.module_.costs.tolist()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"prior": "nonsense"}, "no method 'nonsense'"),
        ({"method": "nonsense"}, "no method 'nonsense'"),
        ({"method": "auto"}, "cannot be combined with a prior"),
        ({"prior": "primed"}, "cannot be combined with a prior"),
        ({"options": {"nonsense": 1}}, "no option 'nonsense'"),
        ({"prior_options": {"nonsense": 1}}, "no option 'nonsense'"),
        ({"n_pairs": 0}, "n_pairs=0"),
        ({"rounds": True}, "rounds=True"),
        ({"partners": "best"}, "'mean' or 'drawn'"),
    ],
)
def test_wrong_options_are_refused(config, said):
    pair, _ = planted(n=60)
    with pytest.raises(ConfigError, match=said):
        make("primed", **config).fit_pair(pair)


def test_fit_with_a_prior_is_judged_and_saved(cells, tmp_path):
    model = ct.fit(cells, train="train", anchors=20, method="ridge", prior="pls", prior_pairs=80)
    assert model.result_.notes[0].startswith("ridge x pls: 20 anchors, and 80 pairs")
    assert model.verdict_.evidence["held_out_anchors"] > 0
    model.save(tmp_path / "model")
    again = ct.load(tmp_path / "model")
    np.testing.assert_array_equal(model.latent(cells["rna"]), again.latent(cells["rna"]))
    assert again.translator.method == "ridge"
    assert "method='ridge x pls'" in repr(again)
    assert ct.report(again, cells).about["method"] == "ridge x pls"


def test_fit_refuses_what_a_prior_cannot_do_before_it_reads_cells(cells):
    with pytest.raises(ConfigError, match="no method 'nonsense'"):
        ct.fit(cells, method="ridge", prior="nonsense")
    with pytest.raises(ConfigError, match="name a single method"):
        ct.fit(cells, prior="consensus")


def test_names_of_hidden_partners_are_not_looked_at(full):
    task = make_task(full, "rna", "atac", n_anchors=10, seed=0)

    def fit_predict(mdata, anchors, source_test):
        model = ct.fit(mdata, source="rna", target="atac", anchors=anchors, method="ridge", prior="fgw", verdict=False)
        return model.latent(source_test)

    assert leak_test(fit_predict, task)
