from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from frostline.auditing.features import features
from frostline.data.decoding import Reduction
from frostline.data.digits import ArraySplit
from frostline.data.splits import SplitView
from frostline.errors import DataError
from frostline.types import Preprocessing

PREPROCESSING = Preprocessing((3, 8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Holed(SplitView):
    """A split of which one picture cannot be read."""

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        if index == 3:
            raise DataError("it is gone")
        return super().reduced(index, reduction)


class Mean(nn.Module):
    """Gives the mean of each channel; where that is 0, something that is no number."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(2, 3))
        return torch.where(mean == 0, torch.nan, mean)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_readable_picture_has_its_features_at_its_place(workers: int) -> None:
    pixels = np.repeat(np.arange(10, dtype=np.uint8) * 25, 64).reshape(10, 8, 8)
    split = Holed(ArraySplit(pixels, np.zeros(10, np.int64), "p"), np.arange(10))
    readable = {"train": np.arange(10) != 5}
    said: list[tuple[int, int]] = []
    found = features(
        Mean(),
        {"train": split},
        PREPROCESSING,
        readable=readable,
        batch_size=4,
        workers=workers,
        progress=lambda done, total: said.append((done, total)),
    )["train"]
    # 0 has no number, 3 is gone since the scan, 5 was unreadable then
    assert found.positions.tolist() == [1, 2, 4, 6, 7, 8, 9]
    assert found.vectors[:, 0] == pytest.approx(found.positions * 25 / 255)
    assert found.vectors.dtype == np.float32
    assert said == [(4, 9), (8, 9), (9, 9)]


def test_a_split_without_readable_pictures_has_none() -> None:
    split = ArraySplit(np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64), "p")
    found = features(Mean(), {"val": split}, PREPROCESSING, readable={"val": np.zeros(2, bool)})["val"]
    assert len(found.positions) == 0
