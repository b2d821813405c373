"""Callbacks that do something bad to their own run."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class SignalAt(Callback):
    """Sends a signal at each of ``events``, once in the life of the run folder.

    Args:
        events: ``hook:step``, such as ``on_train_batch_end:3`` for the hook at 3 optimizer steps.
        marks: a folder that remembers which were sent.
        name: of the signal.
        rank: the rank that gets it.
    """

    def __init__(self, events: list[str], marks: str, name: str = "SIGTERM", rank: int = 0) -> None:
        self.events, self.marks, self.signal, self.rank = events, Path(marks), signal.Signals[name], rank

    def _at(self, hook: str, trainer: Trainer) -> None:
        event = f"{hook}:{trainer.global_step}"
        mark = self.marks / event.replace(":", "-")
        if event in self.events and trainer.global_rank == self.rank and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), self.signal)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at("on_train_batch_end", trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at("on_validation_batch_end", trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at("on_test_batch_end", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("on_train_epoch_end", trainer)


class Fill(Callback):
    """Takes what is left of the disk, or the right to write large files, at a step."""

    def __init__(self, step: int, junk: str | None = None) -> None:
        self.step, self.junk = step, junk

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != self.step:
            return
        if self.junk is None:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        elif not Path(self.junk).exists():
            with open(self.junk, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    pass
