"""Suite ``faces``: women to men and back in content and style, by CG-GAN, on small grey faces.

The paper's CelebA at high resolution is out of reach of a CPU; its question is kept. Domains are female and male; one
generator serves both, and a learned mask says which latents see the domain. Made faces are compared with real test
faces of their domain by the Frechet distance between Gaussians fitted to the features of a small classifier that was
trained on the real training faces. Translations are asked if the classifier sees the other sex, and how near they stay
to the face they came from. CG-VAE is the method at settings that suit it: its map, start and learning rate differ from
those of the GAN, so that the two forms are not compared alone. Pictures are written only into the folder that the user
names, and hold *made* and real faces: do not publish them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from celltransfer import datasets
from celltransfer.experiments.claims import Says
from celltransfer.experiments.figures import of_first_seed
from celltransfer.experiments.suite import Arrays, Job, Scores, Suite
from celltransfer.experiments.suites.images import resize
from celltransfer.experiments.suites.laws import frechet
from celltransfer.nn.blocks import MLP
from celltransfer.train.loop import Trainer
from celltransfer.translators.sparse_mixing.sparse_mixing import SparseMixing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure

    from celltransfer.experiments.tables import Column

SIZE, STEPS, DRAWN = 16, 600, 6
OURS, UNMASKED, DENSE, VAE = "CG-GAN", "CG-GAN-M, all style", "CG-GAN, not sparse", "CG-VAE"
SHIFT, IDENTITY, REAL = "mean shift", "control: not moved", "ceiling: other real faces"
_GAN: dict[str, Any] = {
    **{"form": "gan", "shared": True, "map": "mlp", "hidden": (256, 256), "init": "random", "alpha": 0.1},
    **{"n_content": 24, "n_style": 8, "hidden_discriminator": (256, 256), "lr": 5e-4, "lr_discriminator": 5e-4},
}
ARMS: dict[str, dict[str, Any]] = {
    OURS: _GAN,
    UNMASKED: _GAN | {"n_content": 0, "n_style": 32, "mask": "fixed"},
    DENSE: _GAN | {"alpha": 0.0},
    VAE: _GAN | {"form": "vae", "init": "linear", "map": "residual", "lr": 1e-3},
}
CONTROLS = (SHIFT, IDENTITY, REAL)
MASKED_NOTHING = "in some run no latent became content, so that the arms do not differ there."


class Data(NamedTuple):
    """Faces (n, side * side), -1 to 1, and sex (n,), 1 is male; to fit, and to test."""

    fit: np.ndarray
    male: np.ndarray
    test: np.ndarray
    test_male: np.ndarray


class Faces(Suite):
    """CG-GAN against itself without parts, and controls."""

    name = "faces"
    title = "Female and male faces: made from noise, and translated"
    reference = "Synergy between sufficient changes and sparse mixing, CelebA experiment, at 16 x 16 grey pixels."
    columns: ClassVar[Mapping[str, Column]] = {
        "seeds": len,
        "Frechet distance, made": "frechet_made",
        "Frechet distance, translated": "frechet_translated",
        "seen as male": "male",
        "correlation with the source": "kept",
        "content latents": "content",
    }

    def arms(self) -> list[str]:
        """All, and the controls."""
        return [*ARMS, *CONTROLS]

    def run(self, job: Job) -> tuple[Scores, Arrays]:
        """Fit one arm; judge what it makes and how it translates."""
        size = 32 if self.full else SIZE
        data, judge = load(size), Judge(load(size), seed=0)
        women, men = (data.test[data.test_male == sex] for sex in (0, 1))
        moved, made, content = self.made(job["arm"], data, women, job["seed"])
        scores: Scores = {
            "frechet_translated": judge.frechet(moved, men),
            "male": judge.share_male(moved),
            "kept": kept(moved, women) if len(moved) == len(women) else float("nan"),
            "frechet_made": judge.frechet(made, men) if len(made) else float("nan"),
            "content": content,
        }
        drawn = {"from": women[:DRAWN], "to": moved[:DRAWN], "made": made[:DRAWN]}
        return scores, drawn if job["seed"] == 0 and job["arm"] in (OURS, VAE) else {}

    def made(self, arm: str, data: Data, women: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Test women as men, men made from noise (none by controls), and how many latents are content."""
        none, no_latents = women[:0], float("nan")
        x, y = (data.fit[data.male == sex] for sex in (0, 1))
        if arm == IDENTITY:
            return women, none, no_latents
        if arm == SHIFT:
            return women + y.mean(0) - x.mean(0), none, no_latents
        if arm == REAL:
            rows = np.random.default_rng(seed).choice(len(y), len(data.test[data.test_male == 1]), replace=False)
            return y[rows], y[rows], no_latents
        f = SparseMixing(**ARMS[arm])
        trainer = Trainer(
            max_steps=STEPS * (40 if self.full else 1),
            check_every=100,
            patience=float("inf"),
            device=self.device,
            progress=False,
        )
        f.fit(x, y, seed=seed, trainer=trainer)
        content = float((~f.module_.latents.style()).sum())
        return f.translate(women), sampled(f, len(women), seed), content

    def says(self) -> list[Says]:
        """What the paper says of the GAN form, sparsity and the mask; of the mask nothing where it masked nothing."""
        made = "frechet_made"
        return [
            Says("CG-GAN makes better faces than CG-VAE.", made, OURS, "<", VAE),
            Says("The sparse term makes better faces.", made, OURS, "<", DENSE),
            Says("Its translations are nearer to men than a mean shift's.", "frechet_translated", OURS, "<", SHIFT),
            Says("The mask makes better faces.", made, OURS, "<", UNMASKED, unless=_unmasked),
            Says("Without the mask less of a face is kept.", "kept", UNMASKED, "<", OURS, unless=_unmasked),
        ]

    def draw(self, rows: pd.DataFrame, arrays: Mapping[str, Arrays]) -> Figure | None:
        """Test faces of the first seed, their translations, and made faces."""
        from matplotlib.figure import Figure

        shown = list(of_first_seed(arrays, (OURS, VAE)).items())
        if not shown:
            return None
        figure = Figure(figsize=(DRAWN, 3.3 * len(shown)), layout="constrained")
        axes = figure.subplots(3 * len(shown), DRAWN, squeeze=False)
        for i, (arm, found) in enumerate(shown):
            for j, name in enumerate(("from", "to", "made")):
                for ax, face in zip(axes[3 * i + j], found[name], strict=False):
                    side = int(np.sqrt(len(face)))
                    ax.imshow(face.reshape(side, side), cmap="gray", vmin=-1, vmax=1)
                axes[3 * i + j, 0].set_title(f"{arm}: {name}", fontsize=7, loc="left")
        for ax in axes.flat:
            ax.set_axis_off()
        return figure


class Judge:
    """A small classifier of sex, trained on the real training faces; its features are those distances are taken in."""

    def __init__(self, data: Data, seed: int, steps: int = 300) -> None:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.features = nn.Sequential(MLP(data.fit.shape[1], 32, (128,)), nn.Tanh())
        self.head = nn.Linear(32, 1)
        parameters = [*self.features.parameters(), *self.head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)
        x, y = torch.as_tensor(data.fit), torch.as_tensor(data.male, dtype=torch.float32)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=generator)
            logits = self.head(self.features(x[rows]))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def share_male(self, faces: np.ndarray) -> float:
        """Share of faces that are seen as male."""
        return float((self.head(self._of(faces)) > 0).float().mean())

    @torch.no_grad()
    def frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        """Frechet distance between two sets of faces, in features."""
        return frechet(self._of(a).double().numpy(), self._of(b).double().numpy())

    def _of(self, faces: np.ndarray) -> Tensor:
        return self.features(torch.as_tensor(np.asarray(faces, np.float32)))


def _unmasked(rows: pd.DataFrame) -> str:
    """In a run whose latents are all style the arms do not differ."""
    return "" if (rows.loc[rows["arm"] == OURS, "content"] > 0).all() else MASKED_NOTHING


def kept(moved: np.ndarray, source: np.ndarray) -> float:
    """Mean correlation, over faces, of what a face has beyond the mean face of its set."""
    a, b = moved - moved.mean(0), source - source.mean(0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())


@torch.no_grad()
def sampled(f: SparseMixing, n: int, seed: int) -> np.ndarray:
    """Men made from noise, shape (n, side * side)."""
    net = f.module_
    e = torch.randn((n, f.n_content + f.n_style), generator=torch.Generator().manual_seed(seed))
    z = net.latents.from_noise(e.to(net.latents.bits.device), net.domain(1, None, n))
    return net.side(1).expected(z).cpu().numpy()


@lru_cache(maxsize=2)
def load(size: int) -> Data:
    """Faces from the registry at this side."""
    adata = datasets.load("faces_utk32")
    pixels = torch.as_tensor(np.asarray(adata.X, np.float32)).view(-1, 1, 32, 32) / 127.5 - 1
    faces, male = resize(pixels, size).flatten(1).numpy(), adata.obs["label"].to_numpy(np.int64)
    test = (adata.obs["split"] == "test").to_numpy()
    return Data(faces[~test], male[~test], faces[test], male[test])
