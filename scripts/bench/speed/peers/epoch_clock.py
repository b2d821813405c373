"""Times the epochs of Lightning's loop, for Frostline and for Lightning's own callbacks alike."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from lightning import Callback


class EpochClock(Callback):
    """Wall-clock seconds of the training part of each epoch, from before its first batch to its validation."""

    latest: ClassVar[EpochClock]  # for who has a config make it

    def __init__(self) -> None:
        EpochClock.latest = self
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()

    def on_validation_start(self, *_: Any) -> None:
        """Look again; the scores of selected weights come after the last epoch and find nothing started."""
        if self._started:
            self.seconds.append(time.perf_counter() - self._started)
            self._started = 0.0
