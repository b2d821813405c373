"""From a picture to a model's input, as timm does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, tensor
from torchvision import transforms
from torchvision.transforms import functional

from frostline.data.frames import Frame, FrameOf, evaluation_frame
from frostline.data.geometry import Step, evaluation_geometry
from frostline.data.scaling import Pixels, as_picture, as_pixels, framed
from frostline.errors import ConfigError
from frostline.types import Preprocessing

ImageTransform = Callable[[Image.Image], Tensor]
"""Takes an ``RGB`` picture, gives a normalized ``[C, H, W]`` float32 tensor."""


class Normalization:
    """From 8-bit pixels to a model's input: to 0..1, less the mean, by the deviation; equal to torchvision's.

    Args:
        preprocessing: what the backbone was pre-trained with.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        channels = preprocessing.size[0]
        self._mean, self._std = (
            tensor(_per_channel(values, channels)).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalizes on the device of the pixels.

        Args:
            pixels: ``[B, C, H, W]`` uint8, left as they are.

        Returns:
            ``[B, C, H, W]`` float32.
        """
        if pixels.device.type != "cpu":
            return self._in_place(pixels.float())
        # one picture at a time stays in the processor's cache
        images = torch.empty(pixels.shape, dtype=torch.float32)
        for image, one in zip(images, pixels, strict=True):
            self._in_place(image.copy_(one))
        return images

    def _in_place(self, images: Tensor) -> Tensor:
        mean, std = (values.to(images.device, non_blocking=True) for values in (self._mean, self._std))
        return images.div_(255).sub_(mean).div_(std)


class PictureTransform:
    """What becomes of a picture: a part of it is resized to the input, changed, normalized.

    Args:
        preprocessing: what the backbone was pre-trained with, at the size of this run.
        frame_of: chooses the part from the picture's size; None where ``geometry`` makes it of the whole picture.
        steps: from ``RGB`` picture to picture, after that.
        later: from normalized tensor to tensor, at the end.
        geometry: from ``RGB`` picture to the part that is shown, where there is no ``frame_of``.
        own: whether some of ``steps`` are a person's own, which may give something else than a picture.

    Raises:
        ConfigError: the model takes neither one nor three channels.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        frame_of: FrameOf | None,
        steps: Sequence[Step] = (),
        later: Sequence[Step] = (),
        *,
        geometry: Sequence[Step] = (),
        own: bool = False,
    ) -> None:
        self.frame_of = frame_of
        self.interpolation = preprocessing.interpolation
        self.size = preprocessing.size[1:]
        self.geometry = list(geometry)
        self._steps = list(steps)
        self._to_input = to_input(preprocessing)
        self._later = list(later)
        self._own = own
        self._gray = preprocessing.size[0] == 1
        self.normalization = Normalization(preprocessing)

    @property
    def in_8_bits(self) -> bool:
        """Whether all that comes after `pixels` is the normalization, which a whole batch can have at once."""
        return not self._own and not self._later

    def __call__(self, picture: Image.Image) -> Tensor:
        """``[C, H, W]`` float32, normalized, of an ``RGB`` picture."""
        return Look(self).input(picture)

    def changed(self, seen: Tensor | Image.Image) -> Any:
        """What the steps make of the part that is shown: a picture, or what a person's own step gives."""
        if isinstance(seen, Tensor) and (self._steps or self._gray):
            seen = as_picture(seen)
        for step in self._steps:
            seen = step(seen)
        return seen

    def pixels(self, seen: Tensor | Image.Image) -> Tensor:
        """``[C, H, W]`` uint8, not normalized, of the part that is shown; only where all is `in_8_bits`."""
        changed: Image.Image | Tensor = self.changed(seen)
        if isinstance(changed, Tensor):
            return changed
        return as_pixels(changed.convert("L") if self._gray else changed)

    def input(self, seen: Tensor | Image.Image) -> Tensor:
        """``[C, H, W]`` float32, normalized, of the part that is shown."""
        if self.in_8_bits:
            return self.normalization(self.pixels(seen)[None])[0]
        changed: Tensor = self.changed(seen)
        for step in [*self._to_input, *self._later]:
            changed = step(changed)
        return changed


class Look:
    """One picture on its way through a transform, whose part may be chosen before it is decoded.

    Args:
        transform: of the picture.
        begin: called before anything random is drawn.
    """

    def __init__(self, transform: PictureTransform, begin: Callable[[], None] = lambda: None) -> None:
        self._transform = transform
        self._begin = begin
        self._whole: tuple[int, int] | None = None
        self._frame: Frame | None = None

    def reduction(self, width: int, height: int) -> int:
        """See `frostline.data.decoding.Reduction`; chooses the part that is shown."""
        self._place(width, height)
        return 1 if self._frame is None else self._frame.reduction()

    def shown(self, picture: Image.Image | Pixels, whole: tuple[int, int] | None = None) -> Tensor | Image.Image:
        """The part that is shown, as large as the input, ``[3, H, W]`` uint8 or ``RGB``.

        Args:
            picture: the picture, or the smaller one that was made of it.
            whole: width and height of the picture, where `reduction` was not asked; None is as large as given.
        """
        if self._whole is None:
            size = picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])
            self._place(*(whole or size))
        assert self._whole is not None
        if self._frame is not None:
            return framed(picture, self._whole, self._frame, self._transform.interpolation)
        shown: Any = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        for step in self._transform.geometry:
            shown = step(shown)
        return cast(Image.Image, shown)

    def skip(self) -> None:
        """Goes on with what was shown before, and was kept."""
        self._begin()

    def input(self, picture: Image.Image | Pixels) -> Tensor:
        """``[C, H, W]`` float32, normalized."""
        return self._transform.input(self.shown(picture))

    def _place(self, width: int, height: int) -> None:
        self._begin()
        self._whole = width, height
        self._frame = None if self._transform.frame_of is None else self._transform.frame_of(width, height)


def evaluation_transform(
    preprocessing: Preprocessing, more: Sequence[Step] = (), *, exact: bool = False
) -> PictureTransform:
    """Resize so that the crop keeps ``crop_pct`` of it, crop, scale to 0..1, normalize: as timm's own.

    Args:
        preprocessing: what the backbone was pre-trained with, at the size of this run.
        more: steps after resize and crop, from ``RGB`` picture to picture.
        exact: equal to timm's own, bit for bit; else mostly equal and within two of 255 levels, in less time.

    Returns:
        A function of a picture that gives ``[C, H, W]`` float32.
    """
    if exact:
        return PictureTransform(preprocessing, None, more, geometry=evaluation_geometry(preprocessing), own=bool(more))
    return PictureTransform(preprocessing, evaluation_frame(preprocessing), more, own=bool(more))


def to_input(preprocessing: Preprocessing) -> list[Step]:
    """The last steps of every transform: gray where the model has one channel, a 0..1 tensor, normalized.

    Raises:
        ConfigError: the model takes neither one nor three channels.
    """
    channels = preprocessing.size[0]
    if channels not in (1, 3):
        raise ConfigError(
            f"The backbone takes {channels} channels, but pictures have 3, or 1 in gray.",
            mend="Set backbone.kwargs.in_chans to 3 or 1.",
        )
    gray: list[Step] = [transforms.Grayscale(1)] if channels == 1 else []
    mean, std = (_per_channel(values, channels) for values in (preprocessing.mean, preprocessing.std))
    return [*gray, _to_tensor, transforms.Normalize(tensor(mean), tensor(std))]


def _to_tensor(picture: Image.Image | Tensor) -> Tensor:
    """``[C, H, W]`` float32 from 0 to 1; a tensor, which only a user's transform makes, is scaled by its dtype."""
    convert = functional.convert_image_dtype if isinstance(picture, Tensor) else functional.to_tensor
    scaled: Tensor = convert(picture)
    return scaled


def _per_channel(statistic: Sequence[float], channels: int) -> list[float]:
    """The statistic of a gray picture is the mean over the colors; other counts are the backbone's own business."""
    return [sum(statistic) / len(statistic)] if channels == 1 else list(statistic)
