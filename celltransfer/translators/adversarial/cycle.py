"""CycleGAN, and DIMENSION: the same with distributions matched condition by condition. Baselines without anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from celltransfer.losses.adversarial import generator_loss
from celltransfer.translators.adversarial.base import AdversarialTranslator
from celltransfer.translators.base import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import ModalityPair
    from celltransfer.train.loop import Trainer
    from celltransfer.train.outcome import FitResult


@register
class CycleGan(AdversarialTranslator):
    r"""Two maps, f and its reverse r, each matched to the other side, and consistent in both directions.

    .. math::
        \lambda_{gan} \left[ L_{gan}(f, D_y) + L_{gan}(r, D_x) \right]
        + \lambda_{cycle} \left[ \tfrac1d E |r(f(x)) - x|_1 + \tfrac1D E |f(r(y)) - y|_1 \right]

    Nothing in it tells the right map from the right map after an automorphism of the source: a baseline that shows
    what matching alone reaches. Anchors, if given, weigh in with `weight_anchor`; conditions are not looked at.

    Reference: Zhu et al. 2017, equation 3.

    Parameters
    ----------
    map, hidden, hidden_discriminator, gan, r1, r1_every, lr, lr_discriminator, decay
        As in `JacobianSparse`.
    conditional
        How the discriminators know conditions, where the method looks at them.
    weight_gan, weight_cycle, weight_anchor
        Weights of the terms.
    restarts
        Fits from as many seeds, of which the one with the lowest monitor is kept.
    """

    name = "cyclegan"
    uses_conditions = False
    least: ClassVar[dict[str, float]] = AdversarialTranslator.least | {"weight_cycle": 0}

    def __init__(
        self,
        *,
        map: str = "mlp",
        hidden: Sequence[int] = (128,),
        hidden_discriminator: Sequence[int] = (128, 128),
        conditional: str = "separate",
        gan: str = "non_saturating",
        weight_gan: float = 1.0,
        weight_cycle: float = 1.0,
        weight_anchor: float = 1.0,
        r1: float = 1.0,
        r1_every: int = 4,
        lr: float = 2e-3,
        lr_discriminator: float = 2e-3,
        decay: float = 0.995,
        restarts: int = 1,
    ) -> None:
        self.map, self.hidden, self.hidden_discriminator = map, hidden, hidden_discriminator
        self.conditional, self.gan, self.r1, self.r1_every = conditional, gan, r1, r1_every
        self.weight_gan, self.weight_cycle, self.weight_anchor = weight_gan, weight_cycle, weight_anchor
        self.lr, self.lr_discriminator, self.decay, self.restarts = lr, lr_discriminator, decay, restarts

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self.check_options()
        return super()._fit(pair, seed=seed, trainer=trainer)

    def needs_reconstructor(self) -> bool:
        """There is a map back."""
        return True

    def needs_critic(self) -> bool:
        """It is matched, too."""
        return True

    def map_losses(self, x: Tensor, fake: Tensor, batch: Batch, step: int) -> dict[str, Tensor]:
        """Matching of the map back, both cycles, and anchors."""
        net = self.module_
        assert net.reconstructor is not None
        assert net.critic is not None
        y, codes = self.scaled_target(batch.y), batch.condition if self.n_conditions_ else None
        back = net.reconstructor(y)
        cycle = (net.reconstructor(fake) - x).abs().mean() + (net.f(back) - y).abs().mean()
        losses = {"cycle": self.weight_cycle * cycle}
        if self.gan_weight:
            losses["gan_source"] = self.gan_weight * generator_loss(net.critic(back, codes), self.gan)
        if len(batch.xa) and self.weight_anchor:
            losses["anchor"] = self.weight_anchor * self.anchor_error(net.f, batch.xa, batch.ya)
        return losses


@register
class Dimension(CycleGan):
    """Diversified distribution matching: CycleGAN whose distributions are matched within every condition.

    An automorphism of the source that preserves every conditional distribution is rare, so enough different
    conditions identify the map without an anchor. Every cell of both modalities needs its condition.

    Reference: Shrestha & Fu 2024, "Towards identifiable unsupervised domain translation". The options are those of
    `CycleGan`.
    """

    name = "dimension"
    uses_conditions = True
    min_conditions = 2
