"""Batches that leave the workers in 8 bits are what they would have been."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from frostline.data import Augmentation, FolderData
from frostline.types import Batch, Preprocessing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = np.random.default_rng(0)
    for split, name, number in ((s, n, i) for s in ("train", "val", "test") for n in ("a", "b") for i in range(6)):
        place = tmp_path / "data" / split / name
        place.mkdir(parents=True, exist_ok=True)
        pixels = made.integers(0, 256, (150, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg")
    return tmp_path / "data"


def prepared(root: Path, told: Preprocessing, augmentation: Augmentation | None = None, **how: Any) -> FolderData:
    data = FolderData(str(root), batch_size=4, **{"workers": 0, **how})
    data.prepare(told, augmentation or Augmentation(), seed=1)
    return data


def own(picture: Image.Image) -> Image.Image:
    return picture


AUGMENTATIONS = {
    "plain": (Augmentation(), True),
    "crop": (Augmentation(scale=[0.4, 1.0], hflip=0.5), True),
    "color": (Augmentation(color_jitter=0.3), True),
    "policy": (Augmentation(auto_augment="rand-m9-mstd0.5-inc1"), True),
    "erase": (Augmentation(erase=0.5), False),
    "own": (Augmentation(transforms=[own]), False),
}


class Watching(LightningModule):
    """Keeps what comes to a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.images.clone())
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.images.dtype == torch.float32

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_trainer_gives_is_what_a_loader_gives(
    root: Path, preprocessing: Preprocessing, name: str, channels: int
) -> None:
    told = dataclasses.replace(preprocessing, size=(channels, 32, 32))
    augmentation, in_8_bits = AUGMENTATIONS[name]
    plain = list(prepared(root, told, augmentation).loader("train", train=True))
    assert all(batch.images.dtype == torch.float32 for batch in plain)
    raw = list(prepared(root, told, augmentation).loader("train", train=True, normalize=False))
    assert {batch.images.dtype for batch in raw} == {torch.uint8 if in_8_bits else torch.float32}
    module = Watching()
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, datamodule=prepared(root, told, augmentation))
    assert len(plain) == len(module.seen) == 3
    assert all(torch.equal(one.images, other) for one, other in zip(plain, module.seen, strict=True))


def test_the_workers_change_nothing(root: Path, preprocessing: Preprocessing) -> None:
    told = dataclasses.replace(preprocessing, size=(3, 32, 32))
    augmentation = Augmentation(scale=[0.4, 1.0], color_jitter=0.2)
    here, there = (
        list(prepared(root, told, augmentation, workers=workers).loader("train", train=True)) for workers in (0, 2)
    )
    assert all(torch.equal(one.images, other.images) for one, other in zip(here, there, strict=True))


def test_deliveries_are_normalized(root: Path, preprocessing: Preprocessing) -> None:
    told = dataclasses.replace(preprocessing, size=(3, 32, 32))
    data = prepared(root, told)
    batches = [batch for batch, _ in data.deliveries("val", train=False) if batch is not None]
    expected = list(data.loader("val"))
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, expected, strict=True))


def test_exact_is_timm_and_another_recipe(root: Path, preprocessing: Preprocessing) -> None:
    told = dataclasses.replace(preprocessing, size=(3, 32, 32), interpolation="bicubic")
    fast, exact = prepared(root, told), prepared(root, told, decode="exact")
    (one, *_), (other, *_) = fast.loader("val"), exact.loader("val")
    assert not torch.equal(one.images, other.images)
    from timm.data import create_transform

    theirs = create_transform(
        told.size, interpolation="bicubic", mean=told.mean, std=told.std, crop_pct=told.crop_pct, crop_mode="center"
    )
    pictures = [Image.open(root / "val" / "a" / f"{number}.jpg") for number in range(4)]
    assert torch.equal(other.images, torch.stack([theirs(picture) for picture in pictures]))
    assert fast.recipe("val", train=False) != exact.recipe("val", train=False)
