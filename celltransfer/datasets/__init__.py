"""Co-assayed single-cell datasets with checked downloads, simulated ones with known truth, images, a table, and meshes.

Every set of cells is a :class:`mudata.MuData` whose labels, split and condition columns stand under the same name in
``mdata.obs`` and in the ``.obs`` of each modality; sparse matrices are CSR ``float32``; counts are whole numbers.
``mdata.uns["celltransfer_dataset"]`` says in plain strings which modalities and columns are meant:
``name``, ``source``, ``target``, ``labels``, ``condition``, ``split``, ``licence``, ... (empty where there is none).

Every image set is an :class:`anndata.AnnData` with one row of ``uint8`` pixels for each image, row by row of the
image: ``X`` of shape ``(n_obs, height * width)``, ``obs["label"]``, ``obs["split"]`` where one is published,
``uns["image_shape"]`` (height, width) and ``uns["max_value"]``, the value of white.
A table is an AnnData, too; so is a mesh, with one row for each vertex and the triangles in ``uns["faces"]``.

Files come from ``settings.data_mirror``, then the cache in ``settings.cache_dir``, then the network, and are
always checked against the hash in the registry (where none of the upstream file is known, its content is checked
instead). A built set of cells is cached as ``.h5mu``.

>>> import celltransfer as ct
>>> ct.datasets.list().set_index("name").loc["a549_scicar", "modalities"]
'rna, atac'
>>> mdata = ct.datasets.simulate(n_obs=100)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from celltransfer.datasets.builders import pbmc68k_panels
    from celltransfer.datasets.images import digits
    from celltransfer.datasets.simulation import simulate
    from celltransfer.datasets.unpairing import unpair

__all__ = [
    "a549_scicar",
    "a549_scicar_peaks",
    "armadillo",
    "available",
    "bunny",
    "digits",
    "faces_utk32",
    "fashion_mnist",
    "list",
    "load",
    "mnist",
    "pbmc10k_cite",
    "pbmc68k_panels",
    "scgem",
    "simulate",
    "snare_cortex",
    "unpair",
    "usps",
    "weather_hannover",
]

# Imported on first use: their modules need numpy, pandas and anndata.
_LAZY = {
    "simulate": "celltransfer.datasets.simulation",
    "pbmc68k_panels": "celltransfer.datasets.builders",
    "digits": "celltransfer.datasets.images",
    "unpair": "celltransfer.datasets.unpairing",
}


def list() -> pd.DataFrame:
    """All datasets, one row each.

    Returns
    -------
    Table with columns ``name``, ``kind`` (cells, images, table or mesh), ``title``, ``assay``, ``modalities``,
    ``n_obs``, ``pairing``, ``split``, ``labels``, ``condition``, ``licence``, ``citation`` and ``available`` (loads
    without the network). Only cells have ``assay``, ``pairing`` and ``condition``.
    """
    import pandas as pd

    from celltransfer.datasets.registry import entries

    columns = "name kind title assay modalities n_obs pairing split labels condition licence citation".split()
    table = pd.DataFrame([{column: getattr(entry, column) for column in columns} for entry in entries().values()])
    table["modalities"] = table["modalities"].map(", ".join)
    table["available"] = [available(name) for name in table["name"]]
    return table


def available(name: str) -> bool:
    """Whether a dataset loads without the network: generated, cached, or in the mirror.

    Raises
    ------
    DatasetError
        There is no dataset of this name.
    """
    from celltransfer.datasets import fetch, registry

    return fetch.is_local(registry.get(name))


def load(name: str, **kwargs: Any) -> MuData | AnnData:
    """Load a dataset by name: cells as MuData, all else as AnnData.

    Parameters
    ----------
    name
        A name from :func:`list`.
    kwargs
        Arguments of a generated dataset, e.g. ``n_obs`` of ``"simulate"``. The others take none.

    Raises
    ------
    DatasetError
        The name is unknown, or the files are neither cached, nor in the mirror, nor to be downloaded, or have a
        wrong hash.
    ConfigError
        Arguments are passed that the dataset does not take.
    """
    from celltransfer.datasets import fetch, registry

    return fetch.load(registry.get(name), **kwargs)


def a549_scicar() -> MuData:
    """sci-CAR: 1,874 A549 cells after 0, 1 and 3 h of dexamethasone, with the published test split.

    ``rna`` 2,613 genes and ``atac`` 815 features (most likely totals per transcription factor motif, not peaks), both
    integer counts. ``obs``: ``treatment_time`` (0, 1, 3), ``split`` (1,534 train, 340 test), ``rna_total``,
    ``atac_total``. ``rna.var["named"]`` marks the 1,014 genes whose name was recovered; ``var["source_index"]`` is the
    upstream row. 12 cells have no ATAC count.

    References
    ----------
    Cao et al. 2018, Science 361:1380. Matrices and split: Yang et al. 2021, Nature Communications 12:31.
    """
    return load("a549_scicar")


def a549_scicar_peaks() -> MuData:
    """sci-CAR: 2,641 A549 cells of the same experiment with 1,185 named genes and 52,761 peaks (hg19).

    Upstream holds ``log1p(1e4 c / T)``; the integer counts ``c`` and library sizes ``T`` are recovered exactly.
    ``obs``: ``treatment_time``, ``split`` (train and test as in :func:`a549_scicar`, ``extra`` for cells outside it),
    ``rna_library_size`` (over all genes), ``atac_library_size``. ``atac.var``: ``chrom``, ``start``, ``end``.
    ATAC counts are mostly even, being read ends.

    References
    ----------
    Cao et al. 2018, Science 361:1380. Matrices: Jin, Zhang & Nie 2020, Genome Biology 21:25.
    """
    return load("a549_scicar_peaks")


def snare_cortex() -> MuData:
    """SNARE-seq: 10,309 nuclei of the adult mouse cortex, 1,677 genes and 25,734 peaks (mm10).

    ``obs``: ``cell_type`` (15, of which ``Mis`` is a mixed cluster), ``cell_type_fine`` (23), ``batch`` (12),
    ``rna_total``, ``atac_total``. ``atac.var``: ``chrom``, ``start``, ``end`` and ``linked_gene``, the one gene each
    peak is tied to; ``mdata.uns["feature_links"]`` holds the same as a CSR matrix of zeros and ones, shape
    (25,734 peaks, 1,677 genes). Both are feature links: ``celltransfer.fit(..., links="linked_gene")``.

    References
    ----------
    Chen, Lake & Zhang 2019, Nature Biotechnology 37:1452. Subset: Zhang et al. 2023 (scMoMaT).
    """
    return load("snare_cortex")


def scgem() -> MuData:
    """sc-GEM: 177 cells from fibroblast to iPS, 34 genes and 27 methylation loci.

    ``rna`` is dense log expression from qPCR (not counts), ``methylation`` binary. ``obs``: ``cell_type`` (BJ, d8,
    d16T+, d24T+, iPS) and ``label``, its number 1 to 5 in that order.

    References
    ----------
    Cheow et al. 2016, Nature Methods 13:833. Matrices: Cao, Hong & Wan 2022 (Pamona).
    """
    return load("scgem")


def pbmc10k_cite() -> MuData:
    """CITE-seq: 5,994 PBMCs, 4,000 genes and 14 surface proteins, all counts.

    ``obs``: ``cell_type`` (7; they follow protein gates closely), ``source_label`` (1 to 7, the number upstream),
    ``rna_total``, ``protein_total``. ``protein.X`` is dense.

    References
    ----------
    10x Genomics 2018, pbmc_10k_protein_v3. Counts: Gayoso et al. 2021 (totalVI). Labels: Lin et al. 2022 (scMDC).
    """
    return load("pbmc10k_cite")


def mnist() -> AnnData:
    """MNIST: the 10,000 official test images of handwritten digits, 28 x 28 pixels; the training images are left out.

    ``obs["label"]``: the digit. The first 5,000 images are cleaner than the last 5,000: shuffle before splitting.

    Licence CC BY-SA 3.0, as usually given.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner 1998, Proceedings of the IEEE 86:2278.
    """
    return load("mnist")


def usps() -> AnnData:
    """USPS: 9,298 digits from envelopes, 16 x 16 pixels.

    ``obs["label"]``: the digit; ``obs["split"]``: 7,291 train, 2,007 test, as published. Upstream holds shades from 0
    to 1, rounded here to 256 of them.

    No licence is stated; research data that are widely redistributed.

    References
    ----------
    Hull 1994, IEEE Transactions on Pattern Analysis and Machine Intelligence 16:550.
    """
    return load("usps")


def faces_utk32() -> AnnData:
    """Faces: 2,000 women and 1,892 men of 18 to 60 years from UTKFace, 32 x 32 grey pixels.

    ``obs``: ``label`` (1 is male), ``sex``, ``age`` and ``split`` (3,092 train, 800 test, random).

    Non-commercial research only, and not to be published: nothing is downloaded. The prepared ``faces_utk32.npz`` has
    to stand beside the folder that ``settings.data_mirror`` names.

    References
    ----------
    Zhang, Song & Qi 2017, CVPR, arXiv:1702.08423.
    """
    return load("faces_utk32")


def fashion_mnist() -> AnnData:
    """Fashion-MNIST: the 18,000 training shoes and all 10,000 test images of clothing, 28 x 28 pixels.

    ``obs``: ``label``, ``class_name`` and ``split`` as published. Shoes are the labels 5 (sandal), 7 (sneaker) and 9
    (ankle boot), 6,000 each for training and 1,000 each for testing; the other training images are left out.

    Licence MIT.

    References
    ----------
    Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    return load("fashion_mnist")


def weather_hannover() -> AnnData:
    """Weather at Hannover: 2,191 days from 2015-01-02 to 2020-12-31, 21 columns.

    ``obs``, the temperature in °C that was observed 2 m above the ground, and mean and standard deviation of an
    ensemble of forecasts for ten quantities: ``t2m`` temperature (°C), ``d2m`` dew point (°C), ``p`` pressure (Pa),
    ``sr`` radiation (J/m²), ``u10m`` and ``v10m`` wind to the east and north, ``ws10m`` its speed and ``wg10m`` gusts
    (m/s), ``r2m`` relative humidity and ``tcc`` cloud cover (0 to 1). ``var``: ``quantity``, ``statistic``. Rows are
    named by date; ``obs``: ``year``, ``day_of_year``.

    References
    ----------
    Jobst, Möller & Groß 2023, Zenodo 8127734; the station is an example of their R package gamvinereg.
    """
    return load("weather_hannover")


def bunny() -> AnnData:
    """The Stanford bunny: 3,485 vertices and 6,966 triangles.

    ``X``: the coordinates ``x``, ``y`` (upwards) and ``z`` of the vertices; ``uns["faces"]``: three rows for each
    triangle.

    Free for research with credit; no commercial use without permission of Stanford.

    References
    ----------
    Turk & Levoy 1994, SIGGRAPH: 311-318. Stanford 3D Scanning Repository; mesh from libigl's tutorial data.
    """
    return load("bunny")


def armadillo() -> AnnData:
    """The Stanford armadillo, made coarser: 4,002 vertices and 8,000 triangles, a closed surface.

    As :func:`bunny`. The upstream mesh has 43,243 vertices; only its prepared form, ``armadillo.off`` beside the
    mirror, is read.

    Free for research with credit; no commercial use without permission of Stanford.

    References
    ----------
    Krishnamurthy & Levoy 1996, SIGGRAPH: 313-324. Stanford 3D Scanning Repository; mesh from libigl's tutorial data.
    """
    return load("armadillo")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        # Kept, because importing a submodule sets an attribute of its name, which may be the function's.
        globals()[name] = getattr(import_module(_LAZY[name]), name)
        return globals()[name]
    raise AttributeError(f"module 'celltransfer.datasets' has no attribute {name!r}")


def __dir__() -> Any:
    return sorted({*globals(), *__all__})
