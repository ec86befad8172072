"""Saving and loading: everything comes back, nothing of others is lost, nothing broken is read."""

import json

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from celltransfer.errors import (
    ConfigError,
    ModelFormatError,
    VerdictWarning,
    WriteError,
)
from celltransfer.model.io import FORMAT_VERSION

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


@pytest.mark.parametrize("method", ["ridge", "jacobian", "fgw"])
def test_save_and_load(cells, tmp_path, method):
    short = ct.train.Trainer(max_steps=10)
    model = ct.fit(cells, train="train", anchors=10, method=method, trainer=short)
    model.save(tmp_path / "model")
    again = ct.load(tmp_path / "model")
    np.testing.assert_array_equal(
        model.translate(cells, copy=True)["atac_from_rna"].X, again.translate(cells, copy=True)["atac_from_rna"].X
    )
    assert again.result_ == model.result_
    assert again.verdict_ == model.verdict_
    assert repr(again) == repr(model)
    pd.testing.assert_frame_equal(again.anchors, model.anchors)
    assert again.training_cells["atac"].equals(pd.Index(model.training_cells["atac"].astype(str)))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["arrays.safetensors", "model.json"]


def test_saving_over_something(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(WriteError, match="overwrite=True"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(WriteError, match="no celltransfer model"):
        model.save(tmp_path / "thesis", overwrite=True)


def test_a_loaded_model_warns_again(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.warns(VerdictWarning, match="is ambiguous"):
        ct.load(tmp_path / "model")


def test_arrays_that_were_exchanged_or_cut(model, cells, tmp_path):
    path, other = tmp_path / "model", tmp_path / "other"
    model.save(path)
    ct.fit(cells, train="train", anchors=20, method="ridge", recipes={"atac": ct.pp.atac(n_components=5)}).save(other)
    (path / "arrays.safetensors").write_bytes((other / "arrays.safetensors").read_bytes())
    with pytest.raises(ModelFormatError, match="corrupt or not the one"):
        ct.load(path)


@pytest.mark.parametrize("change", [{"levels": "zz"}, {"conditions": 3}])
def test_headers_that_were_edited(model, tmp_path, change):
    model.save(tmp_path / "model")
    header = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(header | change))
    with pytest.raises(ModelFormatError, match="list of strings"):
        ct.load(tmp_path / "model")


def test_overwriting_spares_the_files_of_others(model, tmp_path):
    model.save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="notes.txt"):
        model.save(tmp_path / "model", overwrite=True)


def test_broken_model_folders(model, tmp_path):
    with pytest.raises(ModelFormatError, match=r"model\.json is missing"):
        ct.load(tmp_path)
    path = tmp_path / "model"
    model.save(path)
    header = json.loads((path / "model.json").read_text())

    (path / "model.json").write_text(json.dumps(header | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ModelFormatError, match="Upgrade celltransfer"):
        ct.load(path)
    (path / "model.json").write_text("{")
    with pytest.raises(ModelFormatError, match="not valid JSON"):
        ct.load(path)
    (path / "model.json").write_text(json.dumps({k: v for k, v in header.items() if k != "recipes"}))
    with pytest.raises(ModelFormatError, match="not a complete model"):
        ct.load(path)
    (path / "model.json").write_text(json.dumps(header | {"method": "os.system"}))
    with pytest.raises(ConfigError, match="no method 'os.system'"):
        ct.load(path)
    (path / "model.json").write_text(json.dumps(header))
    (path / "arrays.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelFormatError, match="corrupt"):
        ct.load(path)
