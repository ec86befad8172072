"""Invertible maps and densities with exact likelihood, by name: what likelihood-ratio minimizing flows are made of.

Coupling layers, splines and continuous flows come from zuko. A map starts as the identity; a density starts as the
Gaussian of its data, so that every family holds the Gaussian one and is better only where likelihood says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from celltransfer.errors import ConfigError, FeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRANSFORMS = ("shift", "scale_shift", "affine", "realnvp", "spline", "continuous", "glow")
DENSITIES = ("gaussian", "realnvp", "spline", "continuous", "glow")
COUPLED = ("realnvp", "spline", "continuous")
# Splines bend values within this many standard deviations and leave those beyond alone.
SPLINE_BOUND = 5.0
SPLINE_BINS = 8
# Relative error that the solver of a continuous flow allows itself.
ODE_TOLERANCE = 1e-5
# With fewer cells per feature a covariance is shrunk.
CELLS_PER_FEATURE = 100
# Steps between two looks at the held-out likelihood.
CHECK_EVERY = 50
# Shares of the steps from which on smaller learning rates are taken at the latest, and these as shares of the first.
SLOWER = ((0.5, 0.3), (0.75, 0.1))
LOG_2PI = math.log(2 * math.pi)


class Invertible(nn.Module):
    """A map of d features to d features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images, (batch, d), and log |det| of the Jacobian, (batch,)."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (batch, d) -> (batch, d)."""
        raise NotImplementedError


class Density(nn.Module):
    """A density over d features."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of cells (batch, d), shape (batch,)."""
        raise NotImplementedError

    def sample(self, n: int) -> Tensor:
        """Draws by torch's global generator, shape (n, d)."""
        raise NotImplementedError

    def solve(self, x: Tensor) -> None:
        """Start from cells (n, d), before training; nothing where a family has no closed form to start from."""


def transform(
    family: str, d: int, *, blocks: int = 4, hidden: Sequence[int] = (128, 128), side: int = 0, scales: int = 3
) -> Invertible:
    """An invertible map of d features that is the identity until it is trained.

    Parameters
    ----------
    family
        ``"shift"``, ``"scale_shift"`` (per feature), ``"affine"`` (symmetric positive definite, the map that the
        Gaussian family identifies), ``"realnvp"``, ``"spline"`` (couplings), ``"continuous"`` (FFJORD) or ``"glow"``
        (images).
    d
        Number of features.
    blocks, hidden
        Coupling layers (or solvers in a row) and the hidden layers of their networks.
    side, scales
        For ``"glow"``: side of the square images and number of scales; ``hidden[0]`` is the number of filters.
    """
    _known(family, TRANSFORMS, "transform", d)
    if family in COUPLED:
        return Flow(family, d, blocks, hidden, affine=family == "spline")
    if family == "glow":
        from celltransfer.nn.glow import GlowTransform

        return GlowTransform(_side(side, d), channels=d // side**2, scales=scales, blocks=blocks, width=hidden[0])
    return Affine(d, family)


def density(
    family: str, d: int, *, blocks: int = 4, hidden: Sequence[int] = (128, 128), side: int = 0, scales: int = 3
) -> Density:
    """A density over d features.

    `family` is ``"gaussian"`` (full covariance), or ``"realnvp"``, ``"spline"``, ``"continuous"`` or ``"glow"``; the
    rest as in `transform`.
    """
    _known(family, DENSITIES, "density", d)
    if family == "gaussian":
        return Gaussian(d)
    if family == "glow":
        from celltransfer.nn.glow import GlowDensity

        return GlowDensity(_side(side, d), channels=d // side**2, scales=scales, blocks=blocks, width=hidden[0])
    return FlowDensity(family, d, blocks, hidden)


def n_parameters(module: nn.Module) -> int:
    """Degrees of freedom: trained numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class Affine(Invertible):
    """x -> A x + b with A the identity (``"shift"``), diagonal (``"scale_shift"``) or W^T W (``"affine"``)."""

    def __init__(self, d: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.shift = nn.Parameter(torch.zeros(d))
        if kind == "scale_shift":
            self.log_scale = nn.Parameter(torch.zeros(d))
        if kind == "affine":
            self.root = nn.Parameter(torch.eye(d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, d) and log-determinants (batch,)."""
        if self.kind == "affine":
            y, log_det = x @ self.matrix(), 2 * torch.linalg.slogdet(self.root).logabsdet
        elif self.kind == "scale_shift":
            y, log_det = x * self.log_scale.exp(), self.log_scale.sum()
        else:
            y, log_det = x, x.new_zeros(())
        return y + self.shift, log_det.expand(len(x))

    def matrix(self) -> Tensor:
        """The symmetric positive definite A, shape (d, d)."""
        return self.root.T @ self.root

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (batch, d) -> (batch, d)."""
        x = y - self.shift
        if self.kind == "affine":
            return torch.linalg.solve(self.matrix(), x.T).T
        return x * (-self.log_scale).exp() if self.kind == "scale_shift" else x


class Flow(Invertible):
    """Coupling layers or continuous flows of zuko in a row, the identity at the start.

    Splines leave values far out alone, so that a map of splines moves the whole by a shift and scale first.
    """

    def __init__(self, family: str, d: int, blocks: int, hidden: Sequence[int], *, affine: bool = False) -> None:
        super().__init__()
        self.first = Affine(d, "scale_shift") if affine else None
        self.layers = nn.ModuleList(_layer(family, d, i, tuple(hidden)) for i in range(blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, d) and log-determinants (batch,)."""
        log_det = x.new_zeros(len(x))
        if self.first is not None:
            x, log_det = self.first(x)
        for layer in self.layers:
            x, more = layer().call_and_ladj(x)
            log_det = log_det + more
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`, (batch, d) -> (batch, d)."""
        for layer in reversed(self.layers):
            y = layer().inv(y)
        return y if self.first is None else self.first.inverse(y)


class Gaussian(Density):
    """Normal density with a full covariance, by a lower triangular W that whitens: z = W (x - mean)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(d))
        self.log_diagonal = nn.Parameter(torch.zeros(d))
        self.below = nn.Parameter(torch.zeros(d, d))

    def whiten(self, x: Tensor) -> Tensor:
        """Values z = W (x - mean), shape (batch, d)."""
        return (x - self.mean) @ self._factor().T

    def unwhiten(self, z: Tensor) -> Tensor:
        """Inverse of `whiten`."""
        return torch.linalg.solve_triangular(self._factor(), z.T, upper=False).T + self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, shape (batch,)."""
        return _standard_log_prob(self.whiten(x)) + self.log_diagonal.sum()

    def sample(self, n: int) -> Tensor:
        """Draws, shape (n, d), by torch's global generator."""
        return self.unwhiten(torch.randn(n, len(self.mean), device=self.mean.device))

    @torch.no_grad()
    def solve(self, x: Tensor) -> None:
        """Become the Gaussian of most likelihood for (n, d) cells; of few cells the covariance is shrunk."""
        mean, covariance = moments(x)
        factor = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self.mean.copy_(mean)
        self.log_diagonal.copy_(factor.diagonal().log())
        self.below.copy_(factor.tril(-1))

    def _factor(self) -> Tensor:
        return self.below.tril(-1) + torch.diag(self.log_diagonal.exp())


class FlowDensity(Density):
    """A Gaussian whitens, a flow bends what is left to a standard normal."""

    def __init__(self, family: str, d: int, blocks: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.gaussian, self.flow = Gaussian(d), Flow(family, d, blocks, hidden)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, shape (batch,)."""
        z, log_det = self.flow(self.gaussian.whiten(x))
        return _standard_log_prob(z) + log_det + self.gaussian.log_diagonal.sum()

    def encode(self, x: Tensor) -> Tensor:
        """The standard normal values z that stand for cells, shape (batch, d)."""
        return self.flow(self.gaussian.whiten(x))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return self.gaussian.unwhiten(self.flow.inverse(z))

    def sample(self, n: int) -> Tensor:
        """Draws, shape (n, d), by torch's global generator."""
        mean = self.gaussian.mean
        return self.decode(torch.randn(n, len(mean), device=mean.device))

    def solve(self, x: Tensor) -> None:
        """Start from the Gaussian of the cells (n, d)."""
        self.gaussian.solve(x)


def fit_density(
    module: Density,
    train: Tensor,
    held: Tensor,
    *,
    max_steps: int = 2000,
    batch_size: int = 256,
    lr: float = 1e-3,
    patience: int = 5,
    seed: int = 0,
    expired: Callable[[], bool] = lambda: False,
) -> float:
    """Fit a density to convergence: until held-out likelihood has not risen for `patience` looks of 50 steps.

    That is asked of three learning rates, each from the best state so far.

    Parameters
    ----------
    module
        From `density`; ends in the state with the highest held-out likelihood. A Gaussian is solved, not trained.
    train, held
        Cells to fit and cells to stop by, (n, d) and (m, d).
    max_steps, batch_size, lr, seed
        Of Adam. Weights are already drawn; `seed` draws the batches.
    expired
        Asked at every look whether to stop now.

    Returns
    -------
    float
        Mean log-likelihood of the held-out cells.
    """
    module.solve(train)
    best, since = _mean_log_prob(module, held), 0
    if isinstance(module, Gaussian):
        return best
    generator = torch.Generator(train.device).manual_seed(seed)
    optimizer, kept, drops = torch.optim.Adam(module.parameters(), lr=lr, fused=True), _copy(module), 0
    for step in range(1, max_steps + 1):
        rows = torch.randint(len(train), (min(batch_size, len(train)),), generator=generator, device=train.device)
        loss = -module.log_prob(train[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        if step % CHECK_EVERY:
            continue
        value = _mean_log_prob(module, held)
        best, since, kept = (value, 0, _copy(module)) if value > best else (best, since + 1, kept)
        stalled = since >= patience or not math.isfinite(value)
        if expired() or (stalled and drops == len(SLOWER)):
            break
        if drops < len(SLOWER) and (stalled or step >= SLOWER[drops][0] * max_steps):
            # From the best state on with smaller steps, until those do not help either.
            module.load_state_dict(kept)
            optimizer = torch.optim.Adam(module.parameters(), lr=lr * SLOWER[drops][1], fused=True)
            since, drops = 0, drops + 1
    module.load_state_dict(kept)
    return best


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of cells (n, d), positive definite; shrunk where cells are few (Ledoit-Wolf)."""
    mean = x.mean(0)
    centred = (x - mean).double()
    d = x.shape[1]
    if len(x) < CELLS_PER_FEATURE * d:
        from sklearn.covariance import ledoit_wolf

        covariance = torch.as_tensor(ledoit_wolf(centred.cpu().numpy(), assume_centered=True)[0], device=x.device)
    else:
        covariance = centred.T @ centred / len(x)
    floor = 1e-6 * covariance.diagonal().mean().clamp_min(1e-12)
    return mean, (covariance + floor * torch.eye(d, dtype=torch.float64, device=x.device)).to(x.dtype)


@torch.no_grad()
def _mean_log_prob(module: Density, cells: Tensor) -> float:
    return float(module.log_prob(cells).mean())


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _standard_log_prob(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + LOG_2PI).sum(dim=1)


def _layer(family: str, d: int, i: int, hidden: tuple[int, ...]) -> nn.Module:
    """Layer number i of a flow, whose network answers with zeros until it is trained."""
    import zuko  # type: ignore[import-untyped]

    if family == "continuous":
        layer = zuko.flows.continuous.FFJTransform(
            d, hidden_features=hidden, activation=nn.Tanh, atol=ODE_TOLERANCE, rtol=ODE_TOLERANCE
        )
        network = layer.ode
    else:
        options: dict[str, Any] = {"mask": torch.arange(d) % 2 == i % 2, "hidden_features": hidden}
        if family == "spline":
            bins = SPLINE_BINS
            options |= {"univariate": _spline, "shapes": [(bins,), (bins,), (bins - 1,)]}
        layer = zuko.flows.coupling.GeneralCouplingTransform(d, **options)
        network = layer.hyper
    for value in network[-1].parameters():
        nn.init.zeros_(value)
    return layer


def _spline(*phi: Tensor) -> Any:
    import zuko

    return zuko.transforms.MonotonicRQSTransform(*phi, bound=SPLINE_BOUND)


def _known(family: str, families: Sequence[str], what: str, d: int) -> None:
    if family not in families:
        raise ConfigError(f"{what}={family!r}; it is one of {', '.join(families)}.")
    if d < 2 and family in ("realnvp", "spline", "glow"):
        raise FeatureError(f"{what}={family!r} couples features and needs two or more; there is {d}.")


def _side(side: int, d: int) -> int:
    if side < 1 or d % side**2:
        raise ConfigError(f"side={side}; images with {d} values need a side whose square divides that.")
    return side
