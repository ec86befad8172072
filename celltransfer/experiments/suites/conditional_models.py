"""The models behind the baselines of `celltransfer.experiments.suites.conditional`, in standard units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from celltransfer.experiments.suites import laws
from celltransfer.nn.blocks import MLP, update_average
from celltransfer.translators.ieot.mixture import TiltedMixture

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_2PI = math.log(2 * math.pi)
# Samples of a law by which its energy score on held-out pairs is told.
JUDGED_BY = 32


class Batch(NamedTuple):
    """Pairs xp, yp, and unpaired cells x and y."""

    xp: Tensor
    yp: Tensor
    x: Tensor
    y: Tensor


class Model(nn.Module, ABC):
    """A conditional law to be trained.

    Parameters
    ----------
    x, y
        Source cells with pairs, shape (k, d), and target cells, shape (m, D), which give sizes and starts.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    """

    optimizer: torch.optim.Optimizer

    def step(self, batch: Batch) -> None:
        """One step down the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.parameters(), 10.0)
        self.optimizer.step()

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def draw(self, x: Tensor, n: int) -> Tensor:
        """Samples, shape (n, cells, D)."""

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Log densities of rows that belong together, shape (cells,), where there are any."""
        return None

    @torch.no_grad()
    def held_out_score(self, x: Tensor, y: Tensor, by: str = "likelihood") -> float:
        """What stopping is judged by, lower is better: minus the likelihood, or the energy score."""
        found = self.log_prob(x, y) if by == "likelihood" else None
        if found is not None:
            return -float(found.mean())
        return float(laws.energy_score(self.draw(x, JUDGED_BY).numpy(), y.numpy()).mean())

    def _adam(self, lr: float, weight_decay: float) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)


class Regression(Model):
    """A network and squared error; not a law."""

    def __init__(
        self, x: Tensor, y: Tensor, *, hidden: Sequence[int] = (64, 64), lr: float = 1e-3, weight_decay: float = 1e-4
    ) -> None:
        super().__init__()
        self.net = MLP(x.shape[1], y.shape[1], hidden, "relu")
        self._adam(lr, weight_decay)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error on pairs."""
        return mse_loss(self.net(batch.xp), batch.yp)

    def draw(self, x: Tensor, n: int) -> Tensor:
        """The prediction, `n` times."""
        return self.net(x).expand(n, -1, -1)

    @torch.no_grad()
    def held_out_score(self, x: Tensor, y: Tensor, by: str = "") -> float:
        """Squared error."""
        return float(mse_loss(self.net(x), y))


class _Gan(Model):
    """Generator with noise and a discriminator: non-saturating loss, R1 penalty, averaged generator.

    Parameters
    ----------
    noise
        Dimensions of the noise.
    weight_r1
        Of the penalty on the discriminator's gradient at true cells.
    decay
        Of the running average of the generator, which is what samples are drawn from.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        hidden: Sequence[int] = (64, 64),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        noise: int = 4,
        weight_r1: float = 0.1,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.noise, self.weight_r1, self.decay = noise, weight_r1, decay
        sizes = x.shape[1] + noise, y.shape[1]
        self.generator, self.average = MLP(*sizes, hidden), MLP(*sizes, hidden)
        self.average.load_state_dict(self.generator.state_dict())
        self.discriminator = MLP(self._judged(x[:1], y[:1]).shape[1], 1, hidden)
        self.optimizer, self.opponent = (
            torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.0, 0.99))
            for net in (self.generator, self.discriminator)
        )

    def step(self, batch: Batch) -> None:
        """One step of the discriminator, and one of the generator."""
        self.opponent.zero_grad(set_to_none=True)
        self._opponent_loss(batch).backward()
        self.opponent.step()
        super().step(batch)
        update_average(self.average, self.generator, self.decay)

    def loss(self, batch: Batch) -> Tensor:
        """What the generator minimises."""
        x = torch.cat([batch.xp, batch.x])
        return softplus(-self.discriminator(self._judged(x, self._generate(self.generator, x)))).mean()

    def draw(self, x: Tensor, n: int) -> Tensor:
        """Samples of the averaged generator."""
        return self._generate(self.average, x.expand(n, -1, -1))

    def _opponent_loss(self, batch: Batch) -> Tensor:
        x = torch.cat([batch.xp, batch.x])
        with torch.no_grad():
            fake = self._judged(x, self._generate(self.generator, x))
        real = self._real(batch).requires_grad_()
        logits = self.discriminator(real)
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = 0.5 * self.weight_r1 * slope.square().sum(dim=1).mean()
        return softplus(-logits).mean() + softplus(self.discriminator(fake)).mean() + penalty

    def _generate(self, net: nn.Module, x: Tensor) -> Tensor:
        return net(torch.cat([x, torch.randn(*x.shape[:-1], self.noise)], dim=-1))

    def _judged(self, x: Tensor, y: Tensor) -> Tensor:
        """What the discriminator sees of sources and their targets."""
        raise NotImplementedError

    def _real(self, batch: Batch) -> Tensor:
        """What it sees of true cells."""
        raise NotImplementedError


class ConditionalGan(_Gan):
    """The discriminator sees pairs; unpaired source cells are given to the generator, too."""

    def _judged(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1)

    def _real(self, batch: Batch) -> Tensor:
        return torch.cat([batch.xp, batch.yp], dim=1)


class UnconditionalGan(_Gan):
    """The discriminator sees target cells alone, and squared error holds the pairs together."""

    def __init__(self, x: Tensor, y: Tensor, *, weight_l2: float = 1.0, **settings: Any) -> None:
        super().__init__(x, y, **settings)
        self.weight_l2 = weight_l2

    def loss(self, batch: Batch) -> Tensor:
        """Adversarial loss and squared error on pairs."""
        return super().loss(batch) + self.weight_l2 * mse_loss(self._generate(self.generator, batch.xp), batch.yp)

    def _judged(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def _real(self, batch: Batch) -> Tensor:
        return torch.cat([batch.yp, batch.y])


class _Likelihood(Model):
    """Minus log likelihood of pairs and, if weighed, of unpaired target cells: equation 21.

    The law of a target cell by itself is the mean of its conditional laws over a sample of source cells. The logarithm
    of that mean is biased, which is the weakness of this loss.

    Parameters
    ----------
    weight_unpaired
        Of the unpaired target cells' likelihood; 0 learns from pairs alone.
    n_sources
        Source cells in the mean, at most a batch of them.
    """

    weight_unpaired: float = 0.0
    n_sources: int = 128

    def loss(self, batch: Batch) -> Tensor:
        """Minus log likelihood."""
        paired = self.log_prob(batch.xp, batch.yp)
        assert paired is not None
        if not self.weight_unpaired:
            return -paired.mean()
        x = batch.x[: self.n_sources]
        marginal = self.log_prob_of_all(x, batch.y).logsumexp(dim=1) - math.log(len(x))
        return -paired.mean() - self.weight_unpaired * marginal.mean()

    def log_prob_of_all(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities of every target cell given every source cell, shape (m, n)."""
        n, m = len(x), len(y)
        found = self.log_prob(x.repeat(m, 1), y.repeat_interleave(n, dim=0))
        assert found is not None
        return found.reshape(m, n)


class Flow(_Likelihood):
    """Conditional normalising flow: couplings, affine (RealNVP) or rational-quadratic splines."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        hidden: Sequence[int] = (64, 64),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        transforms: int = 4,
        splines: bool = False,
        weight_unpaired: float = 0.0,
        n_sources: int = 64,
    ) -> None:
        import zuko  # type: ignore[import-untyped]

        super().__init__()
        self.weight_unpaired, self.n_sources = weight_unpaired, n_sources
        kind = zuko.flows.NSF if splines else zuko.flows.MAF
        # Two passes make the masks those of couplings: sampling costs the same in any dimension.
        self.flow = kind(
            y.shape[1], x.shape[1], transforms=transforms, hidden_features=tuple(hidden), passes=2, activation=nn.ReLU
        )
        self._adam(lr, weight_decay)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities."""
        return self.flow(x).log_prob(y)

    def draw(self, x: Tensor, n: int) -> Tensor:
        """Samples."""
        return self.flow(x).sample((n,))


class SemiSupervisedFlow(Flow):
    """The flow with equation 21."""

    def __init__(self, x: Tensor, y: Tensor, *, weight_unpaired: float = 1.0, **settings: Any) -> None:
        super().__init__(x, y, weight_unpaired=weight_unpaired, **settings)


class MixtureDensity(_Likelihood):
    """A network that gives weights, means and variances of Gaussians.

    Parameters
    ----------
    n_components, floor
        Number of Gaussians, and their least standard deviation.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        hidden: Sequence[int] = (64, 64),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        n_components: int = 10,
        floor: float = 0.05,
        weight_unpaired: float = 0.0,
        n_sources: int = 128,
    ) -> None:
        super().__init__()
        self.shape, self.floor = (n_components, y.shape[1]), floor
        self.weight_unpaired, self.n_sources = weight_unpaired, n_sources
        self.net = MLP(x.shape[1], n_components * (1 + 2 * y.shape[1]), hidden, "relu")
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # means start at target cells, which tells the Gaussians apart
            starts = y[torch.randint(len(y), (n_components,))]
            last.bias[n_components : n_components * (1 + y.shape[1])] = starts.flatten()
        self._adam(lr, weight_decay)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities."""
        log_w, mean, sd = self._components(x)
        normal = -0.5 * ((y[:, None] - mean) / sd).square() - sd.log() - 0.5 * LOG_2PI
        return (log_w + normal.sum(dim=2)).logsumexp(dim=1)

    def log_prob_of_all(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities of every target cell given every source cell, by matrix products."""
        log_w, mean, sd = self._components(x)
        precision = sd.pow(-2).flatten(end_dim=1)
        centres = mean.flatten(end_dim=1)
        square = (y * y) @ precision.T - 2 * y @ (centres * precision).T + (centres**2 * precision).sum(dim=1)
        constant = (log_w - sd.log().sum(dim=2) - 0.5 * self.shape[1] * LOG_2PI).flatten()
        return (constant - 0.5 * square).reshape(len(y), *log_w.shape).logsumexp(dim=2)

    def draw(self, x: Tensor, n: int) -> Tensor:
        """Samples."""
        log_w, mean, sd = self._components(x)
        which = torch.multinomial(log_w.exp(), n, replacement=True).T
        rows = torch.arange(len(x))
        return mean[rows, which] + sd[rows, which] * torch.randn(n, len(x), self.shape[1])

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of weights (cells, M), means and standard deviations (cells, M, D)."""
        m, d = self.shape
        logits, mean, scale = self.net(x).split([m, m * d, m * d], dim=1)
        return logits.log_softmax(1), mean.reshape(-1, m, d), self.floor + softplus(scale).reshape(-1, m, d)


class SemiSupervisedMixture(_Likelihood):
    """The light parameterisation of inverse entropic OT (equation 19), trained with equation 21.

    Parameters
    ----------
    n_potential, n_cost, towers, floor
        Of `celltransfer.translators.ieot.mixture.TiltedMixture`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        hidden: Sequence[int] = (64, 64),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        n_potential: int = 20,
        n_cost: int = 5,
        towers: str = "mlp",
        floor: float = 0.0025,
        weight_unpaired: float = 1.0,
        n_sources: int = 128,
    ) -> None:
        super().__init__()
        self.weight_unpaired, self.n_sources = weight_unpaired, n_sources
        self.mixture = TiltedMixture(
            x.shape[1], y.shape[1], n_potential, n_cost, towers=towers, hidden=hidden, floor=floor
        )
        starts = y[torch.randint(len(y), (n_potential,))]
        n = torch.tensor(float(n_potential))
        self.mixture.set_potential((1 / n).expand(n_potential), starts, (1 / n + floor).expand_as(starts))
        self._adam(lr, weight_decay)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities."""
        return self.mixture.log_prob(x, y)

    def log_prob_of_all(self, x: Tensor, y: Tensor) -> Tensor:
        """Log densities of every target cell given every source cell, in closed form."""
        a, log_v = self.mixture.directions(x)
        minus_cost = (torch.einsum("jd,imd->jim", y, a) + log_v).logsumexp(dim=2)
        return self.mixture.potential(y)[:, None] + minus_cost - self.mixture.log_z(x)

    def draw(self, x: Tensor, n: int) -> Tensor:
        """Samples."""
        return self.mixture.sample(x, n)


MODELS: dict[str, type[Model]] = {
    "regression": Regression,
    "cgan": ConditionalGan,
    "ugan_l2": UnconditionalGan,
    "cnf": Flow,
    "cnf_ss": SemiSupervisedFlow,
    "cgmm_ss": SemiSupervisedMixture,
    "mdn": MixtureDensity,
}
