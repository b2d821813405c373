"""Checkpoint files that are whole or not there, and the choice of which to keep."""

from frostline.checkpoints.files import (
    checkpoints_in,
    newest_loadable,
    read_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from frostline.checkpoints.keeping import Keeping, Record

__all__ = [
    "Keeping",
    "Record",
    "checkpoints_in",
    "newest_loadable",
    "read_checkpoint",
    "remove_checkpoint",
    "remove_leftovers",
    "write_checkpoint",
]
