"""What a model weighs and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from frostline.exporting.formats import Run

REPEATS = 7


@dataclass(frozen=True)
class Timing:
    """Of a way to run a model on the CPU.

    Attributes:
        size: bytes on the disk.
        latency: seconds of a single picture, the median.
        throughput: pictures a second in a batch.
    """

    size: int
    latency: float
    throughput: float


def time_side_by_side(runs: Sequence[Run], batch: Tensor, sizes: Sequence[int]) -> list[Timing]:
    """Time several ways to run a model in turn, so that what else the machine does falls on all of them.

    Args:
        runs: of the same model.
        batch: ``[B, C, H, W]`` uint8 pictures.
        sizes: of each, in bytes.
    """
    single = batch[:1]
    for run in runs:
        # the first call of a shape plans it
        run(single)
        run(batch)
    alone: list[list[float]] = [[] for _ in runs]
    together: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for index, run in enumerate(runs):
            alone[index].append(_seconds(run, single))
            together[index].append(_seconds(run, batch))
    return [
        Timing(size, statistics.median(one), len(batch) / statistics.median(all_))
        for size, one, all_ in zip(sizes, alone, together, strict=True)
    ]


def _seconds(run: Run, pictures: Tensor) -> float:
    start = time.perf_counter()
    run(pictures)
    return time.perf_counter() - start


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
