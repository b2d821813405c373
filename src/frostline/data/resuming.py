"""Where in an epoch a trainer is, so that a resumed run sees what it has not seen yet."""

from __future__ import annotations

from lightning.pytorch.loops.fit_loop import _FitLoop

from frostline.data.samplers import TrainingSampler


def place(sampler: TrainingSampler, loop: _FitLoop) -> None:
    """Puts a sampler where the loop is: at an epoch, and inside it where a run was interrupted there.

    Lightning counts the batches that a resumed run has behind it, but leaves it to the loader to pass over them.

    Args:
        sampler: of a loader that the loop has not begun to use.
        loop: its progress is that of the checkpoint when a run is resumed, else zero.
    """
    # trainer.current_epoch lags behind in a checkpoint that was saved at the end of an epoch
    epochs, batches = loop.epoch_progress.state_dict()["current"], loop.epoch_loop.batch_progress
    epoch = epochs["processed"]
    sampler.set_epoch(epoch)
    if not loop.restarting or epochs["ready"] == epoch:
        return
    counts = batches.state_dict()["current"]
    if batches.is_last_batch and counts["completed"] < counts["processed"]:
        sampler.set_epoch(epoch + 1)  # saved in the last batch's hook: Lightning goes on with the next epoch
    else:
        sampler.resume_at(epoch, counts["processed"])
