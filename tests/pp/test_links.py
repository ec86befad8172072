"""Feature links: read from what users have, and the map that they imply."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer import pp
from celltransfer.errors import FeatureError
from celltransfer.pp.links import linked_map, read_links

NAMES = "rna", "protein"


def adata(values, prefix):
    return AnnData(
        np.asarray(values, np.float32), var=pd.DataFrame(index=[f"{prefix}{i}" for i in range(len(values[0]))])
    )


@pytest.fixture
def modalities():
    """Twenty genes and six proteins, of which protein i follows gene i, each on a scale of its own."""
    rng = np.random.default_rng(0)
    genes = rng.normal(size=(300, 20)) * rng.uniform(0.5, 3, 20)
    return adata(genes, "g"), adata(genes[:, :6] * rng.uniform(0.5, 3, 6) + 1, "p")


def table(n=6, **columns):
    return pd.DataFrame({"source": [f"g{i}" for i in range(n)], "target": [f"p{i}" for i in range(n)]} | columns)


def mapped(modalities, links, recipes=None):
    fitted = tuple((recipes or (pp.none(), pp.none()))[i].unfitted().fit(cells) for i, cells in enumerate(modalities))
    return linked_map(read_links(links, *modalities), fitted, modalities, NAMES), fitted


def test_every_form_says_the_same(modalities):
    source, target = modalities
    target.var["gene"] = [f"g{i}" for i in range(6)]
    matrix = sp.csr_matrix((np.ones(6), (np.arange(6), np.arange(6))), shape=(20, 6))
    expected = table(weight=1.0)
    for links in (table(), table(weight=np.ones(6)), matrix, sp.csc_array(matrix), "gene"):
        found = read_links(links, source, target)
        pd.testing.assert_frame_equal(found[["source", "target", "weight"]], expected, check_dtype=False)


def test_a_column_of_the_source_may_name_the_target(modalities):
    source, target = modalities
    source.var["protein"] = [f"p{i}" if i < 6 else None for i in range(20)]
    assert len(read_links("protein", source, target)) == 6


def test_linked_features_follow_in_their_own_deviations(modalities):
    for recipes in (None, (pp.none(n_components=20, whiten=True), pp.none(n_components=6))):
        found, (rx, ry) = mapped(modalities, table(), recipes)
        x, y = (recipe.transform(cells) for recipe, cells in zip((rx, ry), modalities, strict=True))
        np.testing.assert_allclose((x - x.mean(0)) @ found, y - y.mean(0), atol=1e-3)


def test_weights_average_and_turn_around(modalities):
    one, _ = mapped(modalities, table())
    against, _ = mapped(modalities, table(weight=-3.0))
    np.testing.assert_allclose(against.toarray(), -one.toarray(), rtol=1e-5)
    both, _ = mapped(modalities, pd.DataFrame({"source": ["g0", "g1"], "target": ["p0", "p0"], "weight": [3.0, 1.0]}))
    spread = [cells.X.std(axis=0) for cells in modalities]
    np.testing.assert_allclose(both.toarray()[:2, 0], np.array([0.75, 0.25]) * spread[1][0] / spread[0][:2], rtol=1e-4)


def test_without_reductions_the_map_stays_sparse():
    rng = np.random.default_rng(0)
    sides = tuple(AnnData(sp.random(20, 30_000, 0.001, "csr", np.float32, rng)) for _ in range(2))
    links = pd.DataFrame({"source": sides[0].var_names, "target": sides[1].var_names})
    found, _ = mapped(sides, links)
    assert sp.issparse(found)
    assert found.shape == (30_000, 30_000)


def test_features_that_do_not_vary_and_unknown_ones_are_left_out(modalities):
    source, target = modalities
    source.X[:, 0] = 2.0
    more = pd.concat([table(), pd.DataFrame({"source": ["g1", "nobody"], "target": ["nowhere", "p1"]})])
    found, _ = mapped(modalities, more)
    assert np.isfinite(found.toarray()).all()
    assert not found.toarray()[:, 0].any()
    assert found.toarray()[1, 1] > 0


def test_names_that_match_nothing_are_shown(modalities):
    with pytest.raises(FeatureError, match=r"None of 6 links.*6 name a feature.*'rna'.*0 name.*'protein'.*'q0'.*'p0'"):
        mapped(modalities, table().assign(target=[f"q{i}" for i in range(6)]))


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ("gene", "no column of var"),
        (pd.DataFrame({"source": ["g0"]}), "lacks column 'target'"),
        (sp.csr_matrix((6, 20)), r"shape \(6, 20\); expected \(20, 6\).*Transpose"),
        (sp.csr_matrix((5, 5)), r"expected \(20, 6\)"),
        (np.ones((20, 6)), "is a ndarray"),
        (table(weight=[0.0] * 6), "All 6 links have weight 0"),
        (table(weight=[1, 1, np.nan, 1, np.inf, "x"]), "3 of 6 links have no finite weight"),
    ],
)
def test_other_forms_are_refused(modalities, links, message):
    with pytest.raises(FeatureError, match=message):
        read_links(links, *modalities)
