"""Small pictures and data sets that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline.data import ImageData, LabelledSet
from frostline.data.digits import ArraySplit
from frostline.types import Preprocessing

MakeTree = Callable[..., Path]


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A picture of random colors."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class ArrayData(ImageData):
    """Classes of random gray pictures in memory: ``counts`` says how many each."""

    in_memory = True

    def __init__(self, counts: tuple[int, ...] = (6, 6), **settings: object) -> None:
        self._counts = counts
        super().__init__(**{"val_fraction": 0.0, **settings})

    def read(self) -> LabelledSet:
        labels = np.repeat(np.arange(len(self._counts)), self._counts).astype(np.int64)
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
        classes = tuple("abcdefghij"[: len(self._counts)])
        return LabelledSet(classes, {"train": ArraySplit(pixels, labels, "array")})


@pytest.fixture
def array_data() -> type[ArrayData]:
    return ArrayData


@pytest.fixture
def preprocessing() -> Preprocessing:
    return Preprocessing((3, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Writes ``{"train/cat": 3, ...}`` pictures into folders and returns the root."""

    def make(counts: dict[str, int], root: str = "set") -> Path:
        base = tmp_path / root
        base.mkdir(exist_ok=True)
        for number, (folder, count) in enumerate(counts.items()):
            (base / folder).mkdir(parents=True)
            for index in range(count):
                picture(100 * number + index).save(base / folder / f"{index:02d}.jpg")
        return base

    return make
