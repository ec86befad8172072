"""Loading pairs on made pictures; calling diffusers and lpips on stand-ins that keep the interface of the real ones."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from celltransfer.errors import ConfigError, DatasetError, InputError
from celltransfer.validation import edges2shoes
from PIL import Image
from torch import nn


@pytest.fixture
def folder(tmp_path):
    """Ten training pictures: grey 20 k at the left, red at the right; and two to validate."""
    for split, count in (("train", 10), ("val", 2)):
        (tmp_path / split).mkdir()
        for k in range(count):
            pixels = np.zeros((32, 64, 3), np.uint8)
            pixels[:, :32], pixels[:, 32:, 0] = 20 * k, 255
            Image.fromarray(pixels).save(tmp_path / split / f"{k}_AB.jpg", quality=95)
    return tmp_path


def test_pictures_are_split_in_the_middle(folder):
    edges, shoes = edges2shoes.load_edges2shoes(folder, 16)
    assert edges.shape == shoes.shape == (10, 3, 16, 16)
    assert edges.dtype == shoes.dtype == np.float32
    # JPEG blurs colours over the middle.
    assert np.allclose(edges[:, :, :, :10], (np.arange(10) * 20 / 127.5 - 1)[:, None, None, None], atol=0.05)
    assert np.allclose(shoes[:, 0, :, 6:], 1.0, atol=0.05)
    assert np.allclose(shoes[:, 1:, :, 6:], -1.0, atol=0.05)
    assert edges2shoes.load_edges2shoes(folder, 32, split="val")[0].shape == (2, 3, 32, 32)


def test_pairs_are_drawn_by_seed(folder):
    draws = [edges2shoes.load_edges2shoes(folder, 4, n=4, seed=seed)[0] for seed in (0, 0, 1)]
    assert len(draws[0]) == 4
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_what_cannot_be_loaded_is_named(folder):
    for kwargs in ({"n": 11}, {"n": 0}, {"size": 0}):
        with pytest.raises(ConfigError):
            edges2shoes.load_edges2shoes(folder, **{"size": 8, **kwargs})
    with pytest.raises(DatasetError, match=r"no \.jpg file in .*test"):
        edges2shoes.load_edges2shoes(folder, 8, split="test")
    Image.new("RGB", (63, 32)).save(folder / "val" / "odd.jpg")
    with pytest.raises(DatasetError, match=r"odd\.jpg is 63 pixels wide"):
        edges2shoes.load_edges2shoes(folder, 8, split="val")
    whole = (folder / "train" / "3_AB.jpg").read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2]):
        (folder / "train" / "3_AB.jpg").write_bytes(content)
        with pytest.raises(DatasetError, match=r"3_AB\.jpg is not a readable picture"):
            edges2shoes.load_edges2shoes(folder, 8)


class Autoencoder(nn.Module):
    """Keeps every eighth pixel, and a fourth channel that is random unless the mode is taken."""

    loaded: list[tuple[str, str | None]] = []

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *, subfolder: str | None = None) -> Autoencoder:
        cls.loaded.append((pretrained_model_name_or_path, subfolder))
        if pretrained_model_name_or_path == "nowhere":
            raise OSError("nowhere is not a local folder")
        return cls().train()

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        assert not self.training
        assert not self.weight.requires_grad
        self.sizes.append(len(x))
        mean = self.weight * torch.cat([x, x[:, :1]], dim=1)[..., ::8, ::8]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mean, sample=lambda: torch.rand_like(mean)))

    def decode(self, z: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=3 * nn.functional.interpolate(z[:, :3], scale_factor=8))


@pytest.fixture
def diffusers(monkeypatch):
    module = ModuleType("diffusers")
    module.AutoencoderKL = Autoencoder
    monkeypatch.setitem(sys.modules, "diffusers", module)
    Autoencoder.loaded.clear()


def test_autoencoder_is_frozen_and_scaled(diffusers, tmp_path):
    vae = edges2shoes.image_vae(tmp_path, subfolder="vae", batch_size=2)
    assert Autoencoder.loaded == [(str(tmp_path), "vae")]
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 32, 16)).astype(np.float32)
    latents = vae.encode(images)
    assert (latents.shape, latents.dtype) == ((5, 4, 4, 2), np.float32)
    assert vae.network.sizes == [2, 2, 1]
    assert np.allclose(latents[:, :3], 0.5 * images[..., ::8, ::8])
    decoded = vae.decode(latents)
    assert decoded.shape == images.shape
    assert np.allclose(decoded[..., ::8, ::8], np.clip(3 * images[..., ::8, ::8], -1, 1))
    with pytest.raises(InputError, match=r"\(n, 3, height, width\)"):
        vae.encode(images[:, :1])


def test_the_default_is_stable_diffusion(diffusers):
    edges2shoes.image_vae()
    assert Autoencoder.loaded == [("stabilityai/sd-vae-ft-mse", None)]
    with pytest.raises(DatasetError, match="'nowhere' can neither be found"):
        edges2shoes.image_vae("nowhere")


class Measure(nn.Module):
    """Stands in for `lpips.LPIPS`."""

    def __init__(self, net: str = "alex", verbose: bool = True) -> None:
        super().__init__()
        if net == "vgg":
            raise OSError("no network")
        assert not verbose

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == y.shape[1] == 3
        assert not self.training
        return (x - y).square().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_asked_in_colour_and_batches(monkeypatch, channels):
    monkeypatch.setitem(sys.modules, "lpips", ModuleType("lpips"))
    sys.modules["lpips"].LPIPS = Measure
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 5, channels, 32, 40))
    distance = edges2shoes.lpips_distance(a, b, batch_size=2)
    assert distance.shape == (5,)
    assert np.allclose(distance, ((a - b) ** 2).mean((1, 2, 3)), atol=1e-6)
    with pytest.raises(InputError, match="paired"):
        edges2shoes.lpips_distance(a, b[1:])
    with pytest.raises(InputError, match="at least 32 pixels"):
        edges2shoes.lpips_distance(a[..., :16], b[..., :16])
    with pytest.raises(InputError, match="1 or 3"):
        edges2shoes.lpips_distance(a[:, 0], b[:, 0])
    with pytest.raises(ConfigError, match="net='resnet'"):
        edges2shoes.lpips_distance(a, b, net="resnet")
    with pytest.raises(DatasetError, match="net='vgg' cannot be downloaded"):
        edges2shoes.lpips_distance(a, b, net="vgg")


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    images = np.zeros((1, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"pip install 'celltransfer\[lpips\]'"):
        edges2shoes.lpips_distance(images, images)
    with pytest.raises(ConfigError, match=r"pip install 'celltransfer\[image-vae\]'"):
        edges2shoes.image_vae()
