"""Pictures as an exported or served model takes them: resized and cropped, still 8 bits."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from frostline.data import evaluation_transform
from frostline.data.transforms import Look
from frostline.types import Preprocessing


def as_input(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A function from an ``RGB`` picture to ``[C, H, W]`` uint8, which ``PictureClassifier`` scales and normalises."""
    transform = evaluation_transform(preprocessing)
    return lambda picture: transform.pixels(Look(transform).shown(picture)).contiguous()
