"""Sufficient changes and sparse mixing: shared content, style with a law per domain, a decoder with few edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from celltransfer.data.pair import Matrix, ModalityPair, dense
from celltransfer.errors import ConditionError, ConfigError, FeatureError
from celltransfer.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from celltransfer.losses.mixing import GAUGES, NORMS, mixing_sparsity
from celltransfer.nn.blocks import MLP, Discriminator, Residual
from celltransfer.nn.domains import MASKS, Latents
from celltransfer.nn.likelihoods import LIKELIHOODS, Side
from celltransfer.nn.mixing import Mixing, between_domains, draw
from celltransfer.translators import holdout
from celltransfer.translators.base import register
from celltransfer.translators.mixing_held import SOURCE, TARGET, Held
from celltransfer.translators.mixing_start import check_counts, set_scale, start_linear
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.train.loop import Trainer
    from celltransfer.train.outcome import FitResult

# Cells of a batch whose Jacobian is looked at, and latents up to which it is whole.
JACOBIAN_CELLS, WHOLE_UP_TO, PROBES = 32, 8, 4
# Share of the steps after which content is told from style, and over which the sparsity term grows to its weight.
SORTED_AT, GROWN_AT = 0.4, 0.3


@register
class SparseMixing(TrainedTranslator):
    r"""Latents z = (z_c, z_s), of which style z_s has a law of its own in every domain u; x = g(z) with a sparse J_g.

    A domain is a modality, under one condition where conditions are given. With e = F_u(z_s) a cell is moved to
    another domain by encoding it, :math:`z_s' = F_{u'}^{-1}(F_u(z_s))`, and decoding (z_c, z_s') there.

    .. math::
        \text{vae: } \frac1D \left[ - E \log p(x|z) + \beta \, KL(q(z|x) \,\|\, p(z|u)) \right]
        \qquad \text{gan: } L_{gan}(g(F_u^{-1}(\epsilon))) + \frac1d E \|E(g(z)) - z\|^2 + \frac1D E\|g(E(x)) - x\|^2

    for each modality, plus :math:`\alpha L_s` (`celltransfer.losses.mixing`, blind to the scale of latents), the
    anchors' errors in both directions and in the noise, and the energy distance between the noise of domains. The
    monitor is the vae's objective, or the energy distance of translated from target cells, on held-out cells.

    Reference: Li et al. 2025, "Synergy between sufficient changes and sparse mixing procedure", CG-VAE and CG-GAN.

    Parameters
    ----------
    form
        ``"vae"`` or ``"gan"``.
    n_content, n_style
        Latents that are the same in all domains, and those that are not.
    mask
        Which are which (`celltransfer.nn.domains.Latents`): ``"sorted"``, ``"fixed"`` or ``"learned"``; ``None`` is
        sorted for the vae and learned for the gan.
    shared
        One encoder and decoder for both modalities, where these are one under two conditions
        (`celltransfer.pp.conditions`, one recipe for both). What the latents do not explain of a cell goes with it.
    units
        Sigmoids of F_u; 1 makes it affine.
    alpha, norm, gauge
        Weight and kind of the sparsity term; features that are principal components have nothing sparse about them.
    beta
        Weight of the divergence.
    noise
        Standard deviation of what the decoder leaves, in units of the features' overall scale; ``None`` learns it.
    weight_anchor, weight_match, weight_mask
        Of the anchors, of the energy distance between domains, and of the share of style where the mask is learned.
    likelihood_source, likelihood_target
        ``"gaussian"``; or ``"nb"`` (through scvi-tools) or ``"bernoulli"`` for counts, which recipe ``"none"`` gives.
        Translations are expected counts at the median depth then.
    map, hidden
        ``"linear"``, ``"residual"`` or ``"mlp"`` encoders and decoders.
    init
        ``"linear"``: principal components, through the ridge solution where there are anchors; or ``"random"``.
    hidden_discriminator, r1, r1_every, lr, lr_discriminator
        As in `JacobianSparse`.
    """

    name = "sparse_mixing"
    uses_conditions = True
    needs_condition = True
    matches_distributions = True
    training: ClassVar[dict[str, Any]] = {"max_steps": 800, "batch_size": 200, "check_every": 50, "patience": 6}
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "form": ("vae", "gan"),
        "mask": (None, *MASKS),
        "norm": NORMS,
        "gauge": GAUGES,
        "likelihood_source": LIKELIHOODS,
        "likelihood_target": LIKELIHOODS,
        "map": ("linear", "residual", "mlp"),
        "init": ("linear", "random"),
    }
    least: ClassVar[dict[str, float]] = {
        **{"n_content": 0, "n_style": 1, "units": 1, "alpha": 0, "beta": 0, "r1": 0, "r1_every": 1},
        **{"weight_anchor": 0, "weight_match": 0, "weight_mask": 0, "noise": 1e-3, "lr": 0, "lr_discriminator": 0},
    }

    module_: Mixing

    def __init__(
        self,
        *,
        form: str = "vae",
        n_content: int = 12,
        n_style: int = 4,
        mask: str | None = None,
        shared: bool = False,
        units: int = 4,
        alpha: float = 0.05,
        norm: str = "l1",
        gauge: str = "variance",
        beta: float = 1.0,
        noise: float | None = None,
        weight_anchor: float = 1.0,
        weight_match: float = 1.0,
        weight_mask: float = 0.1,
        likelihood_source: str = "gaussian",
        likelihood_target: str = "gaussian",
        map: str = "residual",
        hidden: Sequence[int] = (64,),
        init: str = "linear",
        hidden_discriminator: Sequence[int] = (128, 128),
        r1: float = 1.0,
        r1_every: int = 4,
        lr: float = 1e-3,
        lr_discriminator: float = 2e-3,
    ) -> None:
        self.form, self.n_content, self.n_style, self.mask, self.shared = form, n_content, n_style, mask, shared
        self.units, self.alpha, self.norm, self.gauge, self.beta, self.noise = units, alpha, norm, gauge, beta, noise
        self.weight_anchor, self.weight_match, self.weight_mask = weight_anchor, weight_match, weight_mask
        self.likelihood_source, self.likelihood_target = likelihood_source, likelihood_target
        self.map, self.hidden, self.init, self.hidden_discriminator = map, hidden, init, hidden_discriminator
        self.r1, self.r1_every, self.lr, self.lr_discriminator = r1, r1_every, lr, lr_discriminator

    def build(self) -> Mixing:
        """Networks from the configuration and the numbers of features and conditions."""
        n_conditions, d = max(1, self.n_conditions_), self.n_content + self.n_style
        mask = self.mask or ("learned" if self.form == "gan" else "sorted")
        latents = Latents(self.n_content, self.n_style, 2 * n_conditions, units=self.units, mask=mask)
        widths, kinds = (self.n_features_in_, self.n_features_out_), (self.likelihood_source, self.likelihood_target)
        sides = [Side(n, d, self._network, kind) for n, kind in zip(widths, kinds, strict=True)]
        critics: list[nn.Module] = [Discriminator(n, self.hidden_discriminator, self.n_conditions_) for n in widths]
        return Mixing(
            latents,
            sides[:1] * 2 if self.shared else sides,
            critics if self.form == "gan" else [],
            n_conditions=n_conditions,
        )

    def configure(self, pair: ModalityPair, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Build, set scales and the start, hold cells out."""
        net = self.module_ = self.build()
        rows = holdout.split(pair, np.random.default_rng(generator.initial_seed()))
        for side, matrices in [(0, (pair.x, pair.y))] if self.shared else [(0, (pair.x,)), (1, (pair.y,))]:
            set_scale(net.side(side), *matrices)
            if self.noise is not None:
                net.side(side).log_noise.requires_grad_(False).fill_(float(np.log(self.noise)))
        if self.init == "linear" and self.map != "mlp":
            start_linear(net, pair)
        net.to(generator.device)
        self._held = Held(net, pair, rows, generator.device)
        net.latents.flow.solve(*self._held.training_latents())
        self._step, self._sorted = 0, net.latents.logits is not None or self.mask == "fixed"
        return rows.train_x, rows.train_y

    def players(self) -> dict[str, Optimizer]:
        """The discriminators, if any, and all else."""
        net = self.module_
        critics = list(net.discriminators.parameters())
        own = [p for name, p in net.named_parameters() if not name.startswith("discriminators.") and p.requires_grad]
        betas = (0.0, 0.99) if critics else (0.9, 0.99)
        translator: dict[str, Optimizer] = {"translator": Adam(own, lr=self.lr, betas=betas)}
        if not critics:
            return translator
        return {"discriminator": Adam(critics, lr=self.lr_discriminator, betas=betas), **translator}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms of one player."""
        codes = batch.condition if self.n_conditions_ else None
        sides = [(m, x, self.module_.domain(m, codes, len(x))) for m, x in ((SOURCE, batch.x), (TARGET, batch.y))]
        if player == "discriminator":
            return {f"discriminator{m}": self._critic_loss(m, x, u, codes, step) for m, x, u in sides}
        losses: dict[str, Tensor] = {}
        noises = []
        for m, x, u in sides:
            made, z, e = self._vae_losses(m, x, u) if self.form == "vae" else self._gan_losses(m, x, u, codes)
            losses |= {f"{name}{m}": value for name, value in made.items()}
            noises.append(e)
            if self.alpha and not (self.shared and m == TARGET):
                losses[f"sparse{m}"] = self._strength(step) * self._sparsity(m, z)
        if self.weight_match:
            domains = torch.cat([u for _, _, u in sides])
            losses["match"] = self.weight_match * between_domains(torch.cat(noises), domains)
        if self.module_.latents.logits is not None:
            losses["mask"] = self.weight_mask * self.module_.latents.share()
        if len(batch.xa) and self.weight_anchor:
            losses["anchor"] = self.weight_anchor * self._anchor_loss(batch)
        return losses

    def after_step(self, step: int) -> None:
        """Tell content from style once, when the latents have settled."""
        self._step = step + 1
        if not self._sorted and self._step >= SORTED_AT * self.max_steps_:
            z, u = self._held.training_latents()
            self.module_.latents.sort(z, u)
            self._sorted = True

    @torch.no_grad()
    def monitor(self) -> float | None:
        """The vae's objective, or for the gan the energy distance of translated from target cells, both held out.

        None before content is told from style: such a state is no candidate.
        """
        if not self._held.enough or not self._sorted or (self._step == 0 and self.init == "random"):
            return None
        return self._held.objective(self.beta) if self.form == "vae" else self._held.distance()

    def remarks(self, result: FitResult) -> list[str]:
        """What content still says about the domain, where that is more than chance; a fit without any sorting."""
        notes = []
        if not self._sorted:
            notes.append("The fit ended before content was told from style: all latents are style. Give it more steps.")
        elif (leak := self._held.leak()) is not None and leak[0] > leak[1]:
            notes.append(
                f"Content still differs between domains (energy distance {leak[0]:.3g}, by chance at most "
                f"{leak[1]:.3g}), so that it carries style: what is called content is not free of the domain."
            )
        if self.module_.latents.logits is not None:
            notes.append(f"The learned mask made {int(self.module_.latents.style().sum())} latents style.")
        return notes

    def release(self) -> None:
        """Drop what only training needed."""
        for name in ("_held", "_step", "_sorted"):
            self.__dict__.pop(name, None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Source cells in the target modality, under their own condition."""
        codes = self._known(condition)
        here, there = (self.module_.domain(m, codes, len(x)) for m in (SOURCE, TARGET))
        return self.module_.move(x, (SOURCE, here), (TARGET, there))

    def counterfactual(
        self, cells: Matrix, to: int, condition: np.ndarray | None = None, *, side: int = SOURCE
    ) -> np.ndarray:
        """Cells of one modality as they would be under condition code `to`, same shape, float32.

        Parameters
        ----------
        cells
            Features, shape (n, d), of modality `side`: 0 source, 1 target.
        to
            Condition code, in the coding of `fit`.
        condition
            Codes of the conditions the cells are under.

        Raises
        ------
        ConditionError
            The translator was fitted without conditions, or a code is unknown.
        """
        self._check_fitted()
        known = np.flatnonzero(self.condition_codes_ == to)
        if not len(known):
            raise ConditionError(f"There is no condition code {to}; fitted with {self.condition_codes_.tolist()}.")
        x, codes = self._tensors(cells, condition, side)
        here = self.module_.domain(side, codes, len(x))
        there = self.module_.domain(side, torch.full_like(here, int(known[0])), len(x))
        with torch.no_grad():
            return self.module_.move(x, (side, here), (side, there)).cpu().numpy()

    def split(
        self, cells: Matrix, condition: np.ndarray | None = None, *, side: int = SOURCE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Content and style of cells of one modality, (n, n_content) and (n, n_style), float32.

        Arguments as in `counterfactual`; the condition is not looked at.
        """
        self._check_fitted()
        x, _ = self._tensors(cells, None, side, needed=False)
        with torch.no_grad():
            z = self.module_.side(side).encode(x)[0]
        style = self.module_.latents.style()
        return z[:, ~style].cpu().numpy(), z[:, style].cpu().numpy()

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self._check_options(pair)
        return super()._fit(pair, seed=seed, trainer=trainer)

    def _check_options(self, pair: ModalityPair) -> None:
        for name, choices in self.choices.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r}; it is one of {', '.join(map(str, choices))}.")
        for name, least in self.least.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise ConfigError(f"{name}={value!r}; it is at least {least}.")
        if self.norm == "l2" and self.gauge == "column":
            raise ConfigError("norm='l2' with gauge='column' is a constant; use gauge='variance'.")
        kinds = self.likelihood_source, self.likelihood_target
        if self.shared and (kinds[0] != kinds[1] or self.n_features_in_ != self.n_features_out_):
            raise FeatureError(
                f"shared=True needs one kind of features on both sides and got {self.n_features_in_} {kinds[0]} and "
                f"{self.n_features_out_} {kinds[1]} ones. Pass one recipe for both: recipes='rna'."
            )
        if self.form == "gan" and set(kinds) != {"gaussian"}:
            raise ConfigError("form='gan' makes features and no counts: likelihoods have to be 'gaussian'.")
        for kind, matrix, what in zip(kinds, (pair.x, pair.y), ("source", "target"), strict=True):
            if kind != "gaussian":
                check_counts(matrix, kind, what)

    def _network(self, n_in: int, n_out: int) -> nn.Module:
        if self.map == "residual":
            return Residual(n_in, n_out, self.hidden, "silu")
        return MLP(n_in, n_out, () if self.map == "linear" else self.hidden, "silu")

    def _strength(self, step: int) -> float:
        """Weight of the sparsity term at `step`: before reconstruction has begun it would switch the decoder off."""
        return self.alpha * min(1.0, step / max(1.0, GROWN_AT * self.max_steps_))

    def _sparsity(self, m: int, z: Tensor) -> Tensor:
        # Batches list their cells condition by condition.
        spaced = z[:: max(1, len(z) // JACOBIAN_CELLS)]
        whole = z.shape[1] <= WHOLE_UP_TO
        return mixing_sparsity(
            self.module_.side(m).decoder,
            spaced,
            norm=self.norm,
            gauge=self.gauge,
            n_probes=None if whole else PROBES,
            step=None if whole else 1e-2,
            generator=self.generator_,
        )

    def _vae_losses(self, m: int, x: Tensor, u: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Reconstruction and divergence, per feature; latents and their noise."""
        net = self.module_
        mean, log_sd = net.side(m).encode(x)
        z = draw(mean, log_sd, self.generator_)
        divergence = net.latents.divergence(mean, log_sd, z, u).mean() / x.shape[1]
        losses = {"reconstruction": net.side(m).nll(z, x), "divergence": self.beta * divergence}
        return losses, z, net.latents.to_noise(z, u)[0]

    def _gan_losses(
        self, m: int, x: Tensor, u: Tensor, codes: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Deceiving the discriminator, finding the latents of made cells again, and remaking real ones."""
        net, side = self.module_, self.module_.side(m)
        z = self._draw_latents(u)
        fake = side.expected(z)
        mean = side.encode(x)[0]
        losses = {
            "gan": generator_loss(net.discriminators[m](side.scaled(fake), codes)),
            "found": (side.encode(fake)[0] - z).square().mean(),
            "remade": (side.decoder(mean) - side.scaled(x)).square().mean(),
        }
        return losses, z, net.latents.to_noise(mean, u)[0]

    def _critic_loss(self, m: int, x: Tensor, u: Tensor, codes: Tensor | None, step: int) -> Tensor:
        side, critic = self.module_.side(m), self.module_.discriminators[m]
        with torch.no_grad():
            fake = side.scaled(side.expected(self._draw_latents(u)))
        real = side.scaled(x)
        loss = discriminator_loss(critic(real, codes), critic(fake, codes))
        if self.r1 and step % self.r1_every == 0:
            loss = loss + self.r1 * self.r1_every * r1_penalty(lambda inputs: critic(inputs, codes), real)
        return loss

    def _draw_latents(self, u: Tensor) -> Tensor:
        """Latents of made cells of domains `u`."""
        d = self.n_content + self.n_style
        e = torch.randn((len(u), d), generator=self.generator_, device=u.device)
        return self.module_.latents.from_noise(e, u)

    def _anchor_loss(self, batch: Batch) -> Tensor:
        """Misses of the partners by translation both ways, as shares of the features' scale, and of their noise."""
        net, codes = self.module_, batch.condition_a if self.n_conditions_ else None
        sides = [(m, x, net.domain(m, codes, len(x))) for m, x in ((SOURCE, batch.xa), (TARGET, batch.ya))]
        means = [net.side(m).encode(x)[0] for m, x, _ in sides]
        noises = [net.latents.to_noise(z, u)[0] for z, (_, _, u) in zip(means, sides, strict=True)]
        missed = (noises[0] - noises[1]).square().mean()
        for z, (_, _, u), (n, y, to) in zip(means, sides, reversed(sides), strict=True):
            moved = net.latents.moved(z, u, to)
            gaussian = net.side(n).likelihood == "gaussian"
            error = (net.side(n).decoder(moved) - net.side(n).scaled(y)).square().mean() if gaussian else None
            missed = missed + (net.side(n).nll(moved, y) if error is None else error)
        return missed

    def _known(self, condition: Tensor | None) -> Tensor | None:
        if not self.n_conditions_:
            return None
        if condition is None:
            raise ConditionError("This translator was fitted with conditions; pass the cells' condition codes.")
        if bool((condition < 0).any()):
            raise ConditionError(
                f"{int((condition < 0).sum())} cells have a condition that this translator was not fitted with."
            )
        return condition

    def _tensors(
        self, cells: Matrix, condition: np.ndarray | None, side: int, *, needed: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Cells of one side and their condition codes as the networks take them."""
        width = (self.n_features_in_, self.n_features_out_)[side]
        if cells.shape[1] != width:
            raise FeatureError(f"The cells have {cells.shape[1]} features; this translator was fitted on {width}.")
        device = self.module_.latents.bits.device
        x = torch.as_tensor(dense(cells), device=device)
        if not needed:
            return x, None
        at = None
        if condition is not None:
            found = np.searchsorted(self.condition_codes_, condition).clip(max=max(len(self.condition_codes_) - 1, 0))
            at = torch.as_tensor(np.where(self.condition_codes_[found] == condition, found, -1), device=device)
        return x, self._known(at)
