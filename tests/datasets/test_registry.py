from __future__ import annotations

import subprocess
import sys

import celltransfer as ct
import pytest
import yaml
from celltransfer.datasets import registry
from celltransfer.errors import ConfigError, DatasetError

CELLS = ["a549_scicar", "a549_scicar_peaks", "pbmc10k_cite", "pbmc68k_panels", "scgem", "simulate", "snare_cortex"]
IMAGES = ["digits", "faces_utk32", "fashion_mnist", "mnist", "usps"]
TABLES = ["weather_hannover"]
MESHES = ["armadillo", "bunny"]
NAMES = sorted(CELLS + IMAGES + TABLES + MESHES)
KINDS = dict.fromkeys(CELLS, "cells") | dict.fromkeys(IMAGES, "images") | dict.fromkeys(TABLES, "table")
KINDS |= dict.fromkeys(MESHES, "mesh")


def text(base: str = "scgem", /, **changes: object) -> dict[str, str]:
    """The YAML of an entry with some keys changed; ``...`` drops a key."""
    entry = yaml.safe_load((registry.folder() / f"{base}.yaml").read_text(encoding="utf-8"))
    entry.update(changes)
    kept = {key: value for key, value in entry.items() if value is not ...}
    return {f"{base}.yaml": yaml.safe_dump(kept, sort_keys=False)}


def test_every_file_of_the_registry_is_valid():
    assert list(registry.entries()) == NAMES
    for path in registry.folder().glob("*.yaml"):
        assert path.stem in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_entries_agree_with_themselves(name):
    entry = registry.get(name)
    assert callable(getattr(ct.datasets, name))
    assert {shape[0] for shape in entry.shape.values()} == {entry.n_obs}
    assert len(entry.modalities) == (2 if name in CELLS else 1)
    assert entry.kind == KINDS[name]
    assert all(isinstance(value, str) for value in entry.describe().values())
    for file in entry.files:
        assert file.hash.partition(":")[0] in {"sha256", "md5", "git_blob", "git_commit"}
        assert file.dataset in NAMES


def test_files_stand_in_the_folder_that_they_name():
    assert {file.path.split("/")[0] for file in registry.get("mnist").files} == {"mnist_test"}
    assert {file.path.split("/")[0] for file in registry.get("usps").files} == {"usps"}


def test_the_published_split_is_complete():
    indices = registry.get("a549_scicar").test_indices
    assert len(set(indices)) == len(indices) == 340
    assert min(indices) >= 0
    assert max(indices) < 1874


def test_a_file_of_another_dataset_is_the_same_file():
    own = {file.name: file for file in registry.get("a549_scicar_peaks").files}
    borrowed = {file.name: file for file in registry.get("a549_scicar").files}
    assert borrowed["data_A549.rda"] is own["data_A549.rda"]


GOOD_FILE = {"name": "a.txt", "url": "https://example.org/a.txt", "sha256": "0" * 64}
URL = {key: GOOD_FILE[key] for key in ("name", "url")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": ...}, "'licence' must be given"),
        ({"colour": "red"}, "'colour' must be one of"),
        ({"type": "magic"}, "'type' must be one of"),
        ({"name": "other"}, "'name' must be the name of the file"),
        ({"n_obs": "many"}, "'n_obs' must be an integer"),
        ({"source": "protein"}, "'source and target' must be two of the modalities"),
        ({"modalities": "rna"}, "'modalities' must be a list"),
        ({"shape": None}, "'shape' must be a mapping"),
        ({"shape": {"rna": [177, 34]}}, "'shape' must be given for each"),
        ({"files": []}, "'files' must be given for type 'files'"),
        ({"files": ["a.txt"]}, "'files' must be a list of mappings"),
        ({"files": [{**GOOD_FILE, "sha256": "ABC"}]}, "must be a lower-case hash"),
        ({"files": [{**GOOD_FILE, "git_blob": "12345678"}]}, "given one of sha256, md5, git_blob, git_commit"),
        ({"files": [URL]}, "given one of sha256, md5, git_blob, git_commit"),
        ({"files": [{**GOOD_FILE, "url": "http://example.org"}]}, "must be an https address"),
        ({"files": [{**GOOD_FILE, "name": "../a.txt"}]}, "must be a plain file name"),
        ({"files": [{**GOOD_FILE, "crc": "0"}]}, "unknown keys"),
        ({"files": [{"name": "a.txt", "url": GOOD_FILE["url"], "md5": "0" * 31}]}, "md5' must be a lower-case hash"),
        ({"files": [{**GOOD_FILE, "folder": "../x"}]}, "folder' must be a plain folder name"),
        ({"files": [{**GOOD_FILE, "alternative": {"name": "b"}}]}, "alternative' must be name and sha256"),
        ({"kind": "sounds"}, "'kind' must be one of cells, images, table, mesh"),
        ({"kind": "images"}, "'image_shape' must be given for kind 'images'"),
        ({"image_shape": [8, 8]}, "'image_shape' must be one of"),
        ({"files": [{**URL, "git_commit": "0" * 40}]}, "git_commit' must be in the url"),
        ({"files": [{**URL, "git_commit": "0" * 8}]}, "git_commit' must be a lower-case hash"),
        ({"files": [{"dataset": "elsewhere", "name": "a.txt"}]}, "elsewhere/a.txt is not"),
    ],
)
def test_malformed_entries_are_refused(changes, message):
    with pytest.raises(DatasetError, match=message):
        registry.parse(text(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": ...}, "'image_shape' must be given"),
        ({"image_shape": [8]}, "'image_shape' must be two positive integers"),
        ({"image_shape": [8, -8]}, "'image_shape' must be two positive integers"),
        ({"image_shape": "8x8"}, "'image_shape' must be two positive integers"),
        ({"modalities": ["image"]}, "'modalities' must be one of"),
        ({"kind": "cells"}, "'assay' must be given for kind 'cells'"),
    ],
)
def test_malformed_image_entries_are_refused(changes, message):
    with pytest.raises(DatasetError, match=message):
        registry.parse(text("digits", **changes))


@pytest.mark.parametrize("columns", [[], {}, ["obs"], {"obs": "warm"}])
def test_a_table_has_columns_with_means(columns):
    with pytest.raises(DatasetError, match="'columns' must be names and means"):
        registry.parse(text("weather_hannover", columns=columns))


@pytest.mark.parametrize("n_faces", [0, "many"])
def test_a_mesh_has_faces(n_faces):
    with pytest.raises(DatasetError, match="'n_faces' must be a positive integer"):
        registry.parse(text("bunny", n_faces=n_faces))


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_broken_yaml_is_refused(content):
    with pytest.raises(DatasetError, match=r"broken\.yaml"):
        registry.parse({"broken.yaml": content})


def test_unknown_names_and_arguments():
    with pytest.raises(DatasetError, match="Did you mean 'scgem'"):
        ct.datasets.load("scgm")
    with pytest.raises(ConfigError, match="takes no arguments"):
        ct.datasets.load("scgem", n_obs=3)
    with pytest.raises(ConfigError, match="Dataset 'digits'"):
        ct.datasets.load("digits", n_obs=3)
    with pytest.raises(ConfigError, match="Dataset 'simulate'.*'n_cells'"):
        ct.datasets.load("simulate", n_cells=3)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ct.datasets.nothing


def test_list_has_one_row_for_each_dataset(tmp_path):
    with ct.settings.override(cache_dir=tmp_path, data_mirror=None):
        table = ct.datasets.list().set_index("name")
    assert list(table.index) == NAMES
    assert table.loc["a549_scicar", "modalities"] == "rna, atac"
    assert table.index[table["available"]].tolist() == ["digits", "pbmc68k_panels", "simulate"]
    assert table.loc["mnist", ["kind", "modalities", "assay"]].tolist() == ["images", "image", ""]
    assert set(NAMES) <= set(dir(ct.datasets))


def test_importing_datasets_is_light():
    code = "import sys, celltransfer.datasets; print({'numpy', 'pandas', 'pooch', 'scanpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_panels_are_disjoint_and_seeded():
    mdata = ct.datasets.pbmc68k_panels()
    entry = registry.get("pbmc68k_panels")
    assert {name: adata.shape for name, adata in mdata.mod.items()} == entry.shape
    assert not set(mdata["panel_a"].var_names) & set(mdata["panel_b"].var_names)
    assert mdata.obs["bulk_labels"].nunique() == 10
    assert not mdata["panel_a"].var_names.equals(ct.datasets.pbmc68k_panels(seed=1)["panel_a"].var_names)
