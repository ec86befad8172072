"""Alignments of suite ``moons``: the same invertible map under other objectives, and two flows back to back.

Cells come in at unit scale. Every training calls ``watch(step, objective, map)`` now and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm

from celltransfer.losses import discrepancy
from celltransfer.nn import flows
from celltransfer.train.loop import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer

    Map = Callable[[Tensor], Tensor]
    Watch = Callable[[int, float, Map], None]

# Steps between two calls of `watch`.
EVERY = 20
# Share of the cells that densities are stopped by.
HELD_OUT = 0.2


def fit(method: str, x: Tensor, y: Tensor, *, seed: int, watch: Watch, **settings: Any) -> Map:
    """A map of x, (n, d), onto the law of y, (m, d), by ``"mmd"``, ``"emd"``, ``"sngan"`` or ``"back_to_back"``."""
    with seeded(seed):
        return _FITS[method](x, y, seed=seed, watch=watch, **settings)


def mmd(a: Tensor, b: Tensor, widths: Sequence[float]) -> Tensor:
    """Squared maximum mean discrepancy of two samples, summed over kernels of these widths."""
    return len(widths) * discrepancy.mmd(a, b, widths, unit=1.0)


def emd(a: Tensor, b: Tensor, power: int = 2) -> Tensor:
    """Earth mover's distance between two samples, (n, d) and (m, d): the least mean of ``distance ** power``."""
    import ot

    cost = (a[:, None] - b[None]).square().sum(dim=2)
    cost = cost if power == 2 else (cost + 1e-12).sqrt()
    plan = ot.emd(np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), cost.detach().double().numpy())
    return (torch.as_tensor(plan, dtype=cost.dtype) * cost).sum()


def _discrepancy(
    x: Tensor,
    y: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
    watch: Watch,
    steps: int,
    batch: int,
    lr: float,
    blocks: int,
    hidden: Sequence[int],
) -> Map:
    """Minimise a distance between minibatches of T(x) and y; the learning rate declines over the second half."""
    t = flows.transform("realnvp", x.shape[1], blocks=blocks, hidden=hidden)
    optimizer = torch.optim.Adam(t.parameters(), lr=lr)
    decline = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    draw = _Batches(x, y, batch, seed)
    for step in range(steps):
        loss = distance(t(draw.x())[0], draw.y())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decline.step()
        if step % EVERY == 0:
            watch(step, float(loss.detach()), lambda cells: t(cells)[0])
    return lambda cells: t(cells)[0]


def _fit_mmd(x: Tensor, y: Tensor, *, widths: Sequence[float], **options: Any) -> Map:
    return _discrepancy(x, y, lambda a, b: mmd(a, b, widths), **options)


def _fit_emd(x: Tensor, y: Tensor, *, power: int, **options: Any) -> Map:
    return _discrepancy(x, y, lambda a, b: emd(a, b, power), **options)


def _fit_back_to_back(
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    watch: Watch,
    family: str,
    steps: int,
    batch: int,
    lr: float,
    blocks: int,
    hidden: Sequence[int],
) -> Map:
    """F(G^-1(x)) of two flows to one normal law, each fitted by maximum likelihood (as in AlignFlow)."""
    g, f = (flows.density(family, x.shape[1], blocks=blocks, hidden=hidden) for _ in range(2))
    for model, cells in ((g, x), (f, y)):
        order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))
        held, train = cells[order].tensor_split([int(HELD_OUT * len(cells))])
        flows.fit_density(model, train, held, max_steps=steps, batch_size=batch, lr=lr, seed=seed)
    return lambda cells: f.decode(g.encode(cells))  # type: ignore[operator]


def discriminator(d: int, hidden: Sequence[int] = (128, 128)) -> nn.Module:
    """(batch, d) -> logits (batch, 1), every layer divided by its spectral norm (Miyato et al. 2018)."""
    widths = [d, *hidden]
    pairs = zip(widths, widths[1:], strict=False)
    layers: list[nn.Module] = [layer for a, b in pairs for layer in (spectral_norm(nn.Linear(a, b)), nn.LeakyReLU(0.1))]
    return nn.Sequential(*layers, spectral_norm(nn.Linear(widths[-1], 1)))


def _fit_sngan(
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    watch: Watch,
    steps: int,
    batch: int,
    lr: float,
    lr_discriminator: float,
    rounds: int,
    blocks: int,
    hidden: Sequence[int],
) -> Map:
    """Hinge losses; the objective that is watched is the discriminator's: 2 where it tells nothing apart."""
    t, critic = flows.transform("realnvp", x.shape[1], blocks=blocks, hidden=hidden), discriminator(x.shape[1])
    players = [
        torch.optim.Adam(p.parameters(), lr=rate, betas=(0.0, 0.9)) for p, rate in ((t, lr), (critic, lr_discriminator))
    ]
    draw = _Batches(x, y, batch, seed)
    for step in range(steps):
        for _ in range(rounds):
            with torch.no_grad():
                fake = t(draw.x())[0]
            loss = relu(1 - critic(draw.y())).mean() + relu(1 + critic(fake)).mean()
            _step(players[1], loss)
        _step(players[0], -critic(t(draw.x())[0]).mean())
        if step % EVERY == 0:
            watch(step, float(loss.detach()), lambda cells: t(cells)[0])
    return lambda cells: t(cells)[0]


def _step(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class _Batches:
    """Minibatches of both sides, drawn independently."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self._x, self._y, self._size = x, y, size
        self._generator = torch.Generator().manual_seed(seed)

    def x(self) -> Tensor:
        """Source cells (size, d)."""
        return self._rows(self._x)

    def y(self) -> Tensor:
        """Target cells (size, d)."""
        return self._rows(self._y)

    def _rows(self, cells: Tensor) -> Tensor:
        return cells[torch.randint(len(cells), (self._size,), generator=self._generator)]


_FITS: dict[str, Callable[..., Map]] = {
    "mmd": _fit_mmd,
    "emd": _fit_emd,
    "back_to_back": _fit_back_to_back,
    "sngan": _fit_sngan,
}
