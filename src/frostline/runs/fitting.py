"""Training with Lightning from a start or from a checkpoint, as ``train`` and ``pretrain`` share it."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig

from frostline import signals
from frostline.callbacks import WatchNumbers
from frostline.callbacks.checkpointing import on_all_ranks
from frostline.checkpoints import remove_leftovers
from frostline.data import ImageData
from frostline.errors import Interrupted, override_for
from frostline.loggers import MetricsFile
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.resuming import Resumed, is_started, put_config_back, settle_config
from frostline.runs.trainers import checkpointing
from frostline.runs.worker import is_main_process
from frostline.writing import write_text


@contextmanager
def held(folder: RunFolder, command: str) -> Iterator[None]:
    """Hold a run's folder: no other process trains in it, and until ``fit`` begins a resumed run keeps its old config.

    Raises:
        StorageError: another process holds it.
        Interrupted: a signal ended the block; says how to go on, where that is possible.
    """
    if not is_main_process():
        yield
        return
    with folder.lock():
        try:
            yield
        except Interrupted as error:
            if error.mend is not None or not is_started(folder):
                raise
            order = f"Go on: frostline {command} {override_for('run', folder.path)} resume=true"
            raise Interrupted(error.problem, mend=order, code=error.exit_code) from error
        finally:
            put_config_back(folder)


def fit(
    trainer: Trainer,
    task: LightningModule,
    loaders: LightningDataModule,
    data: ImageData,
    resumed: Resumed | None = None,
    *,
    over: bool = False,
) -> dict[str, float]:
    """Train to the end or to an early stop.

    Args:
        trainer: with a ``Checkpointing`` among its callbacks.
        task: what learns.
        loaders: gives the trainer its loaders.
        data: the pictures that they load.
        resumed: what to go on from.
        over: whether there is nothing left to train.

    Returns:
        Seconds, epochs and pictures a second, those of earlier processes included, and what was skipped.
    """
    saving = checkpointing(trainer)
    if trainer.is_global_zero:
        settle_config(RunFolder(Path(trainer.default_root_dir)))
    if resumed:
        _announce(trainer, resumed, over=over)
    _take_back(trainer, resumed)
    if resumed and over:
        _take_up(trainer, data, resumed)
    else:
        _let_validate(trainer, resumed)
        with signals.STOP.deferred():
            path = str(resumed.path) if resumed else None
            trainer.fit(task, datamodule=loaders, ckpt_path=path, weights_only=True)
    seconds, epochs = saving.seconds, saving.cursor.epoch if saving.cursor else 0
    pictures = len(data.splits["train"]) * epochs
    scores = {"seconds": seconds, "images_per_second": pictures / seconds, "epochs": float(epochs)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if isinstance(callback, WatchNumbers) and callback.skipped:
            scores["skipped_steps"] = float(callback.skipped)
    if skipped := on_all_ranks(trainer, data.skipped):
        _write_skipped(trainer, skipped)
        scores["skipped_pictures"] = float(len(skipped))
    return scores


def is_over(resumed: Resumed, config: DictConfig, total_steps: int) -> bool:
    """Whether a run has nothing left to train: its steps are done, or early stopping has ended it and still would."""
    cursor = resumed.cursor
    if not cursor.validated:
        return False
    if ended_by_phase(resumed):
        return True
    return (cursor.stopped and not _is_more_patient(resumed, config)) or cursor.step >= total_steps


def ended_by_phase(resumed: Resumed) -> dict[str, Any]:
    """The decision by which a run's last phase has ended it; empty where none has."""
    decision = dict(resumed.state_of("FollowSchedule").get("decision", {}))
    return decision if resumed.cursor.stopped and decision.get("ends_phase") else {}


def _is_more_patient(resumed: Resumed, config: DictConfig) -> bool:
    """Whether the early stopping that ended a run has been told to wait longer since, or was taken out."""
    before = [state["patience"] for state in resumed.callbacks.values() if "patience" in state]
    now = [node.patience for node in (config.callbacks or {}).values() if node and "patience" in node]
    return bool(before) and (not now or max(now) > max(before))


def say_it_is_done(folder: RunFolder, resumed: Resumed, *, test: bool | None = None) -> dict[str, float]:
    """Tell that there is nothing to go on with; the scores that the run has."""
    scores = folder.read_metrics()
    if is_main_process():
        how = "early stopping ended it" if resumed.cursor.stopped else "it is trained to its end,"
        more = "callbacks.early_stopping.patience" if resumed.cursor.stopped else "trainer.max_epochs"
        advice = f"To train on, raise {more}."
        if decision := ended_by_phase(resumed):
            how = f"its last phase ended it ({decision['reason']})"
            advice = f"A new run goes on from its weights: {override_for('backbone.weights', folder.path)}"
        print(f"This run is done: {how} after {resumed.cursor.epoch} epochs. {advice}")
        if test and "test/count" not in scores:
            print(f"Its test split was not scored: frostline evaluate {override_for('run', folder.path)} split=test")
        print(f"run: {folder.path}", flush=True)
    return scores


def write_provenance(folder: RunFolder, fresh: dict[str, Any], resumed: Resumed | None) -> None:
    """Write ``provenance.json``; each resumption adds where it went on, and with which code."""
    if resumed is None:
        write_json(folder.provenance, fresh)
        return
    record: dict[str, Any] = json.loads(folder.provenance.read_text(encoding="utf-8"))
    again = {key: fresh[key] for key in ("started", "code", "packages", "hardware")}
    record.setdefault("resumed", []).append({"from_step": resumed.cursor.step, **again})
    write_json(folder.provenance, record)


def _announce(trainer: Trainer, resumed: Resumed, *, over: bool) -> None:
    if not trainer.is_global_zero:
        return
    for note in resumed.notes:
        print(f"warning: {note} Going on from the one before.", file=sys.stderr, flush=True)
    cursor = resumed.cursor
    place = f"{cursor.step} steps ({cursor.epoch} epochs" + (f" and {cursor.batch} batches)" if cursor.batch else ")")
    print(f"resumed   after {place}{', nothing left to train' if over else ''}", flush=True)


def _take_back(trainer: Trainer, resumed: Resumed | None) -> None:
    """Remove what came after the checkpoint that a run goes on from: it will come again."""
    if resumed is None or not trainer.is_global_zero:
        return
    folder = RunFolder(Path(trainer.default_root_dir))
    folder.metrics.unlink(missing_ok=True)
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.keep(resumed.rows)
    kept = [record["file"] for record in resumed.state_of("Checkpointing")["records"]]
    remove_leftovers(folder.checkpoints, {resumed.path.name, *kept})


def _take_up(trainer: Trainer, data: ImageData, resumed: Resumed) -> None:
    """Put the end of a run's training into a trainer that has nothing left to train."""
    cursor, loop = resumed.cursor, trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    checkpointing(trainer).take_up(cursor, resumed.state_of("Checkpointing"), resumed.seconds)
    data.skipped.update(resumed.skipped)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if isinstance(callback, WatchNumbers):
            callback.load_state_dict(resumed.state_of("WatchNumbers"))
    # what is scored now is logged where it would have been
    epochs.processed = epochs.completed = cursor.epoch + (cursor.batch > 0)
    loop.epoch_loop._batches_that_stepped = cursor.step


def _let_validate(trainer: Trainer, resumed: Resumed | None) -> None:
    """Where only the validation after the last of ``trainer.max_steps`` is left, Lightning would not begin at all."""
    loop = trainer.fit_loop.epoch_loop
    if resumed and not resumed.cursor.validated and loop.max_steps == resumed.cursor.step:
        checkpointing(trainer).max_steps = loop.max_steps
        loop.max_steps += 1


def _write_skipped(trainer: Trainer, found: Mapping[str, str]) -> None:
    """Write ``skipped.csv``: the training pictures that could not be read, and why."""
    if found and trainer.is_global_zero:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("picture", "reason"), *sorted(found.items())])
        write_text(Path(trainer.default_root_dir) / "skipped.csv", text.getvalue())
