"""How a finished run labels pictures that it has not seen: as its ``evaluate`` does, and calibrated if wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, ImageOps

from frostline.backbones import SavedModel
from frostline.config import load_config
from frostline.data import ImageSplit, open_picture, to_rgb
from frostline.data.decoding import Reduction
from frostline.errors import ConfigError
from frostline.evaluation import Labeller
from frostline.runs.folder import RunFolder
from frostline.runs.parts import takes_channels_last
from frostline.runs.scoring import temperature_of
from frostline.specs import SpeedSpec

PRECISIONS = ("32-true", "bf16-mixed")


def labeller_of(
    folder: RunFolder,
    saved: SavedModel,
    *,
    device: torch.device,
    batch_size: int | None = None,
    calibrated: bool = True,
    precision: str = "32-true",
) -> Labeller:
    """What labels pictures for a run.

    Of the run's config three plain values are read, and nothing that it names is built: ``data.decode``,
    ``data.batch_size`` and ``speed.channels_last``.

    Args:
        folder: of the run.
        saved: its model.
        device: where it runs.
        batch_size: None keeps the run's.
        calibrated: divide the logits by the run's temperature, where it has one.
        precision: ``32-true`` or ``bf16-mixed``.

    Raises:
        ConfigError: a value is none of these, here or in the run's config.
        StorageError: the run's temperature is damaged.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}.", mend="Give a whole number of at least 1.")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision} is not known", mend=f"Give {' or '.join(PRECISIONS)}.")
    own = _own_values(folder)
    return Labeller(
        saved.model,
        tuple(saved.labels),
        saved.preprocessing,
        exact=own["data.decode"] == "exact",
        temperature=temperature_of(folder) if calibrated else 1.0,
        channels_last=takes_channels_last(SpeedSpec(channels_last=own["speed.channels_last"]), saved.model),
        bfloat16=precision == "bf16-mixed",
        batch_size=batch_size or own["data.batch_size"],
        device=device,
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# with what a run has that does not say it
_OWN: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "data.decode": ("fast", lambda value: value in ("fast", "exact")),
    "data.batch_size": (64, _is_size),
    "speed.channels_last": (None, lambda value: value is None or isinstance(value, bool)),
}


def _own_values(folder: RunFolder) -> dict[str, Any]:
    config = load_config(folder.config)
    found = {}
    for key, (default, fits) in _OWN.items():
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key} of {folder.config} cannot be read: {str(error).splitlines()[0]}") from error
        found[key] = default if value is None else value
        if not fits(found[key]):
            raise ConfigError(f"{key} of {folder.config} is no such value", mend="Put back the run's own config.")
    return found


class GivenPictures(ImageSplit):
    """Pictures of a program: opened ones, and paths.

    Args:
        pictures: in order.
    """

    def __init__(self, pictures: Sequence[Image.Image | str | Path]) -> None:
        self._pictures = pictures
        self.labels = np.zeros(len(pictures), np.int64)

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return self.reduced(index, lambda width, height: 1)

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        picture = self._pictures[index]
        if isinstance(picture, str | Path):
            return open_picture(picture, reduction=reduction)
        return to_rgb(ImageOps.exif_transpose(picture))

    def name(self, index: int) -> str:
        """The path, or the position."""
        picture = self._pictures[index]
        return str(picture) if isinstance(picture, str | Path) else f"picture {index}"
