"""Images for the validation suites: what they translate, and what scores a translated picture.

Images are flat rows of shape ``(n, size * size)``, row by row of the picture, from -1 (black) to 1 (white).
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from celltransfer import datasets
from celltransfer.datasets.images import SHOES
from celltransfer.errors import ConfigError, DatasetError, InputError, NotFittedError

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger(__name__)

_Rows = TypeVar("_Rows", np.ndarray, Tensor)
_BATCH = 1000

DIGITS = ("mnist", "usps", "digits")
"""Image sets that :func:`load_digits` knows."""


class Shoes(NamedTuple):
    """Images ``(n, size * size)``, labels ``(n,)`` (5 sandal, 7 sneaker, 9 ankle boot) and split (train or test)."""

    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray


def load_digits(name: str = "auto", size: int = 16) -> tuple[np.ndarray, np.ndarray, str]:
    """Handwritten digits, resized without aliasing; MNIST gets a black margin, 28 to 32 pixels, first.

    Parameters
    ----------
    name
        One of `DIGITS`, or ``"auto"``: MNIST, or scikit-learn's digits where it can neither be found nor downloaded.
    size
        Width and height.

    Returns
    -------
    Images ``float32``, shape ``(n, size * size)``; labels ``int64``, shape ``(n,)``; name of the set that was used.

    Raises
    ------
    ConfigError
        The name is unknown or the size not positive.
    DatasetError
        A set asked for by name can neither be found nor downloaded.
    """
    if name not in (*DIGITS, "auto"):
        raise ConfigError(f"name={name!r} is none of auto, {', '.join(DIGITS)}.")
    try:
        used = "mnist" if name == "auto" else name
        adata = datasets.load(used)
    except DatasetError as error:
        if name != "auto":
            raise
        used = "digits"
        _log.warning("MNIST cannot be had; scikit-learn's digits (8 x 8 pixels) take its place. %s", error)
        adata = datasets.load(used)
    return _images(adata, size), adata.obs["label"].to_numpy(np.int64), used


def load_shoes(size: int = 32, n: int | None = None, seed: int = 0) -> Shoes:
    """The shoes of Fashion-MNIST, with a black margin, 28 to 32 pixels, resized without aliasing.

    Parameters
    ----------
    size
        Width and height.
    n
        Number of shoes, drawn from all 21,000; ``None`` takes all. Their order is that of the dataset.
    seed
        Seed of the draw.

    Raises
    ------
    ConfigError
        ``n`` or ``size`` is out of range.
    DatasetError
        Fashion-MNIST can neither be found nor downloaded.
    """
    adata = datasets.load("fashion_mnist")
    rows = np.flatnonzero(adata.obs["label"].isin(SHOES))
    if n is not None:
        if not 0 < n <= len(rows):
            raise ConfigError(f"n={n} must lie between 1 and {len(rows)}.")
        rows = np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))
    shoes = adata[rows]
    labels, split = shoes.obs["label"].to_numpy(np.int64), shoes.obs["split"].to_numpy(str)
    return Shoes(_images(shoes, size), labels, split)


def _images(adata: AnnData, size: int) -> np.ndarray:
    height, width = adata.uns["image_shape"]
    pixels = torch.from_numpy(np.asarray(adata.X, np.float32)).view(-1, 1, height, width)
    pixels = pixels * (2.0 / adata.uns["max_value"]) - 1.0
    if height == 28:
        pixels = nn.functional.pad(pixels, (2, 2, 2, 2), value=-1.0)
    return resize(pixels, size).flatten(1).numpy()


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images of shape ``(n, channels, height, width)`` to ``(n, channels, size, size)`` without aliasing."""
    if size < 1:
        raise ConfigError(f"size={size} must be positive.")
    if images.shape[2:] == (size, size):
        return images
    resized = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return resized.clamp(-1.0, 1.0)


def side(images: np.ndarray | Tensor) -> int:
    """Width and height of flat square images ``(n, size * size)``.

    Raises
    ------
    InputError
        The rows are no square images.
    """
    size = math.isqrt(images.shape[-1])
    if images.ndim != 2 or size * size != images.shape[-1]:
        raise InputError(f"Images must be rows of size * size pixels, got shape {tuple(images.shape)}.")
    return size


def rotation_permutation(size: int, quarter_turns: int = 1) -> np.ndarray:
    """Pixel that each pixel of a turned image shows: ``turned = images[:, permutation]``, shape ``(size * size,)``.

    Turns are anticlockwise; negative ones are clockwise.
    """
    return np.rot90(np.arange(size * size).reshape(size, size), quarter_turns).flatten()


def rotate(images: _Rows, quarter_turns: int = 1) -> _Rows:
    """Turn flat square images ``(n, size * size)`` anticlockwise: exactly, as pixels only change places."""
    return images[:, rotation_permutation(side(images), quarter_turns)]


def edges(images: np.ndarray, *, sigma: float = 0.7, low: float = 0.1, high: float = 0.25) -> np.ndarray:
    """Thin edges of images, white on black, as strong as the image changes there.

    Canny's filter with the strength kept: the gradient of the smoothed image, only where it is largest across the
    edge, and only in edges whose strongest pixel exceeds a high threshold while all exceed a low one.

    Parameters
    ----------
    images
        Flat square images, shape ``(n, size * size)``.
    sigma
        Standard deviation of the smoothing, in pixels.
    low, high
        Thresholds, as shares of the strongest gradient in the image.

    Returns
    -------
    ``float32``, shape ``(n, size * size)``; -1 off the edges, up to 1 on the strongest one.

    References
    ----------
    Canny 1986, IEEE Transactions on Pattern Analysis and Machine Intelligence 8:679.
    """
    size = side(images)
    pictures = np.asarray(images, np.float32).reshape(-1, size, size)
    scale = (0.0, sigma, sigma)
    down, right = (ndimage.gaussian_filter(pictures, scale, order, mode="nearest") for order in ((0, 1, 0), (0, 0, 1)))
    strength = np.hypot(down, right)
    strength /= np.maximum(strength.max(axis=(1, 2), keepdims=True), 1e-6)
    thin = _is_ridge(strength, down, right)
    # Pixels of one image touch each other, also at corners; those of different images do not.
    touching = np.zeros((3, 3, 3))
    touching[1] = 1
    parts, _ = ndimage.label(thin & (strength > low), touching)
    strong = np.unique(parts[thin & (strength > high)])
    kept = np.isin(parts, strong[strong > 0])
    return np.where(kept, 2.0 * strength - 1.0, -1.0).astype(np.float32).reshape(len(pictures), -1)


def _is_ridge(strength: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether no neighbour across the edge is stronger; the gradient is taken to the next of eight directions."""
    sector = np.rint(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    height, width = strength.shape[1:]
    ridge = np.zeros(strength.shape, bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[:, 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        # Of two equal ones, one.
        ridge |= (sector == number) & (strength >= behind) & (strength > ahead)
    return ridge


class _Network(nn.Module):
    def __init__(self, size: int, n_classes: int) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.dense = nn.Linear(32 * (size // 4) ** 2, 64)
        self.last = nn.Linear(64, n_classes)

    def activations(self, rows: Tensor) -> list[Tensor]:
        first = self.first(rows.view(-1, 1, self.size, self.size)).relu()
        second = self.second(nn.functional.max_pool2d(first, 2)).relu()
        return [first, second, self.dense(nn.functional.max_pool2d(second, 2).flatten(1)).relu()]

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.activations(rows)[-1])


class Classifier:
    """A small convolutional network that names images, and whose activations tell how alike two images look.

    Two convolutions (16, 32 channels) and a dense layer (64), trained by Adam; the same seed gives the same network.

    Parameters
    ----------
    epochs
        Passes over the training images.
    device
        Where it is trained and used.
    """

    def __init__(self, epochs: int = 10, device: str = "cpu") -> None:
        self.epochs = epochs
        self.device = device

    def fit(self, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Self:
        """Train on flat square images ``(n, size * size)`` of at least 4 x 4 pixels and their labels ``(n,)``."""
        size = side(images)
        if size < 4 or len(images) != len(labels):
            raise InputError(f"{len(images)} images of side {size} and {len(labels)} labels: at least 4, as many each.")
        self.classes_, targets = np.unique(labels, return_inverse=True)
        x, y = self._tensor(images), torch.from_numpy(targets).to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network_ = _Network(size, len(self.classes_)).to(self.device)
        self._train(x, y, torch.Generator().manual_seed(seed))
        return self

    def _train(self, x: Tensor, y: Tensor, generator: torch.Generator, batch: int = 64, rate: float = 4e-3) -> None:
        n_batches = -(-len(x) // batch)
        optimizer = torch.optim.Adam(self.network_.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=self.epochs * n_batches)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator).to(x.device).chunk(n_batches):
                loss = nn.functional.cross_entropy(self.network_(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """Labels, shape ``(n,)``."""
        best = [self.network_(rows).argmax(1) for rows in self._batches(images)]
        return self.classes_[torch.cat(best).cpu().numpy()]

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of the images that get their label."""
        return float(np.mean(self.predict(images) == np.asarray(labels)))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> list[Tensor]:
        """Activations of all images at both convolutions and before the last layer.

        Returns
        -------
        Shapes ``(n, 16, size, size)``, ``(n, 32, size // 2, size // 2)`` and ``(n, 64)``.
        """
        batches = [self.network_.activations(rows) for rows in self._batches(images)]
        return [torch.cat(layer) for layer in zip(*batches, strict=True)]

    def _tensor(self, images: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(images, np.float32), device=self.device)

    def _batches(self, images: np.ndarray) -> tuple[Tensor, ...]:
        if not hasattr(self, "network_"):
            raise NotFittedError("The Classifier is not fitted; call fit(images, labels) first.")
        if side(images) != self.network_.size:
            raise InputError(f"The Classifier knows images of side {self.network_.size}, not {side(images)}.")
        return self._tensor(images).split(_BATCH)


def perceptual_distance(classifier: Classifier, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""How different two images look to a network, image by image.

    .. math:: d(a, b) = \frac{1}{L} \sum_l \frac{1}{H_l W_l} \sum_{h, w} \Vert \phi^l_{hw}(a) - \phi^l_{hw}(b) \Vert^2

    where :math:`\phi^l_{hw}` is the unit vector of activations at a pixel of layer :math:`l`: LPIPS without learned
    weights, and with a network that knows the images at hand. Between 0 (alike) and 2.

    Parameters
    ----------
    classifier
        A fitted one.
    a, b
        Flat square images, shape ``(n, size * size)``.

    Returns
    -------
    Shape ``(n,)``.

    References
    ----------
    Zhang et al. 2018, The unreasonable effectiveness of deep features as a perceptual metric, CVPR.
    """
    if a.shape != b.shape:
        raise InputError(f"Images must be paired, got shapes {a.shape} and {b.shape}.")
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(a), _BATCH):
        pairs = zip(*(classifier.features(x[start : start + _BATCH]) for x in (a, b)), strict=True)
        layers = [_unit_distance(left, right) for left, right in pairs]
        parts.append(torch.stack(layers).mean(0).cpu().numpy())
    return np.concatenate(parts)


def _unit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of unit vectors along the channels, averaged over the pixels, shape ``(n,)``."""
    left, right = (nn.functional.normalize(x.flatten(2) if x.ndim > 2 else x[..., None], dim=1) for x in (a, b))
    return (left - right).square().sum(1).mean(1)
