"""Pictures: what is drawn, what it says, and that nothing else changes."""

from __future__ import annotations

import random

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from celltransfer.datasets.unpairing import unpair
from celltransfer.errors import ModalityError
from mudata import MuData

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


@pytest.fixture(scope="module")
def cells():
    cells = unpair(ct.datasets.simulate(n_obs=240, n_genes=50, n_peaks=60, n_types=3, seed=0), 40, seed=0)
    for name in ("rna", "atac"):
        obs = cells[name].obs
        obs["day"] = obs["pseudotime"].rank().floordiv(len(obs) / 3 + 1).astype(float)
        obs["many"] = [f"clone {i % 25:02d}" if i % 25 < 20 or i > 120 else None for i in range(len(obs))]
        obs["depth"] = np.asarray(cells[name].X.sum(axis=1)).ravel().astype(float)
        obs.loc[obs.index[:3], "depth"] = np.nan
        obs["stage"] = pd.Categorical(obs["cell_type"], sorted(obs["cell_type"].unique(), reverse=True), ordered=True)
    return cells


@pytest.fixture(scope="module")
def model(cells):
    model = ct.fit(cells, train="train", method="ridge")
    model.translate(cells)
    return model


@pytest.fixture(autouse=True)
def layout(monkeypatch, request):
    """UMAP takes seconds; one test runs it, the others look at the first two dimensions."""
    if "really" not in request.node.name:
        monkeypatch.setattr("celltransfer.pl._umap", lambda points, seed: np.asarray(points[:, :2]))


def labels(axes):
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def drawn(axes):
    """Number of cells in each layer of dots."""
    counts = [len(layer.get_offsets()) for layer in axes.collections]
    return [count for count in counts if count]


def test_measured_and_translated_over_each_other_and_both_by_origin(cells, model):
    figure = ct.pl.translation(cells, model, color="cell_type")
    measured, translated, both = figure.axes
    n_measured, n_translated = cells["atac"].n_obs, cells["atac_from_rna"].n_obs
    assert drawn(measured) == [n_translated, n_measured]
    assert drawn(translated) == [n_measured, n_translated]
    assert drawn(both) == [n_measured + n_translated]
    assert [axes.get_title() for axes in figure.axes] == [
        "measured atac, by cell_type",
        "translated from rna, by cell_type",
        "both, by origin",
    ]
    assert labels(translated) == sorted(cells.obs["cell_type"].unique())
    assert labels(both) == ["measured", "translated"]
    assert figure.get_suptitle() == f"rna \N{RIGHTWARDS ARROW} atac, ridge: {model.verdict_.level}"


def test_a_cell_type_has_one_colour_in_both_panels(cells, model):
    figure = ct.pl.translation(cells, model, color="cell_type")
    used = [{tuple(color) for color in axes.collections[1].get_facecolors()[:, :3]} for axes in figure.axes[:2]]
    assert used[0] == used[1]
    assert len(used[0]) == cells.obs["cell_type"].nunique()


def test_without_a_column_it_shows_the_origin(cells, model):
    figure = ct.pl.translation(cells, model)
    assert len(figure.axes) == 1
    assert labels(figure.axes[0]) == ["measured", "translated"]


@pytest.mark.parametrize(
    ("color", "expected"),
    [("day", ["0", "1", "2"]), ("stage", ["type_2", "type_1", "type_0"]), ("train", ["False", "True"])],
)
def test_labels_are_in_their_own_order(cells, model, color, expected):
    assert labels(ct.pl.translation(cells, model, color=color).axes[1]) == expected


def test_more_labels_than_colours_share_a_grey(cells, model):
    shown = labels(ct.pl.translation(cells, model, color="many").axes[1])
    assert len(shown) == 19
    assert shown[-1] == "other"


def test_numbers_get_a_scale(cells, model):
    figure = ct.pl.translation(cells, model, color="depth")
    assert len(figure.axes) == 4  # the colour bar is one
    assert labels(figure.axes[1]) == []


def test_a_column_of_one_modality_only(cells, model):
    data = MuData(dict(cells.mod))
    data.mod["atac_from_rna"] = cells["atac_from_rna"].copy()
    data["rna"].obs["only_rna"] = "yes"
    assert labels(ct.pl.translation(data, model, color="only_rna").axes[1]) == ["yes", "other"]


def test_at_most_max_cells_and_another_key(cells, model):
    data = cells.copy()
    model.translate(data, key_added="predicted")
    both = ct.pl.translation(data, model, key="predicted", max_cells=50).axes[0]
    assert drawn(both) == [100]


def test_errors(cells, model):
    bare = MuData({name: cells[name] for name in ("rna", "atac")})
    with pytest.raises(ModalityError, match="'atac_from_rna'; call model.translate"):
        ct.pl.translation(bare, model)
    with pytest.raises(ModalityError, match="no column 'nowhere'"):
        ct.pl.translation(cells, model, color="nowhere")
    with pytest.raises(ModalityError, match="X_translated"):
        ct.pl.translation(cells, model, key="rna")


def test_it_really_draws_and_leaves_data_and_global_randomness_alone(cells, model, tmp_path):
    import matplotlib as mpl

    ct.pl.translation(cells, model, max_cells=30)  # imports
    data = cells.copy()
    states = random.getstate(), np.random.get_state()[1].copy(), dict(mpl.rcParams)  # noqa: NPY002
    pictures = [ct.pl.translation(data, model, color="cell_type", seed=1) for _ in range(2)]
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert dict(mpl.rcParams) == states[2]
    for name in data.mod:
        pd.testing.assert_frame_equal(data[name].obs, cells[name].obs)
        assert list(data[name].obsm) == list(cells[name].obsm)
        assert list(data[name].obsp) == list(cells[name].obsp)
    spots = [figure.axes[2].collections[-3].get_offsets() for figure in pictures]
    np.testing.assert_array_equal(*spots)
    pictures[0].savefig(tmp_path / "picture.png")
    pictures[0].savefig(tmp_path / "picture.pdf")
    assert pictures[0]._repr_png_().startswith(b"\x89PNG")


def test_history_has_a_panel_for_each_curve(cells):
    trainer = ct.train.Trainer(max_steps=20)
    options = {"source": "rna", "target": "atac", "train": "train", "verdict": False}
    model = ct.fit(cells, method="jacobian", trainer=trainer, **options)
    figure = ct.pl.history(model)
    assert [axes.get_title() for axes in figure.axes] == [name for name, rows in model.result_.history.items() if rows]
    assert all(axes.get_xlabel() == "step" for axes in figure.axes)
    assert all(len(axes.lines) == 1 for axes in figure.axes)


def test_history_of_a_method_without_steps(model):
    assert ct.pl.history(model).axes == []
