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
    """Features and decoded pictures in the cache folder: at most 10 GiB, and a tenth of what the disk has for them."""
    folder = cache_folder() / "features"
    return FeatureStore(folder, default_limit(folder))
