"""Edges to shoes as published: the photographs, the frozen autoencoder of Stable Diffusion, and LPIPS.

Photographs have the shape ``(n, 3, size, size)``, values from -1 (black) to 1 (white). The autoencoder needs the extra
``celltransfer[image-vae]``, LPIPS the extra ``celltransfer[lpips]``; both load their published weights.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from celltransfer.errors import ConfigError, DatasetError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import Tensor

VAE = "stabilityai/sd-vae-ft-mse"
"""The autoencoder of Stable Diffusion 1, with its own repository."""

_LPIPS_NETS = ("alex", "vgg", "squeeze")
_LPIPS_SMALLEST = 32


def load_edges2shoes(
    folder: str | Path, size: int = 256, *, split: str = "train", n: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of edges and shoes, from the unpacked archive of pix2pix.

    Every picture shows the edges (left half) beside the photograph (right half). All 49,825 training pairs of
    256 x 256 pixels take 78 GB: draw some, or ask for smaller ones.

    Parameters
    ----------
    folder
        The folder ``edges2shoes``, with the folders ``train`` and ``val`` of ``.jpg`` files.
    size
        Width and height of the images returned.
    split
        ``"train"`` or ``"val"``.
    n
        Number of pairs, drawn at random; ``None`` takes all. They come in the order of their names.
    seed
        Seed of the draw.

    Returns
    -------
    Edges and shoes, ``float32``, each of shape ``(n, 3, size, size)``, row i of one belonging to row i of the other.

    Raises
    ------
    ConfigError
        ``n`` or ``size`` is out of range.
    DatasetError
        The folder holds no pictures, or one that cannot be read or split in the middle.

    References
    ----------
    Isola et al. 2017, Image-to-image translation with conditional adversarial networks, CVPR; photographs: Yu &
    Grauman 2014, Fine-grained visual comparisons with local learning, CVPR.
    """
    paths = sorted(Path(folder, split).glob("*.jpg"))
    if not paths:
        raise DatasetError(
            f"There is no .jpg file in {Path(folder, split)}. Unpack edges2shoes.tar.gz of pix2pix and name its folder."
        )
    if size < 1 or (n is not None and not 0 < n <= len(paths)):
        raise ConfigError(f"size={size} must be positive and n={n} between 1 and {len(paths)}.")
    if n is not None:
        paths = [paths[i] for i in np.sort(np.random.default_rng(seed).choice(len(paths), n, replace=False))]
    pairs = np.empty((2, len(paths), 3, size, size), np.float32)
    for i, path in enumerate(paths):
        pairs[:, i] = _read_pair(path, size)
    return pairs[0], pairs[1]


def _read_pair(path: Path, size: int) -> np.ndarray:
    """Left and right half of a picture, shape ``(2, 3, size, size)``."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{path} is not a readable picture: {error}") from error
    if whole.width % 2:
        raise DatasetError(f"{path} is {whole.width} pixels wide, so it cannot be split in the middle.")
    middle = whole.width // 2
    halves = (whole.crop((left, 0, left + middle, whole.height)) for left in (0, middle))
    pixels = np.stack([np.asarray(half.resize((size, size), Image.Resampling.LANCZOS), np.float32) for half in halves])
    return pixels.transpose(0, 3, 1, 2) / 127.5 - 1.0


class ImageVAE:
    """A frozen autoencoder: photographs to latent images of an eighth of their side, and back.

    Made by `image_vae`.
    """

    def __init__(self, network: Any, device: str, batch_size: int) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = device
        self.batch_size = batch_size

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Means of the latent distributions, scaled to unit variance over natural photographs.

        Parameters
        ----------
        images
            Shape ``(n, 3, size, size)``, ``size`` a multiple of 8.

        Returns
        -------
        ``float32``, shape ``(n, 4, size / 8, size / 8)`` for Stable Diffusion.
        """
        _check_photographs(images)
        return self._map(lambda x: self.network.encode(x).latent_dist.mode() * self._scale, images)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Photographs ``(n, 3, size, size)``, clipped to [-1, 1], of latents as `encode` gives them."""
        return self._map(lambda z: self.network.decode(z / self._scale).sample.clamp(-1.0, 1.0), latents)

    @property
    def _scale(self) -> float:
        return float(self.network.config.scaling_factor)

    def _map(self, function: Callable[[Tensor], Tensor], arrays: np.ndarray) -> np.ndarray:
        return _in_batches(function, arrays, device=self.device, batch_size=self.batch_size)


def image_vae(
    name: str | Path = VAE, *, subfolder: str | None = None, device: str = "cpu", batch_size: int = 16
) -> ImageVAE:
    """Load a frozen autoencoder of the kind of Stable Diffusion, through diffusers.

    Parameters
    ----------
    name
        A local folder in the format of diffusers, or the name of a model on the Hugging Face hub.
    subfolder
        Its folder within the model, ``"vae"`` for a whole Stable Diffusion.
    device
        Where it is used.
    batch_size
        Images at a time.

    Raises
    ------
    ConfigError
        diffusers is not installed.
    DatasetError
        There is no such model, or it cannot be read.

    References
    ----------
    Rombach et al. 2022, High-resolution image synthesis with latent diffusion models, CVPR.
    """
    diffusers = _import("diffusers", "image-vae")
    try:
        network = diffusers.AutoencoderKL.from_pretrained(str(name), subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The autoencoder {str(name)!r} can neither be found in a folder nor downloaded: {error}"
        ) from error
    return ImageVAE(network, device, batch_size)


def lpips_distance(
    a: np.ndarray, b: np.ndarray, *, net: str = "alex", device: str = "cpu", batch_size: int = 32
) -> np.ndarray:
    """Learned perceptual distance (LPIPS 0.1) of paired images.

    Parameters
    ----------
    a, b
        Values from -1 to 1, shape ``(n, 3, height, width)``, or ``(n, 1, height, width)`` for grey images; at least
        32 pixels high and wide.
    net
        ``"alex"``, ``"vgg"`` or ``"squeeze"``.
    device
        Where it is computed.
    batch_size
        Pairs at a time.

    Returns
    -------
    Shape ``(n,)``.

    Raises
    ------
    ConfigError
        The package lpips is not installed, or the net is unknown.
    DatasetError
        The weights of the net cannot be downloaded.
    InputError
        The images are not paired, or too small.

    References
    ----------
    Zhang et al. 2018, The unreasonable effectiveness of deep features as a perceptual metric, CVPR.
    """
    if net not in _LPIPS_NETS:
        raise ConfigError(f"net={net!r} is none of {', '.join(_LPIPS_NETS)}.")
    if a.shape != b.shape:
        raise InputError(f"Images must be paired, got shapes {a.shape} and {b.shape}.")
    _check_photographs(a, channels=(1, 3), smallest=_LPIPS_SMALLEST)
    lpips = _import("lpips", "lpips")
    try:
        measure = lpips.LPIPS(net=net, verbose=False).to(device).eval()
    except OSError as error:
        raise DatasetError(f"The weights of LPIPS with net={net!r} cannot be downloaded: {error}") from error
    return _in_batches(
        lambda x, y: measure(x, y).flatten(1).mean(1), _colour(a), _colour(b), device=device, batch_size=batch_size
    )


def _colour(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))


def _check_photographs(images: np.ndarray, channels: tuple[int, ...] = (3,), smallest: int = 8) -> None:
    if images.ndim != 4 or images.shape[1] not in channels or min(images.shape[2:]) < smallest:
        wanted = " or ".join(str(count) for count in channels)
        raise InputError(
            f"Images must have the shape (n, {wanted}, height, width), at least {smallest} pixels high and wide; "
            f"got {images.shape}."
        )


def _in_batches(function: Callable[..., Tensor], *arrays: np.ndarray, device: str, batch_size: int) -> np.ndarray:
    """Apply a function to equal slices of the arrays, without gradients."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(arrays[0]), batch_size):
            slices = (np.ascontiguousarray(array[start : start + batch_size], np.float32) for array in arrays)
            parts.append(function(*(torch.from_numpy(part).to(device) for part in slices)).float().cpu().numpy())
    return np.concatenate(parts)


def _import(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # the latter where torchvision was made for another torch
        raise ConfigError(
            f"This needs the package {module}, which cannot be imported ({error}): pip install 'celltransfer[{extra}]'."
        ) from error
