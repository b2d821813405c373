"""From the shape of a picture to that of a model's input: crop, squash or pad, and random parts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import timm.data.transforms
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from frostline.types import Preprocessing

_timm: Any = timm.data.transforms  # has no types

Step = Callable[[Any], Any]
Resize = Literal["crop", "squash", "pad"]

RESIZES: tuple[Resize, ...] = ("crop", "squash", "pad")
_TIMM_MODES: dict[Resize, str] = {"crop": "center", "squash": "squash", "pad": "border"}

# a picture that would be larger than so many inputs before the crop is not resized as a whole
_LARGEST = 32
_DRAWS = 10
# random parts are drawn on a square grid that is finer than any picture
_GRID = 2**16


def resized(preprocessing: Preprocessing, resize: Resize | None) -> Preprocessing:
    """What ``data.resize`` makes of a backbone's preprocessing, in timm's own terms.

    Args:
        preprocessing: what the backbone was pre-trained with.
        resize: ``crop`` keeps the aspect, resizes the shorter side to the input's, divided by ``crop_pct``, and cuts
            off what lies outside the middle. ``squash`` resizes to the input's shape, whatever the aspect. ``pad``
            keeps the aspect, resizes the longer side to the input's and fills the rest with the mean color. Neither of
            the two loses any of the picture: their ``crop_pct`` is 1. None leaves all as it is.
    """
    if resize is None:
        return preprocessing
    crop_pct = preprocessing.crop_pct if resize == "crop" else 1.0
    return replace(preprocessing, crop_mode=_TIMM_MODES[resize], crop_pct=crop_pct)


def lost_share(preprocessing: Preprocessing, width: int, height: int) -> float:
    """The share (0..1) of a picture's area that the evaluation crop leaves out.

    Args:
        preprocessing: of the backbone.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    sides = preprocessing.size[1:]
    scales = [whole / side for whole, side in zip(resized_sides(preprocessing), (height, width), strict=True)]
    if preprocessing.crop_mode != "squash":
        scales = [min(scales) if preprocessing.crop_mode == "border" else max(scales)] * 2
    kept = [min(1.0, side / (own * scale)) for side, own, scale in zip(sides, (height, width), scales, strict=True)]
    return max(0.0, 1.0 - math.prod(kept))


def resized_sides(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width in pixels to which a picture is brought before the evaluation crop."""
    height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size[1:])
    return height, width


def evaluation_geometry(preprocessing: Preprocessing) -> list[Step]:
    """The part of `evaluation_transform` that works on the picture: resize and crop, as ``crop_mode`` says.

    The steps are timm's, but for pictures of extreme aspect, which would cost gigabytes or become 0 pixels wide.
    """
    made = create_transform(
        preprocessing.size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=rgb_mean(preprocessing),  # the color of a border
        normalize=False,
    )
    steps = list(made.transforms[:-1])  # the last one makes a tensor
    if preprocessing.crop_mode == "border":
        return [_FitInside(preprocessing), *steps[1:]]
    return steps if preprocessing.crop_mode == "squash" else [_CenterCrop(preprocessing, steps)]


def rgb_mean(preprocessing: Preprocessing) -> tuple[float, ...]:
    """The mean color of an ``RGB`` picture, which a backbone with another number of channels has none of."""
    mean = preprocessing.mean
    return mean if len(mean) == 3 else (sum(mean) / len(mean),) * 3


class _FitInside:
    """timm's resize of the longer side; what is too thin for a pixel stays one pixel wide."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._sides = resized_sides(preprocessing)
        self._resample = _timm.str_to_pil_interp(preprocessing.interpolation)

    def __call__(self, picture: Image.Image) -> Image.Image:
        height, width = _timm.ResizeKeepRatio.get_params(picture, self._sides, 1.0)
        return picture.resize((max(1, width), max(1, height)), self._resample)


class _CenterCrop:
    """timm's resize and center crop; of a picture of extreme aspect, only what the crop shows is resized.

    Resized as a whole, 1 x 100 000 pixels would become 256 x 25 600 000.
    """

    def __init__(self, preprocessing: Preprocessing, steps: Sequence[Step]) -> None:
        self._sides = preprocessing.size[1:]
        self._resized = resized_sides(preprocessing)
        self._resample = _timm.str_to_pil_interp(preprocessing.interpolation)
        self._steps = tuple(steps)

    def __call__(self, picture: Image.Image) -> Image.Image:
        height, width = self._whole(picture)
        if height * width > _LARGEST * math.prod(self._sides) and height >= self._sides[0] and width >= self._sides[1]:
            return self._middle(picture, height, width)
        for step in self._steps:
            picture = step(picture)
        return picture

    def _whole(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width to which timm resizes the picture."""
        if self._resized[0] != self._resized[1]:
            height, width = _timm.ResizeKeepRatio.get_params(picture, self._resized, 0.0)
            return height, width
        shorter, longer = sorted(picture.size)
        side, other = self._resized[0], int(self._resized[0] * longer / shorter)
        return (side, other) if picture.width > picture.height else (other, side)

    def _middle(self, picture: Image.Image, height: int, width: int) -> Image.Image:
        top, left = (round((whole - side) / 2) for whole, side in zip((height, width), self._sides, strict=True))
        down, across = picture.height / height, picture.width / width
        right, bottom = (left + self._sides[1]) * across, (top + self._sides[0]) * down
        box = (left * across, top * down, min(right, picture.width), min(bottom, picture.height))
        return picture.resize((self._sides[1], self._sides[0]), self._resample, box=box)


class _Part(NamedTuple):
    """A rectangle in pixels of a picture, which may reach beyond it."""

    left: float
    top: float
    width: float
    height: float

    def inside(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what it shares with a picture."""
        right, bottom = min(self.left + self.width, width), min(self.top + self.height, height)
        return max(self.left, 0.0), max(self.top, 0.0), right, bottom


class RandomPart:
    """A random crop of the picture as ``squash`` or ``pad`` shows it whole.

    The crop is drawn as timm draws it (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842), relative to the input's
    aspect, and resized in one step: nothing larger than the input is made. What a crop shows of the picture itself,
    without the border, is at least the smallest share: else it is drawn again, at most 10 times, and then the whole
    is shown.

    Args:
        preprocessing: of the backbone; its ``crop_mode`` is ``squash`` or ``border``.
        scale: smallest and largest share of the area in a crop.
        ratio: smallest and largest aspect ratio of a crop, where 1 is the input's.
    """

    def __init__(self, preprocessing: Preprocessing, scale: Sequence[float], ratio: Sequence[float]) -> None:
        _, self._height, self._width = preprocessing.size
        self._padded = preprocessing.crop_mode == "border"
        self._color = tuple(round(255 * value) for value in rgb_mean(preprocessing))
        self._resample = _timm.str_to_pil_interp(preprocessing.interpolation)
        self._scale, self._ratio = tuple(scale), tuple(ratio)

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The crop, ``RGB`` of the input's size; random choices come from Python's global generator."""
        box, (left, top, right, bottom) = self.draw(picture.width, picture.height)
        seen = picture.resize((right - left, bottom - top), self._resample, box=box)
        if seen.size == (self._width, self._height):
            return seen
        canvas = Image.new("RGB", (self._width, self._height), self._color)
        canvas.paste(seen, (left, top))
        return canvas

    def draw(self, width: int, height: int) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
        """What a crop shows of a picture, and where it lies in the input: left, top, right and bottom of both.

        Args:
            width: of the picture in pixels.
            height: of the picture in pixels.
        """
        part = self._drawn(width, height)
        left, top, right, bottom = part.inside(width, height)
        across = _span((left - part.left) / part.width, (right - part.left) / part.width, self._width)
        down = _span((top - part.top) / part.height, (bottom - part.top) / part.height, self._height)
        return (left, top, right, bottom), (across[0], down[0], across[1], down[1])

    def _drawn(self, width: int, height: int) -> _Part:
        whole = self._whole(width, height)
        least = 0.99 * self._scale[0] * width * height  # the grid rounds
        for _ in range(_DRAWS):
            part = self._draw(whole)
            left, top, right, bottom = part.inside(width, height)
            if max(0.0, right - left) * max(0.0, bottom - top) >= least:
                return part
        return whole

    def _whole(self, width: int, height: int) -> _Part:
        if not self._padded:
            return _Part(0.0, 0.0, width, height)
        unit = max(width / self._width, height / self._height)
        across, down = unit * self._width, unit * self._height
        return _Part((width - across) / 2, (height - down) / 2, across, down)

    def _draw(self, whole: _Part) -> _Part:
        square = torch.empty(1).expand(1, _GRID, _GRID)  # has a shape, and takes no memory
        drawn = _timm.RandomResizedCropAndInterpolation.get_params(square, self._scale, self._ratio)
        top, left, height, width = (value / _GRID for value in drawn)
        return _Part(
            whole.left + left * whole.width,
            whole.top + top * whole.height,
            width * whole.width,
            height * whole.height,
        )


def _span(start: float, end: float, length: int) -> tuple[int, int]:
    """From shares of a side to pixels, at least one."""
    first = min(round(start * length), length - 1)
    return first, min(length, max(first + 1, round(end * length)))
