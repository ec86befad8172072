"""One side of a mixing model: encoder, decoder, and the likelihood of the features given the decoder's outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

LIKELIHOODS = ("gaussian", "nb", "bernoulli")
# Bounds of the encoder's log standard deviations; beyond them a draw says nothing or all.
LOWEST, HIGHEST = -6.0, 2.0


def negative_binomial() -> Any:
    """scvi-tools' distribution of counts, imported when it is needed."""
    try:
        from scvi.distributions import NegativeBinomial
    except ImportError as error:
        raise ConfigError(
            "likelihood 'nb' takes its distribution from scvi-tools, which is not installed: "
            "pip install 'celltransfer[counts]'."
        ) from error
    return NegativeBinomial


class Side(nn.Module):
    """Encoder and decoder of one modality, on features as its recipe gives them.

    ``"gaussian"`` features are centred and divided by one number; ``"nb"`` and ``"bernoulli"`` ones are counts, which
    the encoder sees as logarithms at one depth, and as detected or not.

    Parameters
    ----------
    n, d
        Features and latents.
    make
        Makes a network from numbers of inputs and outputs.
    likelihood
        One of `LIKELIHOODS`.
    """

    mean: Tensor
    scale: Tensor
    depth: Tensor

    def __init__(self, n: int, d: int, make: Callable[[int, int], nn.Module], likelihood: str = "gaussian") -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ConfigError(f"likelihood={likelihood!r}; it is one of {', '.join(LIKELIHOODS)}.")
        self.likelihood, self.encoder, self.decoder = likelihood, make(n, 2 * d), make(d, n)
        # Gaussian: one log standard deviation of what the decoder does not explain. Counts: log inverse dispersion.
        self.log_noise = nn.Parameter(torch.zeros(n if likelihood == "nb" else 1))
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("depth", torch.ones(()))

    def scaled(self, x: Tensor) -> Tensor:
        """Features as the encoder sees them."""
        if self.likelihood == "bernoulli":
            return (x > 0).to(x.dtype)
        if self.likelihood == "nb":
            return torch.log1p(x * (self.depth / x.sum(1, keepdim=True).clamp_min(1)))
        return (x - self.mean) / self.scale

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations of q(z|x), both (batch, d)."""
        mean, log_sd = self.encoder(self.scaled(x)).chunk(2, dim=1)
        return mean, log_sd.clamp(LOWEST, HIGHEST)

    def nll(self, z: Tensor, x: Tensor) -> Tensor:
        """Nats of the features `x` given latents, per feature, mean over the batch."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return binary_cross_entropy_with_logits(out, self.scaled(x))
        if self.likelihood == "nb":
            mean = x.sum(1, keepdim=True) * out.softmax(dim=1)
            law = negative_binomial()(mu=mean, theta=self.log_noise.exp(), validate_args=False)
            return -law.log_prob(x).mean()
        error = (out - self.scaled(x)).square().mean()
        return 0.5 * error * (-2 * self.log_noise.sum()).exp() + self.log_noise.sum() + 0.5 * math.log(2 * math.pi)

    def expected(self, z: Tensor) -> Tensor:
        """Features to expect at latents; counts at the median depth of the training cells."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            return out.sigmoid()
        return self.depth * out.softmax(dim=1) if self.likelihood == "nb" else out * self.scale + self.mean
