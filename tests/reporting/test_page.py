"""The page: one file, well formed, escaped, with its pictures, whatever the names and however little is known."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from celltransfer.train.outcome import Verdict
from matplotlib.figure import Figure

pytestmark = pytest.mark.filterwarnings(
    "ignore::celltransfer.errors.VerdictWarning", "ignore:method='ridge' fits without conditions"
)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def text(whole):
    return whole.to_html()


def test_it_is_one_file_without_scripts(text):
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text
    for image in page.all("img"):
        assert image["src"].startswith("data:image/svg+xml;base64,")
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_pictures_are_whole_and_said_in_words(text, whole):
    images = Page(text).all("img")
    assert len(images) == len(whole.pictures()) == 6
    for image in images:
        svg = base64.b64decode(image["src"].partition(",")[2])
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert len(image["alt"]) > 40
        assert re.search(r"\d", image["alt"])
    assert all(isinstance(figure, Figure) for figure in whole.pictures().values())


def test_headings_and_tables_are_in_order(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    levels = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == "h1"
    assert set(levels[1:]) == {"h2"}
    assert len(page.all("table")) == len(page.all("caption"))
    assert {cell["scope"] for cell in page.all("th")} == {"row", "col"}
    said = "".join(page.text)
    for title in ("Verdict", "Scores", "Controls", "By group", "Number of anchors", "Features", "Cells"):
        assert title in said


def test_it_says_the_scores(text, whole):
    said = "".join(Page(text).text)
    row = whole.overall.loc["foscttm"]
    assert f"{row['translation']:.3f} ({row['low']:.3f}\N{EN DASH}{row['high']:.3f})" in said
    assert f"{row['share']:.0%}" in said
    for group in whole.by_group.index.get_level_values(1):
        assert group in said
    assert whole.by_feature.index[0] in said
    assert whole.verdict.level in said


def test_it_looks_the_same_twice(text, whole):
    assert whole.to_html() == text


def test_strange_names_do_not_break_it(whole):
    nasty = '<script>alert("x & y")</script>'
    features = whole.by_feature.rename(index={whole.by_feature.index[0]: nasty})
    groups = whole.by_group.rename(index={whole.by_group.index[0][1]: nasty}, level=1)
    cells = whole.by_cell.replace({whole.by_cell["cell_type"].iloc[0]: nasty + "$^{x$"})
    about = whole.about | {"source": nasty, "target": "$a_"}
    notes = [*whole.notes, nasty]
    strange = ct.Report(
        whole.table,
        whole.intervals,
        about,
        Verdict("unheard of", [nasty], {"<b>": 1.0}),
        notes,
        overall=whole.overall,
        by_group=groups,
        by_feature=features,
        by_cell=cells,
        risk=whole.risk,
        curve=whole.curve,
    )
    for text in (strange.to_html(), strange._repr_html_()):
        page = Page(text)
        assert not page.all("script")
        assert nasty in "".join(page.text)


def test_without_truth_there_are_verdict_and_evidence_and_no_pictures(cells, tmp_path):
    train = cells[cells.obs["train"].to_numpy()].copy()
    result = ct.report(ct.fit(train, method="ridge"), train, curve=True)
    assert result.to_html(tmp_path / "r.html") is None
    page = Page(result.to_html())
    said = "".join(page.text)
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == result.to_html()
    assert "the verdict is all that is known" in said
    assert not page.all("img")
    assert result.pictures() == {}
    assert set(result.frames()) <= {"evidence"}
    assert ("What the level of the verdict rests on" in said) == bool(result.verdict.evidence)
    assert "measured" not in said


def test_a_report_on_three_cells(full):
    """Three cells beyond the anchors are too few to score, and the page says so."""
    few = full.obs_names[:43]
    mdata = full[few].copy()
    result = ct.report(ct.fit(mdata, method="ridge", anchors=40, verdict=False), mdata)
    assert result.table.empty
    assert "Only 3 co-assayed cells were no anchors" in "".join(Page(result.to_html()).text)


def test_conditions_and_labels_with_gaps_are_drawn(cells):
    gaps = cells.copy()
    test = gaps["rna"].obs_names[~gaps["rna"].obs["train"].to_numpy()]
    for adata in gaps.mod.values():
        adata.obs.loc[test[:10], "condition"] = np.nan
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
        adata.obs.loc[test[5:20], "cell_type"] = np.nan
    model = ct.fit(cells, train="train", method="condition_mean", conditions="condition", verdict=False)
    result = ct.report(model, gaps)
    assert result.about["n_cells"] == len(test) - 10
    assert result.by_group.loc["condition", "n"].sum() == len(test) - 10
    assert result.by_group.loc["cell_type", "n"].sum() == len(test) - 20
    assert "nan" not in "".join(Page(result.to_html()).text).lower().split()


def test_a_notebook_gets_a_short_one(whole):
    page = Page(whole._repr_html_())
    assert len(page.all("table")) == 1
    assert not page.all("style")


def test_long_tables_are_cut_and_it_is_said(whole):
    groups = pd.concat([whole.by_group.loc[["cell_type"]]] * 9)
    groups.index = pd.MultiIndex.from_tuples([("kind", f"k{i}") for i in range(len(groups))], names=groups.index.names)
    many = ct.Report(
        whole.table, whole.intervals, whole.about, whole.verdict, overall=whole.overall, by_group=groups
    ).to_html()
    assert f"The 20 largest of {len(groups)} groups." in many
    assert "k19" in many
    assert "k20" not in many
