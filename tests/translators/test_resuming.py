"""Fits that stop halfway and go on: as if they had not stopped."""

import os
import signal
from math import inf

import numpy as np
import pytest
from celltransfer.errors import ModelFormatError
from celltransfer.train.checkpoint import CHECKPOINT
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators import make

SMALL = {"n_content": 2, "n_style": 1, "hidden": (8,)}
FITS = {
    "dont, MMD": ("dont", {"steps": 2, "hidden": (8,)}),
    "dont, GAN": ("dont", {"steps": 2, "hidden": (8,), "discrepancy": "gan"}),
    "sparse mixing, VAE": ("sparse_mixing", SMALL),
    "sparse mixing, GAN": ("sparse_mixing", SMALL | {"form": "gan"}),
    "ieot": ("ieot", {}),
    "lrmf": ("lrmf", {"density": "realnvp", "blocks": 2, "hidden": (8,), "blocks_density": 2, "hidden_density": (8,)}),
}


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = (rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + 1).astype(np.float32)
    return x, y, np.column_stack([np.arange(10)] * 2)


def trainer(**how):
    defaults = {"max_steps": 40, "batch_size": 32, "check_every": 10, "device": "cpu", "progress": False}
    return Trainer(**(defaults | {"patience": inf} | how))


# Before content is told from style (step 24 of 40), and after it.
@pytest.mark.parametrize("stopped", [20, 30])
@pytest.mark.parametrize("which", FITS)
def test_a_fit_that_was_stopped_goes_on_as_if_it_had_not(which, stopped, tmp_path):
    name, options = FITS[which]
    pair = data()
    whole = make(name, **options).fit(*pair, seed=3, trainer=trainer())
    broken = make(name, **options)

    def until(step, after=broken.after_step):
        after(step)
        if step + 1 == stopped:
            os.kill(os.getpid(), signal.SIGINT)

    broken.after_step = until
    broken.fit(*pair, seed=3, trainer=trainer(checkpoint_dir=tmp_path))
    assert broken.result_.status is Status.INTERRUPTED
    assert broken.result_.n_steps == stopped
    assert (tmp_path / CHECKPOINT).exists()
    again = make(name, **options).fit(*pair, seed=3, trainer=trainer(checkpoint_dir=tmp_path, resume=True))
    assert again.result_.n_steps == whole.result_.n_steps
    np.testing.assert_allclose(again.translate(pair[0]), whole.translate(pair[0]), atol=1e-5)


@pytest.mark.parametrize("which", FITS)
def test_a_schedule_is_not_resumed_with_other_steps(which, tmp_path):
    name, options = FITS[which]
    make(name, **options).fit(*data(), trainer=trainer(max_steps=4, checkpoint_dir=tmp_path))
    with pytest.raises(ModelFormatError, match="other max_steps"):
        make(name, **options).fit(*data(), trainer=trainer(max_steps=8, checkpoint_dir=tmp_path, resume=True))
