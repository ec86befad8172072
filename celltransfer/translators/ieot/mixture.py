"""The conditional law of inverse entropic OT in closed form: a Gaussian mixture that the source cell tilts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from celltransfer.nn.blocks import MLP, Residual

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_2PI = math.log(2 * math.pi)
# Spread of the gate's weights at the start, which tells cost components apart whose directions are all zero.
GATE_SPREAD = 0.3


class TiltedMixture(nn.Module):
    r"""Conditional density :math:`\pi(y|x) = e^{f(y) - c(x, y)} / Z(x)` with everything known in closed form.

    .. math::
        f(y) = \log \sum_n w_n N(y \mid b_n, B_n), \qquad
        c(x, y) = -\log \sum_m v_m(x) e^{\langle a_m(x), y \rangle}

    The potential f is a mixture of N Gaussians with diagonal covariances; the cost tilts it, as in an exponential
    family, by directions a_m(x) that a gate v mixes. Hence, with
    :math:`\log z_{mn} = \log w_n + \log v_m + \frac12 a_m^T B_n a_m + b_n^T a_m` and :math:`Z = \sum_{mn} z_{mn}`,

    .. math:: \pi(y|x) = \sum_{mn} \frac{z_{mn}(x)}{Z(x)} \, N(y \mid b_n + B_n a_m(x), B_n).

    The regularisation of entropic OT is 1: (a, B, eps) and (a / eps, eps B, 1) are the same model. Where conditions are
    known, the potential has a row of weights w and a tilt <t, y> for each, which unpaired target cells alone determine;
    a condition the model does not know (code -1) has the mean of these over all cells. No (batch, M, N, D) array is
    ever made.

    Reference: inverse entropic optimal transport, equations 13, 17 and 18, Propositions 3.1 and 3.2.

    Parameters
    ----------
    n_in, n_out
        Source and target dimension, d and D.
    n_potential, n_cost
        N and M.
    towers
        How a_m and v depend on x: ``"linear"``, ``"residual"`` (linear plus a network that starts at zero) or
        ``"mlp"``. Directions start at zero, so that the law starts at the potential for all x.
    hidden
        Widths of the hidden layers of the latter two.
    n_conditions
        Number of conditions; 0 without.
    floor
        Smallest variance, one for all features or one for each, shape (D,): without one, f grows without bound on a
        cell that a component collapses to.
    """

    floor: Tensor
    shares: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_potential: int = 10,
        n_cost: int = 1,
        *,
        towers: str = "linear",
        hidden: Sequence[int] = (64,),
        n_conditions: int = 0,
        floor: float | Tensor = 0.02,
    ) -> None:
        super().__init__()
        self.n_out, self.n_cost = n_out, n_cost
        # Whether directions have mean zero whenever source features have; or nearly, where a gate mixes several.
        self.centred = towers == "linear"
        self.register_buffer("floor", torch.as_tensor(floor).expand(n_out).clone().float())
        self.direction = _tower(n_in, n_cost * n_out, towers, hidden)
        _zero(self.direction)
        # A constant direction could be had from the potential as well; see `semi_supervised` on what it would cost.
        _last(self.direction).register_parameter("bias", None)
        self.gate = _tower(n_in, n_cost, towers, hidden) if n_cost > 1 else None
        if self.gate is not None:
            _zero(self.gate)
            nn.init.normal_(_last(self.gate).weight, std=GATE_SPREAD / math.sqrt(_last(self.gate).in_features))
        self.centres = nn.Parameter(torch.randn(n_potential, n_out))
        self.log_variances = nn.Parameter(torch.zeros(n_potential, n_out))
        self.weights = nn.Parameter(torch.zeros(max(1, n_conditions), n_potential))
        self.tilts = nn.Parameter(torch.zeros(n_conditions, n_out)) if n_conditions else None
        # Of all cells, by condition.
        self.register_buffer("shares", torch.full((max(1, n_conditions),), 1 / max(1, n_conditions)))

    @property
    def variances(self) -> Tensor:
        """Diagonals of B_n, shape (N, D)."""
        return self.floor + self.log_variances.exp()

    def set_potential(self, weights: Tensor, centres: Tensor, variances: Tensor, shares: Tensor | None = None) -> None:
        """Start the potential: weights (conditions, N) or (N,), centres and variances (N, D), shares (conditions,)."""
        with torch.no_grad():
            self.weights.copy_(weights.log().expand_as(self.weights))
            self.centres.copy_(centres)
            self.log_variances.copy_((variances - self.floor).clamp_min(1e-3 * self.floor).log())
            if shares is not None:
                self.shares.copy_(shares)

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions a, shape (batch, M, D), and logarithms of the gate v, shape (batch, M)."""
        a = self.direction(x).reshape(len(x), self.n_cost, self.n_out)
        return a, a.new_zeros(len(x), 1) if self.gate is None else self.gate(x).log_softmax(dim=-1)

    def log_weights(self, condition: Tensor | None = None) -> Tensor:
        """Logarithms of w, shape (batch, N), or (1, N) without conditions."""
        log_w = self.weights.log_softmax(dim=-1)
        overall = (log_w + self.shares.log()[:, None]).logsumexp(dim=0, keepdim=True)
        return overall if condition is None else torch.cat([overall, log_w])[condition + 1]

    def tilt(self, condition: Tensor | None = None) -> Tensor:
        """The tilt of the potential, shape (batch, D), or (1, D) without conditions."""
        if self.tilts is None:
            return torch.zeros_like(self.centres[:1])
        overall = self.shares[None] @ self.tilts
        return overall if condition is None else torch.cat([overall, self.tilts])[condition + 1]

    def potential(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """The potential f(y), shape (batch,)."""
        mixture = (self.log_weights(condition) + self._log_normal(y)).logsumexp(dim=-1)
        return mixture if self.tilts is None else mixture + (self.tilt(condition) * y).sum(dim=-1)

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        """The cost c(x, y) of rows that belong together, shape (batch,)."""
        a, log_v = self.directions(x)
        return -(log_v + (a * y[:, None]).sum(dim=-1)).logsumexp(dim=-1)

    def log_z(self, x: Tensor, condition: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Logarithm of the normaliser Z(x), shape (batch,) (Proposition 3.1); `frozen`: the potential is a constant."""
        return self._parts(x, condition, frozen)[1].flatten(start_dim=1).logsumexp(dim=-1)

    def log_prob(self, x: Tensor, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logarithm of pi(y|x) of rows that belong together, shape (batch,)."""
        return self.potential(y, condition) - self.cost(x, y) - self.log_z(x, condition)

    def responsibilities(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Weights z_mn / Z of the components of pi(.|x), shape (batch, M, N); they sum to 1."""
        return self._shares(x, condition)[1]

    def moments(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of pi(.|x) by feature, both (batch, D)."""
        a, r = self._shares(x, condition)
        b, var = self.centres, self.variances
        within, middle = r @ var, r @ b + (r @ var) * a
        mean = middle.sum(dim=1)
        # Cost component by cost component: never (batch, M, N, D).
        second = r @ (var + b * b) + 2 * (r @ (b * var)) * a + (r @ (var * var)) * a * a
        shift = mean[:, None]
        total = (second - 2 * shift * middle + r.sum(-1, True) * shift**2).sum(dim=1)
        # Not below the mean of the components' variances, which it is never; the difference may round.
        return mean, torch.maximum(total, within.sum(dim=1))

    def covariance(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Covariance of pi(.|x), shape (batch, D, D)."""
        a, r = self._shares(x, condition)
        mean = self.moments(x, condition)[0]
        total = torch.diag_embed(r.sum(dim=1) @ self.variances)
        for m in range(self.n_cost):  # (batch, N, D) at a time
            gap = self.centres + self.variances * a[:, m, None] - mean[:, None]
            total = total + (gap * r[:, m, :, None]).transpose(1, 2) @ gap
        return total

    def sample(
        self, x: Tensor, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `n` target cells for every source cell, shape (n, batch, D)."""
        a, r = self._shares(x, condition)
        drawn = torch.multinomial(r.flatten(start_dim=1), n, replacement=True, generator=generator).T
        m, k = drawn // r.shape[2], drawn % r.shape[2]
        variance = self.variances[k]
        mean = self.centres[k] + variance * a[torch.arange(len(x), device=x.device), m]
        noise = torch.randn(mean.shape, generator=generator, device=x.device, dtype=mean.dtype)
        return mean + variance.sqrt() * noise

    def _shares(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Directions with the potential's tilt, shape (batch, M, D), and responsibilities, shape (batch, M, N)."""
        a, log_z = self._parts(x, condition)
        return a, log_z.flatten(start_dim=1).softmax(dim=-1).reshape(log_z.shape)

    def _parts(self, x: Tensor, condition: Tensor | None, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Directions with the potential's tilt, shape (batch, M, D), and log z_mn, shape (batch, M, N)."""
        a, log_v = self.directions(x)
        potential = self.variances, self.centres, self.log_weights(condition), self.tilt(condition)
        var, b, log_w, tilt = (p.detach() for p in potential) if frozen else potential
        a = a + tilt[:, None]
        return a, (0.5 * a * a) @ var.T + a @ b.T + log_v[:, :, None] + log_w[:, None]

    def _log_normal(self, y: Tensor) -> Tensor:
        """Log densities N(y | b_n, B_n), shape (batch, N), by matrix products."""
        precision = 1 / self.variances
        square = (y * y) @ precision.T - 2 * y @ (self.centres * precision).T
        constant = (self.centres**2 * precision - precision.log()).sum(dim=-1) + self.n_out * LOG_2PI
        return -0.5 * (square + constant)


def _tower(n_in: int, n_out: int, kind: str, hidden: Sequence[int]) -> nn.Module:
    if kind == "residual":
        return Residual(n_in, n_out, hidden)
    return MLP(n_in, n_out, hidden if kind == "mlp" else ())


def _last(tower: nn.Module) -> nn.Linear:
    """The layer that a tower starts from: the linear map, or the last layer of a network."""
    layer = tower.linear if isinstance(tower, Residual) else tower[-1]  # type: ignore[index]
    assert isinstance(layer, nn.Linear)
    return layer


def _zero(tower: nn.Module) -> None:
    nn.init.zeros_(_last(tower).weight)
    nn.init.zeros_(_last(tower).bias)
