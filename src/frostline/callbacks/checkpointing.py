"""When a run is saved, and where it may be stopped."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from frostline import signals
from frostline.callbacks.loop_state import Cursor, loops_at
from frostline.checkpoints import Keeping, Record, remove_checkpoint
from frostline.checkpoints.files import checkpoint_name
from frostline.errors import ConfigError, Interrupted, override_for
from frostline.loggers import MetricsFile

# a clock that all ranks agree on costs a broadcast: it is not asked at every step
CLOCK_STEPS = 20


class Checkpointing(Callback):
    """Saves a run at its safe points: between optimizer steps, before and after validation, between epochs.

    A signal that came on any rank saves the run at the next safe point and ends it. Comes first among the callbacks,
    so that at the start of a batch or an epoch none has begun it yet.

    Args:
        folder: of the checkpoints.
        monitor: the validation metric that selects the best; None keeps the latest alone.
        mode: ``max`` or ``min``: which value of the monitor is better.
        every_n_epochs: save after every so many epochs; None for never. The best are always saved.
        every_n_steps: save after every so many optimizer steps.
        every_n_minutes: save when so many minutes have passed since the last time.
        keep_best: how many of the best to keep.
        keep_latest: how many of the latest to keep; with 2, a damaged newest one leaves one to go on from.

    Attributes:
        identity: what the run is, as plain types; saved with it and compared when it is resumed.
        elapsed: seconds of training before this process.
        max_steps: the run's last step, where only the validation after it is still to be done; see ``fitting.fit``.
    """

    def __init__(
        self,
        folder: str,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep_best: int = 1,
        keep_latest: int = 2,
    ) -> None:
        _check_counts(every_n_epochs, every_n_steps, every_n_minutes, keep_best, keep_latest)
        self.folder = Path(folder)
        self.command = "train" if monitor else "pretrain"
        self.monitor = monitor
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep_best = keep_best if monitor else 0
        self.keep_latest = keep_latest
        self.keeping = Keeping(keep_best=self.keep_best, keep_latest=keep_latest, larger_is_better=mode == "max")
        self.identity: dict[str, Any] = {}
        self.elapsed = 0.0
        self.cursor: Cursor | None = None
        self.max_steps: int | None = None
        self._score: float | None = None
        self._started = self._saved_at = time.monotonic()

    @property
    def best_path(self) -> Path | None:
        """The checkpoint that the monitor selects, if there is one."""
        best = self.keeping.best
        return self.folder / best.file if best else None

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier processes included."""
        return self.elapsed + time.monotonic() - self._started

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks; all ranks meet here."""
        signals.STOP.prepare()
        self._started = self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The safe point between two epochs."""
        epoch = trainer.current_epoch
        cursor = Cursor(epoch=epoch, batch=0, step=trainer.global_step)
        every = self.every_n_epochs
        self._safe_point(trainer, cursor, due=epoch > 0 and every is not None and epoch % every == 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The safe point after an optimizer step; inside a window of accumulated gradients there is none."""
        if batch_idx == 0 or batch_idx % trainer.accumulate_grad_batches:
            return
        step, every = trainer.global_step, self.every_n_steps
        due = every is not None and step % every == 0
        self._safe_point(
            trainer, Cursor(trainer.current_epoch, batch_idx, step), due=due or self._clock_is_due(trainer)
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The safe point between the last batch and its validation."""
        if self.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self.max_steps = self.max_steps, None
        self._safe_point_before_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """A validation may be long: a signal does not wait for its end. It is begun again when the run goes on."""
        self._safe_point_before_validation(trainer)

    def _safe_point_before_validation(self, trainer: Trainer) -> None:
        if trainer.state.fn is not TrainerFn.FITTING or trainer.sanity_checking:
            return
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        cursor = Cursor(trainer.current_epoch, done, trainer.global_step, validated=False)
        self._safe_point(trainer, cursor, due=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the score that the next safe point's weights have."""
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking and self.monitor:
            value = trainer.callback_metrics.get(self.monitor)
            self._score = None if value is None else float(value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end, from which more epochs can go on."""
        epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.completed
        cursor = Cursor(epoch, 0, trainer.global_step, stopped=bool(trainer.should_stop))
        if 0 < batch < trainer.num_training_batches:
            # trainer.max_steps ended the run inside an epoch, which Lightning counts as complete
            cursor = replace(cursor, epoch=epoch - 1, batch=batch)
        self._save(trainer, cursor, self._taken_score())
        if signum := signals.STOP.agreed():
            raise self._interrupted(signum)

    def _taken_score(self) -> float | None:
        score, self._score = self._score, None
        return score

    def _clock_is_due(self, trainer: Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        due = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        if trainer.world_size == 1:
            return due
        if trainer.global_step % CLOCK_STEPS:
            return False
        return bool(trainer.strategy.broadcast(due))

    def _safe_point(self, trainer: Trainer, cursor: Cursor, *, due: bool) -> None:
        signum = signals.STOP.agreed()
        score = self._taken_score() if cursor.validated else None
        if signum or due or self.keeping.wants(score):
            self._save(trainer, cursor, score)
        if signum:
            raise self._interrupted(signum)

    def _interrupted(self, signum: int) -> Interrupted:
        saved = f"saved after {self.cursor.step} steps" if self.cursor else "nothing was saved yet"
        order = f"Go on: frostline {self.command} {override_for('run', self.folder.parent)} resume=true"
        return Interrupted(
            f"{signals.name(signum)}: stopped; {saved}.",
            mend=order if self.cursor else None,
            code=signals.exit_code(signum),
        )

    def _save(self, trainer: Trainer, cursor: Cursor, score: float | None) -> None:
        if self.cursor is not None and cursor == replace(self.cursor, stopped=cursor.stopped):
            return
        for logger in trainer.loggers:
            logger.save()
        name = checkpoint_name(cursor.step, validated=cursor.validated)
        gone = self.keeping.add(Record(name, cursor.step, score))
        self.cursor = cursor
        trainer.save_checkpoint(self.folder / name)
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for file in gone:
                remove_checkpoint(self.folder / file)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what the run is and where, and sets the loops to it."""
        if self.cursor is None:
            return
        checkpoint["frostline"] = {
            "cursor": asdict(self.cursor),
            "identity": self.identity,
            "seconds": self.seconds,
            "rows": {"metrics.csv": _rows(trainer)},
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "skipped": on_all_ranks(trainer, _data(trainer).skipped),
            "trackers": {type(logger).__name__: str(logger.version) for logger in trainer.loggers},
        }
        checkpoint["loops"]["fit_loop"] = loops_at(self.cursor, checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up the cursor and the time."""
        saved = checkpoint["frostline"]
        self.cursor, self.elapsed = Cursor(**saved["cursor"]), float(saved["seconds"])
        _data(trainer).skipped.update(saved["skipped"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
                # a setting, which Lightning would take from the checkpoint, and not from the config
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience

    def take_up(self, cursor: Cursor, state: dict[str, Any], seconds: float) -> None:
        """As loading a checkpoint does, for a run that has nothing left to train."""
        self.cursor = cursor
        self.elapsed, self._started = seconds, time.monotonic()
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""
        return self.keeping.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what was kept."""
        self.keeping.load_state_dict(state_dict)
        # a person may have removed one
        self.keeping.records = [kept for kept in self.keeping.records if (self.folder / kept.file).is_file()]


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule")  # noqa: B009  # Lightning sets it in a connector, unseen by a type checker


def on_all_ranks(trainer: Trainer, skipped: dict[str, str]) -> dict[str, str]:
    """The pictures that any rank of a run has left out, and why, from those of each; all ranks call it."""
    everywhere = [skipped]
    if trainer.world_size > 1:
        everywhere = [{}] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, skipped)
    return {name: reason for part in everywhere for name, reason in part.items()}


def _rows(trainer: Trainer) -> int:
    return max((logger.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)), default=0)


def _check_counts(
    epochs: int | None, steps: int | None, minutes: float | None, keep_best: int, keep_latest: int
) -> None:
    given = {"every_n_epochs": epochs, "every_n_steps": steps, "every_n_minutes": minutes}
    for name, value in given.items():
        if value is not None and value <= 0:
            mend = "Give a positive number, or null for never."
            raise ConfigError(f"callbacks.checkpoint.{name}={value}", mend=mend)
    if keep_best < 1:
        raise ConfigError(f"callbacks.checkpoint.keep_best={keep_best}", mend="At least 1: it becomes the model.")
    if keep_latest < 1:
        raise ConfigError(
            f"callbacks.checkpoint.keep_latest={keep_latest}", mend="At least 1; 2 survive a damaged one."
        )
