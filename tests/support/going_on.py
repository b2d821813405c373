"""Runs with everything that has a state: begun, stopped, gone on with, and compared bitwise."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from frostline.checkpoints import Keeping, checkpoints_in, read_checkpoint
from frostline.config import compose, load_config
from frostline.runs.folder import RunFolder
from frostline.runs.resuming import prepare_resume
from frostline.runs.starting import prepare
from frostline.runs.worker import work
from frostline.specs import Mode

EVERYTHING = [
    "data=folder",
    "augment=strong",
    "callbacks=ema",
    "callbacks.ema.decay=0.8",
    "callbacks.early_stopping.patience=2",
    "+backbone.kwargs.drop_rate=0.3",
    "+backbone.kwargs.drop_path_rate=0.1",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "data.batch_size=4",
    "lr.warmup.fraction=0.2",
    "logger=csv",
]


def stopped_at(marks: Path, events: list[str], **settings: Any) -> str:
    marks.mkdir(exist_ok=True)
    extra = "".join(f", {key}: {value}" for key, value in settings.items())
    return f'+callbacks.stop={{_target_: stopping.SignalAt, events: [{",".join(events)}], marks: "{marks}"{extra}}}'


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(cwd)}
    line = [sys.executable, "-m", "frostline.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=300)


def begin(tiny: list[str], pictures: Path, output: Path, *more: str) -> RunFolder:
    overrides = [*tiny, *EVERYTHING, f'data.root="{pictures}"', f'output="{output}"', *more]
    return prepare(compose("train", overrides), overrides)


def to_the_end(folder: RunFolder, most: int = 40) -> int:
    """Resume as often as the run is stopped; how often it was."""
    code, stops = work("train", folder.path), 0
    while code == 143 and stops < most:
        stops += 1
        code = work("train", prepare_resume(folder.path, trust=["stopping"]).path)
    assert code == 0
    return stops


def state(folder: RunFolder) -> dict[str, Any]:
    return read_checkpoint(checkpoints_in(folder.checkpoints)[-1])


def best(content: dict[str, Any], *, larger_is_better: bool) -> Any:
    keeping = Keeping(keep_best=1, keep_latest=2, larger_is_better=larger_is_better)
    keeping.load_state_dict(content["callbacks"]["Checkpointing"])
    return keeping.best


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}.{index}")
    else:
        assert one == other, path


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    first, second = state(one), state(other)
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "train_scores"):
        assert_equal(first.get(key), second.get(key), key)
    assert first["frostline"]["cursor"] == second["frostline"]["cursor"]
    kept = {
        key: value
        for key, value in first["callbacks"].items()
        if key.startswith(("EarlyStopping", "EpochLines", "FollowSchedule"))
    }
    assert "EpochLines" in kept
    assert_equal(kept, {key: second["callbacks"][key] for key in kept}, "callbacks")
    larger = load_config(one.config).monitor.mode in (Mode.max, Mode.max.name)
    assert best(first, larger_is_better=larger) == best(second, larger_is_better=larger)
    assert rows(one.path / "metrics.csv") == rows(other.path / "metrics.csv")
    assert rows(one.schedule) == rows(other.schedule)
    timed = ("seconds", "images_per_second")
    scores = [{k: v for k, v in run.read_metrics().items() if k not in timed} for run in (one, other)]
    assert scores[0] == scores[1]
