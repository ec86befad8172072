r"""What changes with the domain u, and what does not: a flow F_u per coordinate, and a mask of what it acts on.

Domain encoding of Li et al. 2025 ("Synergy between sufficient changes and sparse mixing"): latents z_s whose law
changes with the domain are turned into noise that does not know it,

.. math::
    e = F_u(z_s), \qquad \log p(z_s | u) = \log N(F_u(z_s); 0, I) + \log |\det \partial F_u / \partial z_s| ,

and content z_c ~ N(0, I) does not see u at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from celltransfer.errors import ConfigError

# Bisections and Newton steps after which the inverse is as good as float32.
NEWTON = 40
FLOOR = 1e-6
MASKS = ("sorted", "fixed", "learned")
LOG_2PI = math.log(2 * math.pi)


class DomainFlow(nn.Module):
    r"""Elementwise deep-sigmoid flow with parameters of its own for every domain and coordinate.

    .. math::
        F_u(z)_j = \operatorname{logit} \Big( \sum_k w_{ujk} \, \sigma(a_{ujk} v_j + b_{ujk}) \Big),
        \qquad v_j = e^{s_{uj}} z_j + t_{uj}, \; a > 0, \; w \text{ on the simplex}

    (Huang et al. 2018). Increasing, with tails that are straight lines. zuko has such flows for coordinates that are
    conditioned on each other; here none are, so that values, derivatives and brackets of the root are closed forms.

    Parameters
    ----------
    n_domains
        Number of domains, u = 0, 1, ...
    d
        Coordinates.
    units
        Sigmoids, K; 1 is the affine map v, for which the divergence from a Gaussian has a closed form.
    """

    def __init__(self, n_domains: int, d: int, units: int = 4) -> None:
        super().__init__()
        self.n_domains, self.d, self.units = n_domains, d, units
        self.log_scale = nn.Parameter(torch.zeros(n_domains, d))
        self.shift = nn.Parameter(torch.zeros(n_domains, d))
        if units > 1:
            shape = n_domains, d, units
            self.slope = nn.Parameter(torch.zeros(shape))
            # Unequal, so that units learn to differ; close, so that the flow starts near the identity.
            self.place = nn.Parameter(torch.linspace(-0.2, 0.2, units).expand(shape).clone())
            self.weight = nn.Parameter(torch.zeros(shape))

    @property
    def affine(self) -> bool:
        """Whether F_u is a scale and a shift."""
        return self.units == 1

    def forward(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Noise e, shape (batch, d), and log dF_u/dz by coordinate, (batch, d), for latents (batch, d) of domains u."""
        v = z * self.log_scale[u].exp() + self.shift[u]
        if self.affine:
            return v, self.log_scale[u]
        e, log_slope = self._bend(v, u)
        return e, log_slope + self.log_scale[u]

    def inverse(self, e: Tensor, u: Tensor) -> Tensor:
        """Latents that noise (batch, d) stands for in domains u; gradients reach `e` and the parameters."""
        v = e if self.affine else self._unbend(e, u)
        return (v - self.shift[u]) * (-self.log_scale[u]).exp()

    @torch.no_grad()
    def solve(self, z: Tensor, u: Tensor, which: Tensor | slice = slice(None)) -> None:
        """Start from the Gaussian of each domain's latents, (n, d); domains with fewer than 2 keep what they have.

        `which` coordinates, all by default.
        """
        for code in u.unique():
            own = z[u == code]
            if len(own) > 1:
                log_scale = -own.std(0).clamp_min(FLOOR).log()
                self.log_scale[code, which] = log_scale[which]
                self.shift[code, which] = (-own.mean(0) * log_scale.exp())[which]

    def log_prob(self, z: Tensor, u: Tensor) -> Tensor:
        """Log density of latents in domains u, by coordinate, (batch, d)."""
        e, log_slope = self(z, u)
        return log_slope - 0.5 * (e.square() + LOG_2PI)

    def _bend(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of sigmoids, all in logarithms: nothing under- or overflows far out."""
        inner = v[..., None] * self.slope[u].exp() + self.place[u]
        log_w = self.weight[u].log_softmax(-1)
        log_up, log_down = logsigmoid(inner), logsigmoid(-inner)
        log_p, log_q = (log_w + log_up).logsumexp(-1), (log_w + log_down).logsumexp(-1)
        log_rise = (log_w + self.slope[u] + log_up + log_down).logsumexp(-1)
        return log_p - log_q, log_rise - log_p - log_q

    def _unbend(self, e: Tensor, u: Tensor) -> Tensor:
        """Root by bracketed Newton steps, the last of which carries the gradient (the implicit function theorem)."""
        with torch.no_grad():
            # The logit of a mean of sigmoids lies between those of its terms, and its root between theirs.
            ends = (e[..., None] - self.place[u]) / self.slope[u].exp()
            low, high = ends.amin(-1), ends.amax(-1)
            v = (low + high) / 2
            for _ in range(NEWTON):
                value, log_slope = self._bend(v, u)
                over = value > e
                low, high = torch.where(over, low, v), torch.where(over, v, high)
                stepped = v - (value - e) * (-log_slope).exp()
                inside = (stepped >= low) & (stepped <= high)
                moved = torch.where(inside, stepped, (low + high) / 2)
                done, v = bool((moved - v).abs().max() <= 1e-6 * (1 + v.abs().max())), moved
                if done:
                    break
        value, log_slope = self._bend(v, u)
        return v - (value - e) * (-log_slope.detach()).exp()


class Latents(nn.Module):
    r"""The law p(z | u) of all latents: style through a flow of its own for every domain, content alike in all.

    Content is standard normal after a centre and a scale. Which coordinates are style is said by a mask:

    - ``"sorted"``: all are style at first; `sort` makes those content that say least about the domain. Content and
      style given by position trap training: a latent that has settled in the wrong block stays there.
    - ``"fixed"``: the first `n_content` coordinates are content.
    - ``"learned"``: bits with a straight-through gradient (Bengio et al. 2013), all style at first. `share` is their
      penalty; `follow` gives a latent whose bit has flipped its new law where it is.

    `settle` ends the search: from then on the mask is what it is.

    Parameters
    ----------
    n_content, n_style
        Coordinates of both kinds; with ``"learned"``, their sum counts alone.
    n_domains, units
        As in `DomainFlow`.
    mask
        One of `MASKS`.
    """

    bits: Tensor
    centre: Tensor
    spread: Tensor
    settled: Tensor

    def __init__(self, n_content: int, n_style: int, n_domains: int, *, units: int = 4, mask: str = "sorted") -> None:
        super().__init__()
        if mask not in MASKS:
            raise ConfigError(f"mask={mask!r}; it is one of {', '.join(MASKS)}.")
        d = n_content + n_style
        self.n_content, self.flow = n_content, DomainFlow(n_domains, d, units)
        fixed = (torch.arange(d) >= n_content).float()
        self.register_buffer("bits", fixed if mask == "fixed" else torch.ones(d))
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool))
        self.sorts = mask == "sorted"
        self.logits = nn.Parameter(torch.full((d,), 0.5)) if mask == "learned" else None

    def mask(self) -> Tensor:
        """Ones at style and zeros at content, shape (d,); gradients pass to the logits as if the bits were not cut."""
        if self.logits is None or self.settled:
            return self.bits
        p = self.logits.sigmoid()
        return (p > 0.5).to(p.dtype) + (p - p.detach())

    def style(self) -> Tensor:
        """Which coordinates are style, boolean, shape (d,)."""
        return self.mask().detach() > 0.5

    def share(self) -> Tensor:
        """Expected share of style coordinates."""
        return self.bits.mean() if self.logits is None or self.settled else self.logits.sigmoid().mean()

    def flipped(self) -> Tensor:
        """Learned bits that `follow` has not seen yet, boolean, shape (d,)."""
        return self.style() != (self.bits > 0.5)

    @torch.no_grad()
    def start(self, z: Tensor, u: Tensor, which: Tensor | slice = slice(None)) -> None:
        """Both laws of the coordinates `which`, content's and style's, where the latents (n, d) are."""
        self.flow.solve(z, u, which)
        self.centre[which], self.spread[which] = z.mean(0)[which], z.std(0).clamp_min(FLOOR)[which]

    @torch.no_grad()
    def follow(self, z: Tensor, u: Tensor) -> None:
        """Take flipped bits over: the law that a latent changes to has not moved with it, and starts anew."""
        self.start(z, u, self.flipped())
        self.bits.copy_(self.style())

    @torch.no_grad()
    def settle(self, z: Tensor, u: Tensor) -> None:
        """Hold the mask as it is from now on; a sorted one is told apart first."""
        if self.sorts:
            self.sort(z, u)
        elif self.logits is not None:
            self.follow(z, u)
        self.settled.fill_(True)

    def to_noise(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Noise that does not know the domain, (batch, d), and log-determinants (batch,), of latents (batch, d)."""
        mask, (styled, log_slope) = self.mask(), self.flow(z, u)
        plain, log_plain = (z - self.centre) / self.spread, -self.spread.log()
        return plain + mask * (styled - plain), (log_plain + mask * (log_slope - log_plain)).sum(1)

    def from_noise(self, e: Tensor, u: Tensor) -> Tensor:
        """Inverse of `to_noise`: the latents of domains u."""
        plain = e * self.spread + self.centre
        return plain + self.mask() * (self.flow.inverse(e, u) - plain)

    def moved(self, z: Tensor, u: Tensor, to: Tensor) -> Tensor:
        """The same cells' latents in other domains; content stays as it is."""
        styled = self.flow.inverse(self.flow(z, u)[0], to)
        return z + self.mask() * (styled - z)

    def divergence(self, mean: Tensor, log_sd: Tensor, z: Tensor, u: Tensor) -> Tensor:
        r"""KL divergence of q(z|x) = N(mean, sd^2) from p(z|u), in nats, shape (batch,).

        In closed form for content and where F_u is affine; else by the draw `z` from q, which is unbiased. Shapes
        (batch, d), and (batch,) of `u`.
        """
        content = gaussian_divergence((mean - self.centre) / self.spread, log_sd - self.spread.log())
        if self.flow.affine:
            e, log_scale = self.flow(mean, u)
            style = gaussian_divergence(e, log_sd + log_scale)
        else:
            log_q = -0.5 * (((z - mean) * (-log_sd).exp()).square() + LOG_2PI) - log_sd
            style = log_q - self.flow.log_prob(z, u)
        return (content + self.mask() * (style - content)).sum(1)

    @torch.no_grad()
    def sort(self, z: Tensor, u: Tensor) -> Tensor:
        """Make those `n_content` coordinates content that say least about the domain; returns what each says, (d,)."""
        said = information(z, u)
        self.centre.copy_(z.mean(0))
        self.spread.copy_(z.std(0).clamp_min(FLOOR))
        self.bits.fill_(1.0)
        self.bits[said.argsort()[: self.n_content]] = 0.0
        return said


def information(z: Tensor, u: Tensor) -> Tensor:
    r"""Nats that each latent says about the domain, as far as means and variances tell, shape (d,).

    .. math:: I(z_j; u) = \tfrac12 \left( \log \operatorname{Var} z_j - E_u \log \operatorname{Var}(z_j | u) \right)

    Domains with fewer than 2 cells are left out; where all are, nothing is known.
    """
    codes, counts = u.unique(return_counts=True)
    codes, counts = codes[counts > 1], counts[counts > 1]
    if not len(codes):
        return z.new_zeros(z.shape[1])
    inside = torch.stack([z[u == code].var(0).clamp_min(FLOOR).log() for code in codes])
    known = z[torch.isin(u, codes)]
    return 0.5 * (known.var(0).clamp_min(FLOOR).log() - (counts[:, None] * inside).sum(0) / counts.sum())


def gaussian_divergence(mean: Tensor, log_sd: Tensor) -> Tensor:
    """KL divergence of N(mean, sd^2) from N(0, 1), by coordinate."""
    return 0.5 * (mean.square() + (2 * log_sd).exp() - 1) - log_sd
