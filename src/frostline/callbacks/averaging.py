"""Averaged weights."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage(WeightAveraging):
    """An exponential moving average that leaves frozen weights and counters alone.

    Lightning's own computes ``decay * a + (1 - decay) * a`` of a frozen weight, which rounds to another number; this
    one moves by a share of the difference, which is 0.
    Lightning averages every buffer in floating point and truncates the integers among them, so that the
    ``num_batches_tracked`` of a frozen batch norm loses a count now and then. A counter has no average: it is copied.

    Args:
        decay: the share of the old average that a step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch gives no types
        super().__init__(multi_avg_fn=average)
        self._swapped = False

    def _copy_counters(self, pl_module: LightningModule) -> None:
        if self._average_model is None:
            return
        averaged = dict(self._average_model.module.named_buffers())
        for name, buffer in pl_module.named_buffers():
            if not buffer.is_floating_point():
                averaged[name].copy_(buffer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves both in place, so that the end of a run can be saved and gone on from."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the model and lets go of it: what is scored later is what the model then holds."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the average."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the weights that learn."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves both; a validation in which they have changed places is over with it."""
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False
            checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]  # as Lightning's
        """Averages, then restores the counters."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._copy_counters(pl_module)
