"""What is logged while an epoch lasts."""

from __future__ import annotations

from collections.abc import Callable

from lightning import Trainer


def log_step(trainer: Trainer, values: Callable[[], dict[str, float]]) -> None:
    """Give the loggers the numbers of the step that begins, where ``trainer.log_every_n_steps`` has it.

    ``LightningModule.log`` would build a result for each name, and go through all of them after every batch: with the
    learning rates of 20 depth groups that took longer than the optimizer. These are numbers that all ranks know, so
    that there is nothing to reduce; they are not among ``trainer.callback_metrics``.

    Args:
        trainer: in training, at the first batch of an optimizer step.
        values: gives the numbers by name; asked only where they are logged.
    """
    step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]  # set in a connector
    if every == 0 or (step + 1) % every or not trainer.loggers:
        return
    found = {**values(), "epoch": trainer.current_epoch}
    for logger in trainer.loggers:
        logger.log_metrics(found, step=step)
