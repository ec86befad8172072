"""Every form of anchors=, and every way to get it wrong."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from celltransfer.data.anchors import resolve_anchors
from celltransfer.data.cells import coassayed
from celltransfer.errors import AnchorError
from mudata import MuData

RNA = ["a", "b", "c", "d", "e", "f"]
ATAC = ["f", "x", "d", "b", "y", "a"]  # another order; a, b, d, f are co-assayed


@pytest.fixture
def mdata():
    rna = AnnData(np.ones((6, 3), np.float32), obs=pd.DataFrame(index=RNA), var=pd.DataFrame(index=["g1", "g2", "g3"]))
    atac = AnnData(np.ones((6, 2), np.float32), obs=pd.DataFrame(index=ATAC), var=pd.DataFrame(index=["p1", "p2"]))
    mdata = MuData({"rna": rna, "atac": atac})
    mdata.obs["chosen"] = mdata.obs_names.isin(["b", "f"])
    mdata.obs["word"] = "yes"
    return mdata


def ids(anchors):
    return list(zip(anchors.source_id, anchors.target_id, strict=True))


def test_coassayed_cells_are_found_by_barcode_not_by_position(mdata):
    rows = coassayed(mdata, "rna", "atac")
    assert [(RNA[i], ATAC[j]) for i, j in rows] == [("a", "a"), ("b", "b"), ("d", "d"), ("f", "f")]


def test_coassayed_cells_are_those_of_obsmap(mdata):
    both = (mdata.obsmap["rna"] > 0) & (mdata.obsmap["atac"] > 0)
    from_map = {(int(mdata.obsmap["rna"][r]) - 1, int(mdata.obsmap["atac"][r]) - 1) for r in np.flatnonzero(both)}
    assert {tuple(row) for row in coassayed(mdata, "rna", "atac")} == from_map


def test_none_takes_all_and_an_integer_draws_with_the_seed(mdata):
    assert len(resolve_anchors(mdata, "rna", "atac", None)) == 4
    draws = {tuple(resolve_anchors(mdata, "rna", "atac", 2, seed=seed).source_id) for seed in range(20)}
    assert len(draws) > 1
    assert ids(resolve_anchors(mdata, "rna", "atac", 2, seed=3)) == ids(
        resolve_anchors(mdata, "rna", "atac", 2, seed=3)
    )
    assert len(resolve_anchors(mdata, "rna", "atac", 0)) == 0


@pytest.mark.parametrize(
    "anchors",
    [
        "chosen",
        ["b", "f"],
        np.array(["b", "f"]),
        pd.Index(["b", "f"]),
        pd.DataFrame({"source_id": ["b", "f"], "target_id": ["b", "f"]}),
        np.array([["b", "b"], ["f", "f"]]),
    ],
)
def test_all_forms_name_the_same_cells(mdata, anchors):
    found = resolve_anchors(mdata, "rna", "atac", anchors)
    assert set(ids(found)) == {("b", "b"), ("f", "f")}
    assert [RNA[i] for i in found.rows[:, 0]] == list(found.source_id)
    assert [ATAC[j] for j in found.rows[:, 1]] == list(found.target_id)


def test_a_boolean_mask_over_all_cells(mdata):
    mask = mdata.obs_names.isin(["b", "f"])
    assert set(ids(resolve_anchors(mdata, "rna", "atac", mask))) == {("b", "b"), ("f", "f")}
    series = pd.Series(mask, index=mdata.obs_names)
    assert set(ids(resolve_anchors(mdata, "rna", "atac", series))) == {("b", "b"), ("f", "f")}


def test_a_table_links_cells_with_different_barcodes(mdata):
    table = pd.DataFrame({"source_id": ["c", "e"], "target_id": ["y", "x"]})
    found = resolve_anchors(mdata, "rna", "atac", table)
    assert ids(found) == [("c", "y"), ("e", "x")]
    assert found.rows.tolist() == [[2, 4], [4, 1]]


def test_draws_stay_inside_the_training_cells(mdata):
    train_source = np.array([name in "abcd" for name in RNA])
    train_target = np.array([name in "adfxy" for name in ATAC])
    found = resolve_anchors(mdata, "rna", "atac", None, train_source=train_source, train_target=train_target)
    assert set(found.source_id) == {"a", "d"}


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (5, "only 4 training cells"),
        (-1, "negative"),
        (True, "not a number"),
        ("nowhere", "no column 'nowhere'"),
        ("word", "expected booleans"),
        (["a", "c"], "not cells of 'atac', the first 'c'"),
        (["a", "zzz"], "not cells of 'rna', the first 'zzz'"),
        (np.array([True, False]), "mask has shape"),
        (np.array([1.5, 2.5]), "expected barcodes"),
        (pd.DataFrame({"source_id": ["a", "a"], "target_id": ["a", "b"]}), "'a' of 'rna' occurs in 2"),
        (pd.DataFrame({"from": ["a"], "to": ["b"], "more": ["c"]}), "columns"),
        (pd.DataFrame({"target": ["a"], "source": ["d"]}), r"\['target', 'source'\]; expected source_id and target_id"),
    ],
)
def test_wrong_anchors_say_what_is_wrong(mdata, anchors, message):
    with pytest.raises((AnchorError, ValueError), match=message):
        resolve_anchors(mdata, "rna", "atac", anchors)


def test_anchors_outside_train_are_refused(mdata):
    train = np.array([name != "b" for name in RNA])
    with pytest.raises(AnchorError, match="not training cells of 'rna', the first 'b'"):
        resolve_anchors(mdata, "rna", "atac", ["b", "f"], train_source=train)


def test_no_shared_barcode_is_an_error_unless_no_anchors_are_wanted(mdata):
    atac = mdata["atac"].copy()
    atac.obs_names = [f"other_{name}" for name in ATAC]
    apart = MuData({"rna": mdata["rna"].copy(), "atac": atac})
    with pytest.raises(AnchorError, match="share no barcode"):
        resolve_anchors(apart, "rna", "atac", None)
    assert len(resolve_anchors(apart, "rna", "atac", 0)) == 0


def numbered(names):
    return AnnData(np.ones((len(names), 2), np.float32), obs=pd.DataFrame(index=list(names)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["3", "4", "5", "7"], ["5", "4", "1"]),
        (["0-0", "1-0", "2-0"], ["0-1", "1-0", "2-0"]),
        (["2_rna", "1_rna"], ["1_rna", "5_rna"]),
    ],
)
def test_row_numbers_are_recognised_after_filtering_and_concatenating(first, second):
    mdata = MuData({"rna": numbered(first), "atac": numbered(second)})
    for anchors in (None, 1):
        with pytest.raises(AnchorError, match="row numbers such as"):
            resolve_anchors(mdata, "rna", "atac", anchors)


def test_a_list_of_barcodes_is_taken_at_its_word():
    mdata = MuData({"rna": numbered("345"), "atac": numbered("543")})
    assert len(resolve_anchors(mdata, "rna", "atac", ["4", "5"])) == 2


def test_flags_with_missing_values(mdata):
    flags = pd.Series([True, None, False, True, None, False], index=RNA, dtype=object)
    mdata["rna"].obs["flags"] = flags
    for anchors in ("flags", flags, flags.astype("boolean")):
        assert set(ids(resolve_anchors(mdata, "rna", "atac", anchors))) == {("a", "a"), ("d", "d")}


def test_pairs_as_a_list(mdata):
    assert ids(resolve_anchors(mdata, "rna", "atac", [("c", "y"), ("e", "x")])) == [("c", "y"), ("e", "x")]


@pytest.mark.parametrize("anchors", [{"a": "a"}, 0.5])
def test_other_types_are_named(mdata, anchors):
    with pytest.raises(AnchorError, match=f"is a {type(anchors).__name__}"):
        resolve_anchors(mdata, "rna", "atac", anchors)


def test_row_numbers_are_not_barcodes():
    rna, atac = AnnData(np.ones((4, 2), np.float32)), AnnData(np.ones((5, 2), np.float32))
    mdata = MuData({"rna": rna, "atac": atac})
    with pytest.raises(AnchorError, match="row numbers such as"):
        resolve_anchors(mdata, "rna", "atac", 2)
    table = pd.DataFrame({"source_id": ["0"], "target_id": ["3"]})
    assert resolve_anchors(mdata, "rna", "atac", table).rows.tolist() == [[0, 3]]
