"""The freeze schedule under Lightning: hooks in, decisions in ``frostline.freezing`` and ``frostline.optim``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Protocol, cast

from lightning import Callback, LightningModule, Trainer
from torch import nn

from frostline.freezing import FreezeSchedule, Phase, apply_phase
from frostline.optim import learning_rate, set_learning_rates
from frostline.types import Batch


class Scheduled(Protocol):
    """What a task shows to its schedule.

    Attributes:
        model: what is frozen and thawed.
        base_lr: the one base learning rate.
        trainable: the parameters that learn now; ``train()`` keeps what is frozen in eval.
    """

    model: nn.Module
    base_lr: float
    trainable: frozenset[str] | None

    def train(self, mode: bool = True) -> object:
        """As torch's."""


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
        task = cast(Scheduled, pl_module)
        step = trainer.global_step
        phase = self.schedule.phase_at(step)
        if phase is not self.phase:
            self._enter(phase, trainer, task)
        set_learning_rates(trainer.optimizers[0], task.base_lr, phase, step)
        pl_module.log("lr", learning_rate(task.base_lr, phase, 1.0, step))

    def _enter(self, phase: Phase, trainer: Trainer, task: Scheduled) -> None:
        apply_phase(task.model, phase.trainable)
        task.trainable = phase.trainable
        task.train()
        self.phase = phase
        if trainer.is_global_zero and not self._is_recorded(trainer.global_step, phase):
            sizes = {name: parameter.numel() for name, parameter in task.model.named_parameters()}
            count = sum(sizes[name] for name in phase.trainable)
            row = [trainer.global_step, trainer.current_epoch, phase.name, count, phase.frost_line]
            fresh = not self.record.exists()
            with self.record.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["step", "epoch", "phase", "trainable_parameters", "frost_line"])
                writer.writerow(row)

    def _is_recorded(self, step: int, phase: Phase) -> bool:
        """Whether the last row is this phase's, which a resumed run enters again; rows of what is undone go."""
        if not self.record.exists():
            return False
        with self.record.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        kept = [row for row in rows if int(row[0]) <= step]
        if len(kept) < len(rows):
            with self.record.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *kept])
        return bool(kept) and kept[-1][2] == phase.name
