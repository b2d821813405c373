from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from frostline.config import compose, load_config
from frostline.runs.folder import RunFolder
from frostline.runs.parts import build_parts
from frostline.runs.starting import prepare
from frostline.runs.trainers import make_trainer


class Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch_idx)


def test_a_hook_that_is_there_is_called_and_an_empty_one_passed_over(tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.log_every_n_steps=1"]
    folder: RunFolder = prepare(compose("train", [f"output={tmp_path}", "logger=csv", *short]), [])
    config, seen = load_config(folder.config), Seen()
    parts, trainer = build_parts(config), make_trainer(config, folder, before=[seen], after=Callback())
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
    [stopping] = [one for one in callbacks if isinstance(one, EarlyStopping)]
    assert (seen.on_train_batch_start, stopping.on_train_batch_end) == (None, None)
    assert callable(stopping.on_validation_end)
    trainer.fit(parts.task, datamodule=parts.data)
    assert seen.batches == [0, 1, 2]
