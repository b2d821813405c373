"""How fast a model is, on the device that it is on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SECONDS = 0.25  # of each of the two measurements, where the model is not slower than that
_WARM_UP = 2
_AT_LEAST, _AT_MOST = 3, 50


@dataclass(frozen=True)
class Speed:
    """The model alone: without reading, decoding and resizing pictures.

    Attributes:
        device: in words.
        threads: of the CPU that it may use.
        batch_size: pictures in a batch; smaller than the run's where a batch of that size would take long.
        images_per_second: in batches of that size, median.
        latency_ms, latency_p95_ms: one picture, median and 95th percentile.
        repeats: how often one picture was timed.
    """

    device: str
    threads: int
    batch_size: int
    images_per_second: float
    latency_ms: float
    latency_p95_ms: float
    repeats: int

    def record(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)


def measure_speed(
    forward: Callable[[Tensor], Any], size: tuple[int, int, int], *, batch_size: int, device: torch.device
) -> Speed:
    """Time a forward pass after warming up, for about a second at most unless one pass takes longer.

    Args:
        forward: takes ``[B, C, H, W]`` float32 on ``device``; the model in eval.
        size: C, H, W.
        batch_size: wanted.
        device: where the model is.
    """
    with torch.inference_mode():
        single = _times(forward, torch.randn(1, *size, device=device), device)
        # a batch takes less time than its pictures one by one
        affordable = int(2 * _SECONDS / float(np.median(single)))
        batch = max(1, min(batch_size, affordable))
        batched = single if batch == 1 else _times(forward, torch.randn(batch, *size, device=device), device)
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        batch_size=batch,
        images_per_second=batch / float(np.median(batched)),
        latency_ms=1000 * float(np.median(single)),
        latency_p95_ms=1000 * float(np.quantile(single, 0.95)),
        repeats=len(single),
    )


def _times(forward: Callable[[Tensor], Any], images: Tensor, device: torch.device) -> list[float]:
    """Seconds of each of several passes."""
    for _ in range(_WARM_UP):
        forward(images)
    times: list[float] = []
    while len(times) < _AT_LEAST or (sum(times) < _SECONDS and len(times) < _AT_MOST):
        _wait_for(device)
        start = time.perf_counter()
        forward(images)
        _wait_for(device)
        times.append(time.perf_counter() - start)
    return times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
