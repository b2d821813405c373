"""Small runs on pictures, as in tests/runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TINY = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "data.size=32",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "report=false",
]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of a run that takes a second."""
    return TINY


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colors as pictures, in train, val and test folders."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4), ("test", 2)):
        for index, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for picture in range(count):
                pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 - index % 3] += 150
                Image.fromarray(pixels).save(folder / f"{picture}.png")
    return root


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, and a run is bitwise another's on as many threads alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes that it starts
        yield
    torch.set_num_threads(threads)
