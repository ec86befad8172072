"""Small networks. No normalisation layers: they couple coordinates and make every Jacobian dense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Multi-layer perceptron, (batch, n_in) -> (batch, n_out); without hidden layers a linear map.

    Parameters
    ----------
    n_in, n_out
        Widths of input and output.
    hidden
        Widths of the hidden layers.
    activation
        One of `ACTIVATIONS`, after every hidden layer.
    """

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int] = (), activation: str = "leaky_relu") -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(n_in, width), ACTIVATIONS[activation]()]
            n_in = width
        super().__init__(*layers, nn.Linear(n_in, n_out))


class Residual(nn.Module):
    """Linear map plus a network that starts at zero: f(x) = W x + b + g(x).

    Training starts at the linear map exactly and leaves it only where the losses ask for more.
    """

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int], activation: str = "leaky_relu") -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.correction = MLP(n_in, n_out, hidden, activation)
        last = self.correction[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, n_in) to (batch, n_out)."""
        return self.linear(x) + self.correction(x)


class Discriminator(nn.Module):
    """Tells target cells from translations, (batch, n_in) -> logits (batch,), every condition on its own.

    Parameters
    ----------
    n_in, hidden
        Features, and widths of the hidden layers.
    n_conditions
        Number of conditions; 0 where none are known.
    separate
        Give every condition a last layer of its own (as in multi-domain GANs); otherwise its code is one-hot input.
    """

    def __init__(
        self, n_in: int, hidden: Sequence[int] = (128, 128), n_conditions: int = 0, *, separate: bool = False
    ) -> None:
        super().__init__()
        self.n_conditions, self.separate = n_conditions, separate and n_conditions > 0
        self.net = MLP(n_in, n_conditions, hidden) if self.separate else MLP(n_in + n_conditions, 1, hidden)

    def forward(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits, positive where `y` looks like a real target cell."""
        if condition is None or not self.n_conditions:
            return self.net(y).squeeze(1)
        if self.separate:
            return self.net(y).gather(1, condition[:, None]).squeeze(1)
        return self.net(torch.cat([y, nn.functional.one_hot(condition, self.n_conditions).to(y.dtype)], dim=1)).squeeze(
            1
        )


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Exponential moving average of parameters, in place: average <- decay average + (1 - decay) current."""
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
