"""The contract every translator keeps, and the registry that is the only dispatch.

Three things stay apart: configuration (the constructor's arguments, stored and nothing else), state (learned
attributes, ending in ``_``) and result (`FitResult`, in ``result_``).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import AnchorError, ConditionError, ConfigError, FeatureError, ModelFormatError, NotFittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celltransfer.train.loop import Trainer
    from celltransfer.train.outcome import FitResult

Self = TypeVar("Self", bound="Translator")
Arrays = dict[str, np.ndarray]


class Translator(ABC):
    """Learns a map from source features to target features from unpaired cells and a few anchor pairs.

    A subclass sets `name` and writes `_fit`, `_translate`, `_state` and `_load_state`. Its constructor stores its
    keyword arguments under their own names and does nothing else, not even validation.

    Attributes
    ----------
    name
        Name in the registry, the ``method=`` of `celltransfer.fit`.
    min_anchors
        Fewest anchor pairs the method can be fitted with.
    min_conditions
        Fewest conditions, of those that both modalities have, the method can be fitted with.
    uses_conditions
        Whether `_fit` looks at condition codes; it does not get any otherwise.
    matches_distributions
        Whether the fit matches the law of the translated cells to the target's, which symmetries of the source leave
        open.
    uses_links
        Whether `_fit` looks at what feature links say of the map; it does not get that otherwise.
    uses_attribute
        Whether it has an option `cost_attribute` that names an obs column, whose codes `_fit` gets.
    needs_condition
        Whether `_translate` needs the codes of the cells, once fitted with conditions.
    gives_distribution
        Whether it is a `ConditionalTranslator`, which knows the law of the target cell and not its mean alone.
    tests_alignment
        Whether `celltransfer.fit` tests if translated cells are like target cells, because that is all the method aims
        at.
    equal_widths
        Whether source and target need the same number of features.
    invertible
        Whether the map has an exact inverse, `inverse`.
    has_path
        Whether the map moves cells along a path, `path`.
    n_features_in_, n_features_out_
        Source and target dimension, set by `fit`.
    condition_codes_
        The condition codes `fit` was given, sorted; none without conditions. `_fit` and `_translate` see code
        ``condition_codes_[i]`` as i, and `_translate` sees -1 for a code that `fit` did not.
    result_
        How the fit ended (`FitResult`), set by `fit`.
    """

    name: ClassVar[str] = ""
    min_anchors: ClassVar[int] = 0
    min_conditions: ClassVar[int] = 0
    uses_conditions: ClassVar[bool] = False
    uses_links: ClassVar[bool] = False
    uses_attribute: ClassVar[bool] = False
    needs_condition: ClassVar[bool] = False
    matches_distributions: ClassVar[bool] = False
    gives_distribution: ClassVar[bool] = False
    tests_alignment: ClassVar[bool] = False
    equal_widths: ClassVar[bool] = False
    invertible: ClassVar[bool] = False
    has_path: ClassVar[bool] = False

    n_features_in_: int
    n_features_out_: int
    condition_codes_: np.ndarray
    result_: FitResult
    # Rows of source and target cells that the fit did not see, right after it.
    held_out_: tuple[np.ndarray, np.ndarray] | None = None
    # Fits without some of the anchors that the fit made anyway, and which of them; together they leave out every one.
    left_out_: list[tuple[Translator, np.ndarray]] | None = None
    # Fits to the same cells and anchors from other starts that the fit made anyway.
    repeats_: Sequence[Translator] | None = None

    def fit(
        self: Self,
        x: Matrix,
        y: Matrix,
        anchors: np.ndarray | None = None,
        *,
        condition_x: np.ndarray | None = None,
        condition_y: np.ndarray | None = None,
        links: Matrix | None = None,
        seed: int = 0,
        trainer: Trainer | None = None,
    ) -> Self:
        """Fit on arrays.

        Parameters
        ----------
        x
            Source cells, shape (n_source, d), dense or sparse.
        y
            Target cells, shape (n_target, D), dense or sparse. Row order carries no meaning.
        anchors
            Pairs (i, j) of rows of `x` and `y` that are the same cell, shape (k, 2).
        condition_x, condition_y
            Condition codes per cell, in one coding; any integers.
        links
            What feature links say of the map, shape (d, D), see `ModalityPair`.
        seed
            Seed of everything random in the fit. Global random states are left alone.
        trainer
            Limits and device of the training loop; ``None`` takes the method's defaults.
        """
        rows = np.empty((0, 2), np.int64) if anchors is None else np.asarray(anchors)
        codes = () if condition_x is None or condition_y is None else np.union1d(condition_x, condition_y)
        names = tuple(str(code) for code in codes)
        pair = ModalityPair(x, y, rows, condition_x, condition_y, conditions=names, links=links)
        return self.fit_pair(pair, seed=seed, trainer=trainer)

    def fit_pair(self: Self, pair: ModalityPair, *, seed: int = 0, trainer: Trainer | None = None) -> Self:
        """Fit on a `ModalityPair`; what `fit` and `celltransfer.fit` end in."""
        if pair.n_anchors < self.min_anchors:
            raise AnchorError(
                f"method={self.name!r} needs {self.min_anchors} or more anchors and got {pair.n_anchors}. "
                'Pass more anchors, or a method that works without, such as "fgw" or "jacobian".'
            )
        n_shared = len(pair.shared_conditions)
        if n_shared < self.min_conditions:
            raise ConditionError(
                f"method={self.name!r} matches condition by condition: it needs {self.min_conditions} or more "
                f"conditions that both modalities have and got {n_shared}. Pass conditions= with an obs column "
                'known for every cell, or a method that works without, such as "jacobian".'
            )
        widths = int(pair.x.shape[1]), int(pair.y.shape[1])
        if self.equal_widths and widths[0] != widths[1]:
            raise FeatureError(
                f"method={self.name!r} needs source and target in the same number of features and got {widths[0]} and "
                f"{widths[1]}. Reduce both to n_components={min(widths)} first."
            )
        self.n_features_in_, self.n_features_out_ = widths
        self.condition_codes_ = _codes(pair)
        known = _recoded(pair, self.condition_codes_) if self.uses_conditions else _unconditional(pair)
        known = known if self.uses_links else replace(known, links=None)
        self.result_ = self._fit(known, seed=seed, trainer=trainer)
        self.result_.seed = seed
        self.result_.n_source, self.result_.n_target = pair.n_source, pair.n_target
        self.result_.n_anchors = pair.n_anchors
        return self

    def translate(self, x: Matrix, condition: np.ndarray | None = None, *, batch_size: int = 8192) -> np.ndarray:
        """Translate source cells, shape (n, d), into target features, shape (n, D), float32.

        `condition` holds a code per cell, in the coding of `fit`; only methods with `needs_condition` look at it.
        Works in blocks of `batch_size` cells, so memory beyond the result does not grow with n.
        """
        codes = self._codes_of(x, condition)
        return _in_blocks(self._translate, x, codes, self.n_features_out_, batch_size)

    def inverse(self, y: Matrix, condition: np.ndarray | None = None, *, batch_size: int = 8192) -> np.ndarray:
        """Translate target cells, shape (n, D), back into source features, shape (n, d), float32.

        The exact inverse of `translate`; only methods that are `invertible` have one.
        """
        self.check_invertible()
        codes = self._codes_of(y, condition, backward=True)
        return _in_blocks(self._inverse, y, codes, self.n_features_in_, batch_size)

    def check_invertible(self) -> None:
        """Raise `ConfigError` where there is no `inverse`, `NotFittedError` before the fit."""
        self._check_fitted()
        if not self.invertible:
            raise ConfigError(
                f"method={self.name!r} has no inverse here. Fit in the other direction, or use a method that has one: "
                '"lrmf", or "dont" where source and target share their features.'
            )

    def path(self, x: Matrix, times: Sequence[float]) -> np.ndarray:
        """Points on the way from source cells to their translations, shape (times, cells, D); times from 0 to 1.

        Only methods with `has_path` have one.
        """
        raise ConfigError(
            f'method={self.name!r} maps cells at once and has no path; use a method that has one: "dont".'
        )

    def path_back(self, y: Matrix, times: Sequence[float]) -> np.ndarray:
        """The same from target cells to where `inverse` takes them, in source features, shape (times, cells, d).

        Raises
        ------
        ConfigError
            The method has no path, or no inverse.
        """
        raise ConfigError(
            f'method={self.name!r} maps cells at once and has no path back; use a method that has one: "dont".'
        )

    def _inverse(self, y: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        """Inverse of `_translate` for one dense block."""
        raise NotImplementedError

    def _codes_of(self, x: Matrix, condition: np.ndarray | None, *, backward: bool = False) -> np.ndarray | None:
        """Condition codes of these cells as `_translate` sees them; raises where cells do not fit the translator."""
        self._check_fitted()
        (n, width), expected = x.shape, self.n_features_out_ if backward else self.n_features_in_
        if width != expected:
            raise FeatureError(f"The cells have {width} features; this translator was fitted on {expected}.")
        if condition is not None and len(condition) != n:
            raise ConditionError(f"There are {len(condition)} condition codes for {n} cells.")
        if condition is None and self.needs_condition and len(self.condition_codes_):
            raise ConditionError("This translator was fitted with conditions; pass the cells' condition codes.")
        return _recode(condition, self.condition_codes_)

    @property
    def label(self) -> str:
        """What reports call the method."""
        return self.name

    def explain(self, cause: str) -> str:
        """Why translated cells are not like target cells, as far as the fit knows more than their looks (`cause`)."""
        return ""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON-writable values."""
        return {name: _writable(getattr(self, name)) for name in options(type(self))}

    @property
    def scheduled(self) -> bool:
        """Whether steps depend on how many there are to be, so that a fit is not resumed with another number."""
        return False

    def refit_config(self) -> dict[str, Any]:
        """Configuration of fits to some of the cells or anchors, which may lack what only this fit was told."""
        return self.get_config()

    def refit(self) -> Translator:
        """An unfitted translator to fit again without some of the anchors.

        It may carry over what this fit chose or learned without looking at anchors, and nothing else.
        """
        return make(self.name, **self.refit_config())

    def get_state(self) -> Arrays:
        """Everything learned, as named arrays (no objects, so that saved files cannot carry code), copied."""
        self._check_fitted()
        common = {
            "n_features": np.array([self.n_features_in_, self.n_features_out_], dtype=np.int64),
            "condition_codes": self.condition_codes_,
        }
        return {name: np.array(value) for name, value in (self._state() | common).items()}

    def set_state(self: Self, state: Arrays) -> Self:
        """Inverse of `get_state`, on an instance made with the same configuration."""
        rest = {name: np.array(value) for name, value in state.items()}
        try:
            self.n_features_in_, self.n_features_out_ = (int(v) for v in rest.pop("n_features"))
            self.condition_codes_ = rest.pop("condition_codes")
            self._load_state(rest)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelFormatError(f"The saved state does not fit method={self.name!r}: {error}") from error
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise NotFittedError(f"This {type(self).__name__} is not fitted yet; call `fit` first.")

    @abstractmethod
    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        """Learn from `pair`; set attributes ending in ``_``."""

    @abstractmethod
    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        """Translate one dense block, shape (batch, d) -> (batch, D)."""

    @abstractmethod
    def _state(self) -> Arrays:
        """Learned arrays by name."""

    @abstractmethod
    def _load_state(self, state: Arrays) -> None:
        """Inverse of `_state`."""


def _writable(value: Any) -> Any:
    """An option as JSON can hold it: arrays become lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return {name: _writable(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def _in_blocks(
    f: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    cells: Matrix,
    codes: np.ndarray | None,
    width: int,
    batch_size: int,
) -> np.ndarray:
    """Apply f to blocks of cells and their codes, shape (n, width)."""
    n = cells.shape[0]
    out = np.empty((n, width), dtype=np.float32)
    for start in range(0, n, batch_size):
        block = slice(start, start + batch_size)
        out[block] = f(dense(cells[block]), None if codes is None else codes[block])
    return out


def _codes(pair: ModalityPair) -> np.ndarray:
    """Condition codes that occur on either side, sorted."""
    if pair.condition_x is None or pair.condition_y is None:
        return np.empty(0, dtype=np.int64)
    return np.union1d(pair.condition_x, pair.condition_y)


def _recoded(pair: ModalityPair, codes: np.ndarray) -> ModalityPair:
    """The same with condition codes counted from 0, so that what is built per code is no larger than needed."""
    if not len(codes):
        return pair
    return replace(pair, condition_x=_recode(pair.condition_x, codes), condition_y=_recode(pair.condition_y, codes))


def _unconditional(pair: ModalityPair) -> ModalityPair:
    """The same without conditions."""
    return replace(pair, condition_x=None, condition_y=None, conditions=())


def _recode(condition: np.ndarray | None, codes: np.ndarray) -> np.ndarray | None:
    """Position of every code among `codes`, -1 for one that is not there; ``None`` where there are no conditions."""
    if condition is None or not len(codes):
        return None
    at = np.searchsorted(codes, condition).clip(max=len(codes) - 1)
    return np.where(codes[at] == condition, at, -1)


T = TypeVar("T", bound=type[Translator])

# Built-in methods by name; their modules are imported on first use, so that listing them costs nothing.
_BUILTIN: dict[str, str] = {
    "jacobian": "celltransfer.translators.adversarial.jacobian",
    "ieot": "celltransfer.translators.ieot.ieot",
    "cyclegan": "celltransfer.translators.adversarial.cycle",
    "dimension": "celltransfer.translators.adversarial.cycle",
    "ridge": "celltransfer.translators.baselines",
    "pls": "celltransfer.translators.baselines",
    "chance": "celltransfer.translators.baselines",
    "condition_mean": "celltransfer.translators.baselines",
    "fgw": "celltransfer.translators.matching.gromov",
    "consensus": "celltransfer.translators.matching.consensus",
    "auto": "celltransfer.translators.stacking",
    "primed": "celltransfer.translators.pseudo_anchors",
    "ieot_energy": "celltransfer.translators.ieot.energy",
    "lrmf": "celltransfer.translators.lrmf.lrmf",
    "sparse_mixing": "celltransfer.translators.sparse_mixing.sparse_mixing",
    "dont": "celltransfer.translators.dont.dont",
}
_REGISTERED: dict[str, type[Translator]] = {}


def register(cls: T) -> T:
    """Class decorator: make a `Translator` available as ``method=cls.name``."""
    if not cls.name:
        raise ConfigError(f"{cls.__name__} has no `name`; a translator is registered under it.")
    taken = _REGISTERED.get(cls.name)
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ConfigError(f"The name {cls.name!r} is taken by {taken.__qualname__}.")
    _REGISTERED[cls.name] = cls
    return cls


def available() -> list[str]:
    """Names of all registered translators."""
    return sorted({*_BUILTIN, *_REGISTERED})


def get(name: str) -> type[Translator]:
    """The translator class registered as `name`."""
    if name not in _REGISTERED and name in _BUILTIN:
        import_module(_BUILTIN[name])
    if name not in _REGISTERED:
        raise ConfigError(f"There is no method {name!r}. Known methods: {', '.join(available())}.")
    return _REGISTERED[name]


def options(cls: type[Translator]) -> list[str]:
    """Names of the options of a translator: its constructor's arguments."""
    # A class without a constructor of its own shows object's (*args, **kwargs), which are no options.
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named]


def make(name: str, **config: Any) -> Translator:
    """An unfitted translator `name` with the given configuration."""
    cls = get(name)
    known = options(cls)
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ConfigError(f"method={name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    return cls(**config)
