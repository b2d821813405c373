"""From a picture file to an 8-bit RGB picture that looks as its author saw it."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from frostline.errors import DataError

PIXEL_LIMIT = 178_956_970
"""Width times height above which a picture is refused: Pillow's own threshold for an error."""

_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", *_NETPBM)
)
"""File name endings, in lower case, that make a file a picture."""

# Only these decoders see a file, whatever its name says: Pillow has others that start programs (EPS) or are rare.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_EXIF_FAULTS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
_BACKGROUND = (255, 255, 255)
_opening = threading.Lock()


def open_picture(path: str | Path, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Decodes a picture file.

    EXIF orientation is applied; CMYK is converted; transparent pixels are laid over white; 16-bit gray is scaled, not
    clipped; the first frame of several is taken.

    Args:
        path: the file; its content decides the format, not its name.
        pixel_limit: the largest allowed width times height. It is compared with the header before anything is decoded.

    Returns:
        A loaded ``RGB`` picture.

    Raises:
        DataError: the file is missing, is no picture, is damaged or truncated, or is larger than the limit.
    """
    try:
        with _open_header(path) as image:
            _check_size(image, path, pixel_limit)
            return to_rgb(_turned(image))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"The picture {path} does not exist.", mend="Check the path, or read the data anew.") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise DataError(
            f"The picture {path} cannot be read: {error or type(error).__name__}.",
            mend="Repair the file, or remove it from the data set.",
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any Pillow mode to ``RGB``; transparent pixels are laid over white.

    Raises:
        DataError: the pixels are 32-bit numbers of unknown range.
    """
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _scaled_to_8_bits(image)
    elif image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _open_header(path: str | Path) -> ImageFile:
    # Pillow's own limit is a global. It is lifted for the moment in which the header is read, so that the limit of
    # the caller decides, be it larger or smaller; decoding starts after the size was checked.
    with _opening:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Image.Image, path: str | Path, pixel_limit: int) -> None:
    width, height = image.size
    if width * height > pixel_limit:
        raise DataError(
            f"The picture {path} has {width} x {height} pixels, more than the limit of {pixel_limit} in all.",
            mend="Remove it, or raise data.pixel_limit if you trust the file.",
        )


def _turned(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _EXIF_FAULTS:  # a damaged EXIF block says nothing about the pixels
        return image


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    top = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0.0 and high <= top):
        raise DataError(
            f"its 32-bit values go from {low:g} to {high:g}, where 0 to {top:g} can be scaled to a picture.",
            mend="Save it with 8 or 16 bits per channel.",
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))
