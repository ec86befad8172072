"""`celltransfer.fit`: the door. It finds cells, anchors and recipes, and hands arrays to a translator."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from celltransfer import pp, translators
from celltransfer.data import cells
from celltransfer.data.anchors import Anchors, AnchorsLike, resolve_anchors
from celltransfer.data.pair import ModalityPair, dense
from celltransfer.errors import CelltransferWarning, ConditionError, ConfigError, ModalityError, VerdictWarning
from celltransfer.model import TransferModel
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status, Verdict
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Translator

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from celltransfer.pp import Recipe

logger = logging.getLogger("celltransfer")

# Refits for the verdict: as many as cost little, see `_judge`.
CHEAP_SECONDS, MANY_FOLDS, FEW_FOLDS = 0.5, 20, 4
# What the search for symmetries may take.
SEARCH_SECONDS = 3.0


def fit(
    mdata: MuData,
    *,
    source: str | None = None,
    target: str | None = None,
    anchors: AnchorsLike = None,
    method: str | Translator = "jacobian",
    conditions: str | Sequence[str] | None = None,
    recipes: Mapping[str, str | Recipe] | None = None,
    train: cells.CellSelection = None,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
    verdict: bool = True,
    **options: Any,
) -> TransferModel:
    """Learn to translate cells from one modality to another.

    Parameters
    ----------
    mdata
        Source and target cells. They may be different cells; those with the same barcode are co-assayed. Not changed.
    source, target
        Names of the modalities. With two modalities both may be left out: the first is translated to the second.
    anchors
        The co-assayed cells that training may use as pairs. ``None``: all co-assayed training cells. An integer: that
        many, drawn with `seed`. A boolean column of obs, a list of barcodes, a boolean mask over ``mdata.obs``, or a
        table with columns ``source_id`` and ``target_id`` for cells with different barcodes. Co-assayed cells that
        are not anchors are used as unpaired cells; their pairing is never seen and stays the truth for `report`.
    method
        Name of a translator (`celltransfer.translators.available`), or an unfitted one.
    conditions
        Obs columns known for every cell of both modalities without any pairing (treatment, batch, donor).
    recipes
        Preprocessing by modality: ``"rna"``, ``"atac"``, ``"protein"``, ``"methylation"``, ``"none"`` or a
        `celltransfer.pp.Recipe`. What is not named is found from the modality's name and values, and logged.
    train
        Training cells: a boolean obs column (or one that says "train"), a mask over ``mdata.obs``, or barcodes.
        Everything, recipes included, is fitted on them alone. ``None``: all cells.
    seed
        Seed of everything random. Global random states are left alone.
    device
        ``"auto"`` takes a CUDA device where there is one; or ``"cpu"``, ``"cuda:0"``, ``"mps"``. The same as the
        trainer's, which need not be given twice.
    trainer
        Limits (steps, seconds, batch size, checkpoints); ``None``: the method's defaults. Its `max_seconds` covers
        all that `fit` does.
    verdict
        Whether to judge the fit by refitting without some of the anchors: up to 20 times where a fit takes less than
        half a second, else up to 4 times, with a quarter of the training steps each.
    **options
        Options of the method.

    Returns
    -------
    TransferModel
        ``model.translate(mdata)`` writes the translation; ``model.verdict_`` says whether to believe it.

    Raises
    ------
    InputError
        The data cannot be used; the message names the modality, column or cell and what to do.
    ConfigError
        An unknown method or option.

    Warns
    -----
    VerdictWarning
        The evidence does not support the translation, or a method that is to make translated cells like target cells
        did not.
    CelltransferWarning
        Conditions are passed to a method whose fit ignores them, or occur in one modality only.

    Examples
    --------
    >>> import celltransfer as ct
    >>> mdata = ct.datasets.simulate(n_obs=300, n_genes=60, n_peaks=90, seed=0)
    >>> model = ct.fit(mdata, source="rna", target="atac", anchors=50, method="ridge")
    >>> model.translate(mdata)
    >>> mdata["atac_from_rna"].shape
    (300, 90)
    """
    trainer = _trainer(trainer, device)
    clock = Clock(trainer.max_seconds)
    cells.check_mudata(mdata)
    _check_arguments(seed, conditions, recipes)
    translator = _translator(method, options)
    named = source, target
    source, target = cells.choose_modalities(mdata, source, target)
    if None in named:
        logger.info("Translating %s -> %s.", source, target)
    sides = {name: cells.check_modality(mdata, name) for name in (source, target)}
    masks = {name: _train_mask(mdata, name, train) for name in sides}
    pairs = resolve_anchors(
        mdata, source, target, anchors, train_source=masks[source], train_target=masks[target], seed=seed
    )
    keys = (conditions,) if isinstance(conditions, str) else tuple(conditions or ())
    _check_recipe_names(recipes, list(mdata.mod))
    training = {name: cells.take(adata, masks[name]) for name, adata in sides.items()}
    fitted = {
        name: pp.resolve((recipes or {}).get(name, "auto"), name, adata).fit(adata) for name, adata in training.items()
    }
    if translator.equal_widths:
        _equal_widths(fitted, training)
    features = {name: recipe.transform(training[name]) for name, recipe in fitted.items()}
    levels, codes = _conditions(mdata, source, target, keys, masks)
    if keys and not translator.uses_conditions:
        _warn(f"method={translator.name!r} fits without conditions: only verdict and report look at {', '.join(keys)}.")
    pair = ModalityPair(
        features[source],
        features[target],
        _training_rows(pairs, masks[source], masks[target]),
        codes[0],
        codes[1],
        conditions=levels,
    )
    translator.fit_pair(pair, seed=seed, trainer=replace(trainer, max_seconds=clock.share(2 if verdict else 1)))
    model = TransferModel(source, target, fitted, translator, conditions=keys, levels=levels, anchors=pairs.to_frame())
    model.remember_training({name: adata.obs_names[masks[name]] for name, adata in sides.items()}, pair, seed)
    open_question = _unsettled(translator, pair, clock, seed)
    translator.result_.notes += open_question
    refits: list[tuple[Translator, np.ndarray]] = []
    try:
        translator.result_.verdict = _judge(translator, pair, trainer, clock, seed, refits) if verdict else _unjudged()
        if verdict and translator.tests_alignment:
            _add_alignment(translator, pair, clock, seed)
    except KeyboardInterrupt:  # the fit itself is complete
        translator.result_.verdict = Verdict("ambiguous", ["Interrupted while the fit was judged, so it is not."])
    translator.result_.verdict.reasons += open_question
    if translator.gives_distribution:
        _calibrate(model, pair, training[target], refits, seed)
    _tell(model)
    return model


def _check_arguments(seed: Any, conditions: Any, recipes: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed={seed!r}; expected a whole number, 0 or more.")
    keys = [conditions] if isinstance(conditions, str) else conditions
    if keys is not None and not (isinstance(keys, Sequence) and all(isinstance(key, str) for key in keys)):
        raise ConditionError(f"conditions={conditions!r}; expected the name of an obs column, or a list of names.")
    if recipes is not None and not isinstance(recipes, Mapping):
        raise ConfigError(f'recipes={recipes!r}; expected a mapping such as {{"rna": "rna"}}.')


def _trainer(trainer: Trainer | None, device: str) -> Trainer:
    """The trainer on the device that was asked for, here or there."""
    if trainer is not None and not isinstance(trainer, Trainer):
        raise ConfigError(f"trainer={trainer!r}; expected a celltransfer.train.Trainer.")
    trainer = trainer or Trainer()
    if device in ("auto", trainer.device):
        return trainer
    if trainer.device != "auto":
        raise ConfigError(f"device={device!r}, and the trainer says device={trainer.device!r}; give one of them.")
    return replace(trainer, device=device)


def _warn(message: str) -> None:
    warnings.warn(message, CelltransferWarning, stacklevel=3)


def _translator(method: str | Translator, options: dict[str, Any]) -> Translator:
    if isinstance(method, type):
        raise ConfigError(
            f"method={method.__name__} is a class; pass its name {getattr(method, 'name', '')!r}, or an instance."
        )
    if isinstance(method, Translator):
        if options:
            raise ConfigError(f"Options {sorted(options)} cannot be combined with a translator object; set them on it.")
        if translators.get(method.name) is not type(method):
            raise ConfigError(
                f"method= is a {type(method).__name__}, and the name {method.name!r} is that of "
                f"{translators.get(method.name).__name__}: give the class a `name` of its own and register it."
            )
        return translators.make(method.name, **method.get_config())
    return translators.make(method, **options)


def _train_mask(mdata: MuData, name: str, train: cells.CellSelection) -> np.ndarray:
    mask = cells.select_cells(mdata, name, train)
    if not mask.any():
        raise ModalityError(f"None of the {len(mask)} cells of {name!r} are training cells; check train=.")
    return mask


def _check_recipe_names(recipes: Mapping[str, Any] | None, names: list[str]) -> None:
    for name in recipes or {}:
        if name not in names:
            raise ModalityError(
                f"recipes= names modality {name!r}, which the MuData does not have: {', '.join(names)}."
            )


def _equal_widths(fitted: dict[str, Recipe], training: Mapping[str, AnnData]) -> None:
    """Refit the recipe that gives more features, so that both give the same number."""
    width = min(recipe.n_features_out_ for recipe in fitted.values())
    for name, recipe in fitted.items():
        if recipe.n_features_out_ > width:
            logger.info("Modality %r: %d components instead of %d.", name, width, recipe.n_features_out_)
            fitted[name] = pp.Recipe(**recipe.get_config() | {"n_components": width}).fit(training[name])


def _conditions(
    mdata: MuData, source: str, target: str, keys: tuple[str, ...], masks: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], tuple[np.ndarray | None, np.ndarray | None]]:
    """Levels and codes of the conditions of the training cells."""
    if not keys:
        return (), (None, None)
    labels = {name: cells.condition_labels(mdata, name, keys)[masks[name]] for name in (source, target)}
    seen = {name: set(values) for name, values in labels.items()}
    if not seen[source] & seen[target]:
        raise ConditionError(
            f"No value of {', '.join(map(repr, keys))} occurs in both modalities: {source!r} has "
            f"{sorted(map(str, seen[source]))[:5]}, {target!r} has {sorted(map(str, seen[target]))[:5]}."
        )
    lone = sorted(str(label) for label in seen[source] ^ seen[target])
    if lone:
        warnings.warn(
            f"Conditions {', '.join(map(repr, lone[:5]))} occur in one modality only, which leaves them unmatched.",
            CelltransferWarning,
            stacklevel=3,
        )
    levels = tuple(sorted(str(label) for label in seen[source] | seen[target]))
    return levels, tuple(cells.encode_conditions(labels[name], levels, name) for name in (source, target))  # type: ignore[return-value]


def _training_rows(anchors: Anchors, train_source: np.ndarray, train_target: np.ndarray) -> np.ndarray:
    """Anchor rows counted among the training cells."""
    return np.column_stack(
        [np.cumsum(mask)[anchors.rows[:, side]] - 1 for side, mask in enumerate((train_source, train_target))]
    ).astype(np.int64)


def _unsettled(translator: Translator, pair: ModalityPair, clock: Clock, seed: int) -> list[str]:
    """What matching leaves open and the anchors do not settle: one sentence, or none.

    Not asked of many anchors, as more than the leading components together lie in no symmetry's fixed set; of a fit
    that matched nothing; where conditions are matched one by one, which settles symmetries that exchange them; nor of
    thousands of raw features, or when time is short.
    """
    from celltransfer.metrics import automorphisms

    matched = translator.matches_distributions and translator.result_.status is not Status.SOLVED
    by_condition = translator.uses_conditions and pair.condition_x is not None
    few = 0 < pair.n_anchors <= automorphisms.N_COMPONENTS
    if not (matched and few) or by_condition or sp.issparse(pair.x) or clock.left() < SEARCH_SECONDS:
        return []
    found = automorphisms.ambiguity(pair.x, pair.anchors[:, 0], seed)
    return [] if found is None else [found]


class _NoEvidence(Exception):
    """The refits cannot tell anything about the fit; the message says why."""


def _judge(
    translator: Translator,
    pair: ModalityPair,
    trainer: Trainer,
    clock: Clock,
    seed: int,
    refits: list[tuple[Translator, np.ndarray]],
) -> Verdict:
    """The verdict; leaves in `refits` the fits it rests on, and the anchors that each was fitted without."""
    from celltransfer.metrics.diagnostics import judge

    result = translator.result_
    if result.status is Status.INTERRUPTED:
        return Verdict("ambiguous", [f"The fit was interrupted, and not judged. {result.advice}"])
    # Cheap fits are repeated without every anchor or two, others four times with a quarter of the steps.
    cheap = result.seconds < min(CHEAP_SECONDS, clock.left() / MANY_FOLDS)
    folds = min(MANY_FOLDS if cheap else FEW_FOLDS, max(pair.n_anchors, 1))
    steps = result.n_steps if cheap else result.n_steps // 4
    short = replace(trainer, max_steps=max(steps, 1), progress=False, checkpoint_dir=None, resume=False)

    def refit(without: ModalityPair, fold: int) -> Translator:
        logger.info("Judging the fit: refit %d of %d, without some of the anchors.", fold + 1, folds)
        again = translator.refit()
        limited = replace(short, max_seconds=clock.share(folds - fold))
        fitted = _refitted(again, without, limited, clock, seed + 1 + fold)
        refits.append((fitted, np.flatnonzero(~np.isin(pair.anchors[:, 0], without.anchors[:, 0]))))
        return fitted

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CelltransferWarning)
        try:
            return judge(translator, pair, refit, seed=seed, max_folds=folds)
        except _NoEvidence as reason:
            return Verdict("ambiguous", [str(reason)])


def _refitted(translator: Translator, pair: ModalityPair, trainer: Trainer, clock: Clock, seed: int) -> Translator:
    """Fit `translator`, unless time has run out; a fit that broke off is no evidence for anything."""
    if clock.left() == 0:
        raise _NoEvidence("The time limit came before the fit could be judged: raise `max_seconds`.")
    status = translator.fit_pair(pair, seed=seed, trainer=trainer).result_.status
    if status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    if status is Status.DIVERGED:
        raise _NoEvidence(f"A refit without some of the anchors diverged, so the fit was not judged. {status.advice}")
    return translator


def _add_alignment(translator: Translator, pair: ModalityPair, clock: Clock, seed: int) -> None:
    """Test the alignment, and let it count in the verdict.

    Left-out anchors tell about the map itself and decide where there are enough. Without them, a fit that set out to
    make cells alike and did not has failed; and one that did may still have taken any of the maps that do.
    """
    from celltransfer.matching import of_fit

    result, verdict = translator.result_, translator.result_.verdict
    assert verdict is not None
    if result.status in (Status.INTERRUPTED, Status.DIVERGED):
        return
    if clock.left() == 0:
        verdict.reasons.append("The time limit came before translated cells were compared with target cells.")
        return
    found = of_fit(translator, pair, seed)
    reason = f"Translated cells against target cells: {found.level}. {' '.join(found.reasons)}"
    if found.level == "not aligned":
        reason = f"{reason} {translator.explain(found.cause)}".rstrip()
    result.alignment = found.to_dict()
    verdict.evidence |= {f"alignment_{name}": value for name, value in found.evidence.items()}
    if verdict.level == "ambiguous" and found.level == "not aligned" and "foscttm_estimate" not in verdict.evidence:
        verdict.level = "failed"
    if verdict.level == "ambiguous" and found.level == "aligned":
        reason += " That alone does not tell the right map from others that match as well."
    verdict.reasons.append(reason)


def _calibrate(
    model: TransferModel,
    pair: ModalityPair,
    target: AnnData,
    refits: list[tuple[Translator, np.ndarray]],
    seed: int,
) -> None:
    """Let left-out anchors say how wide the stated spread should be."""
    from celltransfer import law

    model.calibration_ = law.Calibration(noise=law.outside_noise(model.recipes[model.target], target, seed))
    if not refits:
        return

    def features(anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, AnnData]:
        rows = pair.anchors[anchors]
        codes = None if pair.condition_x is None else np.asarray(pair.condition_x)[rows[:, 0]]
        return dense(pair.x[rows[:, 0]]), codes, target[rows[:, 1]]

    model.calibration_ = law.calibrate(model, refits, features)  # type: ignore[arg-type]


def _unjudged() -> Verdict:
    return Verdict("ambiguous", ["No evidence was gathered (verdict=False)."])


def _tell(model: TransferModel) -> None:
    """Say how the fit ended, in the log, and as a warning where it should not be believed."""
    verdict = model.verdict_
    message = f"{model.method}: {model.source} -> {model.target} {verdict.level}. {' '.join(verdict.reasons)}"
    if not model.doubtful:
        logger.info(message)
    else:
        warnings.warn(message, VerdictWarning, stacklevel=3)
