from __future__ import annotations

import subprocess
import sys

import celltransfer as ct
import pytest
import yaml
from celltransfer.datasets import registry
from celltransfer.errors import ConfigError, DatasetError

NAMES = ["a549_scicar", "a549_scicar_peaks", "pbmc10k_cite", "pbmc68k_panels", "scgem", "simulate", "snare_cortex"]


def text(**changes: object) -> dict[str, str]:
    """The YAML of scgem with some keys changed; ``...`` drops a key."""
    entry = yaml.safe_load((registry.folder() / "scgem.yaml").read_text(encoding="utf-8"))
    entry.update(changes)
    return {
        "scgem.yaml": yaml.safe_dump({key: value for key, value in entry.items() if value is not ...}, sort_keys=False)
    }


def test_every_file_of_the_registry_is_valid():
    assert list(registry.entries()) == NAMES
    for path in registry.folder().glob("*.yaml"):
        assert path.stem in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_entries_agree_with_themselves(name):
    entry = registry.get(name)
    assert callable(getattr(ct.datasets, name))
    assert {shape[0] for shape in entry.shape.values()} == {entry.n_obs}
    assert len(entry.modalities) == 2
    assert all(isinstance(value, str) for value in entry.describe().values())
    for file in entry.files:
        assert (file.sha256 is None) != (file.git_blob is None)
        assert file.dataset in NAMES


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
        ({"files": [{**GOOD_FILE, "git_blob": "12345678"}]}, "either sha256 or git_blob"),
        ({"files": [{**GOOD_FILE, "url": "http://example.org"}]}, "must be an https address"),
        ({"files": [{**GOOD_FILE, "name": "../a.txt"}]}, "must be a plain file name"),
        ({"files": [{**GOOD_FILE, "md5": "0"}]}, "unknown keys"),
        ({"files": [{"dataset": "elsewhere", "name": "a.txt"}]}, "elsewhere/a.txt is not"),
    ],
)
def test_malformed_entries_are_refused(changes, message):
    with pytest.raises(DatasetError, match=message):
        registry.parse(text(**changes))


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_broken_yaml_is_refused(content):
    with pytest.raises(DatasetError, match=r"broken\.yaml"):
        registry.parse({"broken.yaml": content})


def test_unknown_names_and_arguments():
    with pytest.raises(DatasetError, match="Did you mean 'scgem'"):
        ct.datasets.load("scgm")
    with pytest.raises(ConfigError, match="takes no arguments"):
        ct.datasets.load("scgem", n_obs=3)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ct.datasets.nothing


def test_list_has_one_row_for_each_dataset(tmp_path):
    with ct.settings.override(cache_dir=tmp_path, data_mirror=None):
        table = ct.datasets.list().set_index("name")
    assert list(table.index) == NAMES
    assert table.loc["a549_scicar", "modalities"] == "rna, atac"
    assert table.index[table["available"]].tolist() == ["pbmc68k_panels", "simulate"]
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
