"""Carrying out a `Frame`: one resize in 8 bits of the part that is shown, of a picture that may be smaller already."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import timm.data.transforms
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from frostline.data.frames import MARGIN, Box, Frame

_timm: Any = timm.data.transforms  # has no types

_WHOLE = 1e-6  # what is less than this beside a pixel begins at it

Pixels = npt.NDArray[np.uint8]

# torch's antialiased resize does what Pillow's does, with the same filters; radius in pixels of the smaller picture
_OPERATORS: dict[str, tuple[Any, int]] = {
    "bilinear": (torch.ops.aten._upsample_bilinear2d_aa.default, 1),
    "bicubic": (torch.ops.aten._upsample_bicubic2d_aa.default, 2),
}


def framed(picture: Image.Image | Pixels, whole: tuple[int, int], frame: Frame, interpolation: str) -> Tensor:
    """What a frame shows of a picture.

    It is mostly equal to cropping and resizing with Pillow, and within two of 255 levels. Where the picture is given
    smaller than it is, and there are at least `MARGIN` of its pixels for one of the input, a part begins at the
    nearest of them: at most a quarter of an input pixel aside.

    Args:
        picture: ``RGB``, or ``[H, W, 3]`` uint8: the whole picture, or a smaller one of the same view. The sides of a
            reduced JPEG are rounded up.
        whole: width and height of the whole picture, which the frame is of.
        frame: of the whole picture.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.

    Returns:
        ``[3, H, W]`` uint8, contiguous, of the frame's canvas.
    """
    box = _box_in(picture, whole, frame)
    seen = None if frame.is_extreme else _by_torch(picture, box, frame, interpolation)
    if seen is None:
        seen = _by_pillow(picture, box, frame, interpolation)
    width, height = frame.canvas
    if seen.shape[1:] == (height, width):
        return seen.contiguous()
    canvas = torch.tensor(frame.color, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    left, top = frame.at
    canvas[:, top : top + seen.shape[1], left : left + seen.shape[2]] = seen
    return canvas


def as_pixels(picture: Image.Image) -> Tensor:
    """``[3, H, W]`` or, of a gray one, ``[1, H, W]``, uint8 of its own memory."""
    pixels = np.array(picture)
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()


def as_picture(pixels: Tensor) -> Image.Image:
    """``RGB`` of ``[3, H, W]`` uint8."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _box_in(picture: Image.Image | Pixels, whole: tuple[int, int], frame: Frame) -> Box:
    """The frame's box in pixels of what there is."""
    if isinstance(picture, Image.Image):
        by = _reduced_by(picture.size, whole)
        across = down = 1 / by
    else:
        across, down = picture.shape[1] / whole[0], picture.shape[0] / whole[1]
    left, top, right, bottom = frame.box
    return left * across, top * down, right * across, bottom * down


def _reduced_by(size: tuple[int, int], whole: tuple[int, int]) -> int:
    by = next((by for by in (1, 2, 4, 8) if tuple(-(-side // by) for side in whole) == size), None)
    if by is None:
        raise ValueError(f"a picture of {size} is no reduced one of {whole}")
    return by


def _by_torch(picture: Image.Image | Pixels, box: Box, frame: Frame, interpolation: str) -> Tensor | None:
    """``[3, h, w]`` uint8 of the window; None where it has no such filter, or cannot begin where the part does."""
    if interpolation not in _OPERATORS:
        return None
    operator, radius = _OPERATORS[interpolation]
    scales = (box[2] - box[0]) / frame.scaled[0], (box[3] - box[1]) / frame.scaled[1]
    columns = _span(box[0], box[2], scales[0], frame.window[2], radius)
    rows = _span(box[1], box[3], scales[1], frame.window[3], radius)
    if columns is None or rows is None:
        return None
    pixels = _shared(picture, slice(*rows), slice(*columns))
    left, top, right, bottom = frame.window
    # the part from its corner to the end of the window: a crop could not begin between two pixels
    resized: Tensor = operator(pixels, [bottom, right], False, 1 / scales[1], 1 / scales[0])
    return resized[0, :3, top:, left:]


def _span(start: float, stop: float, scale: float, end: int, radius: int) -> tuple[int, int] | None:
    """The first pixel, and the one behind the last, that the pixels before ``end`` of a resized part are made of."""
    first = round(start)
    if abs(start - first) > _WHOLE and scale < MARGIN:
        return None
    reach = radius * max(scale, 1.0)
    # a filter sees nothing of what lies beside the part, as if it had been cut out
    return first, min(first + math.ceil((end - 0.5) * scale + reach) + 1, math.ceil(first + stop - start - _WHOLE))


def _shared(picture: Image.Image | Pixels, rows: slice, columns: slice) -> Tensor:
    """``[1, C, h, w]`` uint8 of a part: of a picture on its own memory, with a channel more that means nothing."""
    if isinstance(picture, Image.Image):
        try:
            values = pa.array(picture).values
        except (ValueError, TypeError):  # it lies in several blocks, or Pillow is older than 11.2
            picture = np.asarray(picture)
        else:
            # the order of these two decides the layout of what torch makes of it, and its time
            return from_dlpack(values).view(picture.height, picture.width, 4)[rows, columns].permute(2, 0, 1)[None]
    return torch.from_numpy(np.array(picture[rows, columns])).permute(2, 0, 1)[None]


def _by_pillow(picture: Image.Image | Pixels, box: Box, frame: Frame, interpolation: str) -> Tensor:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if all(abs(side - round(side)) < _WHOLE for side in box):
        first, top, last, bottom = map(round, box)
        image, box = image.crop((first, top, last, bottom)), (0, 0, last - first, bottom - top)
    left, top, right, bottom = frame.window
    across, down = (box[2] - box[0]) / frame.scaled[0], (box[3] - box[1]) / frame.scaled[1]
    part = (
        box[0] + left * across,
        box[1] + top * down,
        min(box[0] + right * across, image.width),
        min(box[1] + bottom * down, image.height),
    )
    resample = _timm.str_to_pil_interp(interpolation)
    return as_pixels(image.resize((right - left, bottom - top), resample, box=part))
