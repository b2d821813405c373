"""Where in a run a checkpoint was taken, as a cursor, and the progress of Lightning's loops that says the same.

Lightning counts on, and so resumes, differently for each hook in which a checkpoint was saved, and gets some of them
wrong (validation left out, an epoch counted twice). A cursor has one meaning, so the loops are set from it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cursor:
    """A safe point of a run.

    Attributes:
        epoch: epochs that are complete.
        batch: batches of the next one that are trained.
        step: optimizer steps.
        validated: False where the validation that was due after the last batch is still to come.
        stopped: whether early stopping has ended the run.
    """

    epoch: int
    batch: int
    step: int
    validated: bool = True
    stopped: bool = False


def loops_at(cursor: Cursor, state: dict[str, Any]) -> dict[str, Any]:
    """The state of Lightning's fit loop such that training goes on at ``cursor``.

    Args:
        cursor: the safe point.
        state: ``trainer.fit_loop.state_dict()``, taken there.
    """
    loops = copy.deepcopy(state)
    begun = int(cursor.batch > 0)
    epochs = {"processed": cursor.epoch, "completed": cursor.epoch}
    _set(loops["epoch_progress"], {**epochs, "ready": cursor.epoch + begun, "started": cursor.epoch + begun})
    batches = loops["epoch_loop.batch_progress"]
    total = batches["total"]["completed"]
    batches["total"].update(dict.fromkeys(batches["total"], total))
    batches["current"].update(dict.fromkeys(batches["current"], cursor.batch))
    batches["is_last_batch"] = not cursor.validated
    # a validation that was begun and has finished no batch is begun again; one that was not begun is not due
    validation = loops["epoch_loop.val_loop.batch_progress"]
    due = int(not cursor.validated)
    _set(validation, {"ready": due, "started": due, "processed": 0, "completed": 0})
    validation["is_last_batch"] = False
    return loops


def _set(progress: dict[str, Any], counts: dict[str, int]) -> None:
    progress["total"].update(counts)
    progress["current"].update(counts)
