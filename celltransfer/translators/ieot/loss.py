"""The semi-supervised loss of inverse entropic optimal transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from celltransfer.translators.ieot.mixture import TiltedMixture


def semi_supervised(
    model: TiltedMixture,
    x: Tensor,
    y: Tensor,
    anchor_x: Tensor,
    anchor_y: Tensor,
    *,
    weight_unpaired: Tensor | float,
    condition: Tensor | None = None,
    condition_anchor: Tensor | None = None,
    share_x: float = 0.0,
    share_y: float = 0.0,
    joint: bool = False,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    r"""Conditional likelihood of anchors, with the expectations that need no pairs taken over unpaired cells too.

    .. math::
        L_\lambda = E_a[-\log \pi(y|x)] + \lambda \{ E_a f - E_q f + E_p \log Z - E_a \log Z \}

    a: anchors, p and q: source and target cells. In the limit of many cells the braces vanish, so every lambda has
    the same minimiser; with few anchors they replace noisy averages by good ones. lambda = 0 is the likelihood of the
    anchors (with `joint`), 1 the loss of the paper (equation 14).

    Two things keep it from being a likelihood for lambda > 0, and it is sound only where both are dealt with. A cost
    that can single an anchor out pays for its normaliser there only (1 - lambda) + lambda share_x, so directions
    overshoot by the inverse of that, without bound for lambda = 1 and a share of 0: directions should be linear, or
    penalised. And f + g with c + g is the same law for any g(y), but changes the loss by lambda (E_a g - E_q g),
    without bound as well: directions should have mean zero over the source cells, so that no such g is left.

    By default lambda weighs terms for the cost alone, and the potential descends the loss of lambda = 1: it learns from
    all cells and never from the anchors' sampling error, which a mixture of many components would fit. Both partial
    gradients still vanish at the truth. `joint` descends L_lambda in all parameters.

    Parameters
    ----------
    model
        Knows ``potential``, ``cost`` and ``log_z``.
    x, y
        Unpaired cells, shapes (n, d) and (m, D).
    anchor_x, anchor_y
        Anchors, shapes (k, d) and (k, D); k may be 0.
    weight_unpaired
        lambda.
    condition, condition_anchor
        Condition codes of the rows of `x` (and of `y`), and of the anchors.
    share_x, share_y
        Share of anchors among all source and all target cells, where `x` and `y` are drawn from the others. Their part
        of E_p and E_q is taken from the anchors given: every estimate holds them, whatever the batch.
    joint
        Whether lambda weighs the terms for the potential, too.
    anchor_weights
        Weights of the anchors, shape (k,), summing to 1; equal if ``None``.

    Returns
    -------
    Tensor
        The loss in nats, shape ().
    """
    lam = weight_unpaired

    def mean(values: Tensor) -> Tensor:
        return values.mean() if anchor_weights is None else values @ anchor_weights

    def everyone(unpaired: Tensor, anchors: Tensor, share: float) -> Tensor:
        return (1 - share) * unpaired.mean() + share * mean(anchors)

    if not len(anchor_x):
        return (lam if joint else 1.0) * (model.log_z(x, condition).mean() - model.potential(y, condition).mean())
    cost = mean(model.cost(anchor_x, anchor_y))
    f = model.potential(anchor_y, condition_anchor)
    f_all = everyone(model.potential(y, condition), f, share_y)
    z, z_a = model.log_z(x, condition), model.log_z(anchor_x, condition_anchor)
    z_all = everyone(z, z_a, share_x)
    if joint:
        return cost - (1 - lam) * mean(f) - lam * f_all + (1 - lam) * mean(z_a) + lam * z_all
    # The same for the cost; what lambda shifts from cells to anchors is constant for the potential.
    z, z_a = model.log_z(x, condition, frozen=True), model.log_z(anchor_x, condition_anchor, frozen=True)
    return cost - f_all + z_all + (1 - lam) * (mean(z_a) - everyone(z, z_a, share_x))
