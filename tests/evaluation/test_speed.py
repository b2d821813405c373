from __future__ import annotations

import time

import torch
from torch import Tensor

from frostline.evaluation import measure_speed


def test_a_model_is_timed_alone_and_in_batches() -> None:
    sizes: list[int] = []

    def forward(images: Tensor) -> None:
        assert images.shape[1:] == (3, 8, 8)
        assert torch.is_inference_mode_enabled()
        sizes.append(len(images))
        time.sleep(0.001 + 0.0001 * len(images))

    found = measure_speed(forward, (3, 8, 8), batch_size=16, device=torch.device("cpu"))
    assert set(sizes) == {1, 16}
    assert sizes.count(1) == found.repeats + 2
    assert found.batch_size == 16
    # asleep at least that long, and longer on a busy machine
    assert found.latency_p95_ms >= found.latency_ms >= 1.1
    assert 0 < found.images_per_second <= 16 / 0.0026
    assert found.device == "cpu"


def test_a_slow_model_gets_a_smaller_batch() -> None:
    sizes: list[int] = []

    def forward(images: Tensor) -> None:
        sizes.append(len(images))
        time.sleep(0.06 * len(images))

    found = measure_speed(forward, (3, 8, 8), batch_size=1000, device=torch.device("cpu"))
    assert 1 <= found.batch_size <= 8
    assert 0 < found.images_per_second <= 1 / 0.06
    # two passes to warm up, and three that are timed
    assert [sizes.count(found.batch_size), found.repeats >= 3] == [5, True]
