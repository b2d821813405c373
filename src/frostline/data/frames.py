"""What of a picture is shown, and how large: decided from its size alone, before it is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm.data.transforms
import torch

from frostline.data.geometry import RandomPart, resized_sides, rgb_mean
from frostline.types import Preprocessing

_timm: Any = timm.data.transforms  # has no types

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
Size = tuple[int, int]

_BLACK: Color = (0, 0, 0)
_DENOMINATORS = (8, 4, 2)
# a resized part that would be larger than so many inputs is not made as a whole
_LARGEST = 32
# a picture that would be kept with more than this of its sides is kept as it is
_WORTH = 0.8

MARGIN = 2.0
"""How many pixels of a reduced JPEG there are at least, along each side, for one of the input.

Of photographs that are reduced to exactly this, the resized picture differs from that of the whole one by 0.5 to 0.8
of 255 levels on average and by 4 or 5 in one pixel of a hundred, where bilinear in place of bicubic would be 0.8 and 9.
"""


@dataclass(frozen=True)
class Frame:
    """A part of a picture, the size that it is brought to, and what of that is shown where.

    Attributes:
        box: left, top, right and bottom of the part, in pixels of the whole picture.
        scaled: width and height in pixels that the part is brought to.
        window: left, top, right and bottom of what is shown of the resized part, in its own pixels.
        canvas: width and height of the input in pixels.
        at: left and top of the window on the canvas.
        color: of the canvas where the window leaves it empty.
    """

    box: Box
    scaled: tuple[int, int]
    window: tuple[int, int, int, int]
    canvas: tuple[int, int]
    at: tuple[int, int] = (0, 0)
    color: Color = _BLACK

    def reduction(self) -> int:
        """1, 2, 4 or 8: by how much the picture may be smaller so that nothing of note is lost; see `MARGIN`."""
        left, top, right, bottom = self.box
        room = min((right - left) / self.scaled[0], (bottom - top) / self.scaled[1]) / MARGIN
        return next((by for by in _DENOMINATORS if by <= room), 1)

    @property
    def is_extreme(self) -> bool:
        """Whether the resized part as a whole would be very much larger than the input: of 1 x 100 000 pixels."""
        return math.prod(self.scaled) > _LARGEST * math.prod(self.canvas)


FrameOf = Callable[[int, int], Frame]
"""Takes width and height of a picture in pixels; what is random is drawn from Python's global generator."""


def evaluation_frame(preprocessing: Preprocessing) -> FrameOf:
    """What `evaluation_geometry` shows: the same sides and the same offsets, to the pixel."""
    height, width = preprocessing.size[1:]
    down, across = resized_sides(preprocessing)
    fill = _color(preprocessing)

    def frame(picture_width: int, picture_height: int) -> Frame:
        if preprocessing.crop_mode == "squash":
            scaled, color = (across, down), _BLACK
        elif preprocessing.crop_mode == "border":
            scaled, color = _kept_ratio(picture_width, picture_height, preprocessing, longest=1.0), fill
        elif across == down:
            scaled, color = _shorter_side(picture_width, picture_height, down), _BLACK
        else:
            scaled, color = _kept_ratio(picture_width, picture_height, preprocessing, longest=0.0), _BLACK
        columns, rows = _centered(scaled[0], width), _centered(scaled[1], height)
        window = columns[0], rows[0], columns[1], rows[1]
        at = columns[2], rows[2]
        return Frame((0, 0, picture_width, picture_height), scaled, window, (width, height), at, color)

    return frame


def random_frame(preprocessing: Preprocessing, scale: Sequence[float], ratio: Sequence[float]) -> FrameOf:
    """A random crop, drawn as timm draws it from a picture of this size.

    Args:
        preprocessing: of the backbone.
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect ratio.
    """
    height, width = preprocessing.size[1:]
    if preprocessing.crop_mode != "center":
        return _random_part(preprocessing, scale, ratio)

    def frame(picture_width: int, picture_height: int) -> Frame:
        shape = torch.empty(1).expand(1, picture_height, picture_width)  # takes no memory
        top, left, down, across = _timm.RandomResizedCropAndInterpolation.get_params(shape, scale, ratio)
        box = left, top, left + across, top + down
        return Frame(box, (width, height), (0, 0, width, height), (width, height))

    return frame


def enough_for(
    preprocessing: Preprocessing, scale: Sequence[float], ratio: Sequence[float]
) -> Callable[[int, int], Size]:
    """What a picture has to be kept with, so that the smallest random crop loses nothing of note; see `MARGIN`.

    Args:
        preprocessing: of the backbone.
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect ratio.

    Returns:
        A function of width and height in pixels that gives a smaller width and height, or the same.
    """
    down, across = preprocessing.size[1:]
    narrow, low = math.sqrt(scale[0] * ratio[0]), math.sqrt(scale[0] / ratio[1])

    def enough(width: int, height: int) -> Size:
        if preprocessing.crop_mode == "squash":
            least_width, least_height = width * narrow, height * low
        elif preprocessing.crop_mode == "border":
            unit = max(width / across, height / down)
            least_width, least_height = unit * across * narrow, unit * down * low
        else:
            side = math.sqrt(width * height)
            least_width, least_height = side * narrow, side * low
        share = MARGIN * max(across / least_width, down / least_height)
        if share > _WORTH:
            return width, height
        return math.ceil(share * width), math.ceil(share * height)

    return enough


def _random_part(preprocessing: Preprocessing, scale: Sequence[float], ratio: Sequence[float]) -> FrameOf:
    part = RandomPart(preprocessing, scale, ratio)
    canvas = preprocessing.size[2], preprocessing.size[1]

    def frame(picture_width: int, picture_height: int) -> Frame:
        box, (left, top, right, bottom) = part.draw(picture_width, picture_height)
        size = right - left, bottom - top
        return Frame(box, size, (0, 0, *size), canvas, (left, top), _color(preprocessing))

    return frame


def _color(preprocessing: Preprocessing) -> Color:
    red, green, blue = (round(255 * value) for value in rgb_mean(preprocessing))
    return red, green, blue


def _shorter_side(width: int, height: int, side: int) -> tuple[int, int]:
    """As torchvision's resize by one number."""
    longer = int(side * max(width, height) / min(width, height))
    return (side, longer) if width <= height else (longer, side)


def _kept_ratio(width: int, height: int, preprocessing: Preprocessing, *, longest: float) -> tuple[int, int]:
    shape = torch.empty(1).expand(1, height, width)
    down, across = _timm.ResizeKeepRatio.get_params(shape, resized_sides(preprocessing), longest)
    return max(1, across), max(1, down)


def _centered(length: int, wanted: int) -> tuple[int, int, int]:
    """First and last pixel that a crop of ``wanted`` shows of ``length``, and where they begin in it."""
    if length < wanted:
        # timm pads before what is short by half of it, rounded down
        return 0, length, (wanted - length) // 2
    first = round((length - wanted) / 2)
    return first, first + wanted, 0
