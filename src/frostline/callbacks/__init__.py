"""Thin adapters between Lightning's hooks and the decisions made elsewhere."""

from frostline.callbacks.averaging import ExponentialMovingAverage
from frostline.callbacks.batch_norm import SyncBatchNorm
from frostline.callbacks.finite import StopWhenNotFinite
from frostline.callbacks.freezing import FollowSchedule
from frostline.callbacks.progress import EpochLines

__all__ = ["EpochLines", "ExponentialMovingAverage", "FollowSchedule", "StopWhenNotFinite", "SyncBatchNorm"]
