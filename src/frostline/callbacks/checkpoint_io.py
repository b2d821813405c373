"""Lightning's door to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from frostline.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint


class CheckedCheckpointIO(CheckpointIO):
    """Writes checkpoints as `frostline.checkpoints.write_checkpoint` does, and reads nothing that is not whole.

    Lightning's own stages them in the temporary folder, from which a move to another file system is a copy that a
    kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `write_checkpoint`."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See `read_checkpoint`: on the CPU, and never more than tensors and plain types."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """See `remove_checkpoint`."""
        remove_checkpoint(Path(path))
