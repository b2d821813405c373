"""Small pictures for pages, and the heat of a map laid over what a model saw."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

_TINY = 40  # pixels
_QUALITY = 78


def thumbnail(picture: Image.Image, side: int) -> bytes:
    """A JPEG of a picture whose longer side has ``side`` pixels at most; a tiny one is enlarged pixel by pixel.

    Args:
        picture: ``RGB`` or ``L``; it may be changed.
        side: in pixels, 80 at least.
    """
    if max(picture.size) <= _TINY:
        # its pixels are to be seen, not what a browser makes of them
        factor = side // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def heated(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32], side: int) -> bytes:
    """A JPEG of a picture under a map: as it is where the map is 0, bright yellow where it is 1.

    Args:
        pixels: ``[H, W, 3]``.
        heat: ``[h, w]``, 0..1.
        side: of the JPEG, in pixels.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), np.float32)
    spread = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colors = np.asarray(matplotlib.colormaps["inferno"](spread))[..., :3] * 255
    share = 0.75 * spread[..., None]
    # gray below, so that the color is that of the map alone
    gray = shown.mean(axis=2, keepdims=True) * 0.85
    mixed = (gray * (1 - share) + colors * share).round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(mixed).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
