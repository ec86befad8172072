"""`celltransfer.fit`: the door. It finds cells, anchors and recipes, and hands arrays to a translator."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer import pp, translators
from celltransfer.data import cells
from celltransfer.data.anchors import Anchors, AnchorsLike, resolve_anchors
from celltransfer.data.pair import ModalityPair
from celltransfer.errors import CelltransferWarning, ConditionError, ConfigError, ModalityError
from celltransfer.model.model import TransferModel
from celltransfer.pp.links import LinksLike, linked_map, read_links
from celltransfer.pp.shared import fit_recipes, is_shared
from celltransfer.train.loop import Trainer
from celltransfer.train.stopping import Clock
from celltransfer.translators.base import Translator
from celltransfer.verdict import after_fit

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from celltransfer.data.pair import Matrix
    from celltransfer.pp import Recipe

logger = logging.getLogger("celltransfer")


def fit(
    mdata: MuData,
    *,
    source: str | None = None,
    target: str | None = None,
    anchors: AnchorsLike = None,
    method: str | Translator = "auto",
    prior: str | None = None,
    prior_pairs: int = 300,
    prior_rounds: int = 1,
    conditions: str | Sequence[str] | None = None,
    links: LinksLike = None,
    recipes: Mapping[str, str | Recipe] | str | Recipe | None = None,
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
    prior
        Name of another translator, such as ``"consensus"`` or ``"fgw"``, that proposes pairs of unpaired cells; the
        method is fitted on them and the anchors (`translators.pseudo_anchors.Primed`). Not with ``"auto"``.
    prior_pairs, prior_rounds
        How many pairs; and how often, each time after the first by the fit before.
    conditions
        Obs columns known for every cell of both modalities without any pairing (treatment, batch, donor).
    links
        Which source feature stands behind which target feature (gene behind protein, gene near peak): a table with
        columns ``source``, ``target`` and, if wanted, ``weight``; a sparse matrix (source features x target
        features); or the column of the target's `var` that names the source feature. Linked features are expected to
        rise and fall together, or, with a negative weight, against each other. Links given more than once add up.
    recipes
        Preprocessing by modality: ``"rna"``, ``"atac"``, ``"protein"``, ``"methylation"``, ``"none"`` or a
        `celltransfer.pp.Recipe`. What is not named is found from the modality's name and values, and logged. A
        single recipe or name instead of a mapping is for two modalities with the same features, such as one modality
        under two conditions (`celltransfer.pp.conditions`): it is fitted once, on the cells of both.
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
        Whether to judge the fit, refitting without some of the anchors: up to 20 times where a fit takes less than
        half a second, else 2 to 4 times, with a quarter of the training steps each; with fewer than 3 anchors, twice on
        half of the cells. ``"auto"`` has made such fits already, which are used instead.
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
        Conditions or links are passed to a method whose fit ignores them, or conditions occur in one modality only.

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
    translator = _primed(_translator(method, options), prior, prior_pairs, prior_rounds)
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
    fitted = fit_recipes(recipes, training)
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
        links=_links(links, translator, (source, target), training, fitted),
        shared=is_shared(fitted[source], fitted[target]),
    )
    pair = _with_attribute(pair, translator, mdata, (source, target), masks)
    translator.fit_pair(pair, seed=seed, trainer=replace(trainer, max_seconds=clock.share(2 if verdict else 1)))
    model = TransferModel(source, target, fitted, translator, conditions=keys, levels=levels, anchors=pairs.to_frame())
    model.links = pair.links
    model.remember_training({name: adata.obs_names[masks[name]] for name, adata in sides.items()}, pair, seed)
    after_fit.settle(model, pair, (training[source], training[target]), trainer, clock, seed, verdict)
    after_fit.tell(model)
    return model


def _check_arguments(seed: Any, conditions: Any, recipes: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed={seed!r}; expected a whole number, 0 or more.")
    keys = [conditions] if isinstance(conditions, str) else conditions
    if keys is not None and not (isinstance(keys, Sequence) and all(isinstance(key, str) for key in keys)):
        raise ConditionError(f"conditions={conditions!r}; expected the name of an obs column, or a list of names.")
    if recipes is not None and not isinstance(recipes, Mapping | str | pp.Recipe):
        raise ConfigError(f'recipes={recipes!r}; expected a mapping such as {{"rna": "rna"}}, or one recipe for both.')


def _trainer(trainer: Trainer | None, device: str) -> Trainer:
    """The trainer on the device that was asked for, here or there; it has to exist, whatever the method needs."""
    if trainer is not None and not isinstance(trainer, Trainer):
        raise ConfigError(f"trainer={trainer!r}; expected a celltransfer.train.Trainer.")
    trainer = trainer or Trainer()
    if device not in ("auto", trainer.device):
        if trainer.device != "auto":
            raise ConfigError(f"device={device!r}, and the trainer says device={trainer.device!r}; give one of them.")
        trainer = replace(trainer, device=device)
    trainer.resolve_device()
    return trainer


def _warn(message: str, level: int = 3) -> None:
    warnings.warn(message, CelltransferWarning, stacklevel=level)


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


def _primed(translator: Translator, prior: str | None, n_pairs: int, rounds: int) -> Translator:
    """The translator with a prior, if one is wanted."""
    if prior is None:
        return translator
    own = {"method": translator.name, "options": translator.get_config()}
    primed = translators.make("primed", **own, prior=prior, n_pairs=n_pairs, rounds=rounds)
    primed.check_options()  # type: ignore[attr-defined]
    return primed


def _train_mask(mdata: MuData, name: str, train: cells.CellSelection) -> np.ndarray:
    mask = cells.select_cells(mdata, name, train)
    if not mask.any():
        raise ModalityError(f"None of the {len(mask)} cells of {name!r} are training cells; check train=.")
    return mask


def _check_recipe_names(recipes: Any, names: list[str]) -> None:
    for name in recipes if isinstance(recipes, Mapping) else ():
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


def _with_attribute(
    pair: ModalityPair,
    translator: Translator,
    mdata: MuData,
    names: tuple[str, str],
    masks: dict[str, np.ndarray],
) -> ModalityPair:
    """The pair with the codes of the attribute that an option of the translator names, if it has one."""
    key = getattr(translator, "cost_attribute", None) if translator.uses_attribute else None
    if key is None:
        return pair
    codes = cells.attribute_codes(mdata, names, key, masks)
    return replace(pair, attribute_x=codes[0], attribute_y=codes[1])


def _links(
    links: LinksLike,
    translator: Translator,
    names: tuple[str, str],
    training: Mapping[str, AnnData],
    fitted: Mapping[str, Recipe],
) -> Matrix | None:
    """What the links say of the map between the translator's features."""
    if links is None:
        return None
    source, target = names
    table = read_links(links, training[source], training[target])
    if not translator.uses_links:
        _warn(f"method={translator.name!r} ignores feature links.", 4)
    return linked_map(table, (fitted[source], fitted[target]), (training[source], training[target]), names)


def _training_rows(anchors: Anchors, train_source: np.ndarray, train_target: np.ndarray) -> np.ndarray:
    """Anchor rows counted among the training cells."""
    return np.column_stack(
        [np.cumsum(mask)[anchors.rows[:, side]] - 1 for side, mask in enumerate((train_source, train_target))]
    ).astype(np.int64)
