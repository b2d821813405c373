"""Thin adapters between Lightning's hooks and the decisions made elsewhere."""

from frostline.callbacks.averaging import ExponentialMovingAverage
from frostline.callbacks.batch_norm import SyncBatchNorm
from frostline.callbacks.checkpoint_io import CheckedCheckpointIO
from frostline.callbacks.checkpointing import Checkpointing
from frostline.callbacks.early_stopping import EarlyStopping
from frostline.callbacks.finite import WatchNumbers
from frostline.callbacks.freezing import FollowSchedule
from frostline.callbacks.loop_state import Cursor
from frostline.callbacks.progress import EpochLines

__all__ = [
    "CheckedCheckpointIO",
    "Checkpointing",
    "Cursor",
    "EarlyStopping",
    "EpochLines",
    "ExponentialMovingAverage",
    "FollowSchedule",
    "SyncBatchNorm",
    "WatchNumbers",
]
