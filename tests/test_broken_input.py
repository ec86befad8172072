"""Data and arguments that cannot be used: a typed error that names the place and what to do."""

import celltransfer as ct
import numpy as np
import pytest
from anndata import AnnData
from celltransfer.errors import (
    AnchorError,
    CelltransferWarning,
    ConditionError,
    ConfigError,
    CountsError,
    FeatureError,
    InputError,
    ModalityError,
)
from mudata import MuData

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


def broken(cells, change):
    cells = cells.copy()
    change(cells)
    return cells


def set_value(name, value):
    def change(cells):
        x = cells[name].X.toarray()
        x[3, 2] = value
        cells[name].X = x

    return change


def strings(cells):
    cells.mod["rna"] = AnnData(np.full(cells["rna"].shape, "a"), obs=cells["rna"].obs, var=cells["rna"].var)


def normalised(cells):
    cells["rna"].X = np.log1p(cells["rna"].X.toarray() / 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (set_value("rna", np.nan), CountsError, "rna"),
        (set_value("atac", -1), CountsError, "atac"),
        (strings, InputError, "rna"),
    ],
)
def test_unusable_matrices_name_the_modality(cells, change, error, message):
    with pytest.raises(error, match=message):
        ct.fit(broken(cells, change), train=None, anchors=20, method="ridge", recipes={"rna": "rna", "atac": "atac"})


def test_normalised_values_where_counts_are_needed(cells):
    data = broken(cells, normalised)
    with pytest.raises(CountsError, match="rna"):
        ct.fit(data, anchors=20, method="ridge", recipes={"rna": "rna"})
    with pytest.warns(CelltransferWarning, match="suggested 'rna', but"):
        model = ct.fit(data, anchors=20, method="ridge", verdict=False)
    assert model.recipes["rna"].kind == "none"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "gex"}, ModalityError, "no modality 'gex'"),
        ({"method": "magic"}, ConfigError, "no method 'magic'"),
        ({"method": "ridge", "ancors": 10}, ConfigError, "no option 'ancors'"),
        ({"recipes": {"protein": "protein"}}, ModalityError, "does not have"),
        ({"recipes": {"rna": "proteome"}}, ConfigError, "no recipe 'proteome'"),
        ({"train": "nowhere"}, ConditionError, "no column 'nowhere'"),
        ({"anchors": 0, "method": "ridge"}, AnchorError, "needs 1 or more anchors"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"trainer": {"max_steps": 3}}, ConfigError, "expected a celltransfer.train.Trainer"),
        ({"seed": "a"}, ConfigError, "whole number"),
        ({"conditions": 5}, ConditionError, "conditions=5"),
        ({"recipes": "rna"}, FeatureError, "needs the same features in both"),
        ({"train": 0.8}, InputError, "train= is a float"),
        ({"anchors": {"a": "b"}}, AnchorError, "is a dict"),
        ({"method": ct.translators.get("ridge")}, ConfigError, "is a class"),
        ({"conditions": "nowhere"}, ConditionError, "no column 'nowhere'"),
    ],
)
def test_wrong_arguments(cells, arguments, error, message):
    with pytest.raises(error, match=message):
        ct.fit(cells, **arguments)


def test_not_a_mudata(cells):
    with pytest.raises(InputError, match="Expected a MuData"):
        ct.fit(cells["rna"])


def test_translating_needs_the_source(cells, model):
    with pytest.raises(ModalityError, match="no modality 'rna'"):
        model.translate(MuData({"atac": cells["atac"].copy()}))
    with pytest.raises(InputError, match="did not write"):
        model.translate(cells, key_added="rna")


def test_a_translator_that_goes_by_its_parents_name_is_refused(cells):
    class Mine(type(ct.translators.make("ridge"))):
        pass

    with pytest.raises(ConfigError, match="Mine.*'ridge'.*register"):
        ct.fit(cells, source="rna", target="atac", anchors=10, method=Mine())


def test_a_handful_of_cells_is_fitted_and_not_judged():
    whole = ct.datasets.simulate(n_obs=40, n_genes=30, n_peaks=40, seed=0)
    few = MuData({name: whole[name][:3].copy() for name in ("rna", "atac")})
    model = ct.fit(few, source="rna", target="atac", anchors=1, method="ridge")
    assert model.verdict_.level == "ambiguous"
    assert "cannot be judged" in model.verdict_.reasons[0]
