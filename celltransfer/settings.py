"""Process-wide settings, read once from ``CELLTRANSFER_*`` environment variables.

>>> import celltransfer as ct
>>> with ct.settings.override(progress=False):
...     ct.settings.progress
False
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "celltransfer"


@dataclass
class Settings:
    """What may differ between machines, never between analyses.

    Attributes
    ----------
    cache_dir
        Folder for downloaded and built datasets.
    data_mirror
        Folder laid out as ``<dataset>/<file>`` that is looked at before the network. ``None``: network only.
    device
        Where models are trained when a call says ``device="auto"``: ``"auto"`` (CUDA where there is one), ``"cpu"``,
        ``"cuda"``, ``"cuda:0"``, ``"mps"``.
    progress
        Show progress bars; ``None`` shows them where stderr is a terminal or a notebook.
    """

    cache_dir: Path
    data_mirror: Path | None
    device: str
    progress: bool | None

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Read all settings from the environment again."""
        env = os.environ
        self.cache_dir = Path(env.get("CELLTRANSFER_CACHE_DIR") or _default_cache()).expanduser()
        mirror = env.get("CELLTRANSFER_DATA_MIRROR")
        self.data_mirror = Path(mirror).expanduser() if mirror else None
        self.device = env.get("CELLTRANSFER_DEVICE", "auto")
        progress = env.get("CELLTRANSFER_PROGRESS")
        self.progress = None if progress is None else progress.lower() in {"1", "true", "yes", "on"}

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Change settings inside a ``with`` block and restore them afterwards."""
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                raise ConfigError(f"settings has no field {name!r}; it has {', '.join(known)}.")
        before = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)


settings = Settings()
