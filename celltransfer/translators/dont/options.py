"""Which options of `dont` mean something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.errors import ConfigError, FeatureError
from celltransfer.translators.dont.initial_map import STARTS

if TYPE_CHECKING:
    from celltransfer.data.pair import ModalityPair
    from celltransfer.translators.dont.dont import Dont

# Discrepancies, and the first weight of the cost: beside one in its own units, and two that are bounded.
DISCREPANCIES = {"sinkhorn": 1.0, "mmd": 0.1, "gan": 0.1}
# Numbers by option: above the first (or equal to it where that is allowed), at most the second, and how that is said.
RANGES: dict[str, tuple[float, bool, float, str]] = {
    "weight_cost": (0, True, np.inf, "it is at least 0"),
    "least_cost": (0, True, 1, "it is a share, from 0 to 1"),
    "weight_anchor": (0, True, np.inf, "it is at least 0"),
    "gain": (0, True, np.inf, "it is at least 0"),
    "lr": (0, False, np.inf, "it is above 0"),
    "lr_discriminator": (0, False, np.inf, "it is above 0"),
    "p": (1, False, np.inf, "the exponent of a strictly convex cost is above 1"),
    "epsilon": (0, False, 1, "it is above 0 and at most 1"),
    "lipschitz": (0, False, np.inf, "it is above 0, or None for no bound"),
    "cost_floor": (0, False, 1, "it is above 0 and at most 1"),
    "decay": (0, True, 1, "it is from 0 to 1"),
}
OPTIONAL = ("weight_cost", "lipschitz")


def check(translator: Dont, pair: ModalityPair) -> None:
    """Raise where an option has no meaning.

    Raises
    ------
    ConfigError
        Which option, and what it may be.
    FeatureError
        Costs for another number of features than the target has.
    """
    for name, choices in (("discrepancy", DISCREPANCIES), ("start", STARTS)):
        if getattr(translator, name) not in choices:
            raise ConfigError(f"{name}={getattr(translator, name)!r}; it is one of {', '.join(choices)}.")
    for name, (low, closed, high, told) in RANGES.items():
        value = getattr(translator, name)
        if value is None and name in OPTIONAL:
            continue
        if not _is_number(value) or not (low < value or (closed and value == low)) or not value <= high:
            raise ConfigError(f"{name}={value!r}; {told}.")
    if not _is_count(translator.steps):
        raise ConfigError(f"steps={translator.steps!r}; a whole number, and there is at least one.")
    for name in ("hidden", "hidden_discriminator"):
        widths = getattr(translator, name)
        if not isinstance(widths, Sequence) or not all(map(_is_count, widths)):
            raise ConfigError(f"{name}={widths!r}; expected the widths of the hidden layers, such as (128,).")
    _check_weights(translator, pair)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _check_weights(translator: Dont, pair: ModalityPair) -> None:
    given, attribute = translator.cost_weights, translator.cost_attribute
    if attribute is not None and given is not None:
        raise ConfigError("cost_weights and cost_attribute both say what motion costs; give one of them.")
    if attribute is not None and pair.attribute_y is None:
        raise ConfigError(
            f"cost_attribute={attribute!r} names an obs column, which celltransfer.fit reads. On arrays, "
            "pass cost_weights=celltransfer.translators.cost_weights_from(features, labels)."
        )
    if given is None:
        return
    weights, out = np.asarray(given, float), pair.y.shape[1]
    if weights.shape != (out,):
        raise FeatureError(f"There are {weights.size} cost_weights for {out} target features.")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ConfigError("cost_weights are above 0: a cost of 0 leaves the map open. Use small ones, such as 0.01.")
