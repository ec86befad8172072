"""What can be compared: translators of this package, with options, peers from elsewhere, and the controls."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from celltransfer import translators
from celltransfer.errors import ConfigError

# One job scores all controls of a task; each gets a row named "control: ...".
CONTROLS = "controls"
CONTROL_PREFIX = "control: "
OURS = ("auto", "jacobian", "ieot", "lrmf", "fgw", "ridge", "pls")


@dataclass(frozen=True)
class Method:
    """One method, as it is called in results and as it is run.

    Attributes
    ----------
    name
        What it is called in results.
    kind
        ``"own"``, ``"peer"`` or ``"controls"``.
    runs
        Name of the translator or peer.
    options
        Options of the translator.
    max_steps
        Limit on its training steps, where its own default is not meant.
    verdict
        Whether the fit is judged.
    """

    name: str
    kind: str
    runs: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    max_steps: int | None = None
    verdict: bool = True


# Inverse entropic OT as in the paper, and from there to ours; likelihood-ratio flows in closed form.
_JOINT = {"potential": "joint", "weight_unpaired": 1.0}
_PAPER = _JOINT | {"towers": "mlp", "penalty": 0.0, "n_potential": 50, "n_cost": 25, "lr": 1e-3}
VARIANTS = {
    variant.name: variant
    for variant in (
        Method("ieot (paper)", "own", "ieot", _PAPER | {"optimizers": "two"}, 3000, verdict=False),
        Method("ieot (paper, one optimiser)", "own", "ieot", _PAPER, 3000, verdict=False),
        Method("ieot (linear, lambda 1)", "own", "ieot", _JOINT | {"penalty": 0.0, "n_potential": 20}, verdict=False),
        Method("ieot (linear, lambda 1, penalty)", "own", "ieot", _JOINT | {"n_potential": 20}, verdict=False),
        Method("ieot (joint)", "own", "ieot", {"potential": "joint"}, verdict=False),
        Method(
            "ieot (anchors only)",
            "own",
            "ieot",
            {"weight_unpaired": 0.0, "n_potential": 20, "potential": "joint"},
            verdict=False,
        ),
        Method("lrmf (gaussian)", "own", "lrmf", {"density": "gaussian"}),
    )
}


def methods(names: list[str]) -> list[Method]:
    """Methods by name, each once; ``"ours"`` and ``"peers"`` stand for all of them."""
    groups = {"ours": [name for name in OURS if name in translators.available()], "peers": peer_names()}
    found = {name: method(name) for given in names for name in groups.get(given, [given])}
    return list(found.values())


def method(name: str) -> Method:
    """The method of this name: a translator, a variant, ``translator(option=value, ...)``, a peer, or ``"controls"``.

    >>> method("ridge").kind
    'own'
    >>> method("ieot(potential=joint, penalty=0.5)").options
    {'potential': 'joint', 'penalty': 0.5}
    """
    if name == CONTROLS:
        return Method(name, "controls")
    if name in VARIANTS:
        return VARIANTS[name]
    if name in translators.available():
        return Method(name, "own", name)
    if name in peer_names():
        return Method(name, "peer", name)
    spec = re.fullmatch(r"(\w+)\((.*)\)", name)
    if spec and spec[1] in translators.available():
        options = _options(name, spec[2])
        translators.make(spec[1], **options)  # says what is wrong with them, before anything runs
        return Method(name, "own", spec[1], options)
    known = [*translators.available(), *VARIANTS, *peer_names(), CONTROLS]
    raise ConfigError(f"There is no method {name!r} in the benchmark; there are {', '.join(known)}.")


def peer_names() -> list[str]:
    """Names of all peers, whether they can run here or not."""
    from celltransfer.experiments import peers

    return list(peers.names())


def _options(name: str, text: str) -> dict[str, Any]:
    """Options from ``name=value, ...``; values as in JSON, anything else is a string."""
    options: dict[str, Any] = {}
    # A comma ends an option where a name and = follow; others belong to lists.
    for item in re.split(r",\s*(?=\w+\s*=)", text.strip()) if text.strip() else []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"Method {name!r}: {item!r} is no option; expected NAME=VALUE.")
        try:
            options[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return options
