"""Training with Lightning from a start or from a checkpoint, as ``train`` and ``pretrain`` share it."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig

from frostline import signals
from frostline.callbacks import WatchNumbers
from frostline.checkpoints import checkpoints_in, remove_checkpoint
from frostline.data import ImageData
from frostline.loggers import MetricsFile
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.parts import checkpointing
from frostline.runs.resuming import Resumed
from frostline.runs.worker import is_main_process


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
    if resumed:
        _announce(trainer, resumed, over=over)
    if resumed and over:
        saving.take_up(resumed.cursor, resumed.state_of("Checkpointing"), resumed.seconds)
    else:
        _take_back(trainer, resumed)
        with signals.STOP.deferred():
            path = str(resumed.path) if resumed else None
            trainer.fit(task, datamodule=loaders, ckpt_path=path, weights_only=True)
    seconds, epochs = saving.seconds, saving.cursor.epoch if saving.cursor else 0
    pictures = len(data.splits["train"]) * epochs
    scores = {"seconds": seconds, "images_per_second": pictures / seconds, "epochs": float(epochs)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if isinstance(callback, WatchNumbers) and callback.skipped:
            scores["skipped_steps"] = float(callback.skipped)
    if skipped := _write_skipped(trainer, data):
        scores["skipped_pictures"] = float(skipped)
    return scores


def is_over(resumed: Resumed, config: DictConfig, total_steps: int) -> bool:
    """Whether a run has nothing left to train: its steps are done, or early stopping has ended it and still would."""
    cursor = resumed.cursor
    if not cursor.validated:
        return False
    patience = ((config.callbacks or {}).get("early_stopping") or {}).get("patience", math.inf)
    stopped = cursor.stopped and resumed.state_of("EarlyStopping").get("wait_count", 0) >= patience
    return stopped or cursor.step >= total_steps


def say_it_is_done(folder: RunFolder, resumed: Resumed) -> dict[str, float]:
    """Tell that there is nothing to go on with; the scores that the run has."""
    if is_main_process():
        how = "early stopping ended it" if resumed.cursor.stopped else "it is trained to its end,"
        more = "callbacks.early_stopping.patience" if resumed.cursor.stopped else "trainer.max_epochs"
        print(f"This run is done: {how} after {resumed.cursor.epoch} epochs. To train on, raise {more}.")
        print(f"run: {folder.path}", flush=True)
    return folder.read_metrics()


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
    later = checkpoints_in(folder.checkpoints)
    for path in later[later.index(resumed.path) + 1 :]:
        remove_checkpoint(path)


def _write_skipped(trainer: Trainer, data: ImageData) -> int:
    """Write ``skipped.csv``, the training pictures that could not be read, over all ranks; how many there are."""
    everywhere: list[dict[str, str]] = [data.skipped]
    if trainer.world_size > 1:
        everywhere = [{}] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, data.skipped)
    path = Path(trainer.default_root_dir) / "skipped.csv"
    found: dict[str, str] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            found = {row["picture"]: row["reason"] for row in csv.DictReader(file)}
    for part in everywhere:
        found |= part
    if found and trainer.is_global_zero:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("picture", "reason"), *sorted(found.items())])
    return len(found)
