"""Suite ``digit_swap``: two tasks between the same two domains, told apart by the transport cost alone.

Pictures of 64 x 64 pixels with a 0 on the left or a 1 on the right; targets have a 0 on the right or a 1 on the left.
Task 1 wants the other digit in the same place, task 2 the same digit in the other place; matching is the same for both.
Transport takes place in the latent space of an autoencoder that knows pictures of both domains and no label. For task 2
the cost is small on latents that a sparse linear classifier of the position uses, which needs positions of training
pictures, but no pairs. The firm arms are ours: their cost weighs a hundred times as much, and more at the end, so that
the adversarial game is not over before; with plain weights, with the classifier's, and with every latent spared that is
correlated with the position. A network that knows digits and positions judges decoded pictures of other digits.

CycleGAN has maps of the same residual steps in the same latent space (the paper's works on pictures). Controls: a
random target picture, which is always coherent and right for either task half of the time; and target pictures through
the autoencoder, the most that coherence can be.

Size: 10,000 pictures of MNIST have some 2,100 zeros and ones; six tenths are trained on, half of them in either domain.
The paper has 5,000 of each digit in each domain. Tuning, on one seed that is not reported: the autoencoder and its
epochs; the GAN is the paper's. Matched by MMD instead, the plain cost solves task 1 for 59 % of the pictures there and
task 2 for 36 %. The last arm was found there when the paper's arms had been run on all seeds; the other firm ones came
after it, to tell what of it does it, with nothing to choose.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from celltransfer.experiments.claims import Says
from celltransfer.experiments.figures import of_first_seed, strips
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites.gain_study import ResidualCycle
from celltransfer.experiments.suites.images import Classifier, load_digits
from celltransfer.experiments.tables import mean_sd
from celltransfer.train.loop import Trainer
from celltransfer.translators.dont.attribute_costs import cost_weights_from
from celltransfer.translators.dont.dont import Dont

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column
    from celltransfer.translators.base import Translator

SIDE, DIGIT, LATENTS = 64, 32, 128
# Share of the digits to train on.
TRAIN = 0.6
SHOWN = 10
CYCLE, PLAIN, SEMANTIC = "CycleGAN", "transport, plain cost", "transport, cost from positions"
FIRM_PLAIN, FIRM_SEMANTIC = "transport, firm plain cost", "transport, firm cost from positions"
CORRELATED = "transport, firm cost from correlations"
ARMS = (CYCLE, PLAIN, SEMANTIC, FIRM_PLAIN, FIRM_SEMANTIC, CORRELATED)
# Latents that go along with the position as closely as this move cheaply in the last arm.
CORRELATION = 0.3
# A cost that weighs more, first and last.
FIRM: dict[str, Any] = {"weight_cost": 10.0, "least_cost": 0.03}
RANDOM, DECODED = "control: a random target picture", "control: targets through the autoencoder"


class Pictures(NamedTuple):
    """Flat pictures, their digits (0 or 1) and positions (0 left, 1 right), shapes (n, 4096), (n,) and (n,)."""

    pixels: np.ndarray
    digit: np.ndarray
    right: np.ndarray


class Domains(NamedTuple):
    """Pictures to train on and to test with, source and target each."""

    source: Pictures
    target: Pictures
    test: Pictures
    test_target: Pictures


class Autoencoder(nn.Module):
    """Convolutions from 64 over 16 and 8 to 4 pixels a side, a linear layer to the latents, and the same way back."""

    side: ClassVar[int] = SIDE
    strides: ClassVar[tuple[int, ...]] = (4, 2, 2)
    latents: ClassVar[int] = LATENTS

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (1, width, 2 * width, 4 * width)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for a, b, stride in zip(widths, widths[1:], self.strides, strict=False):
            down += [nn.Conv2d(a, b, 2 * stride, stride, stride // 2), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
            back = nn.ConvTranspose2d(b, a, 2 * stride, stride, stride // 2)
            up = [back, nn.BatchNorm2d(a), nn.LeakyReLU(0.2), *up]
        flat = widths[-1] * 16
        rows = nn.Unflatten(1, (1, self.side, self.side))
        self.encoder = nn.Sequential(rows, *down, nn.Flatten(), nn.Linear(flat, self.latents))
        self.decoder = nn.Sequential(
            nn.Linear(self.latents, flat), nn.Unflatten(1, (widths[-1], 4, 4)), *up[:-2], nn.Flatten(), nn.Tanh()
        )

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Latents, shape (n, latents)."""
        return torch.cat([self.encoder(part) for part in torch.as_tensor(pixels).split(500)]).numpy()

    @torch.no_grad()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels, shape (n, side * side)."""
        return torch.cat([self.decoder(part) for part in torch.as_tensor(latents).split(500)]).numpy()


class LatentCycle(ResidualCycle):
    """CycleGAN on latents, which have no scale of their own."""

    standardised = True


_SHARES = {"coherence, %": "coherence", "task 1, %": "task1", "task 2, %": "task2"}


def _percent(score: str, group: pd.DataFrame) -> str:
    return mean_sd(100 * group[score], 1)


def _tiny(values: pd.Series) -> str:
    """The largest value, in powers of ten; empty where there is none."""
    return "" if values.isna().all() else f"{values.max():.0e}"


class DigitSwap(Suite):
    """CycleGAN and transport with either cost."""

    name = "digit_swap"
    title = "Digits that change place or class, as the transport cost says"
    reference = "Dynamic optimal neural translation, section 3.1, table 1 and figure 3."
    columns: ClassVar[Mapping[str, Column]] = {
        **{title: partial(_percent, score) for title, score in _SHARES.items()},
        "cheap latents": ("cheap", 0),
        "largest round trip": lambda group: _tiny(group["round_trip"]),
    }

    def arms(self) -> list[str]:
        """All, and both controls."""
        return [*ARMS, RANDOM, DECODED]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit in the latent space, and judge decoded pictures."""
        arm, seed = job["arm"], job["seed"]
        data, coder, judge = prepared(seed, self.full)
        test = data.test
        if arm == DECODED:
            target = data.test_target
            named = judge.predict(coder.decode(coder.encode(target.pixels)))
            return {"coherence": float((named == _names(target)).mean())}, {}
        if arm == RANDOM:
            drawn = np.random.default_rng(seed).integers(len(data.target.digit), size=len(test.digit))
            return measure(judge.predict(data.target.pixels[drawn]), test), {}
        x, y = coder.encode(data.source.pixels), coder.encode(data.target.pixels)
        model, told = self._fitted(arm, data, x, y, seed)
        pictures = coder.decode(model.translate(coder.encode(test.pixels)))
        scores = measure(judge.predict(pictures), test) | told
        return scores, {"x": test.pixels[:SHOWN], "moved": pictures[:SHOWN]} if seed == 0 else {}

    def _fitted(self, arm: str, data: Domains, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Translator, Scores]:
        """The translator of latents, and what is to be said of its cost and of its inverse."""
        trainer = Trainer(max_steps=4000 if self.full else 500, device=self.device, progress=False)
        if arm == CYCLE:
            cycle = LatentCycle()
            cycle.gain = 0.01
            return cycle.fit(x, y, seed=seed, trainer=trainer), {}
        weights = None
        places = np.concatenate([data.source.right, data.target.right])
        if arm in (SEMANTIC, FIRM_SEMANTIC):
            weights = cost_weights_from(np.vstack([x, y]), places, seed=seed).tolist()
        if arm == CORRELATED:
            together = np.corrcoef(np.vstack([x, y]).T, places)[-1, :-1]
            weights = np.where(np.abs(together) > CORRELATION, 0.01, 1.0).tolist()
        firm = FIRM if arm in (FIRM_PLAIN, FIRM_SEMANTIC, CORRELATED) else {}
        model = Dont(start="identity", discrepancy="gan", steps=9, cost_weights=weights, **firm)
        model.fit(x, y, seed=seed, trainer=trainer)
        history = model.result_.history
        told: Scores = {name: history[name][-1][1] for name in ("round_trip", "arrived") if name in history}
        return model, told | {"cheap": 0.0 if weights is None else float(np.sum(np.array(weights) < 1))}

    def says(self) -> list[Says]:
        """Table 1 of the paper, with room for the smaller data; then of the firm arms."""
        return [
            *(Says(f"{arm} is coherent, to 95 %.", "coherence", arm, ">", 0.95) for arm in (CYCLE, PLAIN, SEMANTIC)),
            Says("CycleGAN solves task 1, to 90 % (paper: 99.9 %).", "task1", CYCLE, ">", 0.9),
            Says("CycleGAN never solves task 2 (paper: 0 %).", "task2", CYCLE, "<", 0.1),
            Says("Transport solves task 1, to 90 % (paper: 99.9 %).", "task1", PLAIN, ">", 0.9),
            Says("The cost from positions turns it to task 2: 80 % (paper: 83.4 %).", "task2", SEMANTIC, ">", 0.8),
            Says(
                "A firm cost that spares every correlated latent solves task 2, to 80 %.", "task2", CORRELATED, ">", 0.8
            ),
            # Ours, as the one before: what of that arm does it.
            Says("Firm alone, with plain weights, it does not.", "task2", FIRM_PLAIN, "<", 0.1),
            Says("Firm, with the weights from positions, it does, to 80 %.", "task2", FIRM_SEMANTIC, ">", 0.8),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure:
        """Test pictures of the first seed, and what every arm makes of them."""
        shown = of_first_seed(arrays, ARMS)
        lines = {"source": next(iter(shown.values()))["x"]} if shown else {}
        return strips(lines | {arm: found["moved"] for arm, found in shown.items()}, width=SHOWN + 2, height=1.1)


@lru_cache(maxsize=2)
def prepared(seed: int, full: bool) -> tuple[Domains, Autoencoder, Classifier]:
    """Pictures, the autoencoder and the judge of a seed."""
    data = draw_domains(seed)
    pixels = np.vstack([data.source.pixels, data.target.pixels])
    names = np.concatenate([_names(data.source), _names(data.target)])
    coder = trained(Autoencoder, pixels, seed, epochs=100 if full else 25, width=32 if full else 16)
    return data, coder, Classifier(epochs=4).fit(pixels, names, seed)


def draw_domains(seed: int) -> Domains:
    """Both domains: pictures of disjoint digits."""
    images, labels, _ = load_digits("mnist", DIGIT)
    rng = np.random.default_rng([seed, 61])
    rows = rng.permutation(np.flatnonzero(labels < 2))
    train, test = np.split(rows, [int(TRAIN * len(rows))])
    parts = (*np.array_split(train, 2), *np.array_split(test, 2))
    found = [_placed(images[part], labels[part], swapped=i % 2 == 1) for i, part in enumerate(parts)]
    return Domains(*found)


def measure(named: np.ndarray, test: Pictures) -> Scores:
    """Shares of pictures in the target domain, and of those that solve either task."""
    digit, right = named // 2, named % 2
    other_digit, other_place = digit != test.digit, right != test.right
    return {
        "coherence": float((digit != right).mean()),
        "task1": float((other_digit & ~other_place).mean()),
        "task2": float((~other_digit & other_place).mean()),
    }


def trained(make: Any, pixels: np.ndarray, seed: int, *, epochs: int, width: int, batch: int = 64) -> Any:
    """An autoencoder trained on pictures, by squared error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coder = make(width)
    x, generator = torch.as_tensor(pixels), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(coder.parameters())
    total = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = _error(coder, x[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return coder.eval()


def _error(coder: Any, x: Tensor) -> Tensor:
    """Squared error, and a weak pull of latents to unit scale."""
    latents = coder.encoder(x)
    return (coder.decoder(latents) - x).square().mean() + 1e-4 * latents.square().mean()


def _placed(images: np.ndarray, digit: np.ndarray, *, swapped: bool) -> Pictures:
    """Digits on black: zeros on the left and ones on the right, or the other way round."""
    right = digit != swapped
    pixels = np.full((len(images), SIDE, SIDE), -1, np.float32)
    top = (SIDE - DIGIT) // 2
    for picture, image, is_right in zip(pixels, images.reshape(-1, DIGIT, DIGIT), right, strict=True):
        left = DIGIT if is_right else 0
        picture[top : top + DIGIT, left : left + DIGIT] = image
    return Pictures(pixels.reshape(len(images), -1), digit.astype(np.int64), right.astype(np.int64))


def _names(pictures: Pictures) -> np.ndarray:
    """One label for digit and position."""
    return 2 * pictures.digit + pictures.right
