"""Sufficient changes and sparse mixing: shared content, style with a law per domain, a decoder with few edges."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from celltransfer.data.batches import shared_conditions
from celltransfer.errors import ConditionError, ConfigError, FeatureError
from celltransfer.nn.blocks import MLP, Discriminator, Residual
from celltransfer.translators import holdout
from celltransfer.translators.base import _in_blocks, register
from celltransfer.translators.sparse_mixing.domains import MASKS, Latents
from celltransfer.translators.sparse_mixing.held import SOURCE, TARGET, Held
from celltransfer.translators.sparse_mixing.likelihoods import LIKELIHOODS, Side
from celltransfer.translators.sparse_mixing.losses import anchor_loss, critic_terms, gan_terms, vae_terms
from celltransfer.translators.sparse_mixing.networks import Mixing, between_domains
from celltransfer.translators.sparse_mixing.sparsity import GAUGES, NORMS, mixing_sparsity
from celltransfer.translators.sparse_mixing.start import check_counts, set_scale, start_linear
from celltransfer.translators.trained import TrainedTranslator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celltransfer.data.batches import Batch
    from celltransfer.data.pair import Matrix, ModalityPair
    from celltransfer.train.loop import Trainer
    from celltransfer.train.outcome import FitResult

# Cells of a batch whose Jacobian is looked at, and latents up to which it is whole.
JACOBIAN_CELLS, WHOLE_UP_TO, PROBES = 32, 8, 4
# Share of the steps after which content is told from style, and over which the sparsity term grows to its weight.
SETTLED_AT, GROWN_AT = 0.6, 0.3
# Bits of a learned mask start far from where they flip, for the steps that there are: how much faster they learn.
MASK_SPEED = 10.0


@register
class SparseMixing(TrainedTranslator):
    r"""Latents z = (z_c, z_s), of which style z_s has a law of its own in every domain u; x = g(z) with a sparse J_g.

    A domain is a modality, under one condition where conditions are given. With e = F_u(z_s) a cell is moved to
    another domain by encoding it, :math:`z_s' = F_{u'}^{-1}(F_u(z_s))`, and decoding (z_c, z_s') there.

    .. math::
        \text{vae: } \frac1D \left[ - E \log p(x|z) + \beta \, KL(q(z|x) \,\|\, p(z|u)) \right]
        \qquad \text{gan: } L_{gan}(g(z)) + \frac1d E \|F_u(E(g(z))) - \epsilon\|^2 + \frac1D E\|g(E(x)) - x\|^2

    with :math:`z = F_u^{-1}(\epsilon)`, for each modality, plus :math:`\alpha L_s` (`sparse_mixing.sparsity`), the
    anchors' errors in both directions and in the noise, and the energy distance between the noise of domains. None of
    this depends on the scale of the latents. The monitor is the vae's objective alone, or the energy distance of
    translated from target cells, on held-out cells; no state is a candidate before content is told from style. The
    style of a condition that only one modality has is not learned: translation leaves it as it is.

    Reference: Li et al. 2025, "Synergy between sufficient changes and sparse mixing procedure", CG-VAE and CG-GAN.

    Parameters
    ----------
    form
        ``"vae"`` or ``"gan"``.
    n_content, n_style
        Latents that are the same in all domains, and those that are not.
    mask
        Which are which (`sparse_mixing.domains.Latents`): ``"sorted"``, ``"fixed"`` or ``"learned"``; ``None`` is
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
    scheduled = True  # sparsity grows, and content is told from style, over a share of the steps
    training: ClassVar[dict[str, Any]] = {"max_steps": 800, "batch_size": 200, "check_every": 50, "patience": 3}
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
        codes_x, codes_y = holdout.condition_codes(pair)
        net.common.fill_(False)
        net.common[shared_conditions(codes_x[rows.train_x], codes_y[rows.train_y])[0]] = True
        self._held = Held(net, pair, rows, generator.device)
        net.latents.start(*self._held.training_latents())
        return rows.train_x, rows.train_y

    def players(self) -> dict[str, Optimizer]:
        """The discriminators, if any, and all else."""
        net = self.module_
        critics = list(net.discriminators.parameters())
        named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        bits = [p for name, p in named.items() if name == "latents.logits"]
        own = [p for name, p in named.items() if not name.startswith("discriminators.") and name != "latents.logits"]
        betas = (0.0, 0.99) if critics else (0.9, 0.99)
        groups: list[dict[str, Any]] = [{"params": own}, {"params": bits, "lr": MASK_SPEED * self.lr}]
        translator: dict[str, Optimizer] = {"translator": Adam(groups[: 1 + len(bits)], lr=self.lr, betas=betas)}
        if not critics:
            return translator
        return {"discriminator": Adam(critics, lr=self.lr_discriminator, betas=betas), **translator}

    def losses(self, player: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted terms of one player."""
        net, codes = self.module_, batch.condition if self.n_conditions_ else None
        sides = [(m, x, net.domain(m, codes, len(x))) for m, x in ((SOURCE, batch.x), (TARGET, batch.y))]
        if player == "discriminator":
            r1 = self.r1 * self.r1_every if step % self.r1_every == 0 else 0.0
            return {
                f"{name}_{m}": value
                for m, x, u in sides
                for name, value in critic_terms(net, m, x, u, codes, self.generator_, r1).items()
            }
        losses: dict[str, Tensor] = {}
        latents, noises = [], []
        for m, x, u in sides:
            terms, z, e = (
                vae_terms(net, m, x, u, self.beta, self.generator_)
                if self.form == "vae"
                else gan_terms(net, m, x, u, codes, self.generator_)
            )
            losses |= {f"{name}_{m}": value for name, value in terms.items()}
            latents.append(z)
            noises.append(e)
        for m, z in enumerate([torch.cat(latents)] if self.shared else latents):
            if self.alpha and len(z) > 1:
                losses[f"sparse_{m}"] = self._strength(step) * self._sparsity(m, z)
        if self.weight_match:
            domains = torch.cat([u for _, _, u in sides])
            losses["match"] = self.weight_match * between_domains(torch.cat(noises), domains)
        if net.latents.logits is not None and not net.latents.settled:
            losses["mask"] = self.weight_mask * net.latents.share()
        if len(batch.xa) and self.weight_anchor:
            codes = batch.condition_a if self.n_conditions_ else None
            losses["anchor"] = self.weight_anchor * anchor_loss(net, batch, codes)
        return losses

    def after_step(self, step: int) -> None:
        """Give latents whose learned bit flipped their new law; hold the mask when the latents have settled."""
        latents = self.module_.latents
        if latents.settled:
            return
        if step + 1 >= SETTLED_AT * self.max_steps_:
            latents.settle(*self._held.training_latents())
        elif latents.logits is not None and latents.flipped().any():
            latents.follow(*self._held.training_latents())

    @torch.no_grad()
    def monitor(self) -> float | None:
        """The vae's objective, or for the gan the energy distance of translated from target cells, both held out.

        None before content is told from style: such a state is no candidate, however near the target it starts.
        """
        if not self._held.enough or not self.module_.latents.settled:
            return None
        return self._held.objective(self.beta) if self.form == "vae" else self._held.distance()

    def remarks(self, result: FitResult) -> list[str]:
        """What content still says about the domain, where that is more than chance; what was not learned at all."""
        notes, latents = [], self.module_.latents
        if not latents.settled:
            notes.append("The fit ended before content was told from style. Give it more steps.")
        if latents.style().all():
            notes.append("No latent is content: all are style, and nothing of a cell is called free of the domain.")
        elif latents.settled and (leak := self._held.leak()) is not None and leak[0] > leak[1]:
            notes.append(
                f"Content still differs between domains (energy distance {leak[0]:.3g}, by chance at most "
                f"{leak[1]:.3g}), so that it carries style: what is called content is not free of the domain."
            )
        if latents.logits is not None:
            notes.append(f"The learned mask made {int(latents.style().sum())} of {len(latents.bits)} latents style.")
        if not self.module_.common.all():
            notes.append(
                f"Only one modality has cells of the conditions {', '.join(self._one_sided())}: their style was not "
                "learned. Translation leaves it as it is, and there are no counterfactuals to or from them."
            )
        return notes

    def release(self) -> None:
        """Drop what only training needed."""
        self.__dict__.pop("_held", None)

    def predict(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Source cells in the target modality, under their own condition."""
        codes = self._known(condition)
        here, there = (self.module_.domain(m, codes, len(x)) for m in (SOURCE, TARGET))
        return self.module_.move(x, (SOURCE, here), (TARGET, there))

    @property
    def common_codes(self) -> np.ndarray:
        """Condition codes that both modalities had in the fit, in the coding of `fit`: those with counterfactuals."""
        self._check_fitted()
        return self.condition_codes_[self.module_.common.cpu().numpy()] if self.n_conditions_ else np.empty(0, np.int64)

    def counterfactual(
        self, cells: Matrix, to: int, condition: np.ndarray | None = None, *, side: int = SOURCE, batch_size: int = 8192
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
        batch_size
            Cells at a time.

        Raises
        ------
        ConditionError
            The translator was fitted without conditions, a code is unknown, or only one modality had it.
        """
        width = self._width(cells, side)
        if not self.n_conditions_:
            raise ConditionError("This translator was fitted without conditions: it knows no other for a cell.")
        if to not in self.condition_codes_:
            raise ConditionError(f"There is no condition code {to}; fitted with {self.condition_codes_.tolist()}.")
        codes = self._codes_of(cells, condition, backward=side == TARGET)
        self._known(torch.as_tensor(codes))
        strange = np.setdiff1d(np.append(np.asarray(condition), to), self.common_codes)
        if len(strange):
            raise ConditionError(
                f"Only one modality had condition code {strange[0]} in the fit, so that its style was not learned."
            )
        return _in_blocks(lambda x, own: self._moved(x, own, to, side), cells, codes, width, batch_size)

    def split(self, cells: Matrix, *, side: int = SOURCE, batch_size: int = 8192) -> tuple[np.ndarray, np.ndarray]:
        """Content and style of cells of one modality, (n, content) and (n, style), float32.

        Arguments as in `counterfactual`.
        """
        self._width(cells, side)
        style = self.module_.latents.style().cpu().numpy()
        z = _in_blocks(lambda x, _: self._encoded(x, side), cells, None, len(style), batch_size)
        return z[:, ~style], z[:, style]

    @torch.no_grad()
    def _moved(self, x: np.ndarray, codes: np.ndarray | None, to: int, side: int) -> np.ndarray:
        """One dense block of `counterfactual`."""
        device, net = self.module_.common.device, self.module_
        here = net.domain(side, torch.as_tensor(codes, device=device), len(x))
        there = net.domain(side, torch.as_tensor(np.searchsorted(self.condition_codes_, to), device=device), len(x))
        return net.move(torch.as_tensor(x, device=device), (side, here), (side, there)).cpu().numpy()

    @torch.no_grad()
    def _encoded(self, x: np.ndarray, side: int) -> np.ndarray:
        """Latents of one dense block."""
        return self.module_.side(side).encode(torch.as_tensor(x, device=self.module_.common.device))[0].cpu().numpy()

    def _width(self, cells: Matrix, side: int) -> int:
        """Features of a modality, if the cells have as many."""
        self._check_fitted()
        if side not in (SOURCE, TARGET):
            raise ConfigError(f"side={side!r}; it is 0, the source, or 1, the target.")
        width = (self.n_features_in_, self.n_features_out_)[side]
        if cells.ndim != 2 or cells.shape[1] != width:
            raise FeatureError(f"The cells have shape {cells.shape}; this translator was fitted on {width} features.")
        return width

    def _fit(self, pair: ModalityPair, *, seed: int, trainer: Trainer | None) -> FitResult:
        self._check_options(pair)
        if trainer is not None and trainer.batch_size == 1:
            raise ConfigError("batch_size=1; sparse_mixing compares the cells of a batch and needs 2 or more.")
        return super()._fit(pair, seed=seed, trainer=trainer)

    def _check_options(self, pair: ModalityPair) -> None:
        for name, choices in self.choices.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r}; it is one of {', '.join(map(str, choices))}.")
        for name, least in self.least.items():
            value, whole = getattr(self, name), name in ("n_content", "n_style", "units", "r1_every")
            if value is None and name == "noise":
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | np.integer if whole else int | float | np.number)
                or not isfinite(value)
            ):
                raise ConfigError(f"{name}={value!r}; it is a {'whole' if whole else 'finite'} number.")
            if not value >= least:
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

    def _one_sided(self) -> list[str]:
        """Names of the conditions that one modality lacks; their codes where nothing names them."""
        names, codes = self._held.pair.conditions, np.setdiff1d(self.condition_codes_, self.common_codes)
        return [names[code] if self.condition_codes_[-1] < len(names) else str(code) for code in codes]

    def _known(self, condition: Tensor | None) -> Tensor | None:
        if not self.n_conditions_:
            return None
        assert condition is not None
        if bool((condition < 0).any()):
            raise ConditionError(
                f"{int((condition < 0).sum())} cells have a condition that this translator was not fitted with."
            )
        return condition
