"""Where things are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from frostline.storage import FeatureStore, default_limit


def cache_folder() -> Path:
    """``frostline`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "frostline"


def default_store() -> FeatureStore:
    """Features and decoded pictures in the cache folder; see `default_limit` for how many.

    Raises:
        ConfigError: see `default_limit`.
    """
    folder = cache_folder() / "features"
    return FeatureStore(folder, default_limit(folder))
