"""Suite digit_swap: its domains, its scores, and how it reads its rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer.experiments.suites.digit_swap import (
    ARMS,
    CORRELATED,
    CYCLE,
    DECODED,
    DIGIT,
    FIRM_PLAIN,
    FIRM_SEMANTIC,
    PLAIN,
    RANDOM,
    SEMANTIC,
    SIDE,
    Autoencoder,
    DigitSwap,
    Pictures,
    _placed,
    measure,
    trained,
)

torch.set_num_threads(1)


def test_digits_stand_where_their_domain_puts_them():
    images = np.full((4, DIGIT * DIGIT), 1.0, np.float32)
    digit = np.array([0, 1, 0, 1])
    for swapped, right in ((False, [0, 1, 0, 1]), (True, [1, 0, 1, 0])):
        found = _placed(images, digit, swapped=swapped)
        assert list(found.right) == right
        halves = found.pixels.reshape(4, SIDE, 2, DIGIT).mean(axis=(1, 3))
        np.testing.assert_array_equal(halves.argmax(1), right)
        assert (halves.min(1) == -1).all()


def test_scores_tell_the_tasks_apart():
    test = Pictures(np.zeros((2, 1)), np.array([0, 1]), np.array([0, 1]))
    names = {"kept": [0, 3], "task1": [2, 1], "task2": [1, 2]}
    for what, named in names.items():
        scores = measure(np.array(named), test)
        assert scores["coherence"] == (what != "kept")
        assert scores["task1"] == (what == "task1")
        assert scores["task2"] == (what == "task2")


def test_the_autoencoder_learns_and_is_the_same_for_the_same_seed():
    rng = np.random.default_rng(0)
    pixels = np.full((64, SIDE * SIDE), -1, np.float32)
    pixels[:32, : SIDE * SIDE // 2] = 1
    pixels = pixels[rng.permutation(64)]
    coder = trained(Autoencoder, pixels, 0, epochs=16, width=4, batch=16)
    latents = coder.encode(pixels)
    assert latents.shape == (64, 128)
    assert np.square(coder.decode(latents) - pixels).mean() < 0.5 * pixels.var()
    again = trained(Autoencoder, pixels, 0, epochs=16, width=4, batch=16)
    np.testing.assert_array_equal(again.encode(pixels), latents)


def rows(paper):
    jobs = pd.DataFrame(DigitSwap().jobs(3))
    solved, failed = [SEMANTIC, FIRM_SEMANTIC, CORRELATED], [CYCLE, FIRM_PLAIN]
    task2 = 0.9 * jobs["arm"].isin(solved) if paper else 0.2 * jobs["arm"].isin(failed)
    task1 = jobs["arm"].isin([CYCLE, PLAIN]) * 0.99
    wiggle = 0.001 * jobs["seed"]
    return jobs.assign(coherence=0.99 + wiggle, task1=task1 + wiggle, task2=task2 + wiggle, cheap=2.0, round_trip=1e-6)


@pytest.mark.parametrize("paper", [True, False])
def test_claims_follow_the_rows(paper):
    held = [claim.holds for claim in DigitSwap().claims(rows(paper))]
    assert all(held) == paper
    assert (False in held) != paper


def test_every_arm_has_a_line_and_pictures_are_drawn():
    suite = DigitSwap()
    assert list(suite.table(rows(True)).index) == [*ARMS, RANDOM, DECODED]
    pictures = {"x": np.zeros((10, SIDE * SIDE)), "moved": np.zeros((10, SIDE * SIDE))}
    figure = suite.draw(rows(True), {f"arm-{ARMS[0]}_seed-0": pictures})
    assert figure is not None
