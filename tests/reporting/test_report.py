"""ct.report: on which cells it scores, that it tells good from bad, and that all its forms say the same."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from io import StringIO

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from celltransfer.errors import AnchorError, ConditionError, InputError, ModalityError
from celltransfer.train.outcome import Verdict
from mudata import MuData

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


def fit(mdata, **options):
    return ct.fit(mdata, **{"train": "train", "method": "ridge", "verdict": False} | options)


def test_scores_the_cells_that_training_has_not_seen(result, cells):
    assert result.about["n_cells"] == (cells.obs["split"] == "test").sum()
    assert result.about["cells"] == "co-assayed cells that training has not seen"
    assert result.about["n_anchors"] == 60
    assert result.table.index[0] == "translation"
    scores = result.table["foscttm"]
    assert scores["translation"] < 0.3
    assert scores["translation"] < scores["ridge on shuffled anchors"]
    assert 0.4 < scores["chance"] < 0.6
    low, high = result.intervals["foscttm"]
    assert low < scores["translation"] < high


def test_the_translation_row_is_what_the_scores_say_of_the_translation(result, model, cells):
    """The same figure from the pieces: translate, project into the scoring space, count who is closer."""
    from celltransfer.metrics import ScoringSpace
    from celltransfer.metrics.scores import foscttm
    from celltransfer.pp.transforms import TfIdf

    train = cells["atac"][cells["atac"].obs["train"].to_numpy()]
    test = cells["rna"].obs_names[~cells["rna"].obs["train"].to_numpy()]
    normalizer = TfIdf(flavor="muon", scale_factor=1e4).fit(train.X)
    space = ScoringSpace.fit(normalizer.transform(train.X), 20)
    truth = space.transform(normalizer.transform(cells["atac"][test].X))
    translated = model.translate(cells["rna"][test].copy())
    features = cells["atac"].var_names.get_indexer(translated.var_names)
    points = space.transform_prediction(translated.X, features)
    points = points - points.mean(axis=0)
    assert result.table.loc["translation", "foscttm"] == pytest.approx(foscttm(points, truth), abs=1e-6)


def test_hidden_training_pairs_where_nothing_is_held_out(full):
    model = fit(full, train=None, anchors=60)
    result = ct.report(model, full)
    assert result.about["cells"] == "co-assayed training cells whose pairing was hidden"
    assert result.about["n_cells"] == full.n_obs - 60
    assert result.table.loc["translation", "foscttm"] < 0.3


def test_too_few_held_out_cells_are_scored_with_the_hidden_ones(full):
    few = full.obs_names[:5]
    model = fit(full, train=list(full.obs_names[5:]), anchors=60)
    result = ct.report(model, full)
    assert not set(few) & set(model.training_cells["rna"])
    assert result.about["n_cells"] == full.n_obs - 60
    assert "99% of them training cells" in result.about["cells"]


@pytest.mark.parametrize("anchors", ["all", "some"])
def test_anchors_are_never_scored(full, anchors):
    """With the pairing of all anchors turned into nonsense after the fit, the report stays the same."""
    model = fit(full, train=None, anchors=full.n_obs - 30 if anchors == "all" else 60)
    rows = full["atac"].obs_names.isin(model.anchors["target_id"])
    names = full["atac"].obs_names.to_numpy(dtype=object).copy()
    names[rows] = np.roll(names[rows], 1)
    scrambled = full["atac"].copy()
    scrambled.obs_names = names
    result = ct.report(model, full)
    assert result.about["n_cells"] == (~rows).sum()
    again = ct.report(model, MuData({"rna": full["rna"].copy(), "atac": scrambled}))
    for score in ("foscttm", "knn_accuracy@10"):
        assert again.table.loc["translation", score] == result.table.loc["translation", score]


@pytest.fixture(scope="module")
def unscored(cells):
    train = cells[cells.obs["train"].to_numpy()].copy()
    return ct.report(ct.fit(train, method="ridge"), train)


def test_nothing_to_score_leaves_the_verdict(unscored):
    assert unscored.table.empty
    assert unscored.to_frame().empty
    assert unscored.headline().empty
    assert unscored.verdict.level in ("identified", "ambiguous")
    assert "the verdict is all that is known" in unscored.to_markdown()
    assert "|" not in unscored.to_markdown().partition("## Verdict")[0]
    assert json.loads(unscored.to_json())["scores"] == {}
    assert "<table" not in unscored._repr_html_()
    assert f"Verdict: {unscored.verdict.level}." in rendered(unscored)


def test_different_barcodes_are_scored_through_a_table(cells, result):
    names = cells["rna"].obs_names[cells["rna"].obs_names.isin(cells["atac"].obs_names)]
    atac = cells["atac"].copy()
    atac.obs_names = "atac_" + atac.obs_names
    apart = MuData({"rna": cells["rna"].copy(), "atac": atac})
    apart.uns.update(cells.uns)
    table = pd.DataFrame({"source_id": names, "target_id": "atac_" + names})
    train = cells["rna"].obs.loc[names, "train"].to_numpy()
    model = fit(apart, anchors=table[train])
    assert ct.report(model, apart).table.empty
    scored = ct.report(model, apart, pairs=table)
    pd.testing.assert_frame_equal(scored.table, result.table, atol=1e-6)
    wrong = table[~train].assign(target_id=lambda t: np.roll(t.target_id, 7))
    assert ct.report(model, apart, pairs=wrong).table.loc["translation", "foscttm"] > 0.4


def test_conditions_bring_their_control_and_their_score(cells):
    result = ct.report(fit(cells, conditions="condition", method="condition_mean"), cells)
    table = result.table
    assert table.loc["translation", "foscttm_within_condition"] == pytest.approx(0.5, abs=0.02)
    assert table.loc["condition mean", "foscttm"] == pytest.approx(table.loc["translation", "foscttm"], abs=0.03)
    assert "Controls with a lower FOSCTTM" in result.to_markdown()


def test_labels_by_name_by_default_and_with_gaps(cells, model, result):
    bare = cells.copy()
    bare.uns.clear()
    without = ct.report(model, bare)
    assert "label oracle" not in without.table.index
    assert "label_transfer_accuracy" not in without.table
    named = ct.report(model, bare, labels="cell_type")
    pd.testing.assert_frame_equal(named.table, result.table)
    for name in ("rna", "atac"):
        bare[name].obs["holes"] = bare[name].obs["cell_type"].astype(object).where(np.arange(bare[name].n_obs) % 5 > 0)
    holes = ct.report(model, bare, labels="holes")
    assert np.isfinite(holes.table.loc["translation", "label_transfer_accuracy"])
    with pytest.raises(ConditionError, match="no column 'nowhere'"):
        ct.report(model, bare, labels="nowhere")


def test_counts_in_a_layer(cells, result):
    moved = cells.copy()
    for adata in moved.mod.values():
        adata.layers["counts"] = adata.X
        adata.X = np.zeros(adata.shape, dtype=np.float32)
    recipes = {"rna": ct.pp.rna(layer="counts"), "atac": ct.pp.atac(layer="counts")}
    scored = ct.report(fit(moved, recipes=recipes), moved)
    pd.testing.assert_frame_equal(scored.table, result.table, atol=1e-6)


def test_protein(cells):
    """Counts of few features, under the recipe for surface proteins; both directions."""
    panel = {"rna": cells["rna"].copy(), "protein": cells["atac"][:, :25].copy()}
    mdata = MuData(panel)
    for source, target in (("rna", "protein"), ("protein", "rna")):
        model = fit(mdata, source=source, target=target)
        assert model.recipes["protein"].kind == "protein"
        result = ct.report(model, mdata, labels="cell_type")
        assert result.table.loc["translation", "foscttm"] < 0.45


def test_the_forms_agree(result):
    frame = result.to_frame()
    stored = json.loads(result.to_json())
    assert stored == result.to_dict()
    again = pd.DataFrame.from_dict(stored["scores"], orient="index").astype(float)
    pd.testing.assert_frame_equal(again[frame.columns], frame.astype(float))
    shown = result.headline()
    first = result.to_markdown().partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("| ")]
    assert len(rows[0]) == 1 + shown.shape[1]
    assert [row[0] for row in rows[1:]] == list(shown.index)
    assert float(rows[1][1]) == pytest.approx(frame.loc["translation", "foscttm"], abs=5e-4)
    for name, row in zip(shown.index, rows[1:], strict=True):
        assert [float(text) for text in row[1:] if text.strip()] == pytest.approx(
            list(shown.loc[name].dropna()), abs=5.1e-4
        )
    text = rendered(result)
    assert f"{frame.loc['translation', 'foscttm']:.3f}" in text
    assert all(name in text for name in shown.index)


class Tags(HTMLParser):
    """Checks that what is opened is closed, and keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_whole_and_escaped(result):
    tags = Tags()
    tags.feed(result._repr_html_())
    assert tags.open == []
    text = " ".join(tags.text)
    assert "rna -> atac" in text
    assert f"{result.table.loc['translation', 'foscttm']:.3f}" in text
    strange = ct.Report(pd.DataFrame(), {}, dict(result.about, source="<script>"), Verdict("failed", ["a < b [bold]x"]))
    assert "<script>" not in strange._repr_html_()
    assert "a < b [bold]x" in rendered(strange)


def rendered(result):
    from rich.console import Console

    console = Console(file=StringIO(), width=200)
    console.print(result.to_rich())
    return console.file.getvalue()


def test_summary_compares_with_the_ceiling(result):
    text = "\n".join(result.summary())
    assert repr(result) == text
    assert re.search(r"\d+% of the way from chance to the ceiling", text)
    assert f"{result.table.loc['translation', 'foscttm']:.3f}" in text
    assert "Ceiling: the best of" in text


def test_a_frame_can_be_changed_without_changing_the_report(result):
    frame = result.to_frame()
    frame.loc["translation"] = 0
    assert result.table.loc["translation", "foscttm"] > 0


class Oracle:
    """Answers with the truth, by recognising the source cell."""

    name = label = "oracle"
    uses_conditions = needs_condition = gives_distribution = False

    def __init__(self, features, answers, result):
        self.features, self.answers, self.result_ = features, answers, result

    def get_config(self):
        return {}

    def translate(self, x, condition=None, *, batch_size=8192):
        nearest = ((x[:, None, :] - self.features[None]) ** 2).sum(axis=2).argmin(axis=1)
        return self.answers[nearest]


def report_with(model, cells, answers, test):
    """The report on a model that gives `answers` for the cells `test`."""
    changed = copy.copy(model)
    features = model.recipes["rna"].transform(cells["rna"][test])
    changed.translator = Oracle(np.asarray(features), answers, model.result_)
    return ct.report(changed, cells)


def test_an_oracle_beats_the_ceiling_and_a_shuffled_one_is_at_chance(model, cells):
    test = cells["rna"].obs_names[~cells["rna"].obs["train"].to_numpy()]
    truth = np.asarray(model.recipes["atac"].transform(cells["atac"][test]))
    best = report_with(model, cells, truth, test).table
    assert best.loc["translation", "foscttm"] < best.loc["ceiling: all pairs", "foscttm"] < 0.3
    assert best.loc["translation", "foscttm"] < 0.02
    assert best.loc["translation", "knn_accuracy@10"] > 0.95
    worst = report_with(model, cells, np.random.default_rng(0).permutation(truth), test)
    assert worst.table.loc["translation", "foscttm"] == pytest.approx(0.5, abs=0.06)
    assert "Controls with a lower FOSCTTM: " in "\n".join(worst.summary())
    if worst.table.loc["translation", "foscttm"] >= 0.5:
        assert "not better than chance" in repr(worst)


def test_an_oracle_that_is_off_by_a_constant_is_seen(model, cells):
    """FOSCTTM centres translations by their own mean; the bias does not."""
    test = cells["rna"].obs_names[~cells["rna"].obs["train"].to_numpy()]
    truth = np.asarray(model.recipes["atac"].transform(cells["atac"][test]))
    shift = 3 * truth.std(axis=0)
    plain, off = (report_with(model, cells, answers, test).headline() for answers in (truth, truth + shift))
    assert off.loc["translation", "foscttm"] < 0.05
    assert off.loc["translation", "bias"] > 1 > 0.2 > plain.loc["translation", "bias"]
    assert off["bias"].notna().all()


def signed_pair(n=300):
    """Two signed embeddings of the same latent cells."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n, 3))
    obs = pd.DataFrame({"train": np.arange(n) < 200}, index=[f"cell_{i}" for i in range(n)])
    sides = {
        name: AnnData((latent @ rng.normal(size=(3, p)) - 1).astype(np.float32), obs=obs.copy())
        for name, p in (("a", 8), ("b", 11))
    }
    for name, adata in sides.items():
        adata.var_names = [f"{name}_{j}" for j in range(adata.n_vars)]
    return MuData(sides)


def test_signed_embeddings_have_no_library_size():
    mdata = signed_pair()
    model = fit(mdata, source="a", target="b", anchors=40, recipes={"a": ct.pp.none(), "b": ct.pp.none()})
    result = ct.report(model, mdata)
    assert result.table.loc["translation", "foscttm"] < 0.1
    assert not {"depth rank", "depth rank, reversed"} & set(result.table.index)
    assert "foscttm_depth_regressed" not in result.table
    assert "depth" not in result.to_markdown()


def test_many_cells_are_sampled_and_it_is_said(model, cells, monkeypatch):
    monkeypatch.setattr("celltransfer.reporting.scored.MAX_CELLS", 50)
    first, second, other = (ct.report(model, cells, seed=seed) for seed in (0, 0, 1))
    n = (cells.obs["split"] == "test").sum()
    assert first.about["n_cells"] == first.about["max_cells"] == 50
    assert first.about["n_known"] == n
    assert f"(a random sample of {n})" in repr(first)
    assert first.to_json() == second.to_json()
    assert first.table.loc["translation", "foscttm"] != other.table.loc["translation", "foscttm"]
    assert first.table.loc["translation", "foscttm"] < 0.35


def test_missing_training_cells_are_said(model, cells, result):
    assert "training cells of" not in repr(result)
    names = model.training_cells["atac"].difference(model.anchors["target_id"])
    rest = MuData({"rna": cells["rna"].copy(), "atac": cells["atac"][~cells["atac"].obs_names.isin(names[::2])].copy()})
    rest.uns.update(cells.uns)
    partly = ct.report(model, rest)
    share = 1 - len(names[::2]) / len(model.training_cells["atac"])
    assert f"holds {share:.0%} of the training cells of atac" in repr(partly)
    lost = ~cells["rna"].obs_names.isin(model.anchors["source_id"])
    ct.report(model, MuData({"rna": cells["rna"][lost].copy(), "atac": cells["atac"].copy()}))


def test_labels_and_conditions_with_gaps(cells):
    model = fit(cells, conditions="condition", method="condition_mean")
    gaps = MuData({name: adata.copy() for name, adata in cells.mod.items()})
    test = cells["rna"].obs_names[~cells["rna"].obs["train"].to_numpy()]
    for adata in gaps.mod.values():
        adata.obs.loc[test[:10], "condition"] = np.nan
    gaps["rna"].obs["one_side"] = gaps["rna"].obs["cell_type"].astype(object)
    gaps["atac"].obs["other_side"] = gaps["atac"].obs["cell_type"].astype(object)
    for column in ("one_side", "other_side"):
        result = ct.report(model, gaps, labels=column)
        assert result.about["n_cells"] == len(test) - 10
        assert np.isfinite(result.table.loc["translation", "label_transfer_accuracy"])


def test_the_data_and_global_randomness_are_left_alone(model, cells):
    mdata = cells.copy()
    before = {name: (adata.X.toarray(), adata.obs.copy(), adata.var.copy()) for name, adata in mdata.mod.items()}
    obs, uns, state = mdata.obs.copy(), dict(mdata.uns), np.random.get_state()[1].copy()  # noqa: NPY002
    first = ct.report(model, mdata, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    for name, (x, frame, var) in before.items():
        np.testing.assert_array_equal(mdata[name].X.toarray(), x)
        pd.testing.assert_frame_equal(mdata[name].obs, frame)
        pd.testing.assert_frame_equal(mdata[name].var, var)
    pd.testing.assert_frame_equal(mdata.obs, obs)
    assert mdata.uns.keys() == uns.keys()
    assert list(mdata.mod) == ["rna", "atac"]
    assert ct.report(model, mdata, seed=1).to_json() == first.to_json()


def test_a_saved_model_gives_the_same_report(model, cells, result, tmp_path):
    model.save(tmp_path / "model")
    again = ct.report(ct.load(tmp_path / "model"), cells)
    pd.testing.assert_frame_equal(again.table, result.table, atol=1e-6)
    assert again.about == result.about


def test_errors(model, cells, full):
    with pytest.raises(InputError, match="Expected a MuData"):
        ct.report(model, cells["rna"])
    with pytest.raises(ModalityError, match="'rna'"):
        ct.report(model, MuData({"atac": cells["atac"].copy()}))
    with pytest.raises(AnchorError, match="not cells of 'rna'"):
        ct.report(model, cells, pairs=pd.DataFrame({"source_id": ["x"], "target_id": ["y"]}))
    with pytest.raises(InputError, match="lacks the training cells"):
        ct.report(
            model,
            full[
                full.obs_names[~full.obs_names.isin(model.training_cells["rna"].union(model.training_cells["atac"]))]
            ].copy(),
        )
