"""Whole or not at all."""

import errno
import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from celltransfer.data import writeback
from celltransfer.errors import InputError, WriteError
from mudata import MuData


def modality(names, features):
    var = pd.DataFrame(index=features)
    return AnnData(np.ones((len(names), len(features)), np.float32), obs=pd.DataFrame(index=list(names)), var=var)


@pytest.fixture
def mdata():
    return MuData({"rna": modality("abc", ["g1"]), "atac": modality("bcd", ["p1", "p2"])})


def test_added_modality_survives_a_round_trip_without_warnings(mdata, tmp_path):
    before = mdata.obs.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        writeback.add_modality(mdata, "atac_from_rna", modality("abc", ["p1", "p2"]))
        writeback.write_h5mu(mdata, tmp_path / "out.h5mu")
    pd.testing.assert_frame_equal(mdata.obs, before)
    again = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert list(again.mod) == ["rna", "atac", "atac_from_rna"]
    assert again["atac_from_rna"].var_names.tolist() == ["p1", "p2"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5mu"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_copies_of_few_cells_with_a_translation_whose_index_is_named_differently(mdata, n):
    mdata.obs.index.name = "cell"
    for adata in mdata.mod.values():
        adata.obs.index.name = "cell"
        adata.var.index.name = "feature"
    cells = mdata[:n].copy()
    made = modality(cells["rna"].obs_names, ["p1", "p2"])
    writeback.add_modality(cells, "atac_from_rna", made)
    again = writeback.copy_of(cells)
    assert list(again.mod) == list(cells.mod)
    pd.testing.assert_frame_equal(again.obs, cells.obs)
    assert again.obs.index.name == cells.obs.index.name


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "model"
    target.write_text("old")

    def fill_disk():
        with writeback.atomic_path(target) as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError, match="No space left.*Nothing was written"):
        fill_disk()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_folders_are_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with writeback.atomic_path(target) as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_replacement_gives_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    real, calls = writeback.os.replace, []

    def fail_second(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(errno.EIO, "disk gone")
        real(a, b)

    monkeypatch.setattr(writeback.os, "replace", fail_second)

    def write():
        with writeback.atomic_path(target) as part:
            part.mkdir()

    with pytest.raises(WriteError, match="disk gone"):
        write()
    assert (target / "old").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_measured_modalities_are_never_overwritten(mdata):
    with pytest.raises(InputError, match="did not write"):
        writeback.check_writable(mdata, "atac")
    mdata["atac"].uns["celltransfer"] = {}
    writeback.check_writable(mdata, "atac")


def test_other_errors_pass_through_and_clean_up(tmp_path):
    def fail():
        with writeback.atomic_path(tmp_path / "x") as part:
            part.write_text("half")
            raise KeyError("bug")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [object(), {1, 2}, 1 + 1j])
def test_what_hdf5_cannot_hold_is_said_with_the_file_and_nothing_is_written(mdata, tmp_path, bad):
    for write, data, name in (
        (writeback.write_h5mu, mdata, "x.h5mu"),
        (writeback.write_h5ad, mdata["rna"], "x.h5ad"),
    ):
        data.obs["mixed"] = pd.Series([bad, "a", 1], index=data.obs_names[:3]).reindex(data.obs_names).to_numpy()
        with pytest.raises(WriteError, match=rf"Cannot write .*{name}: .*mixed.*Nothing was written"):
            write(data, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_translation_hides_no_warning_of_names_that_are_not_unique(mdata):
    with pytest.warns(UserWarning, match="Variable names are not unique"), writeback.no_pull():
        AnnData(np.ones((1, 2), np.float32), var=pd.DataFrame(index=["a", "a"]))


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")

    def write():
        with writeback.atomic_path(tmp_path / "file" / "x"):
            pass

    with pytest.raises(WriteError, match="Cannot write"):
        write()


def test_views_and_bad_keys_are_refused(mdata):
    with pytest.raises(InputError, match="is a view"):
        writeback.check_writable(mdata[:2], "new")
    for key in ("a/b", ""):
        with pytest.raises(InputError, match="not a valid modality name"):
            writeback.check_writable(mdata, key)


def test_backed_files_are_refused(mdata, tmp_path):
    mdata.write_h5mu(tmp_path / "m.h5mu")
    backed = mudata.read_h5mu(tmp_path / "m.h5mu", backed="r")
    with pytest.raises(InputError, match="backed by a file"):
        writeback.check_writable(backed, "new")
