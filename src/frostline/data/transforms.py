"""From a picture to a model's input, as timm does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor, tensor
from torchvision import transforms
from torchvision.transforms import functional

from frostline.data.geometry import Step, evaluation_geometry
from frostline.errors import ConfigError
from frostline.types import Preprocessing

ImageTransform = Callable[[Image.Image], Tensor]
"""Takes an ``RGB`` picture, gives a normalized ``[C, H, W]`` float32 tensor."""


def evaluation_transform(preprocessing: Preprocessing, more: Sequence[Step] = ()) -> ImageTransform:
    """Resize so that the crop keeps ``crop_pct`` of it, crop, scale to 0..1, normalize: equal to timm's own.

    Args:
        preprocessing: what the backbone was pre-trained with, at the size of this run.
        more: steps after resize and crop, from ``RGB`` picture to picture.

    Returns:
        A function of a picture that gives ``[C, H, W]`` float32.
    """
    transform: ImageTransform = transforms.Compose(
        [*evaluation_geometry(preprocessing), *more, *to_input(preprocessing)]
    )
    return transform


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
