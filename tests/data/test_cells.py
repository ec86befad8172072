"""Reading modalities, training cells and conditions from MuData as users have them."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from celltransfer.data import cells
from celltransfer.errors import CelltransferWarning, ConditionError, InputError, ModalityError
from mudata import MuData


def modality(names, **obs):
    return AnnData(np.ones((len(names), 2), np.float32), obs=pd.DataFrame(obs, index=list(names)))


@pytest.fixture
def mdata():
    rna = modality("abcd", time=[0, 1, 3, 3], donor=["x", "y", "x", "y"])
    atac = modality("cdef", time=[3, 3, 0, 1], donor=["x", "y", "x", "x"])
    mdata = MuData({"rna": rna, "atac": atac})
    mdata.obs["train"] = mdata.obs_names != "d"
    mdata.obs["split"] = ["train"] * 3 + ["test"] * 3
    return mdata


def test_two_modalities_need_no_names(mdata):
    assert cells.choose_modalities(mdata, None, None) == ("rna", "atac")
    assert cells.choose_modalities(mdata, None, "rna") == ("atac", "rna")
    assert cells.choose_modalities(mdata, "atac", None) == ("atac", "rna")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [("gex", None, "no modality 'gex' for source="), (None, "peaks", "'peaks' for target="), ("rna", "rna", "both")],
)
def test_wrong_modality_names(mdata, source, target, message):
    with pytest.raises(ModalityError, match=message):
        cells.choose_modalities(mdata, source, target)


def test_three_modalities_need_names(mdata):
    three = MuData({**mdata.mod, "protein": modality("ab")})
    with pytest.raises(ModalityError, match="say source= and target="):
        cells.choose_modalities(three, None, "rna")
    assert cells.choose_modalities(three, "protein", "rna") == ("protein", "rna")


def test_only_mudata_with_shared_cells(mdata):
    with pytest.raises(InputError, match="Expected a MuData and got AnnData"):
        cells.check_mudata(mdata["rna"])
    with pytest.raises(InputError, match="axis=1"):
        cells.check_mudata(MuData({"a": modality("ab"), "b": modality("cd")}, axis=1))


def test_a_condition_that_contradicts_itself_is_an_error(mdata):
    mdata["rna"].obs["dose"] = ["low"] * mdata["rna"].n_obs
    mdata.obs["dose"] = "low"
    assert set(cells.condition_labels(mdata, "rna", ["dose"])) == {"low"}
    second = mdata["rna"].obs_names[1]
    mdata.obs.loc[second, "dose"] = "high"
    with pytest.raises(ConditionError, match=f"'dose' has two values for 1 cells.*{second!r} is 'low'.*'high'"):
        cells.condition_labels(mdata, "rna", ["dose"])
    mdata.obs.loc[second, "dose"] = None
    with pytest.warns(CelltransferWarning, match=f"missing in mdata.obs for 1 cells of 'rna', the first {second!r}"):
        assert set(cells.condition_labels(mdata, "rna", ["dose"])) == {"low"}


def test_what_a_modality_does_not_know_contradicts_nothing(mdata):
    mdata["rna"].obs["dose"] = ["low", None, "low", "low"]
    mdata.obs["dose"] = "low"
    cells.check_agreement(mdata, "rna", "dose")
    mdata.obs["dose"] = "high"
    with pytest.raises(ConditionError, match="two values for 3 cells"):
        cells.check_agreement(mdata, "rna", "dose")


def test_empty_and_duplicated(mdata):
    empty = MuData({"rna": modality("ab")[:0].copy(), "atac": modality("ab")})
    with pytest.raises(ModalityError, match="'rna'\\] is empty"):
        cells.check_modality(empty, "rna")
    mdata.mod["rna"].obs_names = ["a"] * mdata["rna"].n_obs
    with pytest.raises(InputError, match="duplicated barcodes, the first 'a'"):
        cells.check_modality(mdata, "rna")
    with pytest.raises(ModalityError, match="The MuData has no modality 'peaks': rna, atac"):
        cells.check_modality(mdata, "peaks")


@pytest.mark.parametrize(
    "selection",
    ["train", pd.Series([True, True, True, False], index=list("abcd")), ["a", "b", "c"]],
)
def test_training_cells(mdata, selection):
    assert cells.select_cells(mdata, "rna", selection).tolist() == [True, True, True, False]


def test_training_cells_by_the_word_train_and_by_mask(mdata):
    assert cells.select_cells(mdata, "rna", "split").tolist() == [True, True, True, False]
    assert cells.select_cells(mdata, "atac", mdata.obs_names != "d").tolist() == [True, False, True, True]
    assert cells.select_cells(mdata, "rna", None).all()


def test_unusable_training_columns(mdata):
    with pytest.raises(InputError, match="holds 'x', 'y'; expected booleans"):
        cells.select_cells(mdata, "rna", "donor")
    for wrong in ({"a": 1}, 0.8):
        with pytest.raises(InputError, match=f"train= is a {type(wrong).__name__}"):
            cells.select_cells(mdata, "rna", wrong)
    with pytest.raises(ConditionError, match="no column 'nope'"):
        cells.select_cells(mdata, "rna", "nope")
    with pytest.raises(InputError, match="not in the MuData, the first 'q'"):
        cells.select_cells(mdata, "rna", ["a", "q"])
    with pytest.raises(InputError, match="shape"):
        cells.select_cells(mdata, "rna", np.array([True]))


@pytest.mark.parametrize(
    "values", [[1, 1, 0, 1], [1.0, 1.0, 0.0, 1.0], ["True", "true", "False", "TRUE"], [True, True, None, True]]
)
def test_flags_of_any_spelling(mdata, values):
    mdata["rna"].obs["use"] = values
    assert cells.select_cells(mdata, "rna", "use").tolist() == [True, True, False, True]


def test_values_with_the_joining_sign_do_not_collide(mdata):
    mdata["rna"].obs["p"], mdata["rna"].obs["q"] = ["a|b", "a", "a", "a"], ["c", "b|c", "b", "b"]
    assert len(set(cells.condition_labels(mdata, "rna", ["p", "q"]))) == 3


def test_conditions_join_columns_and_read_floats_as_whole_numbers(mdata):
    assert cells.condition_labels(mdata, "rna", ["time", "donor"]).tolist() == ["0|x", "1|y", "3|x", "3|y"]
    mdata["atac"].obs["time"] = mdata["atac"].obs["time"].astype(float)
    assert cells.condition_labels(mdata, "atac", ["time"]).tolist() == ["3", "3", "0", "1"]


LABELS = [
    (["a", None], ["a", None]),
    ([1, 2], ["1", "2"]),
    (np.array([1, 2], np.int8), ["1", "2"]),
    ([True, False], ["True", "False"]),
    ([0.1, 3.0, np.nan], ["0.1", "3", None]),
    (np.array([0.1, 3.0, np.nan], np.float32), ["0.1", "3", None]),
    (pd.array([0.1, None], dtype="Float32"), ["0.1", None]),
    (pd.array([1, None], dtype="Int64"), ["1", None]),
    (np.array([1, 2.0, "x", None], object), ["1", "2", "x", None]),
    (pd.to_datetime(["2020-01-01", None]), ["2020-01-01 00:00:00", None]),
]


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize(("values", "labels"), LABELS)
def test_labels_have_the_digits_of_the_column(values, labels, categorical):
    column = pd.Series(pd.Categorical(values) if categorical else values)
    assert cells.column_labels(column).tolist() == labels


def test_float32_conditions_have_the_same_labels_in_every_way(mdata):
    dose = np.array([0.1, 0.3, 0.1, 0.3])
    mdata["rna"].obs["dose"], mdata["atac"].obs["dose"] = dose.astype(np.float32), dose
    assert cells.condition_labels(mdata, "rna", ["dose"]).tolist() == ["0.1", "0.3", "0.1", "0.3"]
    masks = {name: np.ones(4, bool) for name in mdata.mod}
    codes = cells.attribute_codes(mdata, ["rna", "atac"], "dose", masks)
    assert [own.tolist() for own in codes] == [[0, 1, 0, 1]] * 2


@pytest.mark.parametrize(
    ("values", "known", "label"),
    [
        (["3.0"], ["0", "3"], "3"),
        (["3.0"], ["3", "3.0"], "3.0"),
        (["true"], ["False", "True"], "True"),
        ([True], ["False", "True"], "True"),
        ([np.float32(0.1)], ["0.1"], "0.1"),
        ([float(np.float32(0.1))], ["0.1"], "0.1"),
        ([0.1], ["0.10000000149011612"], None),
        ([16777217], ["16777216"], None),
        (["1e300"], ["1"], None),
        (["nan"], ["0"], None),
        (["3.0", "a|b"], [r"3|a\|b"], r"3|a\|b"),
        ([3, "b"], ["3|a"], None),
    ],
)
def test_known_labels(values, known, label):
    assert cells.known_label(values, known) == label
    if label is not None:
        assert cells.join_labels(cells.split_labels(label, len(values))) == label


def test_missing_and_unknown_conditions(mdata):
    mdata["rna"].obs.loc["b", "donor"] = None
    with pytest.raises(ConditionError, match="missing for 1 cells of 'rna', the first 'b'"):
        cells.condition_labels(mdata, "rna", ["donor"])
    with pytest.raises(ConditionError, match="'9', unknown to the model"):
        cells.encode_conditions(np.array(["0", "9"]), ["0", "1"], "rna")


def test_global_columns_reach_modalities(mdata):
    assert cells.obs_column(mdata, "atac", "train").tolist() == [True, False, True, True]


@pytest.mark.parametrize("labels", [["a", "b"], ["a\\", "b"], ["a|b", "|", "\\|"], ["", "x"], ["one|"]])
def test_joined_labels_come_apart_again(labels):
    assert cells.split_labels(cells.join_labels(labels), len(labels)) == labels


@pytest.mark.parametrize(("text", "known"), [("0_3", "3"), ("9007199254740993", "9007199254740992"), ("nan", "inf")])
def test_text_that_is_no_such_number(text, known):
    assert cells.known_label([text], [known]) is None
