"""Early stopping that waits for the freeze schedule."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks

from frostline.callbacks.freezing import FollowSchedule


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping, in the last phase of the freeze schedule and once nothing is left to thaw in it.

    A phase that learns little more is no reason to end the run while depth groups are still to thaw; a phase of its own
    ends by ``until.plateau``. What was scored before does not count.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, where the schedule has nothing left to thaw."""
        if self._may_stop(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, where the schedule has nothing left to thaw."""
        if self._may_stop(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    @staticmethod
    def _may_stop(trainer: Trainer) -> bool:
        schedules = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, FollowSchedule)
        ]
        return all(callback.progress.has_arrived for callback in schedules)
