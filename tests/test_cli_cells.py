"""Commands about conditions: splitting a modality, cells on their way, cells under another condition."""

from __future__ import annotations

import errno

import anndata
import celltransfer as ct
import mudata
import numpy as np
import pytest
from anndata import AnnData
from celltransfer import cli
from celltransfer.train.loop import Trainer
from typer.testing import CliRunner

# Fits are too short to be judged, and modalities made of one share their features.
pytestmark = [
    pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning"),
    pytest.mark.filterwarnings("ignore:.*var_names.*:UserWarning"),
]
STEPS = Trainer(max_steps=10, check_every=5, device="cpu", progress=False)


def run(*args, code=0):
    """Run a command and check its exit code."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.stdout + result.stderr
    return result


def fails(*args):
    """Run a command that must fail with one line of error; returns that line."""
    result = run(*args, code=1)
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    return result.stderr.splitlines()[-1]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def mdata():
    """Cells at 0 and 3 hours, floats in the modalities, and in two batches that only ``mdata.obs`` knows."""
    mdata = ct.datasets.simulate(n_obs=160, n_genes=30, n_peaks=40, seed=0)
    mdata.obs = mdata.obs.drop(columns="condition")
    for name in mdata.mod:
        mdata[name].obs["hours"] = np.where(np.arange(160) % 2, 0.0, 3.0)
    mdata.obs["batch"] = np.where(np.arange(160) % 3, "a", "b")
    return mdata


@pytest.fixture(scope="module")
def folder(mdata, tmp_path_factory):
    """Files of the cells, and saved models."""
    path = tmp_path_factory.mktemp("conditions")
    mdata.write_h5mu(path / "both.h5mu")
    mdata["rna"].write_h5ad(path / "rna.h5ad")
    options = {"anchors": 20, "verdict": False, "trainer": STEPS}
    mixing = options | {"method": "sparse_mixing", "n_content": 3, "n_style": 2, "map": "linear"}
    ct.fit(mdata, method="ridge", anchors=20, verdict=False).save(path / "ridge")
    ct.fit(mdata, method="dont", **options).save(path / "dont")
    ct.fit(mdata, conditions="hours", **mixing).save(path / "mixing")
    ct.fit(mdata, conditions=["hours", "batch"], **mixing).save(path / "mixing_of_two")
    return path


HOURS = ["--key", "hours", "--source", "0", "--target", "3.0"]


def test_split_fit_and_interpolate(folder, tmp_path):
    cells, model, out = tmp_path / "cells.h5mu", tmp_path / "model", tmp_path / "path.h5ad"
    split = run("conditions", folder / "rna.h5ad", *HOURS, "--out", cells)
    assert split.stdout == f"{cells}: 0 80 x 30, 3 80 x 30\n"
    assert split.stderr == ""
    again = mudata.read_h5mu(cells)
    assert list(again.mod) == ["0", "3"]
    assert set(again["3"].obs["hours"]) == {3.0}
    run("fit", cells, "--model", model, "--method", "dont", "--anchors", "0", "--max-seconds", "1", "-O", "steps=2")
    way = run("interpolate", cells, "--model", model, "--out", out, "--steps", "2", "--strict", code=3)
    assert way.stdout == f"{out}: 80 cells at 3 times x 30, verdict ambiguous\n"
    assert "--strict asks for 'identified'" in way.stderr
    path = anndata.read_h5ad(out)
    assert list(path.obs["transport_time"].unique()) == [0, 0.5, 1]
    assert list(path.obs["source_cell"].unique()) == list(again["0"].obs_names)
    translated = ct.load(model).latent(again["0"])
    np.testing.assert_allclose(path.obsm["X_translated"][160:], translated, atol=1e-5)


def test_one_recipe_for_both(folder, tmp_path):
    cells, model = tmp_path / "cells.h5mu", tmp_path / "model"
    run("conditions", folder / "rna.h5ad", *HOURS, "--out", cells)
    run("fit", cells, "--model", model, "--method", "chance", "--anchors", "0", "--recipe", "atac")
    both = ct.load(model).recipes
    assert {recipe.kind for recipe in both.values()} == {"atac"}
    assert len({recipe.n_features_out_ for recipe in both.values()}) == 1


def test_conditions_of_a_modality_by_a_column_of_the_mudata(folder, mdata, tmp_path):
    args = ["--key", "batch", "--source", "b", "--target", "a", "--modality", "atac", "--out", tmp_path / "o.h5mu"]
    run("conditions", folder / "both.h5mu", *args)
    cells = mudata.read_h5mu(tmp_path / "o.h5mu")
    assert list(cells.mod) == ["b", "a"]
    assert list(cells["b"].obs_names) == list(mdata.obs_names[mdata.obs["batch"] == "b"])
    assert cells["b"].n_vars == 40


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rna.h5ad", *HOURS[:4], "--target", "7"], "No cell has hours='7'; there are '0', '3'."),
        (["rna.h5ad", *HOURS[:4], "--target", "0.0"], "both '0'"),
        (["rna.h5ad", "--key", "dose", *HOURS[2:]], "no column 'dose' in obs, which has"),
        (["both.h5mu", "--key", "dose", *HOURS[2:], "--modality", "rna"], "no column 'dose' for the cells of 'rna'"),
        (["both.h5mu", *HOURS, "--modality", "gex"], "no modality 'gex': rna, atac"),
    ],
)
def test_conditions_that_are_not_there(folder, tmp_path, args, message):
    assert message in fails("conditions", folder / args[0], *args[1:], "--out", tmp_path / "o.h5mu")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "args",
    [
        ["conditions", "both.h5mu", *HOURS, "--out", "o.h5mu"],
        ["conditions", "rna.h5ad", *HOURS, "--out", "o.h5mu", "--modality", "rna"],
        ["conditions", "rna.h5ad", *HOURS, "--out", "o.h5ad"],
        ["conditions", "rna.h5ad", "--key", "hours", "--source", "0", "--out", "o.h5mu"],
        ["interpolate", "both.h5mu", "--model", "dont", "--out", "o.h5mu"],
        ["interpolate", "both.h5mu", "--model", "dont", "--out", "o.h5ad", "--steps", "0"],
        ["interpolate", "nowhere.h5mu", "--model", "dont", "--out", "o.h5ad"],
        ["counterfactual", "both.h5mu", "--model", "mixing", "--to", "3", "--out", "o.h5ad"],
        ["counterfactual", "both.h5mu", "--model", "mixing", "--out", "o.h5mu"],
    ],
)
def test_wrong_usage_exits_with_2(folder, monkeypatch, args):
    monkeypatch.chdir(folder)
    before = files(folder)
    result = run(*args, code=2)
    assert "Usage" in result.stderr
    assert files(folder) == before


def test_interpolate_between_modalities_some_features(folder, mdata, tmp_path):
    names = list(mdata["atac"].var_names[[5, 2]])
    (tmp_path / "names").write_text("\n".join(names) + "\n")
    args = ["--model", folder / "dont", "--out", tmp_path / "o.h5ad"]
    for data, features in (("rna.h5ad", tmp_path / "names"), ("both.h5mu", ", ".join(names))):
        done = run("interpolate", folder / data, *args, "--features", features)
        assert "160 cells at 6 times x 2" in done.stdout
        assert list(anndata.read_h5ad(tmp_path / "o.h5ad").var_names) == names
    # A list longer than any path may be is a list.
    assert "'x0'" in fails(
        "interpolate", folder / "rna.h5ad", *args, "--features", ",".join(f"x{i}" for i in range(2000))
    )


@pytest.mark.parametrize(
    ("features", "message"),
    [("nothing", "first 'nothing'"), ("nowhere.txt", "nowhere.txt cannot be read"), (" , ", "no name")],
)
def test_features_that_are_not_there(folder, tmp_path, features, message):
    args = ["--model", folder / "dont", "--out", tmp_path / "o.h5ad", "--features", features]
    assert message in fails("interpolate", folder / "rna.h5ad", *args)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("to", "key"), [("3", "rna_at_3"), ("3.0", "rna_at_3"), ("0", "rna_at_0")])
def test_counterfactuals(folder, tmp_path, to, key):
    out = tmp_path / "o.h5mu"
    done = run("counterfactual", folder / "both.h5mu", "--model", folder / "mixing", "--to", to, "--out", out)
    assert done.stdout.startswith(f"{out}: {key} 160 x 30, verdict ")
    made = mudata.read_h5mu(out)[key]
    assert set(made.obs["hours"]) == {float(to)}
    assert set(made.obs["hours_from"]) == {0.0, 3.0}
    assert "counts" in made.layers


def test_counterfactuals_in_the_other_modality_and_again(folder, tmp_path):
    out = tmp_path / "o.h5mu"
    args = ["--model", folder / "mixing", "--out", out, "--modality", "atac", "--key-added", "new", "--no-counts"]
    run("counterfactual", folder / "both.h5mu", *args, "--to", "3", "--strict", code=3)
    assert run("counterfactual", out, *args, "--to", "0").stdout.startswith(f"{out}: new 160 x 40")
    made = mudata.read_h5mu(out)["new"]
    assert made.uns["celltransfer"]["counterfactual"] == "0"
    assert "counts" not in made.layers


def test_counterfactuals_of_two_columns(folder, tmp_path):
    args = ["counterfactual", folder / "both.h5mu", "--model", folder / "mixing_of_two", "--out", tmp_path / "o.h5mu"]
    for to in ("3.0,b", "3|b"):
        run(*args, "--to", to)
        made = mudata.read_h5mu(tmp_path / "o.h5mu")["rna_at_3|b"]
        assert set(made.obs["hours"]) == {3.0}
        assert set(made.obs["batch"]) == {"b"}
    for to in ("3", "3,c", "3,b,b"):
        assert "the model knows '0|a', '0|b', '3|a', '3|b'" in fails(*args, "--to", to)


def test_what_a_method_or_a_model_has_not(folder, tmp_path):
    one, other = ["--out", tmp_path / "o.h5ad"], ["--out", tmp_path / "o.h5mu", "--to", "7"]
    assert '"dont"' in fails("interpolate", folder / "rna.h5ad", "--model", folder / "ridge", *one)
    both = folder / "both.h5mu"
    assert "'sparse_mixing'" in fails("counterfactual", both, "--model", folder / "ridge", *other)
    assert "the model knows '0', '3'" in fails("counterfactual", both, "--model", folder / "mixing", *other)
    gex = [*other[:2], "--to", "3", "--modality", "gex"]
    assert "'gex'" in fails("counterfactual", both, "--model", folder / "mixing", *gex)
    assert "holds an AnnData" in fails("counterfactual", folder / "rna.h5ad", "--model", folder / "mixing", *other)
    assert files(tmp_path) == []


def test_unreadable_files(folder, tmp_path):
    content = (folder / "rna.h5ad").read_bytes()
    (tmp_path / "text.h5ad").write_text("not HDF5")
    (tmp_path / "cut.h5ad").write_bytes(content[:3000])
    (tmp_path / "mudata.h5ad").write_bytes((folder / "both.h5mu").read_bytes())
    for name in files(tmp_path):
        said = fails("conditions", tmp_path / name, *HOURS, "--out", tmp_path / "o.h5mu")
        assert f"{tmp_path / name} cannot be read as an AnnData" in said
    assert len(files(tmp_path)) == 3


def test_what_cannot_be_written_is_said_before_the_work(folder, tmp_path):
    """Before the model, which there is none of, is looked for, and before levels are."""
    out, model = tmp_path / "no" / "such", ["--model", tmp_path / "none"]
    for args in (
        ["conditions", folder / "rna.h5ad", "--key", "no", *HOURS[2:], "--out", out / "o.h5mu"],
        ["interpolate", folder / "rna.h5ad", *model, "--out", out / "o.h5ad"],
        ["counterfactual", folder / "both.h5mu", *model, "--to", "3", "--out", out / "o.h5mu"],
    ):
        assert fails(*args).startswith(f"error: Cannot write {out}")


def test_a_full_disk_leaves_nothing_half_written(folder, tmp_path, monkeypatch):
    def write(self, path, *args, **kwargs):
        path.write_bytes(b"the first megabyte")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnnData, "write_h5ad", write)
    args = ["--model", folder / "dont", "--out", tmp_path / "o.h5ad"]
    assert "No space left" in fails("interpolate", folder / "rna.h5ad", *args)
    assert files(tmp_path) == []
