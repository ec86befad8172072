r"""Networks and training of the cross-modal autoencoder of Yang et al. 2021.

With encoders :math:`E`, decoders :math:`D`, discriminator :math:`c` and a linear classifier :math:`q` on the latents,

.. math::
    L = \sum_{m \in \{x, y\}} \big( 10 |D_m E_m m - m| + 10 (c(E_m m) - t_m)^2 + 10 H(q(E_m m), class_m) \big)
    + 0.1 |E_x x_a - E_y y_a|

over pairs :math:`(x_a, y_a)`; the discriminator learns :math:`c = 0` on source and 1 on target latents, and the
autoencoders are asked for the opposite, :math:`t`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celltransfer.train.stopping import Clock

HIDDEN, LATENT, BATCH = 100, 50, 32
MAX_EPOCHS, LEARNING_RATE = 4000, 1e-4
WEIGHT, WEIGHT_PAIRS = 10.0, 0.1


class CrossModal(nn.Module):
    """Two autoencoders that share the layers next to the latents."""

    def __init__(self, n_x: int, n_y: int, n_classes: int) -> None:
        super().__init__()
        into, out = nn.Linear(HIDDEN, LATENT), nn.Linear(LATENT, HIDDEN)
        self.encode_x, self.encode_y = (_net([n, n, n, n, HIDDEN], into) for n in (n_x, n_y))
        self.decode_x, self.decode_y = (_net([HIDDEN, n, n, n, n], first=out) for n in (n_x, n_y))
        self.classify = nn.Linear(LATENT, n_classes) if n_classes else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def translate(self, x: np.ndarray) -> np.ndarray:
        """Source features (n, n_x) -> target features (n, n_y)."""
        return self.decode_y(self.encode_x(torch.as_tensor(x))).numpy()


def _net(widths: list[int], last: nn.Linear | None = None, first: nn.Linear | None = None) -> nn.Sequential:
    """Linear layers, each followed by a leaky rectifier, as published: the last one, too."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    layers = [layer for layer in (first, *layers, last) if layer is not None]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(0.2))))


def fit(
    x: np.ndarray,
    y: np.ndarray,
    anchors: np.ndarray,
    classes: tuple[np.ndarray, np.ndarray] | None,
    *,
    seed: int,
    clock: Clock,
) -> CrossModal:
    """Train on source (n, p) and target cells (m, q) with pairs of rows, shape (k, 2), until the clock runs out.

    An epoch has as many batches as the larger modality; each modality is shuffled on its own.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    cells = torch.as_tensor(x), torch.as_tensor(y)
    codes = None if classes is None else tuple(torch.as_tensor(side) for side in classes)
    model = CrossModal(x.shape[1], y.shape[1], 0 if classes is None else 1 + max(int(side.max()) for side in classes))
    judge = nn.Sequential(
        *(nn.Linear(LATENT, LATENT), nn.LeakyReLU(0.2)),
        *(nn.Linear(LATENT, HIDDEN), nn.LeakyReLU(0.2)),
        *(nn.Linear(HIDDEN, 1), nn.LeakyReLU(0.2)),
    )
    for layer in judge.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.02)
            nn.init.zeros_(layer.bias)
    own, others = (
        torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999), weight_decay=1e-4)
        for net in (model, judge)
    )
    pairs = cells[0][anchors[:, 0]], cells[1][anchors[:, 1]]
    n_steps = MAX_EPOCHS * -(-max(len(x), len(y)) // BATCH)
    for rows in itertools.islice(zip(_batches(len(x), rng), _batches(len(y), rng), strict=False), n_steps):
        batch = [side[own_rows] for side, own_rows in zip(cells, rows, strict=True)]
        _step(others, _judge_loss(model, judge, *batch))
        labels = None if codes is None else [side[own_rows] for side, own_rows in zip(codes, rows, strict=True)]
        _step(own, _loss(model, judge, batch, labels, pairs))
        if clock.left() == 0:
            break
    return model


def _batches(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows in random order, again and again."""
    while True:
        order = rng.permutation(n)
        yield from (order[start : start + BATCH] for start in range(0, n, BATCH))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _judge_loss(model: CrossModal, judge: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        h_x, h_y = model.encode_x(x), model.encode_y(y)
    return WEIGHT * (judge(h_x).square().mean() + (judge(h_y) - 1).square().mean())


def _loss(
    model: CrossModal, judge: nn.Module, batch: list[Tensor], labels: list[Tensor] | None, pairs: tuple[Tensor, Tensor]
) -> Tensor:
    h_x, h_y = model.encode_x(batch[0]), model.encode_y(batch[1])
    loss = F.l1_loss(model.decode_x(h_x), batch[0]) + F.l1_loss(model.decode_y(h_y), batch[1])
    loss = loss + (judge(h_x) - 1).square().mean() + judge(h_y).square().mean()
    if model.classify is not None and labels is not None:
        loss = loss + F.cross_entropy(model.classify(h_x), labels[0]) + F.cross_entropy(model.classify(h_y), labels[1])
    loss = WEIGHT * loss
    if len(pairs[0]):
        loss = loss + WEIGHT_PAIRS * F.l1_loss(model.encode_x(pairs[0]), model.encode_y(pairs[1]))
    return loss
