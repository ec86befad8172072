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
from celltransfer.pp.shared import is_shared
from celltransfer.train.loop import Trainer
from typer.testing import CliRunner

# Fits are too short to be judged, and modalities made of one share their features.
pytestmark = [
    pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning"),
    pytest.mark.filterwarnings("ignore:.*var_names:UserWarning:mudata"),
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
    split = ct.pp.conditions(mdata["rna"], "hours", 0, 3)
    split.write_h5mu(path / "split.h5mu")
    ct.fit(split, method="dont", recipes="rna", **options | {"anchors": 0}).save(path / "way")
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
    assert is_shared(*both.values())


@pytest.mark.parametrize("recipes", [[""], [" "], ["rna="], ["=rna"], ["rna", "atac=atac"]])
def test_recipes_that_name_none(folder, tmp_path, recipes):
    options = [part for recipe in recipes for part in ("--recipe", recipe)]
    said = run("fit", folder / "both.h5mu", "--model", tmp_path / "m", "--method", "ridge", *options, code=2).stderr
    assert "one NAME alone, or MODALITY=NAME for each" in " ".join(said.replace("│", " ").split())
    assert files(tmp_path) == []


def test_lists_may_have_spaces(folder, tmp_path):
    args = ["--model", tmp_path / "m", "--method", "condition_mean", "--anchors", "5"]
    run("fit", folder / "both.h5mu", *args, "--conditions", "hours, batch")
    assert ct.load(tmp_path / "m").conditions == ("hours", "batch")
    grouped = run("report", folder / "both.h5mu", "--model", tmp_path / "m", "--groups", "batch, cell_type")
    assert "cell_type" in grouped.stdout
    assert "no name in ', '" in fails("fit", folder / "both.h5mu", *args, "--overwrite", "--conditions", ", ")


def test_conditions_of_a_modality_by_a_column_of_the_mudata(folder, mdata, tmp_path):
    args = ["--key", "batch", "--source", "b", "--target", "a", "--modality", "atac", "--out", tmp_path / "o.h5mu"]
    run("conditions", folder / "both.h5mu", *args)
    cells = mudata.read_h5mu(tmp_path / "o.h5mu")
    assert list(cells.mod) == ["b", "a"]
    assert list(cells["b"].obs_names) == list(mdata.obs_names[mdata.obs["batch"] == "b"])
    assert cells["b"].n_vars == 40


@pytest.mark.filterwarnings("default::celltransfer.errors.CelltransferWarning")
def test_conditions_that_contradict_each_other_and_cells_without(folder, mdata, tmp_path):
    cells = mdata.copy()
    cells.obs["hours"] = 3.0
    cells.obs["batch"] = cells.obs["batch"].where(np.arange(160) > 6, None)
    cells.write_h5mu(tmp_path / "in.h5mu")
    args = ["conditions", tmp_path / "in.h5mu", "--modality", "rna", "--out", tmp_path / "o.h5mu"]
    assert "'hours' has two values for 80 cells of 'rna'" in fails(*args, *HOURS)
    done = run(*args, "--key", "batch", "--source", "a", "--target", "b")
    assert done.stderr == "warning: 7 of 160 cells have no value in obs['batch'] and are left out.\n"


def test_the_input_is_not_written_over(folder, tmp_path):
    for name in ("both.h5mu", "rna.h5ad"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "link.h5mu").symlink_to(tmp_path / "both.h5mu")
    for args in (
        ["conditions", tmp_path / "both.h5mu", *HOURS, "--modality", "rna", "--out", tmp_path / "link.h5mu"],
        ["interpolate", tmp_path / "rna.h5ad", "--model", folder / "dont", "--out", tmp_path / "rna.h5ad"],
    ):
        assert "the cells are read from it, and would be lost" in fails(*args)
    for name in ("both.h5mu", "rna.h5ad"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_two_cells_of_one_name(mdata, folder, tmp_path):
    cells = mdata["rna"].copy()
    cells.obs_names = ["same", *cells.obs_names[1:-1], "same"]
    cells.write_h5ad(tmp_path / "twice.h5ad")
    for command in (
        ["conditions", *HOURS, "--out", "o.h5mu"],
        ["interpolate", "--model", folder / "dont", "--out", "o.h5ad"],
    ):
        args = [command[0], tmp_path / "twice.h5ad", *command[1:-1], tmp_path / command[-1]]
        assert "1 duplicated barcodes, the first 'same'" in fails(*args)
    assert files(tmp_path) == ["twice.h5ad"]


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


def test_features_that_the_file_lacks(folder, mdata, tmp_path):
    short = mdata.copy()
    short.mod["rna"] = short["rna"][:, 2:].copy()
    short.write_h5mu(tmp_path / "short.h5mu")
    for command in (
        ["interpolate", tmp_path / "short.h5mu", "--model", folder / "dont", "--out", tmp_path / "o.h5ad"],
        ["counterfactual", tmp_path / "short.h5mu", "--model", folder / "mixing", "--to", "3"]
        + ["--out", tmp_path / "o.h5mu"],
    ):
        assert "lacks 2 of" in fails(*command)
        assert files(tmp_path) == ["short.h5mu"]
        run(*command, "--on-missing", "guess", code=2)
        run(*command, "--on-missing", "zero")
        command[-1].unlink()


def test_the_way_back(folder, tmp_path):
    out, model = tmp_path / "o.h5ad", ct.load(folder / "way")
    args = [folder / "split.h5mu", "--model", folder / "way", "--out", out, "--backward", "--steps", "1"]
    assert run("interpolate", *args).stdout.startswith(f"{out}: 80 cells at 2 times x 30, verdict ")
    path = anndata.read_h5ad(out)
    assert set(path.obs["hours"]) == {3.0}
    back = model.backward.latent(mudata.read_h5mu(folder / "split.h5mu")["3"])
    np.testing.assert_allclose(path.obsm["X_translated"][80:], back, atol=1e-4)
    assert "no inverse" in fails("interpolate", folder / "both.h5mu", "--model", folder / "ridge", *args[3:])


def test_features_named_twice_and_warnings_of_names(folder, mdata, tmp_path):
    name = mdata["atac"].var_names[0]
    args = ["--model", folder / "dont", "--out", tmp_path / "o.h5ad"]
    assert f"names '{name}' twice" in fails("interpolate", folder / "rna.h5ad", *args, "--features", f"{name},{name}")
    cells = mdata["rna"].copy()
    cells.var_names = ["same", "same", *cells.var_names[2:]]
    cells.write_h5ad(tmp_path / "twice.h5ad")
    said = run("conditions", tmp_path / "twice.h5ad", *HOURS, "--out", tmp_path / "o.h5mu").stderr
    assert "Variable names are not unique" in said
    assert "intersecting" not in said


def test_counterfactuals_in_the_other_modality_and_again(folder, tmp_path):
    out = tmp_path / "o.h5mu"
    args = ["--model", folder / "mixing", "--out", out, "--modality", "atac", "--key-added", "new", "--no-counts"]
    made = run("counterfactual", folder / "both.h5mu", *args, "--to", "3")
    assert "verdict ambiguous" in made.stdout
    assert "What was judged is the translation between the modalities" in made.stderr
    assert run("counterfactual", out, *args, "--to", "0").stdout.startswith(f"{out}: new 160 x 40")
    made = mudata.read_h5mu(out)["new"]
    assert made.uns["celltransfer"]["counterfactual"] == "0"
    assert "counts" not in made.layers


def test_counterfactuals_of_two_columns(folder, tmp_path):
    args = ["counterfactual", folder / "both.h5mu", "--model", folder / "mixing_of_two", "--out", tmp_path / "o.h5mu"]
    for to in ("3.0,b", "3.0, b", "3|b", "3.0|b"):
        run(*args, "--to", to)
        made = mudata.read_h5mu(tmp_path / "o.h5mu")["rna_at_3|b"]
        assert set(made.obs["hours"]) == {3.0}
        assert set(made.obs["batch"]) == {"b"}
    for to in ("3", "3,c", "3,b,b"):
        assert "the model knows '0|a', '0|b', '3|a', '3|b'" in fails(*args, "--to", to)


def test_counterfactuals_of_booleans(mdata, tmp_path):
    cells = mdata.copy()
    for name in cells.mod:
        cells[name].obs["late"] = cells[name].obs["hours"] > 0
    cells.write_h5mu(tmp_path / "in.h5mu")
    options = [
        "--method",
        "sparse_mixing",
        "--anchors",
        "20",
        "-O",
        "n_content=3",
        "-O",
        "n_style=2",
        "-O",
        "map=linear",
    ]
    run(
        "fit", tmp_path / "in.h5mu", "--model", tmp_path / "m", "--conditions", "late", *options, "--max-seconds", "0.5"
    )
    args = ["--model", tmp_path / "m", "--to", "true", "--out", tmp_path / "o.h5mu"]
    assert "rna_at_True 160 x 30" in run("counterfactual", tmp_path / "in.h5mu", *args).stdout
    assert mudata.read_h5mu(tmp_path / "o.h5mu")["rna_at_True"].obs["late"].dtype == bool


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


def test_files_by_the_ending_of_their_name(folder, tmp_path):
    for name, copy in (("rna.h5ad", "RNA.H5AD"), ("rna.h5ad", "rna.h5"), ("both.h5mu", "BOTH.H5MU")):
        (tmp_path / copy).write_bytes((folder / name).read_bytes())
    run("conditions", tmp_path / "RNA.H5AD", *HOURS, "--out", tmp_path / "O.H5MU")
    assert list(mudata.read_h5mu(tmp_path / "O.H5MU").mod) == ["0", "3"]
    args = ["--model", folder / "dont", "--out", tmp_path / "o.h5ad"]
    run("interpolate", tmp_path / "BOTH.H5MU", *args)
    assert "rna.h5 cannot be read as a MuData: it has no modalities" in fails("interpolate", tmp_path / "rna.h5", *args)


def test_what_cannot_be_written_is_an_error_with_the_file(folder, mdata, tmp_path):
    cells = mdata.copy()
    cells["rna"].obs.index.name = "hours_from"
    cells.write_h5mu(tmp_path / "in.h5mu")
    args = ["--model", folder / "mixing", "--to", "3", "--out", tmp_path / "o.h5mu"]
    assert fails("counterfactual", tmp_path / "in.h5mu", *args).startswith(
        f"error: Cannot write {tmp_path / 'o.h5mu'}: "
    )
    assert files(tmp_path) == ["in.h5mu"]


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
