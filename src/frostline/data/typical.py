"""What the way pictures become input does to typical ones of a data set, from a few headers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from frostline.data.decoding import picture_size
from frostline.data.frames import evaluation_frame
from frostline.data.geometry import lost_share
from frostline.data.splits import ImageSplit
from frostline.errors import FrostlineError
from frostline.types import Preprocessing

PICTURES = 64
_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}


class TypicalLoss(NamedTuple):
    """What evaluation loses of ``pictures`` of a split.

    Attributes:
        share: the median share (0..1) of a picture's area outside of the crop.
        pictures: that were looked at.
        reduced: the share of them (0..1) that ``data.decode=fast`` decodes at a half, a quarter or an eighth for
            the crop of evaluation; for a random crop its own size decides.
    """

    share: float
    pictures: int
    reduced: float = 0.0


def typical_loss(split: ImageSplit, preprocessing: Preprocessing) -> TypicalLoss | None:
    """Reads headers of at most 64 pictures, evenly spread; None where pictures are not files, or none can be read.

    Args:
        split: any; nothing is decoded.
        preprocessing: of the backbone.
    """
    positions = np.unique(np.linspace(0, len(split) - 1, PICTURES).astype(int))
    paths = [split.path(int(position)) for position in positions]
    sizes = [(path, size) for path in paths if path is not None and (size := _size(path)) is not None]
    if not sizes:
        return None
    frame_of = evaluation_frame(preprocessing)
    reduced = [path.suffix.lower() in _JPEG and frame_of(*size).reduction() > 1 for path, size in sizes]
    lost = [lost_share(preprocessing, *size) for _, size in sizes]
    return TypicalLoss(float(np.median(lost)), len(sizes), float(np.mean(reduced)))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return picture_size(path, str(path))
    except FrostlineError:
        return None  # whoever decodes it says what is wrong
