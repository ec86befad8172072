"""What every method gives on small data, against figures that were written down: nothing changes unnoticed.

Three ways to run it, by the environment variable ``CELLTRANSFER_GOLDEN``:

- without: every figure is compared within a tolerance that another processor keeps to;
- ``exact``: the bits of whole arrays are compared, too, on the machine that wrote them;
- ``write``: the figures of the cases that run, and models where they have none, are written anew. A change of them
  belongs in the changelog.

The clock is replaced by one that counts how often it is read. Then no fit is slow, so that neither the number of
refits nor the search of a method depends on how busy the machine is: every fit is judged by as many refits as cheap
fits are, 20 at most. Where their number is ruled otherwise, evidence and levels change, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.filterwarnings(
    "ignore::celltransfer.errors.VerdictWarning", "ignore::celltransfer.errors.CelltransferWarning"
)

MODE = os.environ.get("CELLTRANSFER_GOLDEN", "")
FOLDER = Path(__file__).parent / "golden"
# Closed forms; the others go through optimisers, which other processors round differently.
CLOSED = {"condition_mean", "pls", "ridge"}
# Where the last bit of a cell decides which of many assignments or starts is found, or what is drawn: only the moments
# of all cells are the same on another processor.
SEARCHED = {"anchors", "auto", "chance", "consensus", "fgw", "sparse_mixing"}
KEPT_ROWS, KEPT_COLUMNS = 4, 8
WIDTHS = {"rna": 8, "atac": 6}


class Case(NamedTuple):
    """One call of `celltransfer.fit` and what is asked of the model."""

    method: str
    k: int
    conditions: str | None = None
    links: bool = False
    within: bool = False  # one modality under two conditions
    steps: int = 30
    verdict: bool = True
    recipes: dict[str, str] | None = None
    prior: str | None = None
    options: tuple[tuple[str, object], ...] = ()
    also: tuple[str, ...] = ()  # what else is asked, see `MORE`

    @property
    def name(self) -> str:
        parts = [self.method, *([f"prior={self.prior}"] if self.prior else []), f"k={self.k}"]
        parts += ["conditions"] if self.conditions else []
        parts += ["links"] if self.links else []
        parts += ["within"] if self.within else []
        parts += [f"{key}={value}" for key, value in self.options]
        return "-".join(parts)


C = "condition"
SCORED = ("report", "alignment")
# Without these, settings are compared before the fit, which takes long; and fewer draws of energies.
SETTINGS = (("n_potential", 6), ("penalty", 0.01), ("weight_unpaired", 0.5))
DRAWS = (("n_steps", 4), ("samples", 4), ("sample_steps", 10))
CASES = [
    Case("ridge", 3),
    Case("ridge", 20, also=("report",)),
    Case("ridge", 100),
    Case("pls", 20),
    Case("chance", 3),
    Case("condition_mean", 20, C, also=("report",)),
    Case("fgw", 0),
    Case("fgw", 3),
    Case("fgw", 20, verdict=False),
    Case("consensus", 0),
    Case("consensus", 3),
    Case("consensus", 3, links=True),
    Case("consensus", 20, C, verdict=False),
    Case("auto", 0),
    Case("auto", 3),
    Case("auto", 20, C, links=True, also=("report",)),
    Case("ridge", 3, prior="consensus"),
    Case("ridge", 0, prior="fgw"),
    Case("ieot", 3, prior="fgw", also=("law",), options=SETTINGS),
    Case("jacobian", 0),
    Case("jacobian", 3, also=SCORED),
    Case("jacobian", 3, C, verdict=False, options=(("guard", False),)),
    Case("jacobian", 20, verdict=False, options=(("map", "mlp"), ("guard", False))),
    Case("cyclegan", 0),
    Case("cyclegan", 3),
    Case("dimension", 3, C),
    Case("ieot", 3, also=("law",)),
    Case("ieot", 20, C, also=("law", "report"), options=SETTINGS, steps=20),
    Case("ieot", 20, recipes={"rna": "rna", "atac": "none"}, verdict=False, also=("law",)),
    Case("ieot_energy", 3, steps=20, also=("law",), options=DRAWS),
    Case("ieot_energy", 20, steps=20, verdict=False, also=("law",), options=DRAWS),
    Case("lrmf", 0, also=("backward", "alignment")),
    Case("lrmf", 3, also=("backward",)),
    Case("lrmf", 20, verdict=False, also=("backward",), options=(("transform", "realnvp"), ("density", "gaussian"))),
    Case("sparse_mixing", 0, C, also=("counterfactual",)),
    Case("sparse_mixing", 3, C, also=("counterfactual",)),
    Case("sparse_mixing", 20, verdict=False),
    Case("dont", 0, within=True, also=("path", "backward")),
    Case("dont", 3, also=("path",)),
    Case("dont", 3, C, links=True, verdict=False, also=("path",)),
]


@pytest.fixture(autouse=True)
def counted_clock(monkeypatch):
    """A clock that moves on by a microsecond whenever it is read."""
    reads = iter(range(10**9))
    monkeypatch.setattr(time, "perf_counter", lambda: 1e-6 * next(reads))


@pytest.fixture(scope="module")
def whole():
    return ct.datasets.simulate(n_obs=280, n_genes=40, n_peaks=60, n_types=3, n_programs=5, seed=3)


def cells_of(case, whole):
    if case.within:
        return ct.pp.conditions(whole["rna"], C, "control", "treated")
    return ct.datasets.unpair(whole, case.k, seed=1)


def links_of(whole):
    regulation = whole.uns["truth"]["regulatory_map"].tocoo()
    names = whole["rna"].var_names, whole["atac"].var_names
    return pd.DataFrame(
        {"source": names[0][regulation.row], "target": names[1][regulation.col], "weight": np.sign(regulation.data)}
    )


def recipe(name, width):
    made = getattr(ct.pp, name)
    return made(n_components=width, seed=0)


def fit(case, cells, whole):
    if case.within:
        recipes = recipe("rna", WIDTHS["rna"])
    else:
        kinds = case.recipes or {name: name for name in WIDTHS}
        recipes = {name: recipe(kind, WIDTHS[name]) for name, kind in kinds.items()}
    given = {"prior": case.prior, "prior_pairs": 40} if case.prior else {}
    return ct.fit(
        cells,
        train=None if case.within else "train",
        anchors=None if case.k else 0,
        method=case.method,
        conditions=case.conditions,
        links=links_of(whole) if case.links else None,
        recipes=recipes,
        seed=5,
        device="cpu",
        verdict=case.verdict,
        trainer=ct.train.Trainer(max_steps=case.steps, batch_size=64, progress=False),
        **given,
        **dict(case.options),
    )


def translation(model, cells, name=""):
    """Arrays that `translate` writes, by name."""
    adata = model.translate(cells, copy=True)[f"{model.target}_from_{model.source}"]
    found = {"X": adata.X, "latent": adata.obsm["X_translated"]}
    found |= {f"layer_{key}": layer for key, layer in adata.layers.items()}
    for column in ("translation_support", "translation_confidence"):
        if column in adata.obs:
            found[column] = adata.obs[column].to_numpy()
    return {name + key: np.asarray(value) for key, value in found.items()}


def law(model, cells):
    law = model.law
    low, high = law.interval(cells, 0.8)
    pairs = cells[~cells.obs["train"].to_numpy()].copy()
    found = {"low": low, "high": high, "drawn": law.sample(cells, 2, seed=1)[1], "std": law.std(cells)}
    if hasattr(model.translator, "log_prob"):
        target = pairs["atac"][pairs["rna"].obs_names].copy()
        found["log_prob"] = law.log_prob(pairs["rna"].copy() if not model.conditions else pairs_in_order(pairs), target)
    return {f"law_{key}": value for key, value in found.items()}


def pairs_in_order(pairs):
    """The source cells with the conditions in their own obs."""
    adata = pairs["rna"].copy()
    adata.obs[C] = pairs.obs[C].reindex(adata.obs_names).to_numpy()
    return adata


def backward(model, cells):
    if not model.translator.invertible:
        with pytest.raises(ct.errors.ConfigError, match="no inverse"):
            model.translate(cells, direction="backward", copy=True)
        return {}
    return translation(model.backward, cells, "backward_")


def path(model, cells):
    moved = model.interpolate(cells, 2)
    return {"path": moved.obsm["X_translated"]}


def counterfactual(model, cells):
    found = {}
    for name in ("rna", "atac"):
        made = model.counterfactual(cells, condition="treated", modality=name, copy=True)[f"{name}_at_treated"]
        found[f"counterfactual_{name}"] = made.obsm["X_translated"]
    split = model.add_latents(cells, copy=True)
    return found | {key: np.asarray(split["rna"].obsm[key]) for key in ("X_style", "X_content")}


def report(model, cells):
    found = ct.report(model, cells, labels="cell_type", seed=2)
    table = found.to_frame()
    return {f"report_{name}": table[name].to_numpy(dtype=np.float64) for name in table.columns}


def alignment(model, cells):
    found = ct.alignment(model, cells, seed=2)
    return {f"alignment_{key}": np.array([value]) for key, value in sorted(found.evidence.items())}


MORE = {
    "law": law,
    "backward": backward,
    "path": path,
    "counterfactual": counterfactual,
    "report": report,
    "alignment": alignment,
}


class Found(NamedTuple):
    """Arrays of floats by name, evidence by name, and words."""

    arrays: dict[str, np.ndarray]
    evidence: dict[str, float]
    words: dict[str, object]


def found_of(case, whole):
    cells = cells_of(case, whole)
    model = fit(case, cells, whole)
    arrays = translation(model, cells)
    for name in case.also:
        arrays |= MORE[name](model, cells)
    evidence = {name: float(value) for name, value in sorted(model.verdict_.evidence.items())}
    result = model.result_
    words = {"status": result.status.value, "level": model.verdict_.level, "notes": len(result.notes)}
    return Found(arrays, evidence, words | {"n_anchors": result.n_anchors, "n_steps": result.n_steps})


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def summary(array):
    """First rows and columns, and mean and spread of all, as plain numbers."""
    values = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    kept = values[:KEPT_ROWS, :KEPT_COLUMNS]
    moments = [values.mean(), values.std()]
    return {"rows": [[short(v) for v in row] for row in kept], "moments": [short(v) for v in moments]}


def short(value):
    return None if np.isnan(value) else float(f"{value:.7g}")


def stored(found):
    return {
        "words": found.words,
        "evidence": {name: short(value) for name, value in found.evidence.items()},
        "arrays": {name: summary(array) for name, array in found.arrays.items()},
        "digests": {name: digest(array) for name, array in found.arrays.items()}
        | {"evidence": digest(np.array(list(found.evidence.values())))},
    }


def reference(name, found):
    """What was written down of a case; written now if that is wanted."""
    path = FOLDER / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if MODE == "write":
        known[name] = stored(found)
        path.write_text(json.dumps(known, sort_keys=True, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    return known[name]


def close(actual, expected, *, rtol, what):
    """Within rtol of the values or of their spread, whichever is wider."""
    a, e = (np.array(v, dtype=np.float64) for v in (actual, expected))
    scale = np.nanmax(np.abs(e)) if np.isfinite(e).any() else 0.0
    np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * max(scale, 1e-3), err_msg=what)


def check(case, name, found):
    expected = reference(name, found)
    assert sorted(found.arrays) == sorted(expected["arrays"])
    assert sorted(found.evidence) == sorted(expected["evidence"])
    if MODE == "exact":
        assert stored(found) == expected
    searched = bool(case.prior) or case.method in SEARCHED
    rtol = 0.1 if searched else 1e-4 if case.method in CLOSED else 0.01
    for key, array in found.arrays.items():
        kept, now = expected["arrays"][key], summary(array)
        if not is_score(key):
            parts = ("moments",) if searched else ("moments", "rows")
            for part in parts:
                close(now[part], kept[part], rtol=rtol, what=f"{name}: {key}, {part}")
        elif not searched:
            close(now["moments"], kept["moments"], rtol=0.1, what=f"{name}: {key}")
    if searched:
        return
    assert found.words == expected["words"]
    for key, value in found.evidence.items():
        if not key.startswith("twin"):  # found by a search
            what = f"{name}: {key}"
            np.testing.assert_allclose(value, float(expected["evidence"][key]), rtol=0.1, atol=0.1, err_msg=what)


def is_score(key):
    """Whether a figure rests on ranks or classifiers, so that a cell more or less moves it by a step."""
    return key.startswith(("report_", "symmetry_match", "alignment_", "translation_support", "translation_confidence"))


def test_every_method_is_here():
    methods = {case.method for case in CASES} | {"primed" for case in CASES if case.prior}
    own = {
        name for name in ct.translators.available() if ct.translators.get(name).__module__.startswith("celltransfer")
    }
    assert own == methods


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures(case, whole):
    check(case, case.name, found_of(case, whole))


@pytest.mark.parametrize("k", [0, 3, 20])
def test_figures_of_anchors(k, whole):
    cells = ct.datasets.unpair(whole, k, seed=1)
    train = cells[cells.obs["train"].to_numpy()].copy()
    given = {"source": "rna", "target": "atac", "recipe": recipe("rna", 6), "seed": 4}
    report = ct.anchors.assess(train, anchors=None if k else 0, **given)
    out, barcodes = ct.anchors.suggest(train, n=6, given=None if k else 0, copy=True, **given)
    numbers = report.automorphisms.select_dtypes("number")
    arrays = {f"symmetry_{name}": numbers[name].to_numpy() for name in numbers if len(numbers)}
    arrays |= {"scores": report.scores.to_numpy()} if k else {}
    arrays["informativeness"] = out["rna"].obs["anchor_informativeness"].to_numpy()
    words = {"identifies": report.identifies, "found": len(numbers), "suggested": list(barcodes)}
    check(Case("anchors", k), f"anchors-k={k}", Found(arrays, {}, words))


# Models of each family, written once; they stay readable.
MODELS = {
    "ridge": Case("ridge", 20),
    "auto": Case("auto", 20, C, links=True),
    "consensus": Case("consensus", 3, links=True),
    "ieot": Case("ieot", 20, C, options=SETTINGS),
    "jacobian": Case("jacobian", 3, options=(("guard", False), ("hidden_discriminator", (16,)))),
    "primed": Case("ridge", 3, prior="consensus"),
    "lrmf": Case("lrmf", 3, options=(("hidden", (8,)), ("hidden_density", (8,)))),
    "sparse_mixing": Case("sparse_mixing", 3, C, options=(("hidden_discriminator", (16,)),)),
    "dont": Case("dont", 0, within=True, options=(("hidden", (16,)), ("hidden_discriminator", (16,)))),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_before_translate_as_they_did(name, whole):
    case, path = MODELS[name], FOLDER / "models" / name
    cells = cells_of(case, whole)
    if MODE == "write" and not path.exists():
        fit(case, cells, whole).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ct.errors.VerdictWarning)
        model = ct.load(path)
    arrays = translation(model, cells)
    if model.translator.invertible:
        arrays |= translation(model.backward, cells, "backward_")
    arrays |= law(model, cells) if name == "ieot" else {}
    words = {"method": model.method, "level": model.verdict_.level, "status": model.result_.status.value}
    evidence = {key: float(value) for key, value in sorted(model.verdict_.evidence.items())}
    # Nothing is optimised here: the tolerance of closed forms.
    check(Case("ridge", 0), f"model-{name}", Found(arrays, evidence, words))
    assert isinstance(repr(model), str)


def test_stored_files_are_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 300_000
    assert sum(sizes.values()) < 1_000_000
