"""The other direction of a translator that has an exact inverse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celltransfer.errors import ConfigError
from celltransfer.translators.base import Arrays, Translator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from celltransfer.data.pair import Matrix, ModalityPair
    from celltransfer.train.loop import Trainer
    from celltransfer.train.outcome import FitResult


class Backward(Translator):
    """A view of a fitted `invertible` translator from its target to its source; it is not fitted or saved itself.

    Parameters
    ----------
    forward
        The fitted translator.
    """

    def __init__(self, forward: Translator) -> None:
        self.forward = forward
        forward.check_invertible()
        self.name = f"{forward.name}, backward"  # type: ignore[misc]
        self.invertible = True  # type: ignore[misc]
        self.has_path = forward.has_path  # type: ignore[misc]
        self.needs_condition = forward.needs_condition  # type: ignore[misc]
        self.n_features_in_, self.n_features_out_ = forward.n_features_out_, forward.n_features_in_
        self.condition_codes_ = forward.condition_codes_
        result = forward.result_
        verdict = result.verdict
        if verdict is not None:
            verdict = replace(verdict, reasons=["What was judged is the forward direction.", *verdict.reasons])
        self.result_ = replace(result, n_source=result.n_target, n_target=result.n_source, verdict=verdict)

    def get_config(self) -> dict[str, Any]:
        """Configuration of the translator this is a view of."""
        return self.forward.get_config()

    def _translate(self, x: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        return self.forward._inverse(x, condition)

    def _inverse(self, y: np.ndarray, condition: np.ndarray | None) -> np.ndarray:
        return self.forward._translate(y, condition)

    def path(self, x: Matrix, times: Sequence[float]) -> np.ndarray:
        """The forward direction's way back."""
        return self.forward.path_back(x, times)

    def path_back(self, y: Matrix, times: Sequence[float]) -> np.ndarray:
        """The forward direction's way."""
        return self.forward.path(y, times)

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        raise ConfigError("The backward direction is not fitted; fit the translator that it is a view of.")

    def _state(self) -> Arrays:
        raise ConfigError("The backward direction is not saved; save the model, and take `model.backward` of it.")

    def _load_state(self, state: Arrays) -> None:
        raise ConfigError("The backward direction is not loaded; load the model, and take `model.backward` of it.")
