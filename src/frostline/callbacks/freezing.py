"""The freeze schedule under Lightning: hooks in, decisions in ``frostline.freezing`` and ``frostline.optim``."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from frostline.freezing import FreezeSchedule, Phase, apply_phase
from frostline.optim import learning_rate, set_learning_rates
from frostline.tasks import ClassificationTask
from frostline.types import Batch


class FollowSchedule(Callback):
    """Applies each phase at its first step and sets the learning rate of every group at every step.

    Args:
        schedule: the phases of the run.
        record: the CSV file that gets a row for each transition.
    """

    def __init__(self, schedule: FreezeSchedule, record: Path) -> None:
        self.schedule = schedule
        self.record = record
        self.phase: Phase | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Runs the transition where one is due, then sets the learning rates of this step."""
        assert isinstance(pl_module, ClassificationTask)
        step = trainer.global_step
        phase = self.schedule.phase_at(step)
        if phase is not self.phase:
            self._enter(phase, trainer, pl_module)
        set_learning_rates(trainer.optimizers[0], pl_module.base_lr, phase, step)
        pl_module.log("lr", learning_rate(pl_module.base_lr, phase, 1.0, step))

    def _enter(self, phase: Phase, trainer: Trainer, task: ClassificationTask) -> None:
        apply_phase(task.model, phase.trainable)
        task.trainable = phase.trainable
        task.train()
        self.phase = phase
        if trainer.is_global_zero:
            sizes = {name: parameter.numel() for name, parameter in task.model.named_parameters()}
            count = sum(sizes[name] for name in phase.trainable)
            row = [trainer.global_step, trainer.current_epoch, phase.name, count, phase.frost_line]
            fresh = not self.record.exists()
            with self.record.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["step", "epoch", "phase", "trainable_parameters", "frost_line"])
                writer.writerow(row)
