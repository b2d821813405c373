from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import frostline

TINY = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "data.size=32",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    # the tests of the report say otherwise
    "report=false",
]


def make_pictures(root: Path, classes: tuple[str, ...] = ("blue, deep", "gréen", "red=1"), count: int = 10) -> Path:
    """Three colors as JPEGs of several sizes, with train, val and test folders."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 5), ("test", 7)):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for picture in range(number):
                pixels = generator.integers(0, 90, (40 + picture, 48, 3), dtype=np.uint8)
                pixels[..., 2 - index % 3] += 150
                Image.fromarray(pixels).save(folder / f"{picture}.jpg")
    return root


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of a run that takes a second."""
    return TINY


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures with space"))


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def finished(pictures: Path, output: Path) -> frostline.Run:
    """A small finished run on the pictures."""
    overrides = [*TINY, "data=folder", f'data.root="{pictures}"', f"output={output}", "optimizer.lr=3e-3"]
    return frostline.train([*overrides, "trainer.max_epochs=4"])
