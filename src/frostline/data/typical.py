"""What the way pictures become input does to typical ones of a data set, from a few headers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from frostline.data.decoding import picture_size
from frostline.data.geometry import lost_share
from frostline.data.splits import ImageSplit
from frostline.errors import FrostlineError
from frostline.types import Preprocessing

PICTURES = 64


class TypicalLoss(NamedTuple):
    """The median share (0..1) of a picture's area outside of the evaluation crop, over ``pictures`` of a split."""

    share: float
    pictures: int


def typical_loss(split: ImageSplit, preprocessing: Preprocessing) -> TypicalLoss | None:
    """Reads headers of at most 64 pictures, evenly spread; None where pictures are not files, or none can be read.

    Args:
        split: any; nothing is decoded.
        preprocessing: of the backbone.
    """
    positions = np.unique(np.linspace(0, len(split) - 1, PICTURES).astype(int))
    paths = [split.path(int(position)) for position in positions]
    sizes = [size for path in paths if path is not None and (size := _size(path)) is not None]
    if not sizes:
        return None
    return TypicalLoss(float(np.median([lost_share(preprocessing, *size) for size in sizes])), len(sizes))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return picture_size(path, str(path))
    except FrostlineError:
        return None  # whoever decodes it says what is wrong
