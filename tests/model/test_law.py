"""What a model says of its own uncertainty: on AnnData, through files, and against cells it has not seen."""

import warnings

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.errors import CelltransferWarning, ConditionError, ConfigError, FeatureError, ModalityError
from celltransfer.model import law
from celltransfer.model.law import Calibration
from celltransfer.train import Trainer

N = 400
OPTIONS = {"n_potential": 8, "weight_unpaired": 0.2, "penalty": 20.0}


@pytest.fixture(scope="module")
def mdata():
    return ct.datasets.simulate(n_obs=N, n_genes=60, n_peaks=90, seed=0)


def fitted(mdata, anchors, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        train = np.arange(N) < 300
        return ct.fit(
            mdata,
            source="rna",
            target="atac",
            anchors=anchors,
            method="ieot",
            train=train,
            trainer=Trainer(max_steps=150),
            **OPTIONS | options,
        )


@pytest.fixture(scope="module")
def model(mdata):
    return fitted(mdata, 60)


@pytest.fixture(scope="module")
def test_cells(mdata):
    return mdata["rna"][300:].copy(), mdata["atac"][300:].copy()


def test_translate_writes_spread_and_confidence(model, mdata, test_cells):
    data = mdata.copy()
    model.translate(data)
    out = data["atac_from_rna"]
    assert out.layers["std"].shape == out.shape
    assert out.layers["std"].dtype == np.float32
    assert out.layers["std"].std(axis=0).max() > 0  # not the same for all cells
    assert out.layers["std"].min() > 0
    assert out.obs["translation_confidence"].between(0, 1).all()
    assert "alibrated" in out.uns["celltransfer"]["calibration"]
    np.testing.assert_allclose(out.layers["std"][300:], model.law.std(test_cells[0]), rtol=1e-5)
    assert "std" not in model.translate(test_cells[0], std=False).layers


def test_spread_survives_h5mu_and_model_files(model, mdata, test_cells, tmp_path):
    import mudata

    data = mdata.copy()
    model.translate(data)
    data.write_h5mu(tmp_path / "x.h5mu")
    read = mudata.read_h5mu(tmp_path / "x.h5mu")["atac_from_rna"]
    np.testing.assert_array_equal(read.layers["std"], data["atac_from_rna"].layers["std"])
    model.save(tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        again = ct.load(tmp_path / "m")
    np.testing.assert_array_equal(again.law.std(test_cells[0]), model.law.std(test_cells[0]))
    assert again.calibration_.describe() == model.calibration_.describe()


def test_std_is_that_of_draws_and_of_what_components_leave_out(model, test_cells):
    source = test_cells[0][:5].copy()
    x, codes = model.inputs(source)
    drawn = model.translator.sample(x, 20_000, codes, seed=1)
    recipe, factor = model.recipes["atac"], model.calibration_.factor
    variances = np.stack([factor**2 * np.cov(drawn[:, i].T) for i in range(5)])
    expected = np.sqrt(recipe.inverse_variance(variances.astype(np.float32)) + model.calibration_.noise)
    np.testing.assert_allclose(model.law.std(source), expected, rtol=0.05)


def test_draws_are_corrected_as_standard_deviations_are(model, test_cells):
    source = test_cells[0][:3].copy()
    x, codes = model.inputs(source)
    before = model.calibration_
    model.calibration_ = Calibration(60, 3.0, before.quantiles, before.noise)
    try:
        wide = model.law.sample(source, 4000, seed=1)
    finally:
        model.calibration_ = Calibration(noise=before.noise)
    plain = model.law.sample(source, 4000, seed=1)
    model.calibration_ = before
    np.testing.assert_allclose(np.median(wide.std(axis=0) / plain.std(axis=0)), 3, rtol=0.35)  # but for clipping
    np.testing.assert_allclose(model.law.mean(source), model.translate(source).X, rtol=1e-5)


def test_std_of_some_features(model, test_cells):
    names = list(model.recipes["atac"].feature_names_[[7, 2]])
    np.testing.assert_allclose(
        model.law.std(test_cells[0], features=names), model.law.std(test_cells[0])[:, [7, 2]], rtol=1e-5
    )
    with pytest.raises(FeatureError, match="nonsense"):
        model.law.std(test_cells[0], features=["nonsense"])


def test_intervals_hold_the_share_they_state(model, test_cells):
    """60 anchors: calibrated. Measured on cells that neither fit nor calibration has seen."""
    assert model.calibration_.calibrated
    found = model.law.coverage(*test_cells)
    for level, share in found.items():
        assert share == pytest.approx(level, abs=0.06)
    low, high = model.law.interval(test_cells[0], 0.8)
    truth = model.recipes["atac"].transform(test_cells[1])
    assert low.shape == truth.shape
    assert np.mean((truth >= low) & (truth <= high)) == pytest.approx(found[0.8], abs=1e-6)


def test_intervals_of_features_that_no_recipe_reduces_are_on_their_scale(mdata, test_cells):
    recipes = {"atac": ct.pp.atac(n_components=None)}
    model = fitted_on(mdata, recipes=recipes, train=np.arange(N) < 300)
    with pytest.warns(CelltransferWarning, match="not calibrated"):
        low, high = model.law.interval(test_cells[0], 0.8)
    assert low.shape == (100, 90)
    assert (low >= 0).all()
    assert (low <= high).all()


def test_fewer_anchors_are_said_not_to_calibrate(mdata, test_cells):
    few = fitted(mdata, 12)
    assert not few.calibration_.calibrated
    assert few.calibration_.factor == 1
    with pytest.warns(CelltransferWarning, match="not calibrated"):
        few.law.interval(test_cells[0])
    assert few.calibration_.multiplier(0.95) == pytest.approx(1.96, abs=0.01)
    assert "not calibrated" in few.translate(test_cells[0]).uns["celltransfer"]["calibration"]


def test_without_a_verdict_nothing_is_calibrated(mdata, test_cells):
    unjudged = fitted(mdata, 60, verdict=False)
    assert unjudged.calibration_.n_anchors == 0
    assert (unjudged.calibration_.noise >= 0).all()
    assert np.isfinite(unjudged.law.std(test_cells[0])).all()


def test_true_partners_are_more_likely_than_others(model, test_cells):
    source, target = test_cells
    own = model.law.log_prob(source, target)
    assert own.shape == (source.n_obs,)
    renamed = target.copy()
    renamed.obs_names = [f"other{i}" for i in range(target.n_obs)]  # or they would be refused
    others = [model.law.log_prob(source, renamed[np.roll(np.arange(target.n_obs), 7 * i)]) for i in range(1, 11)]
    assert own.mean() > np.mean(others) + 3
    assert np.mean(own > np.array(others)) > 0.6


def test_log_prob_takes_a_mudata_and_draws_have_feature_shape(model, mdata, test_cells):
    some = mdata[300:].copy()
    np.testing.assert_allclose(model.law.log_prob(some), model.law.log_prob(*test_cells), rtol=1e-4, atol=1e-4)
    assert model.law.sample(test_cells[0][:4], 3).shape == (3, 4, 90)
    np.testing.assert_array_equal(
        model.law.sample(test_cells[0][:4], 2, seed=5), model.law.sample(test_cells[0][:4], 2, seed=5)
    )
    np.testing.assert_allclose(model.law.responsibilities(some).sum((1, 2)), 1, rtol=1e-5)
    with pytest.raises(ModalityError, match="target side"):
        model.law.log_prob(test_cells[0])
    with pytest.raises(ModalityError, match="rows are partners"):
        model.law.log_prob(test_cells[0], test_cells[1][:5])


def test_rows_that_are_no_partners_are_refused(model, mdata, test_cells):
    source, target = test_cells
    for ask in (model.law.coverage, model.law.log_prob):
        with pytest.raises(ModalityError, match="one order"):
            ask(source, target[::-1])
        with pytest.raises(ModalityError, match="pass the AnnData"):
            ask(source, mdata)
    renamed = target.copy()
    renamed.obs_names = [f"other{i}" for i in range(target.n_obs)]
    np.testing.assert_allclose(model.law.log_prob(source, renamed), model.law.log_prob(source, target))
    assert model.law.coverage(mdata[300:].copy()) == pytest.approx(model.law.coverage(source, target))


def test_confidence_tells_good_translations_from_bad(model, test_cells):
    source, target = test_cells
    out = model.translate(source)
    x = model.recipes["atac"].transform(target)
    error = np.square(out.obsm["X_translated"] - x).mean(axis=1)
    confident = model.law.confidence(*model.inputs(source))
    split = np.median(confident)
    assert error[confident > split].mean() < error[confident <= split].mean()


def test_methods_without_a_law_say_so(mdata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        ridge = ct.fit(mdata, source="rna", target="atac", anchors=20, method="ridge", verdict=False)
    with pytest.raises(ConfigError, match='method="ieot"'):
        _ = ridge.law
    out = ridge.translate(mdata["rna"])
    assert "std" not in out.layers
    assert "translation_confidence" not in out.obs


def test_bad_levels_and_draws(model, test_cells):
    with pytest.raises(ConfigError, match="level=80"):
        model.law.interval(test_cells[0], 80)
    with pytest.raises(ConfigError, match="tell levels up to"):
        model.law.interval(test_cells[0], 0.999)
    with pytest.raises(ConfigError, match="list of levels"):
        model.law.coverage(*test_cells, levels=0.8)
    with pytest.raises(FeatureError, match="list of names"):
        model.law.std(test_cells[0], features="peak_0001")
    with pytest.raises(ConfigError, match="n=0"):
        model.law.sample(test_cells[0], 0)


def test_quantiles_hold_their_level_on_exchangeable_errors():
    """Errors of 50 anchors and of new cells from one law, many times: level (1 + 1 / k) makes up for the finite k."""
    rng, levels = np.random.default_rng(0), (0.5, 0.8, 0.95)
    held = np.zeros(3)
    for _ in range(400):
        errors = np.abs(rng.standard_t(3, size=1050))
        known = Calibration(50, 1.0, np.quantile(errors[:50], law.GRID))
        held += [(errors[50:] <= known.multiplier(level)).mean() for level in levels]
    assert (held / 400 >= np.array(levels) - 0.005).all()
    assert (held / 400 <= np.array(levels) + 0.02).all()


def test_the_report_says_whether_intervals_hold(model, mdata, test_cells):
    found = ct.report(model, mdata)
    assert set(found.about["coverage"]) == {"50%", "80%", "95%"}
    assert found.about["coverage"]["80%"] == pytest.approx(model.law.coverage(*test_cells)[0.8], abs=1e-6)
    assert any("80% intervals hold" in note and "alibrated" in note for note in found.notes)


def test_conditions_are_found_for_laws_and_reports():
    data = ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=1)
    model = fitted_on(data, conditions="condition")
    assert model.law.std(data).shape[0] == data["rna"].n_obs
    assert 0 < ct.report(model, data).about["coverage"]["80%"] <= 1
    without = data["rna"].copy()
    del without.obs["condition"]
    with pytest.raises(ConditionError, match="condition"):
        model.law.std(without)


def fitted_on(data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        how = {"anchors": 12, "method": "ieot", "trainer": Trainer(max_steps=60), "verdict": False} | OPTIONS | options
        return ct.fit(data, source="rna", target="atac", **how)
