"""Hide the pairing of co-assayed cells, let a method translate, and score it where the truth is known.

>>> task = make_task(mdata, "rna", "atac", n_anchors=10)  # doctest: +SKIP
>>> model = ct.fit(task.mdata, source="rna", target="atac", anchors=task.anchors)  # doctest: +SKIP
>>> score(task, model.translate(task.source_test)).values["foscttm"]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from celltransfer.data.cells import check_modality, check_mudata, obs_column
from celltransfer.errors import ConfigError, FeatureError, InputError
from celltransfer.metrics import scores
from celltransfer.metrics.controls import CONTROLS, ControlData, without_depth
from celltransfer.metrics.space import ScoringSpace, centred
from celltransfer.metrics.splits import Regime, bare, draw_roles, hide, renamed, split_cells
from celltransfer.pp.transforms import CLR, Identity, LogNormalize, Normalizer, TfIdf, totals

if TYPE_CHECKING:
    from celltransfer.data.pair import Matrix

Prediction: TypeAlias = "AnnData | tuple[Any, Any]"
FitPredict = Callable[[mudata.MuData, pd.DataFrame, AnnData], Any]

SOURCE_COMPONENTS = 50
_SUFFIXES: dict[scores.Metric, str] = {"cosine": "", "euclidean": "_euclidean", "csls": "_csls"}
_NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "rna": lambda: LogNormalize(target_sum=1e4),
    "atac": lambda: TfIdf(flavor="muon", scale_factor=1e4),
    "protein": lambda: CLR(axis="cell"),
    "methylation": Identity,
    "none": Identity,
}


@dataclass(frozen=True)
class Scores:
    """Named scores.

    Attributes
    ----------
    values
        One figure per score; NaN where it is not defined.
    per_cell
        The values whose mean a score is, shape (n,), for `celltransfer.metrics.bootstrap`.
    per_feature
        The values whose mean a score is, shape (number of predicted features,), in the order of the prediction.
    """

    values: dict[str, float]
    per_cell: dict[str, np.ndarray] = field(repr=False)
    per_feature: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]


@dataclass(frozen=True, eq=False)
class Task:
    """One translation problem with a known answer. A method may see `mdata`, `anchors` and `source_test` only.

    Attributes
    ----------
    source, target
        Names of the modalities.
    regime
        ``"disjoint"`` or ``"shared"``, see `make_task`.
    mdata
        Training cells. Target cells have new names, rows are shuffled in each modality on its own, and obs holds
        the condition alone.
    anchors
        The revealed pairs: table of ``source_id`` and ``target_id``.
    source_test
        Source cells to translate.
    truth
        Their true target cells, in the same order. For the scorer only.
    train_pairs
        Source and target of all training cells, matched rows. For the ceiling and the label controls only.
    condition
        Name of the condition column, or ``None``.
    labels
        Labels of the evaluation cells, or ``None``.
    target_names
        Original barcode of every target cell in `mdata`. For the scorer only.
    cell_labels
        Label of every cell by original barcode, or ``None``. For the label controls only.
    normalizers, n_components
        How each modality is normalised (made afresh and fitted by the scorer), and the dimension of the scoring space.
    space_cells
        Target cells the scorer's normalisation and space are fitted on; ``None``: those of `train_pairs`.
    """

    source: str
    target: str
    regime: Regime
    mdata: mudata.MuData
    anchors: pd.DataFrame
    source_test: AnnData
    truth: AnnData = field(repr=False)
    train_pairs: tuple[AnnData, AnnData] = field(repr=False)
    condition: str | None
    labels: np.ndarray | None = field(repr=False)
    target_names: pd.Series = field(repr=False)
    cell_labels: pd.Series | None = field(repr=False)
    normalizers: Mapping[str, Callable[[], Normalizer]]
    n_components: int = 20
    space_cells: AnnData | None = field(default=None, repr=False)

    @property
    def conditions(self) -> np.ndarray | None:
        """Conditions of the evaluation cells, shape (n,)."""
        return None if self.condition is None else self.source_test.obs[self.condition].to_numpy()

    @cached_property
    def normalizer(self) -> Normalizer:
        """The scorer's own normalisation of the target, fitted on training cells."""
        return self.normalizers[self.target]().fit(self._training_target)

    @cached_property
    def space(self) -> ScoringSpace:
        """The scoring space, fitted on the target side of all training cells."""
        return ScoringSpace.fit(self.normalizer.transform(self._training_target), self.n_components)

    def log_depth(self, modality: str, adata: AnnData) -> np.ndarray | None:
        """Log library sizes of cells of one modality, shape (n,); ``None`` where the values are no counts."""
        if not isinstance(self.normalizers[modality](), LogNormalize | TfIdf | CLR):
            return None
        return np.log1p(totals(_matrix(adata)))

    @property
    def _training_target(self) -> Matrix:
        return _matrix(self.train_pairs[1] if self.space_cells is None else self.space_cells)

    @cached_property
    def truth_normalised(self) -> Matrix:
        """True target cells on the normalised scale, shape (n, p)."""
        return self.normalizer.transform(_matrix(self.truth))

    @cached_property
    def truth_points(self) -> np.ndarray:
        """True target cells in the scoring space, shape (n, d)."""
        return self.space.transform(self.truth_normalised)

    @cached_property
    def control_data(self) -> ControlData:
        """What the controls look at."""
        return _control_data(self)


def make_task(
    mdata: mudata.MuData,
    source: str,
    target: str,
    *,
    regime: Regime = "disjoint",
    n_anchors: int = 10,
    seed: int = 0,
    part: Literal["dev", "test"] = "test",
    split: str | None = None,
    transductive: bool = False,
    condition: str | None = None,
    labels: str | None = None,
    kinds: Mapping[str, str] | None = None,
    n_components: int = 20,
) -> Task:
    """Turn co-assayed cells into a translation problem with a hidden answer.

    Cells are split into train and test by the obs column `split`, or 75 to 25 by a draw that depends on the
    barcodes alone. ``part="dev"``, for all choices, evaluates on a fixed fifth of the training cells and trains on
    the rest; ``part="test"`` evaluates on test and trains on all training cells. The seed draws anchors and roles:
    with one seed, fewer anchors are a subset of more.

    Parameters
    ----------
    mdata
        Co-assayed cells; those measured in one modality only are left out. Not modified.
    source, target
        Modalities to translate from and to.
    regime
        ``"disjoint"``: half of the training cells give their source, the other half their target, and the anchors
        come from outside both. ``"shared"``: all training cells give both, shuffled; never compare the two.
    n_anchors
        Number of pairs that are revealed.
    part
        What is scored.
    split
        obs column with the values train and test (others are left out); ``None``: ``"split"`` where there is one.
    transductive
        Score the training cells themselves, anchors left out, and train on every cell; for tiny data, and
        ``regime="shared"`` only. `part` and `split` play no role.
    condition
        obs column that methods may use.
    labels
        obs column for the label scores and controls; methods never see it.
    kinds
        Normalisation per modality: rna, atac, protein, methylation or none. Default: by the modality's name, and
        none where the values are not counts.
    n_components
        Dimensions of the scoring space, at most; fixed per dataset, fewer where features are few and noisy.
    """
    check_mudata(mdata)
    sides = check_modality(mdata, source), check_modality(mdata, target)
    if regime not in ("disjoint", "shared"):
        raise ConfigError(f"regime={regime!r} is not known; choose 'disjoint' or 'shared'.")
    if transductive and regime != "shared":
        raise ConfigError("transductive=True needs regime='shared': it scores training cells of both modalities.")
    barcodes = np.sort(sides[0].obs_names.intersection(sides[1].obs_names).to_numpy(dtype=str))
    if transductive:
        pool = evaluated = barcodes
    else:
        pool, evaluated = split_cells(mdata, source, barcodes, split, part)
    roles = draw_roles(pool, regime, n_anchors, seed)
    if transductive:
        evaluated = np.setdiff1d(evaluated, roles["anchors"])
    columns = {condition: True, labels: False}
    obs = pd.DataFrame({c: obs_column(mdata, source, c).reindex(barcodes) for c in columns if c}, index=barcodes)
    frames = [bare(adata, barcodes, obs[[condition] if condition else []]) for adata in sides]
    hidden, anchors, target_names = hide(frames, (source, target), roles, seed)
    return Task(
        source=source,
        target=target,
        regime=regime,
        mdata=hidden,
        anchors=anchors,
        source_test=frames[0][evaluated].copy(),
        truth=frames[1][evaluated].copy(),
        train_pairs=(frames[0][pool].copy(), frames[1][pool].copy()),
        condition=condition,
        labels=obs.loc[evaluated, labels].to_numpy(dtype=object) if labels else None,
        target_names=target_names,
        cell_labels=obs[labels].astype(object) if labels else None,
        normalizers={
            name: _normalizer(name, adata, kinds) for name, adata in zip((source, target), sides, strict=True)
        },
        n_components=n_components,
    )


def score(task: Task, prediction: Prediction, *, spearman: bool = True) -> Scores:
    """Score translated cells on the target's normalised scale.

    Parameters
    ----------
    task
        The problem.
    prediction
        AnnData with the cells of ``task.source_test`` and target features in ``X``; or a matrix with rows in that
        order, and the names of its features. Features left out count as their training mean.
    spearman
        Also rank correlations, which take most of the time where features are many.
    """
    matrix, features = _aligned(task, prediction)
    result = score_points(task, task.space.transform(matrix, features))
    truth = task.truth_normalised[:, features]
    per_cell = result.per_cell | {"mse": scores.mse_per_cell(matrix, truth)}
    per_feature = {}
    methods: list[Literal["pearson", "spearman"]] = ["pearson", "spearman"] if spearman else ["pearson"]
    for method in methods:
        per_cell[f"{method}_per_cell"] = scores.correlation_per_cell(matrix, truth, method)
        per_feature[f"{method}_per_feature"] = scores.correlation_per_feature(matrix, truth, method)
    means = {name: _mean(values) for name, values in (per_cell | per_feature).items()}
    return Scores(result.values | means, per_cell, per_feature)


def score_points(task: Task, points: np.ndarray) -> Scores:
    """Score translated cells that are already in the scoring space, shape (n, d).

    They are centred here; ``bias`` is what centring takes away, root mean square over the dimensions: how far the
    mean translated cell lies from the mean true cell, in standard deviations of the training cells.
    """
    truth = task.truth_points
    points = np.asarray(points, dtype=np.float64)
    if points.shape != truth.shape:
        raise InputError(f"The points have shape {points.shape}; the evaluation cells have {truth.shape}.")
    bias = np.sqrt(np.mean((points.mean(axis=0) - truth.mean(axis=0)) ** 2))
    points = centred(points)
    per_cell = dict(_per_cell(task, points, truth))
    values = {name: _mean(cells) for name, cells in per_cell.items()}
    values["bias"] = float(bias)
    values["energy_distance"] = scores.energy_distance(points, truth)
    values["classifier_auc"] = scores.classifier_auc(points, truth)
    return Scores(values, per_cell)


def control_table(task: Task, seed: int = 0) -> dict[str, Scores]:
    """Scores of every control that the task allows.

    ``pandas.DataFrame({name: scores.values for name, scores in control_table(task).items()}).T`` is the table.
    """
    points = {name: control(task.control_data, seed) for name, control in CONTROLS.items()}
    return {name: score_points(task, values) for name, values in points.items() if values is not None}


def leak_test(fit_predict: FitPredict, task: Task, seed: int = 0) -> bool:
    """Whether a method is blind to the names of the target cells, as it must be.

    The names of all non-anchor target cells are permuted and the arrays kept; the predictions must not change in a
    single bit. The method runs twice.

    Parameters
    ----------
    fit_predict
        ``(mdata, anchors, source_test) -> predictions``, shape (n, p), with its seeds fixed.
    """
    before = fit_predict(task.mdata, task.anchors, task.source_test)
    after = fit_predict(
        renamed(task.mdata, task.source, task.target, task.anchors, seed), task.anchors, task.source_test
    )
    before, after = _array(before), _array(after)
    return before.shape == after.shape and before.tobytes() == after.tobytes()


def _per_cell(task: Task, points: np.ndarray, truth: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and per-cell values of the scores that are means over cells."""
    for metric, suffix in _SUFFIXES.items():
        ranks, back = scores.mutual_ranks(points, truth, metric)
        forward, backward = scores.fraction_closer(ranks), scores.fraction_closer(back)
        yield f"foscttm{suffix}", (forward + backward) / 2
        if not suffix:
            yield "foscttm_source_to_target", forward
            yield "foscttm_target_to_source", backward
        for k in (10, 50):
            yield f"knn_accuracy{suffix}@{k}", scores.within_nearest(ranks, k)
            if not suffix:
                yield f"knn_accuracy_target_to_source@{k}", scores.within_nearest(back, k)
    ranks = scores.cmae_ranks(points, truth)
    for k in (10, 50):
        yield f"knn_accuracy_cmae@{k}", scores.within_nearest(ranks, k)
    depths = [task.log_depth(task.source, task.source_test), task.log_depth(task.target, task.truth)]
    known = [depth for depth in depths if depth is not None]
    if len(known) == len(depths):
        flat_points, flat_truth = (without_depth(values, *known) for values in (points, truth))
        yield "foscttm_depth_regressed", scores.foscttm_per_cell(flat_points, flat_truth).overall
    for name, groups in (("label", task.labels), ("condition", task.conditions)):
        if groups is not None:
            yield f"foscttm_within_{name}", scores.foscttm_within_per_cell(points, truth, groups)
    if task.labels is not None:
        yield "label_transfer_accuracy", scores.label_transfer_per_cell(points, truth, task.labels)


def _normalizer(name: str, adata: AnnData, kinds: Mapping[str, str] | None) -> Callable[[], Normalizer]:
    kind = (kinds or {}).get(name)
    if kind is None:
        values = _matrix(adata).data if sp.issparse(adata.X) else np.asarray(adata.X)
        kind = name if name in _NORMALIZERS and bool(np.all(values == np.rint(values))) else "none"
    if kind not in _NORMALIZERS:
        raise ConfigError(f"kinds[{name!r}]={kind!r} is not known; choose one of {', '.join(_NORMALIZERS)}.")
    return _NORMALIZERS[kind]


def _aligned(task: Task, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Predicted matrix in the order of the evaluation cells, and positions of its columns among the target features."""
    if isinstance(prediction, AnnData):
        rows = prediction.obs_names.get_indexer(task.source_test.obs_names)
        if (rows < 0).any() or prediction.n_obs != len(rows):
            raise InputError(
                f"The prediction has {prediction.n_obs} cells, {int((rows >= 0).sum())} of the {len(rows)} in "
                "`task.source_test`; it must hold exactly those."
            )
        prediction = prediction.X[rows], prediction.var_names
    matrix, names = prediction
    matrix = _array(matrix)
    if matrix.shape != (task.source_test.n_obs, len(names)):
        raise InputError(
            f"The prediction has shape {matrix.shape}; expected {task.source_test.n_obs} cells x {len(names)} features."
        )
    features = task.truth.var_names.get_indexer(pd.Index(names))
    if (features < 0).any() or len(np.unique(features)) != len(features):
        raise FeatureError(
            f"{int((features < 0).sum())} of {len(names)} predicted features are not in {task.target!r}, or some occur "
            "twice; predict target features by their names."
        )
    return matrix, features


def _control_data(task: Task) -> ControlData:
    x_pool, y_pool = task.mdata.mod[task.source], task.mdata.mod[task.target]
    normalizer = task.normalizers[task.source]().fit(_matrix(x_pool))
    x_space = ScoringSpace.fit(normalizer.transform(_matrix(x_pool)), SOURCE_COMPONENTS)

    def source_points(adata: AnnData) -> np.ndarray:
        return x_space.transform(normalizer.transform(_matrix(adata)))

    def target_points(adata: AnnData) -> np.ndarray:
        return task.space.transform(task.normalizer.transform(_matrix(adata)))

    pairs = task.train_pairs
    rows = pairs[0].obs_names.get_indexer(task.source_test.obs_names)
    sides = (x_pool, "source_id"), (y_pool, "target_id")
    anchors = np.column_stack([pool.obs_names.get_indexer(task.anchors[column]) for pool, column in sides])
    labels = task.cell_labels
    return ControlData(
        x=source_points(x_pool),
        y=target_points(y_pool),
        anchors=anchors[(anchors >= 0).all(axis=1)],
        x_eval=source_points(task.source_test),
        x_scale=x_space.scale,
        depth_x=task.log_depth(task.source, x_pool),
        depth_y=task.log_depth(task.target, y_pool),
        depth_eval=task.log_depth(task.source, task.source_test),
        pairs_x=source_points(pairs[0]),
        pairs_y=target_points(pairs[1]),
        eval_pairs=rows if (rows >= 0).all() else None,
        condition_y=None if task.condition is None else y_pool.obs[task.condition].to_numpy(),
        condition_eval=task.conditions,
        labels_x=None if labels is None else labels.reindex(x_pool.obs_names).to_numpy(dtype=object),
        labels_y=None if labels is None else labels.reindex(task.target_names[y_pool.obs_names]).to_numpy(dtype=object),
        labels_eval=task.labels,
    )


def _array(matrix: Matrix) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)


def _matrix(adata: AnnData) -> Matrix:
    x: Matrix = adata.X
    return sp.csr_matrix(x) if sp.issparse(x) else np.asarray(x)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
