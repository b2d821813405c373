"""What the terminal shows while a run trains: a bar where there is a terminal, one plain line an epoch everywhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochLines(Callback):
    """One line an epoch with the losses and the monitor; ``*`` marks the best so far.

    Args:
        metric: the monitor.
        mode: ``max`` or ``min``.
    """

    def __init__(self, metric: str, mode: str) -> None:
        self.metric = metric
        self.larger_is_better = mode == "max"
        self.best: float | None = None
        self.epoch: int | None = None
        self.star: bool | None = None
        self.is_complete = False
        self.started = self.took = 0.0
        self.console = Console()
        self.bar: Progress | None = None
        self.task_id: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes the epoch before, whose scores are complete only now, and starts a clock and a bar."""
        self._print_line(trainer)
        self._begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Begins the epoch that a resumed run finds half done."""
        if self.epoch is None:
            self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the epoch of which a resumed run finds only the validation to be done."""
        if self.epoch is None and trainer.state.fn is TrainerFn.FITTING:
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self.epoch = trainer.current_epoch + 1
        self.star, self.is_complete = None, False
        self.started = time.perf_counter()
        if not (trainer.is_global_zero and sys.stdout.isatty()):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self.task_id = self.bar.add_task(name, total=int(trainer.num_training_batches), completed=done)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.advance(self.task_id)

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the time; validation has run by now."""
        self._stop_bar()
        self.took, self.is_complete = time.perf_counter() - self.started, True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks whether this is the best so far, before the run is saved."""
        if trainer.state.fn is TrainerFn.FITTING and self.metric in trainer.callback_metrics:
            self.star = self._is_best(float(trainer.callback_metrics[self.metric]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last epoch's line."""
        self._print_line(trainer)

    def _print_line(self, trainer: Trainer) -> None:
        if self.epoch is None or not trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [name for name in ("train/loss", "train/accuracy", "val/loss", self.metric) if name in scores]
        cells = "  ".join(f"{name} {scores[name]:.4f}" for name in dict.fromkeys(shown))
        star = " *" if (self._is_best(scores.get(self.metric)) if self.star is None else self.star) else ""
        width = len(str(trainer.max_epochs))
        print(f"epoch {self.epoch:>{width}}/{trainer.max_epochs}  {cells}  {self.took:.1f} s{star}", flush=True)
        self.epoch = None

    def _is_best(self, value: float | None) -> bool:
        if value is None or value != value:
            return False
        better = self.best is None or (value > self.best if self.larger_is_better else value < self.best)
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from it."""
        self.best = state_dict["best"]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the terminal back; an epoch that was complete gets its line."""
        self._stop_bar()
        if self.is_complete:
            self._print_line(trainer)
