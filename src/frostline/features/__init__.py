"""Frozen features, computed once and kept."""

from frostline.data.cache import default_store
from frostline.features.boundary import Boundary, NotCached, check_boundary, counted, find_boundary, in_eval
from frostline.features.computing import Stopped
from frostline.features.cutting import Cut, Restless, check_cut, find_cut
from frostline.features.engine import ForwardEngine
from frostline.features.feeding import CachedPhases, FrozenBody
from frostline.features.keys import arithmetic, body_hash
from frostline.features.known import is_known
from frostline.features.planning import Circumstances, Place, Verdict, plan, refuse_required, restless
from frostline.features.table import IN_MEMORY
from frostline.storage import Features, FeatureStore, StoreFault, Writer, size_text

__all__ = [
    "IN_MEMORY",
    "Boundary",
    "CachedPhases",
    "Circumstances",
    "Cut",
    "FeatureStore",
    "Features",
    "ForwardEngine",
    "FrozenBody",
    "NotCached",
    "Place",
    "Restless",
    "Stopped",
    "StoreFault",
    "Verdict",
    "Writer",
    "arithmetic",
    "body_hash",
    "check_boundary",
    "check_cut",
    "counted",
    "default_store",
    "find_boundary",
    "find_cut",
    "in_eval",
    "is_known",
    "plan",
    "refuse_required",
    "restless",
    "size_text",
]
