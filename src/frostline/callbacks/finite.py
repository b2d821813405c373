"""Numbers that are no longer numbers."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from frostline.errors import NumericsError


class StopWhenNotFinite(Callback):
    """Stops at the first training loss that is not finite, before it can be saved as a checkpoint."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raises ``NumericsError`` with the step and the learning rate."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None or bool(torch.isfinite(loss).all()):
            return
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        raise NumericsError(
            f"the loss is {float(loss)} at step {trainer.global_step} (epoch {trainer.current_epoch + 1}, "
            f"largest learning rate {max(rates):.3g})",
            mend="Lower optimizer.lr, lengthen lr.warmup or clip gradients: trainer.gradient_clip_val=1.0",
        )
