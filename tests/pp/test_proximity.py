"""Links between features that lie near each other."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.errors import ConfigError, FeatureError
from celltransfer.pp import links_by_distance


def features(n, seed, prefix):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 50_000, n)
    chrom = rng.choice(["chr1", "chr2", f"only_{prefix}"], n)
    table = {"chrom": chrom, "start": start, "end": start + rng.integers(1, 8000, n)}
    return pd.DataFrame(table, index=[f"{prefix}{i}" for i in range(n)])


@pytest.mark.parametrize("reach", [0, 500, 5000])
def test_every_pair_within_reach_and_no_other(reach):
    genes, peaks = features(40, 0, "g"), features(60, 1, "p")
    expected = {}
    for gene, one in genes.iterrows():
        for peak, other in peaks.iterrows():
            gap = max(other.start - one.end, one.start - other.end, 0)
            if one.chrom == other.chrom and gap <= reach:
                expected[gene, peak] = gap
    links = links_by_distance(genes, peaks, max_distance=reach)
    assert {(row.source, row.target): row.distance for row in links.itertuples()} == expected


def test_features_without_a_position_have_no_links():
    genes, peaks = features(10, 0, "g").astype(object), features(10, 1, "p")
    genes.loc["g3", "start"] = None
    assert "g3" not in set(links_by_distance(genes, peaks, max_distance=10**6)["source"])
    assert links_by_distance(genes.iloc[:0], peaks).empty


def test_tables_without_positions_are_refused():
    genes = features(3, 0, "g")
    with pytest.raises(FeatureError, match="target table lacks the column 'end'"):
        links_by_distance(genes, genes.drop(columns="end"))
    with pytest.raises(ConfigError, match="max_distance=-1"):
        links_by_distance(genes, genes, max_distance=-1)
