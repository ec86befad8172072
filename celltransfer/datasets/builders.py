"""From upstream bytes to MuData, one function per dataset.

A builder takes the verified local path of each file of its registry entry, by file name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celltransfer.datasets import registry
from celltransfer.datasets.assemble import assemble, counts, totals
from celltransfer.datasets.readers import (
    invert_log_normalisation,
    read_feature_table,
    read_lines,
    read_rda,
    read_string_list,
)
from celltransfer.errors import DatasetError

Files = Mapping[str, Path]

# data_A549.rda divides the log-normalised ATAC values by this one number.
_SCAI_ATAC_SCALE = 1.44055048
_SCGEM_STAGES = ("BJ", "d8", "d16T+", "d24T+", "iPS")
# The order of the panel.
_PBMC_PROTEINS = "CD3 CD4 CD8a CD14 CD15 CD16 CD56 CD19 CD25 CD45RA CD45RO PD-1 TIGIT CD127".split()

if TYPE_CHECKING:
    from mudata import MuData
# scMDC gives numbers; the names follow from protein medians and RNA markers (MS4A1, LYZ, FCGR3A, CD8A, FCER1A, NKG7).
_PBMC_LABELS = {1: "B", 2: "CD14+ Monocyte", 3: "CD16+ Monocyte", 4: "CD4 T", 5: "CD8 T", 6: "DC", 7: "NK"}


def _adata(
    matrix: sparse.spmatrix | np.ndarray, cells: Iterable[str], features: pd.DataFrame | Iterable[str]
) -> AnnData:
    var = features if isinstance(features, pd.DataFrame) else pd.DataFrame(index=pd.Index(features))
    return AnnData(matrix, obs=pd.DataFrame(index=pd.Index(cells, name="cell")), var=var)


def _published_split(files: Files) -> pd.Series:
    """``train`` or ``test`` by barcode, as published for the sci-CAR benchmark."""
    cells = read_string_list(files["shared_cells.pkl"])
    split = pd.Series("train", index=pd.Index(cells, name="cell"))
    split.iloc[[*registry.get("a549_scicar").test_indices]] = "test"
    return split


def a549_scicar(files: Files) -> MuData:
    """Build :func:`celltransfer.datasets.a549_scicar`."""
    split = _published_split(files)
    table = pd.read_csv(files["GSM3271040_RNA_sciCAR_A549_cell.txt"], index_col="sample")
    genes = counts(sparse.load_npz(files["diff_expr_shared_cells.npz"]).T)
    motifs = counts(sparse.load_npz(files["diff_atac_shared_cells.npz"]).T)
    motif_var = pd.DataFrame(
        {"source_index": np.arange(motifs.shape[1])}, index=[f"tf_motif_{i:04d}" for i in range(motifs.shape[1])]
    )
    rna = _adata(genes, split.index, _name_genes(genes, split.index, _scai(files["data_A549.rda"])[0]))
    atac = _adata(motifs, split.index, motif_var)
    obs = pd.DataFrame(
        {
            "treatment_time": table.loc[split.index, "treatment_time"].astype(np.int64),
            "split": split,
            "rna_total": totals(rna),
            "atac_total": totals(atac),
        },
        index=split.index,
    )
    return assemble("a549_scicar", {"rna": rna, "atac": atac}, obs)


def _name_genes(genes: sparse.csr_matrix, cells: pd.Index, named: AnnData) -> pd.DataFrame:
    """Name each gene whose counts equal those of exactly one named gene in all cells that both matrices have."""
    shared = cells.intersection(named.obs_names)
    ours = _column_bytes(genes[cells.get_indexer(shared)])
    theirs = _column_bytes(named.X[named.obs_names.get_indexer(shared)])
    ours_seen, theirs_seen = Counter(ours), Counter(theirs)
    names = dict(zip(theirs, named.var_names, strict=True))
    known = np.array([ours_seen[column] == 1 and theirs_seen[column] == 1 for column in ours])
    index = [names[column] if hit else f"gene_{i:04d}" for i, (column, hit) in enumerate(zip(ours, known, strict=True))]
    return pd.DataFrame({"named": known, "source_index": np.arange(len(ours))}, index=index)


def _column_bytes(matrix: sparse.csr_matrix) -> list[bytes]:
    return [column.tobytes() for column in np.ascontiguousarray(matrix.toarray().T.astype(np.int32))]


def _scai(path: Path) -> tuple[AnnData, AnnData, pd.DataFrame]:
    """Counts of genes and peaks, and the annotation, from scAI's normalised data."""
    data = read_rda(path)["data_A549"]
    rna, rna_size = _scai_counts(data["data"]["RNA"], 1.0)
    atac, atac_size = _scai_counts(data["data"]["ATAC"], _SCAI_ATAC_SCALE)
    obs = pd.DataFrame(
        {
            "treatment_time": data["labels"]["Time"].to_numpy().astype(np.int64),
            "rna_library_size": rna_size,
            "atac_library_size": atac_size,
        },
        index=pd.Index([_barcode(name) for name in data["labels"].index], name="cell"),
    )
    if not (obs.index.equals(rna.obs_names) and obs.index.equals(atac.obs_names)):
        raise DatasetError(f"{path}: RNA, ATAC and labels must list the same cells in the same order.")
    return rna, atac, obs


def _scai_counts(parts: tuple[sparse.csc_matrix, np.ndarray, np.ndarray], scale: float) -> tuple[AnnData, np.ndarray]:
    matrix, features, cells = parts
    whole, size = invert_log_normalisation(matrix.T.tocsr(), scale)
    return _adata(counts(whole), [_barcode(cell) for cell in cells], [str(feature) for feature in features]), size


def _barcode(name: str) -> str:
    """``sci_RNA_A_001_TCTCTCATCC``, as R has it, to ``sci-RNA-A-001.TCTCTCATCC``, as GEO has it."""
    well, _, barcode = name.rpartition("_")
    return f"{well.replace('_', '-')}.{barcode}"


def a549_scicar_peaks(files: Files) -> MuData:
    """Build :func:`celltransfer.datasets.a549_scicar_peaks`."""
    rna, atac, obs = _scai(files["data_A549.rda"])
    split = _published_split(files).reindex(obs.index, fill_value="extra")
    obs.insert(1, "split", split)
    atac.var = _peak_positions(atac.var_names.str.rsplit("-", n=2, expand=True), atac.var_names)
    return assemble("a549_scicar_peaks", {"rna": rna, "atac": atac}, obs)


def _peak_positions(parts: pd.MultiIndex, names: pd.Index) -> pd.DataFrame:
    chrom, start, end = (parts.get_level_values(level) for level in range(3))
    return pd.DataFrame(
        {"chrom": pd.Categorical(chrom), "start": start.astype(np.int64), "end": end.astype(np.int64)}, index=names
    )


def snare_cortex(files: Files) -> MuData:
    """Build :func:`celltransfer.datasets.snare_cortex`."""
    meta = pd.read_csv(files["meta_c1.csv"], index_col=0).rename_axis("cell")
    genes = pd.Index(read_lines(files["genes.txt"]))
    parts = pd.Index(read_lines(files["regions.txt"])).str.rsplit("_", n=2, expand=True)
    links = counts(sparse.load_npz(files["GxR.npz"]).T)
    if not (np.diff(links.indptr) == 1).all():
        raise DatasetError(f"{files['GxR.npz']}: every peak must be linked to exactly one gene.")
    peaks = _peak_positions(parts, pd.Index([f"{chrom}:{start}-{end}" for chrom, start, end in parts]))
    peaks["linked_gene"] = pd.Categorical(genes[links.indices])
    rna = _adata(counts(sparse.load_npz(files["GxC1.npz"]).T), meta.index, genes)
    atac = _adata(counts(sparse.load_npz(files["RxC1.npz"]).T), meta.index, peaks)
    columns = {"cluster (remapped)": "cell_type", "Ident": "cell_type_fine", "Batch": "batch"}
    obs = meta.rename(columns=columns)[[*columns.values()]]
    obs["rna_total"], obs["atac_total"] = totals(rna), totals(atac)
    return assemble("snare_cortex", {"rna": rna, "atac": atac}, obs, {"feature_links": links})


def scgem(files: Files) -> MuData:
    """Build :func:`celltransfer.datasets.scgem`."""
    expression = np.loadtxt(files["expression.txt"], dtype=np.float64).astype(np.float32)
    methylation = counts(np.loadtxt(files["methylation.txt"]))
    stage = np.loadtxt(files["expression_type.txt"]).astype(np.int64)
    cells = pd.Index([f"scGEM_{i:03d}" for i in range(len(stage))], name="cell")
    rna = _adata(expression, cells, read_lines(files["GeneName_experssion.txt"]))
    loci = _adata(methylation, cells, read_lines(files["GeneName_methylation.txt"]))
    obs = pd.DataFrame({"cell_type": np.array(_SCGEM_STAGES)[stage], "label": stage + 1}, index=cells)
    return assemble("scgem", {"rna": rna, "methylation": loci}, obs)


def pbmc10k_cite(files: Files) -> MuData:
    """Build :func:`celltransfer.datasets.pbmc10k_cite`."""
    genes, cells, gene_names = read_feature_table(files["pbmc10k_harmo_rna.csv.gz"])
    proteins, protein_cells, protein_names = read_feature_table(files["pbmc10k_harmo_pro.csv.gz"])
    if not cells.equals(protein_cells):
        raise DatasetError("pbmc10k_cite: RNA and protein tables must list the same cells in the same order.")
    order = protein_names.str.removesuffix("_TotalSeqB").get_indexer(pd.Index(_PBMC_PROTEINS))
    levels = proteins.toarray()[:, order]
    labels = _pbmc_labels(files["10XPBMC_filtered_1000G.H5"], levels, cells)
    rows = cells.get_indexer(labels.index)
    rna = _adata(counts(genes[rows]), labels.index, gene_names)
    protein = _adata(levels[rows].astype(np.float32), labels.index, _PBMC_PROTEINS)
    obs = pd.DataFrame(
        {
            "cell_type": labels.map(_PBMC_LABELS),
            "source_label": labels,
            "rna_total": totals(rna),
            "protein_total": totals(protein),
        }
    )
    return assemble("pbmc10k_cite", {"rna": rna, "protein": protein}, obs)


def _pbmc_labels(path: Path, levels: np.ndarray, cells: pd.Index) -> pd.Series:
    """Number of the cell type by barcode, for the cells that have one, in the order of ``cells``.

    ``path`` is scMDC's file, or the prepared dataset that may stand in for it.
    """
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as file:
        if "Y" not in file:
            barcodes, numbers = file["obs/cell"].asstr()[:], file["obs/source_label"][:]
            return pd.Series(numbers.astype(np.int64), index=pd.Index(barcodes, name="cell"))
        theirs, numbers = file["X2"][:], np.ravel(file["Y"][:])
    rows = match_rows(theirs, levels)
    return pd.Series(numbers.astype(np.int64), index=pd.Index(cells[rows], name="cell"))


def match_rows(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Row of ``reference`` that holds the same values as each row of ``query``, whatever the order of the columns.

    Parameters
    ----------
    query
        Shape ``(m, p)``: a part of the rows of ``reference``, in the same order, its columns permuted alike.
    reference
        Shape ``(n, p)``, rows distinct as multisets.

    Returns
    -------
    Increasing row numbers, shape ``(m,)``.

    Raises
    ------
    DatasetError
        A row has no match, or the matches are ambiguous or out of order.
    """
    keys = [row.tobytes() for row in np.sort(np.asarray(reference, dtype=np.int64), axis=1)]
    position = {key: i for i, key in enumerate(keys)}
    wanted = [row.tobytes() for row in np.sort(np.asarray(query, dtype=np.int64), axis=1)]
    rows = np.array([position.get(key, -1) for key in wanted])
    if len(position) < len(keys) or (rows < 0).any() or (np.diff(rows) <= 0).any():
        raise DatasetError(
            "The labelled cells cannot be matched to the measured ones: counts differ, repeat or are out of order."
        )
    return rows


def pbmc68k_panels(seed: int = 0) -> MuData:
    """700 PBMCs whose genes are split at random into two panels: a co-assayed pair that needs no download.

    The values are scanpy's ``pbmc68k_reduced().raw``: 765 genes, log-normalised (its ``X`` is scaled, raw counts are
    not included), so the recipe of both modalities is ``"none"``. As both panels come from one transcriptome,
    translation is easier than between assays. ``obs``: ``bulk_labels`` (10 types) and scanpy's other columns.

    Parameters
    ----------
    seed
        Decides which genes go to ``panel_a`` (383) and which to ``panel_b`` (382).

    References
    ----------
    Zheng et al. 2017, Nature Communications 8:14049.
    """
    import scanpy as sc

    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(adata.n_vars)[: (adata.n_vars + 1) // 2]] = True
    obs = adata.obs.rename_axis("cell")
    panels = {
        name: _adata(counts(adata.X[:, mask]), obs.index, adata.var_names[mask])
        for name, mask in (("panel_a", chosen), ("panel_b", ~chosen))
    }
    return assemble("pbmc68k_panels", panels, obs)
