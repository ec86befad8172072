from __future__ import annotations

import logging

import celltransfer as ct
import numpy as np
import pytest
import torch
from celltransfer.datasets import fetch
from celltransfer.errors import ConfigError, DatasetError, InputError, NotFittedError
from celltransfer.experiments.suites import images
from celltransfer.experiments.suites.images import Classifier


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's digits at 16 x 16, shuffled: images and labels."""
    pictures, labels, _ = images.load_digits("digits")
    order = np.random.default_rng(0).permutation(len(labels))
    return pictures[order], labels[order]


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(epochs=6).fit(digits[0][:1200], digits[1][:1200])


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def fail(file):
        raise DatasetError(f"no network for {file.name}")

    monkeypatch.setattr(fetch, "_download", fail)
    with ct.settings.override(cache_dir=tmp_path, data_mirror=None):
        yield


def test_digits_take_the_place_of_mnist_and_say_so(offline, caplog):
    with caplog.at_level(logging.WARNING, "celltransfer"):
        pictures, labels, used = images.load_digits()
    assert used == "digits"
    assert "MNIST cannot be had" in caplog.text
    assert "no network for t10k" in caplog.text
    assert pictures.shape == (1797, 256)
    assert (pictures.dtype, labels.dtype) == (np.float32, np.int64)
    with pytest.raises(DatasetError):
        images.load_digits("mnist")


def test_native_size_keeps_every_pixel():
    pictures, labels, used = images.load_digits("digits", size=8)
    adata = ct.datasets.digits()
    assert used == "digits"
    assert np.allclose(pictures, adata.X / 8.0 - 1.0)
    assert np.array_equal(labels, adata.obs["label"])


@pytest.mark.parametrize(("name", "size"), [("letters", 16), ("digits", 0)])
def test_unknown_set_and_impossible_size(name, size):
    with pytest.raises(ConfigError):
        images.load_digits(name, size)


def test_mnist_has_a_margin_and_keeps_its_ink(real_dataset):
    real_dataset("mnist")
    large, labels, used = images.load_digits(size=32)
    small, _, _ = images.load_digits(size=16)
    assert (used, large.shape, small.shape) == ("mnist", (10000, 1024), (10000, 256))
    pictures = large.reshape(-1, 32, 32)
    assert (pictures[:, [0, 1, -2, -1]] == -1).all()
    assert np.allclose(pictures[:, 2:30, 2:30].reshape(-1, 784), ct.datasets.mnist().X / 127.5 - 1.0, atol=1e-6)
    assert labels[:3].tolist() == [7, 2, 1]
    assert np.abs(small.mean(1) - large.mean(1)).max() < 0.01  # antialiasing loses no ink


def test_shoes_are_drawn_by_seed(real_dataset):
    real_dataset("fashion_mnist")
    shoes, again, other = (images.load_shoes(16, 900, seed) for seed in (0, 0, 1))
    assert shoes.images.shape == (900, 256)
    assert set(shoes.labels) == {5, 7, 9}
    assert set(shoes.split) == {"train", "test"}
    assert np.array_equal(shoes.images, again.images)
    assert not np.array_equal(shoes.labels, other.labels)
    everything = images.load_shoes(8)
    assert np.array_equal(np.unique(everything.split, return_counts=True)[1], [3000, 18000])
    with pytest.raises(ConfigError, match="between 1 and 21000"):
        images.load_shoes(n=21001)


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 5])
def test_rotation_is_an_exact_permutation(turns):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 36)).astype(np.float32)
    turned = images.rotate(rows, turns)
    assert np.array_equal(turned.reshape(3, 6, 6), np.rot90(rows.reshape(3, 6, 6), turns, axes=(1, 2)))
    permutation = images.rotation_permutation(6, turns)
    assert np.array_equal(np.sort(permutation), np.arange(36))
    assert np.array_equal(rows[:, permutation], turned)
    assert torch.equal(images.rotate(torch.from_numpy(rows), turns), torch.from_numpy(turned))
    assert np.array_equal(images.rotate(turned, -turns), rows)


@pytest.mark.parametrize("shape", [(4, 10), (16,), (2, 4, 4)])
def test_only_flat_square_images(shape):
    for function in (images.rotate, images.edges):
        with pytest.raises(InputError, match="size \\* size"):
            function(np.zeros(shape))


def test_edges_of_a_square_are_its_outline():
    picture = np.full((20, 20), -1.0)
    picture[5:15, 5:15] = 1.0
    found = images.edges(picture.reshape(1, -1)).reshape(20, 20)
    assert (found.dtype, found.shape) == (np.float32, (20, 20))
    assert found.max() == 1.0
    kept = found > -1
    assert not kept[:4].any()
    assert not kept[7:13, 7:13].any()
    assert (kept[7:13].sum(axis=1) == 2).all()  # thin: one pixel at each side
    assert (kept[:, 7:13].sum(axis=0) == 2).all()


def test_edges_turn_with_the_image(digits):
    pictures = digits[0][:200]
    turned, edges = images.edges(images.rotate(pictures)), images.rotate(images.edges(pictures))
    assert np.mean((turned > -1) == (edges > -1)) > 0.97  # ties between neighbours are broken in reading order
    assert edges.min() == -1
    assert (edges.reshape(200, -1).max(1) == 1).all()


def test_weak_edges_stay_only_beside_strong_ones():
    picture = np.full((24, 24), -1.0)
    picture[:, 12:] += np.linspace(0.3, 2.0, 24)[:, None]  # one edge that gets stronger
    alone = picture.copy()
    alone[12:] = -1.0
    alone[20:, 4:8] = 1.0  # the strong edge is elsewhere
    row = 3
    assert (images.edges(picture.reshape(1, -1)).reshape(24, 24)[row] > -1).any()
    assert not (images.edges(alone.reshape(1, -1), high=0.7).reshape(24, 24)[row] > -1).any()


def test_an_image_has_no_edges_of_its_neighbours_nor_of_nothing():
    rows = np.stack([np.full(64, -1.0), np.repeat([-1.0, 1.0], 32), np.full(64, 0.3)])
    found = images.edges(rows)
    assert (found[[0, 2]] == -1).all()
    assert np.array_equal(found[1], images.edges(rows[1:2])[0])
    assert (found[1] > -1).sum() == 8


def test_classifier_names_held_out_digits(classifier, digits):
    pictures, labels = digits
    assert classifier.accuracy(pictures[1200:], labels[1200:]) > 0.95
    assert classifier.predict(pictures[:3]).dtype == np.int64
    shapes = [tuple(layer.shape) for layer in classifier.features(pictures[:7])]
    assert shapes == [(7, 16, 16, 16), (7, 32, 8, 8), (7, 64)]
    assert not any(layer.requires_grad for layer in classifier.features(pictures[:7]))


def test_classifier_is_made_by_its_seed_alone(digits):
    pictures, labels = digits[0][:200], digits[1][:200]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = (Classifier(epochs=1).fit(pictures, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.network_.last.weight, second.network_.last.weight)
    assert not torch.equal(first.network_.last.weight, other.network_.last.weight)


def test_classifier_keeps_the_labels_it_was_given(digits):
    pictures, labels = digits
    some = np.isin(labels, [3, 8])
    names = np.where(labels == 3, "three", "eight")
    assert set(Classifier(epochs=2).fit(pictures[some], names[some]).predict(pictures[some])) == {"three", "eight"}


def test_classifier_refuses_what_it_does_not_know(classifier):
    with pytest.raises(NotFittedError):
        Classifier().predict(np.zeros((1, 256)))
    with pytest.raises(InputError, match="side 16, not 8"):
        classifier.predict(np.zeros((1, 64)))
    with pytest.raises(InputError, match="3 images of side 2 and 2 labels"):
        Classifier().fit(np.zeros((3, 4)), np.zeros(2))


def test_perceptual_distance_is_a_distance_of_looks(classifier, digits):
    pictures, labels = digits[0][1200:], digits[1][1200:]
    backwards = pictures[::-1]
    distance = images.perceptual_distance(classifier, pictures, backwards)
    assert distance.shape == (len(pictures),)
    assert np.allclose(images.perceptual_distance(classifier, pictures, pictures), 0.0)
    assert np.allclose(distance, images.perceptual_distance(classifier, backwards, pictures))
    assert (distance.min() >= 0, distance.max() <= 2) == (True, True)
    same = labels == labels[::-1]
    assert distance[same].mean() < 0.7 * distance[~same].mean()
    noisy = pictures + np.random.default_rng(0).normal(0, 0.05, pictures.shape)
    assert images.perceptual_distance(classifier, pictures, noisy).mean() < 0.3 * distance.mean()
    with pytest.raises(InputError, match="must be paired"):
        images.perceptual_distance(classifier, pictures, pictures[1:])
    assert images.perceptual_distance(classifier, pictures[:0], pictures[:0]).shape == (0,)


def test_perceptual_distance_is_the_formula(classifier, digits):
    a, b = digits[0][:3], digits[0][3:6]
    layers = []
    for left, right in zip(classifier.features(a), classifier.features(b), strict=True):
        left, right = (x.reshape(3, x.shape[1], -1) for x in (left, right))
        units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (left, right)]
        layers.append(((units[0] - units[1]) ** 2).sum(1).mean(-1))
    assert np.allclose(images.perceptual_distance(classifier, a, b), np.mean(np.stack(layers), axis=0), atol=1e-5)


def test_classifier_on_mnist(real_dataset):
    real_dataset("mnist")
    pictures, labels, _ = images.load_digits()
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:8000], order[8000:]
    model = Classifier().fit(pictures[train], labels[train])
    assert model.accuracy(pictures[test], labels[test]) >= 0.97
