"""Frozen features, computed once and kept."""

from frostline.features.boundary import Boundary, NotCached, check_boundary, find_boundary, in_eval
from frostline.features.engine import ForwardEngine
from frostline.features.engine_prefix import below
from frostline.features.entry import Features
from frostline.features.feeding import CachedPhases, FrozenBody
from frostline.features.keys import arithmetic, body_hash
from frostline.features.planning import Circumstances, Verdict, plan, refuse_required
from frostline.features.room import StoreFault
from frostline.features.store import FeatureStore, Writer, default_store

__all__ = [
    "Boundary",
    "CachedPhases",
    "Circumstances",
    "FeatureStore",
    "Features",
    "ForwardEngine",
    "FrozenBody",
    "NotCached",
    "StoreFault",
    "Verdict",
    "Writer",
    "arithmetic",
    "below",
    "body_hash",
    "check_boundary",
    "default_store",
    "find_boundary",
    "in_eval",
    "plan",
    "refuse_required",
]
