"""A training step reads no number off the device: on a GPU each reading is a wait for all that is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from small_runs import MODELS, small_run
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.callbacks import WatchNumbers, finite
from frostline.specs import PhaseSpec

NAME = next(iter(MODELS))


class Readings(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class CountReadings(Callback):
    """Counts in each step, from its first callback on to the last."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.mode: Readings | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = Readings()
        self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.mode is not None
        self.mode.__exit__(None, None, None)
        self.counts.append(self.mode.count)


@pytest.mark.parametrize("behind", [True, False])
def test_a_step_reads_nothing_off_a_device_that_runs_behind(
    behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_runs_behind", lambda device: behind)
    # what is read of the step before has been copied to the host by then
    monkeypatch.setattr(finite._Later, "is_bad", lambda later: False)
    count = CountReadings()
    run = small_run(NAME, tmp_path, WatchNumbers(), before=[count], epochs=1, steps_per_epoch=3, all=PhaseSpec("all"))
    run.fit()
    # the CPU, where nobody waits, is asked once before each step, for the loss and the gradients together
    assert count.counts == [0 if behind else 1] * 3
