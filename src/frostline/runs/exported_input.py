"""Pictures as an exported or served model takes them: resized and cropped, still 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from frostline.data.geometry import evaluation_geometry
from frostline.types import Preprocessing


def as_input(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A function from an ``RGB`` picture to ``[C, H, W]`` uint8, which ``PictureClassifier`` scales and normalises."""
    steps = evaluation_geometry(preprocessing)
    mode = "L" if preprocessing.size[0] == 1 else "RGB"

    def prepare(picture: Image.Image) -> Tensor:
        for step in steps:
            picture = step(picture)
        values = np.array(picture.convert(mode), dtype=np.uint8)
        return torch.from_numpy(values if values.ndim == 3 else values[:, :, None]).permute(2, 0, 1).contiguous()

    return prepare
