"""Sparse mixing as a translator: what it moves, what it keeps, what it refuses."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from celltransfer.errors import ConditionError, ConfigError, CountsError, FeatureError
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators.sparse_mixing.likelihoods import Side
from celltransfer.translators.sparse_mixing.losses import gan_terms
from celltransfer.translators.sparse_mixing.sparse_mixing import SETTLED_AT, SparseMixing
from celltransfer.translators.sparse_mixing.start import _singular, some

D, OUT = 8, 6


def trainer(steps):
    return Trainer(max_steps=steps, check_every=20, batch_size=64, device="cpu", progress=False)


def cells(n=400, seed=0, shift=3.0):
    """Two modalities of cells with three shared latents and a condition that moves one of them."""
    rng = np.random.default_rng(seed)
    a, b = np.random.default_rng(7).normal(size=(3, D)), np.random.default_rng(8).normal(size=(3, OUT))
    code = rng.integers(2, size=n)
    z = rng.normal(size=(n, 3))
    z[:, 0] += shift * code
    x = (z @ a + 0.1 * rng.normal(size=(n, D))).astype(np.float32)
    y = (z @ b + 0.1 * rng.normal(size=(n, OUT))).astype(np.float32)
    order = rng.permutation(n)
    pairs = np.column_stack([np.arange(30), np.argsort(order)[:30]])
    return x, y[order], pairs, code, code[order], y


def test_default_limits_leave_room_to_converge():
    limits = SparseMixing.training
    told = range(int(SETTLED_AT * limits["max_steps"]), limits["max_steps"], limits["check_every"])
    assert len(told) > limits["patience"] + 2


SMALL = {"n_content": 2, "n_style": 1, "map": "linear"}


@pytest.fixture(scope="module")
def moved():
    x, y, pairs, code, code_y, truth = cells()
    f = SparseMixing(**SMALL).fit(x, y, pairs, condition_x=code, condition_y=code_y, trainer=trainer(240))
    return f, x, code, truth


def test_translates_like_the_truth(moved):
    f, x, code, truth = moved
    assert f.result_.status in (Status.CONVERGED, Status.MAX_STEPS)
    error = np.square(f.translate(x, code) - truth).mean() / truth.var()
    assert error < 0.25


def test_counterfactual_moves_cells_to_the_other_condition_and_back(moved):
    f, x, code, _ = moved
    there = f.counterfactual(x[code == 0], 1, code[code == 0])
    gap = lambda cells: np.linalg.norm(cells.mean(0) - x[code == 1].mean(0))  # noqa: E731
    assert gap(there) < 0.35 * gap(x[code == 0])
    assert there.var(0).sum() == pytest.approx(x[code == 1].var(0).sum(), rel=0.4)
    own = f.counterfactual(x, 0, np.zeros(len(x), int))
    np.testing.assert_allclose(own, x, atol=1e-4)


def test_content_knows_less_of_the_condition_than_style(moved):
    f, x, code, _ = moved
    content, style = f.split(x)
    assert (content.shape[1], style.shape[1]) == (2, 1)
    apart = lambda z: np.abs(z[code == 1].mean(0) - z[code == 0].mean(0)) / z.std(0)  # noqa: E731
    assert apart(style).min() > 1
    assert apart(content).max() < 0.6 * apart(style).min()


def test_state_carries_counterfactuals(moved):
    f, x, code, _ = moved
    again = SparseMixing(**f.get_config()).set_state(f.get_state())
    np.testing.assert_array_equal(again.counterfactual(x, 1, code), f.counterfactual(x, 1, code))
    np.testing.assert_array_equal(again.split(x)[0], f.split(x)[0])


@pytest.mark.parametrize("form", ["vae", "gan"])
def test_forms_masks_and_gauges_fit(form):
    x, y, pairs, *_ = cells(120)
    for options in (
        {"mask": "learned", "gauge": "column"},
        {"mask": "fixed", "norm": "l2"},
        {"units": 1, "noise": 0.3},
    ):
        f = SparseMixing(form=form, n_content=2, n_style=2, **options).fit(x, y, pairs, trainer=trainer(20))
        assert np.isfinite(f.translate(x)).all()
        assert all(np.isfinite(v) for values in f.result_.history.values() for _, v in values)
        if form == "gan":
            assert {"gan_0", "found_1", "discriminator_0", "r1_0"} <= f.result_.history.keys()


def test_shared_sides_keep_what_latents_do_not_explain():
    x, _, _, code, _, _ = cells(300)
    f = SparseMixing(shared=True, **SMALL).fit(x[code == 0], x[code == 1], trainer=trainer(150))
    out = f.translate(x[code == 0])
    before, after = (np.linalg.norm(v.mean(0) - x[code == 1].mean(0)) for v in (x[code == 0], out))
    assert after < 0.4 * before
    assert f.module_.side(0) is f.module_.side(1)
    with pytest.raises(FeatureError, match="one recipe for both"):
        SparseMixing(shared=True).fit(x, x[:, :5], trainer=trainer(1))


def test_blocks_sparse_cells_and_no_cells_give_the_same(moved):
    f, x, code, _ = moved
    whole = f.counterfactual(x, 1, code)
    np.testing.assert_allclose(f.counterfactual(sp.csr_matrix(x), 1, code, batch_size=37), whole, atol=1e-5)
    np.testing.assert_allclose(f.split(sp.csr_matrix(x), batch_size=37)[1], f.split(x)[1], atol=1e-5)
    assert f.counterfactual(x[:0], 1, code[:0]).shape == (0, D)
    assert [part.shape for part in f.split(x[:0])] == [(0, 2), (0, 1)]


def test_the_gan_returns_a_state_that_was_trained():
    x, y, pairs, *_ = cells(200)
    fit = lambda steps: SparseMixing(form="gan", mask="fixed", **SMALL).fit(x, y, pairs, trainer=trainer(steps))  # noqa: E731
    f, start = fit(60), fit(0)
    assert np.abs(f.translate(x) - start.translate(x)).max() > 1e-3
    assert min(step for step, _ in f.result_.history["monitor"]) >= 24


def test_learned_bits_flip_and_content_is_what_the_condition_does_not_move():
    x, _, _, code, _, _ = cells(400)
    options = {"form": "gan", "mask": "learned", "shared": True, "n_content": 2, "n_style": 1, "map": "linear"}
    t = Trainer(max_steps=220, check_every=50, batch_size=64, device="cpu", progress=False)
    f = SparseMixing(**options).fit(x[code == 0], x[code == 1], trainer=t)
    content, style = f.split(x)
    assert (content.shape[1], style.shape[1]) == (2, 1)
    assert any("made 1 of 3 latents style" in note for note in f.result_.notes)
    apart = lambda z: np.abs(z[code == 1].mean(0) - z[code == 0].mean(0)) / z.std(0)  # noqa: E731
    assert apart(style).min() > 2 * apart(content).max()


def test_without_content_the_notes_say_so():
    x, y, *_ = cells(120)
    f = SparseMixing(n_content=0, n_style=2).fit(x, y, trainer=trainer(20))
    assert f.split(x)[0].shape == (120, 0)
    assert any("No latent is content" in note for note in f.result_.notes)


def test_the_scale_of_latents_is_no_way_to_find_them():
    x, y, pairs, *_ = cells(120)
    f = SparseMixing(form="gan", mask="fixed", n_content=1, n_style=2, map="linear", units=3)
    net = f.fit(x, y, pairs, trainer=trainer(10)).module_
    u = net.domain(0, None, 120)
    found = lambda: gan_terms(net, 0, torch.as_tensor(x), u, None, torch.Generator().manual_seed(0))[0]  # noqa: E731
    before = found()
    with torch.no_grad():
        side, law, a = net.side(0), net.latents, 0.1
        side.encoder[0].weight[:3] *= a
        side.encoder[0].bias[:3] *= a
        side.decoder[0].weight /= a
        law.flow.log_scale -= np.log(a)
        law.centre *= a
        law.spread *= a
    for name, value in found().items():
        assert float(value.detach()) == pytest.approx(float(before[name].detach()), rel=1e-3), name


def test_a_condition_of_one_modality_keeps_its_style_and_has_no_counterfactuals():
    x, y, pairs, code, code_y, _ = cells(300)
    x, code = np.concatenate([x, x[:40] + 1]), np.concatenate([code, np.full(40, 7)])
    f = SparseMixing(**SMALL).fit(x, y, pairs, condition_x=code, condition_y=code_y, trainer=trainer(60))
    assert f.common_codes.tolist() == [0, 1]
    assert any("Only one modality has cells of the conditions 7" in note for note in f.result_.notes)
    net, alone = f.module_, torch.as_tensor(x[code == 7])
    with torch.no_grad():
        as_it_is = net.side(1).expected(net.side(0).encode(alone)[0]).numpy()
    np.testing.assert_allclose(f.translate(x[code == 7], code[code == 7]), as_it_is, atol=1e-5)
    for cells_, to in ((x[code == 7], 1), (x[code == 1], 7)):
        with pytest.raises(ConditionError, match="Only one modality had condition code 7"):
            f.counterfactual(cells_, to, np.full(len(cells_), 8 - to))
    again = SparseMixing(**f.get_config()).set_state(f.get_state())
    assert again.common_codes.tolist() == [0, 1]


def test_conditions_with_one_cell_a_side_fit():
    x, y, *_ = cells(30)
    codes = np.arange(30)
    f = SparseMixing(**SMALL).fit(x, y, condition_x=codes, condition_y=codes, trainer=trainer(4))
    assert np.isfinite(f.translate(x, codes)).all()


@pytest.mark.parametrize("options", [{}, {"form": "gan"}])
def test_resuming_gives_what_an_uninterrupted_fit_gives(options, tmp_path):
    x, y, pairs, *_ = cells(150)
    run = lambda steps, **more: SparseMixing(**SMALL, **options).fit(  # noqa: E731
        x,
        y,
        pairs,
        trainer=Trainer(max_steps=steps, check_every=10, batch_size=50, device="cpu", progress=False, **more),
    )
    whole = run(30)
    run(30, checkpoint_dir=tmp_path, max_seconds=0)
    resumed = run(30, checkpoint_dir=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.translate(x), whole.translate(x))
    finished = run(30, checkpoint_dir=tmp_path, resume=True)
    np.testing.assert_array_equal(finished.module_.latents.bits, whole.module_.latents.bits)
    assert finished.result_.notes == whole.result_.notes


def test_a_start_that_is_not_trained_reconstructs_by_components():
    x, y, *_ = cells(200)
    f = SparseMixing(**SMALL).fit(x, y, trainer=trainer(0))
    side = f.module_.side(0)
    with torch.no_grad():
        remade = side.expected(side.encode(torch.as_tensor(x))[0]).numpy()
    assert np.square(remade - x).mean() < 0.05 * x.var()
    assert any("before content was told from style" in note for note in f.result_.notes)


def test_refusals(moved):
    f, x, code, _ = moved
    with pytest.raises(ConditionError, match="pass the cells' condition codes"):
        f.translate(x)
    with pytest.raises(ConditionError, match="not fitted with"):
        f.translate(x, code + 5)
    with pytest.raises(ConditionError, match="pass the cells' condition codes"):
        f.counterfactual(x, 1)
    with pytest.raises(ConditionError, match="no condition code 9"):
        f.counterfactual(x, 9, code)
    with pytest.raises(FeatureError, match=f"fitted on {D}"):
        f.split(x[:, :3])
    with pytest.raises(FeatureError, match="shape"):
        f.split(x[0])
    with pytest.raises(ConfigError, match="side=2"):
        f.split(x, side=2)
    for codes in (code[:1], code[:-1]):
        with pytest.raises(ConditionError, match=f"codes for {len(x)} cells"):
            f.counterfactual(x, 1, codes)
    with pytest.raises(ConfigError, match="batch_size=1"):
        SparseMixing().fit(x, x, trainer=Trainer(batch_size=1))
    for options, message in (
        ({"n_content": 2.5}, "n_content=2.5; it is a whole number"),
        ({"units": 2.5}, "units=2.5; it is a whole"),
        ({"alpha": "3"}, "alpha='3'; it is a finite"),
        ({"alpha": float("inf")}, "alpha=inf; it is a finite"),
        ({"form": "flow"}, "vae, gan"),
        ({"n_style": 0}, "n_style=0; it is at least 1"),
        ({"norm": "l2", "gauge": "column"}, "constant"),
        ({"form": "gan", "likelihood_source": "bernoulli"}, "makes features"),
    ):
        with pytest.raises(ConfigError, match=message):
            SparseMixing(**options).fit(x, x, trainer=trainer(1))


def test_likelihoods_of_counts_refuse_what_is_none():
    x, y, *_ = cells(60)
    with pytest.raises(CountsError, match='recipe "none"'):
        SparseMixing(likelihood_source="bernoulli").fit(x, y, trainer=trainer(1))


def counts(n=150, genes=12, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(2, size=n)
    rates = np.exp(rng.normal(size=(2, genes)))[group]
    return rng.poisson(rates * rng.gamma(5, 1, size=(n, 1))).astype(np.float32)


def test_bernoulli_sides():
    x, y = counts(), counts(seed=1)
    f = SparseMixing(likelihood_source="bernoulli", likelihood_target="bernoulli", n_content=2, n_style=1)
    out = f.fit(x, y, trainer=trainer(30)).translate(x)
    assert 0 < out.min() < out.max() < 1


def test_negative_binomial_sides_give_expected_counts_at_the_median_depth():
    pytest.importorskip("scvi")
    x, y = counts(), counts(seed=1)
    f = SparseMixing(likelihood_source="nb", likelihood_target="nb", n_content=2, n_style=1)
    out = f.fit(x, y, trainer=trainer(30)).translate(x)
    np.testing.assert_allclose(out.sum(1), np.median(y.sum(1)), rtol=1e-4)


def test_negative_binomial_without_scvi_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scvi.distributions", None)
    with pytest.raises(ConfigError, match=r"celltransfer\[counts\]"):
        SparseMixing(likelihood_source="nb").fit(counts(), counts(), trainer=trainer(1))


def test_gaussian_nll_in_closed_form():
    torch.manual_seed(0)
    side = Side(5, 2, lambda n_in, n_out: torch.nn.Linear(n_in, n_out))
    side.log_noise.data.fill_(0.3)
    z, x = torch.randn(7, 2), torch.randn(7, 5)
    law = torch.distributions.Normal(side.decoder(z), side.log_noise.exp())
    assert float(side.nll(z, x)) == pytest.approx(-float(law.log_prob(x).mean()), rel=1e-5)


def test_components_of_large_matrices_are_those_of_the_whole_decomposition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 700)) + 1e-3 * rng.normal(size=(600, 700))
    values, directions = _singular(x, 4)
    exact = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(values, exact[1][:4], rtol=1e-4)
    np.testing.assert_allclose(np.abs(directions @ exact[2][:4].T), np.eye(4), atol=1e-3)


def test_some_rows_are_no_more_than_asked_for_and_from_all_over():
    taken = some(np.arange(999), 500)
    assert len(taken) == len(set(taken)) == 500
    assert taken[0] == 0
    assert taken[-1] == 998
    assert len(some(np.arange(3), 5)) == 3
