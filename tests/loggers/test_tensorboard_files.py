from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from frostline.loggers import TensorBoardFiles


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to steps and values, as TensorBoard shows them; those of mappings lie in folders of their own."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.*"):
        accumulator: Any = EventAccumulator(str(file))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in accumulator.Scalars(tag))
    return found


def test_tensorboard_reads_each_number_at_its_step(tmp_path: Path) -> None:
    logger = TensorBoardFiles(str(tmp_path), name="", version="")
    logger.log_metrics({"lr/head": 0.5, "epoch": 1, "val/loss": torch.tensor(0.25)}, step=3)
    logger.log_metrics({"lr/head": 0.125}, step=4)
    logger.log_metrics({"pair": {"a": 1.0, "b": 2.0}, "epoch": 2}, step=5)
    logger.log_metrics({}, step=6)
    logger.finalize("success")
    found = read(tmp_path)
    assert found["lr/head"] == [(3, 0.5), (4, 0.125)]
    assert found["val/loss"] == [(3, 0.25)]
    assert found["epoch"] == [(3, 1.0), (5, 2.0)]
    assert sorted(found["pair"]) == [(5, 1.0), (5, 2.0)]


def test_a_prefix_stands_before_every_name(tmp_path: Path) -> None:
    logger = TensorBoardFiles(str(tmp_path), name="", version="", prefix="mine")
    logger.log_metrics({"lr": 0.5, "pair": {"a": 1.0}}, step=3)
    logger.finalize("success")
    assert set(read(tmp_path)) == {"mine-lr", "mine-pair"}


def test_a_step_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardFiles(str(tmp_path), name="", version="")
    writer: Any = logger.experiment._get_file_writer()
    records: list[Any] = []
    monkeypatch.setattr(writer, "add_summary", lambda summary, step: records.append((len(summary.value), step)))
    logger.log_metrics({f"lr/{group}": 0.1 for group in range(20)}, step=7)
    assert records == [(20, 7)]


def test_what_is_no_number_is_refused_as_by_lightning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        TensorBoardFiles(str(tmp_path), name="", version="").log_metrics({"a": "word"}, step=0)
