"""ConditionalTranslator: methods that give the whole conditional law of the target cell, not its mean alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from celltransfer.data.pair import Matrix, dense
from celltransfer.errors import ConfigError
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Bytes of covariances that are held at a time.
BLOCK_BYTES = 2**26


class ConditionalTranslator(TrainedTranslator):
    """A translator that knows the law of the target features given a source cell.

    `translate` gives the mean of that law; `sample`, `std` and `covariance` the rest. A subclass writes `law_sample`
    and `law_covariance`, on features as the recipes give them.
    """

    gives_distribution: ClassVar[bool] = True

    @abstractmethod
    def law_sample(self, x: Tensor, n: int, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw `n` target cells for each row of `x`, shape (n, batch, D)."""

    @abstractmethod
    def law_covariance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Covariance given each row of `x`, shape (batch, D, D)."""

    def law_variance(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Variance by feature given each row of `x`, shape (batch, D)."""
        return self.law_covariance(x, condition).diagonal(dim1=1, dim2=2)

    def sample(
        self, x: Matrix, n: int = 1, condition: np.ndarray | None = None, *, seed: int = 0, batch_size: int = 2048
    ) -> np.ndarray:
        """Draw `n` target cells for every source cell, shape (n, cells, D), float32.

        Parameters
        ----------
        x
            Source cells, shape (cells, d).
        n
            Draws per cell.
        condition
            Condition codes, as in `translate`.
        seed
            Seed of the draws. The same seed gives the same draws for the same cells in the same blocks.
        batch_size
            Cells at a time.
        """
        if n < 1:
            raise ConfigError(f"n={n}; expected at least 1 draw per cell.")
        self._check_fitted()
        generator = torch.Generator(self._device()).manual_seed(seed)
        draw = lambda block, codes: self.law_sample(block, n, codes, generator)  # noqa: E731
        return np.concatenate(list(self._blocks(draw, x, condition, batch_size)), axis=1)

    def std(self, x: Matrix, condition: np.ndarray | None = None, *, batch_size: int = 2048) -> np.ndarray:
        """Standard deviation of every target feature given each source cell, shape (cells, D), float32."""
        return np.concatenate(list(self._blocks(self.law_variance, x, condition, batch_size))) ** 0.5

    def covariance(self, x: Matrix, condition: np.ndarray | None = None) -> np.ndarray:
        """Covariance of the target features given each source cell, shape (cells, D, D), float32."""
        return np.concatenate(list(self.covariance_blocks(x, condition)))

    def covariance_blocks(self, x: Matrix, condition: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """`covariance` of as many cells at a time as fit into memory, in their order."""
        self._check_fitted()
        rows = max(1, BLOCK_BYTES // (4 * self.n_features_out_**2))
        return self._blocks(self.law_covariance, x, condition, rows)

    def _device(self) -> torch.device:
        return next(self.module_.parameters()).device

    @torch.no_grad()
    def _blocks(
        self,
        function: Callable[[Tensor, Tensor | None], Tensor],
        x: Matrix,
        condition: np.ndarray | None,
        batch_size: int,
    ) -> Iterator[np.ndarray]:
        """`function` of one block of cells after the other, and their condition codes."""
        codes = self._codes_of(x, condition)
        codes = codes if self.uses_conditions else None
        device = self._device()
        for start in range(0, x.shape[0], batch_size):
            rows = slice(start, start + batch_size)
            own = None if codes is None else torch.as_tensor(codes[rows], dtype=torch.long, device=device)
            yield function(torch.as_tensor(dense(x[rows]), device=device), own).cpu().numpy()
