"""Arrays that are kept on disk between runs: checksummed, limited in size, safe with several writers."""

from frostline.storage.entry import Features, Names
from frostline.storage.room import StoreFault, default_limit, size_text
from frostline.storage.store import FeatureStore, Writer

__all__ = ["FeatureStore", "Features", "Names", "StoreFault", "Writer", "default_limit", "size_text"]
