"""Averaged weights."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class ExponentialMovingAverage(EMAWeightAveraging):
    """Lightning's moving average, with counters left alone.

    Lightning averages every buffer in floating point and truncates the integers among them, so that the
    ``num_batches_tracked`` of a frozen batch norm loses a count now and then. A counter has no average: it is copied.

    Args:
        decay: the share of the old average that a step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)

    def _copy_counters(self, pl_module: LightningModule) -> None:
        if self._average_model is None:
            return
        averaged = dict(self._average_model.module.named_buffers())
        for name, buffer in pl_module.named_buffers():
            if not buffer.is_floating_point():
                averaged[name].copy_(buffer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the model and lets go of it: what is scored later is what the model then holds."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]  # as Lightning's
        """Averages, then restores the counters."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._copy_counters(pl_module)
