"""Transforms that a config names, of whatever library, as steps between crop and normalization."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from frostline.data.geometry import Step
from frostline.data.randomness import kept_generators, seed_generators
from frostline.data.transforms import to_input
from frostline.errors import ConfigError, FrostlineError
from frostline.types import Preprocessing


def as_step(transform: Step) -> Step:
    """A transform of albumentations as a function of a picture; every other one as it is."""
    # by name, so that nothing is imported that is not there
    modules = (kind.__module__.partition(".")[0] for kind in type(transform).__mro__)
    return AlbumentationsStep(transform) if "albumentations" in modules else transform


class AlbumentationsStep:
    """A transform of albumentations, which takes arrays and draws from generators of its own.

    They are made anew for each picture from torch's global generator, which is seeded for each picture.

    Args:
        transform: a transform or a composition of them.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, picture: Image.Image | Tensor) -> Image.Image | Tensor:
        """A picture, or the tensor that a transform such as ``ToTensorV2`` gives.

        Raises:
            ConfigError: the transform gives other numbers than 8-bit pixels.
        """
        self._seed(int(torch.randint(2**32, ())))
        result = self.transform(image=_as_array(picture))["image"]
        return result if isinstance(result, Tensor) else self._as_picture(result)

    def _seed(self, seed: int) -> None:
        # a composition hands one seed on to all that it holds, and two flips would always be drawn alike; of a
        # generator they draw in turn
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        else:
            self.transform.set_random_seed(seed)

    def _as_picture(self, pixels: npt.NDArray[Any]) -> Image.Image:
        if pixels.dtype != np.uint8:
            raise ConfigError(
                f"{type(self.transform).__name__} gives pixels of {pixels.dtype}, where 8-bit ones are wanted",
                mend="Leave out what scales or normalizes: the backbone's own normalization comes after.",
            )
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")


def _as_array(picture: Image.Image | Tensor) -> npt.NDArray[Any]:
    """``[H, W, C]``, and not the memory of the picture itself."""
    return np.array(picture) if isinstance(picture, Image.Image) else picture.permute(1, 2, 0).numpy().copy()


def check_steps(steps: Sequence[Step], key: str, preprocessing: Preprocessing) -> None:
    """Try a picture of noise, so that what a worker would stumble over is known before the first step.

    Args:
        steps: that a person has named.
        key: of the config, for the message.
        preprocessing: of the backbone.

    Raises:
        ConfigError: a step refuses the picture, or the last one gives something that is no input of the backbone.
    """
    channels, height, width = preprocessing.size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture: Any = Image.fromarray(noise)
    final = to_input(preprocessing)
    with kept_generators():
        seed_generators(0)
        for number, step in enumerate([*steps, *final]):
            own = number < len(steps)
            try:
                picture = step(picture)
            except Exception as error:  # a transform may refuse in any way
                where = f"{key}[{number}] ({title(step)})" if own else f"What {key} gives"
                reason = error.problem if isinstance(error, FrostlineError) else str(error) or type(error).__name__
                refused = "fails on" if own else "cannot become an input, as seen with"
                raise ConfigError(
                    f"{where} {refused} an RGB picture of {width} x {height} pixels: {reason}",
                    mend=f"Look at the keys of {key}.",
                ) from error
    if tuple(picture.shape) != (channels, height, width):
        shown = " x ".join(map(str, picture.shape))
        raise ConfigError(
            f"{key} makes an input of {shown}, where the backbone takes {channels} x {height} x {width}",
            mend="They come after resize and crop: leave out what changes the size or the number of channels.",
        )


def title(step: Step) -> str:
    """The name of a step's class or function."""
    named = step.transform if isinstance(step, AlbumentationsStep) else step
    return str(getattr(named, "__name__", type(named).__name__))
