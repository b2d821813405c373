"""What a picture file says of itself before it is decoded, and whether all of it is there."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_GRAY = ("1", "L", "I;16", "I", "F")
_PNG, _GIF, _RIFF = b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF"
# bytes after a picture's last that still count as its end: some cameras and editors add to a file
_TAIL = 65536


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the pixels.

    Attributes:
        format: Pillow's name of it, such as ``JPEG``; empty where the picture is in no file.
        mode: ``gray``, ``color``, ``CMYK``, ``16 bit``, ``transparent`` or ``animated``; empty as above.
        orientation: EXIF's 1 to 8; 1 is upright.
    """

    format: str = ""
    mode: str = ""
    orientation: int = 1


def read_header(content: bytes) -> Header:
    """The header of an encoded picture; an empty one where it cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return Header(image.format or "", _mode(image), _orientation(image))
    except Exception:  # decoders raise nearly anything on a damaged file; whoever decodes it says why
        return Header()


def _mode(image: Image.Image) -> str:
    if image.mode == "CMYK":
        return "CMYK"
    if "16" in image.mode or image.mode in ("I", "F") or any("16" in str(tile[-1]) for tile in _tiles(image)):
        return "16 bit"
    if getattr(image, "is_animated", False):
        return "animated"
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        return "transparent"
    return "gray" if image.mode in _GRAY else "color"


def _tiles(image: Image.Image) -> list[tuple[object, ...]]:
    # a PNG of 16 bits per color is opened as RGB; only the instruction to its decoder tells
    return [tuple(tile) for tile in getattr(image, "tile", [])] if image.format == "PNG" else []


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing
        return 1
    return value if 1 <= value <= 8 else 1


def ends_early(content: bytes) -> bool:
    """Whether a file begins as a picture and stops before the end that its format has."""
    if content.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in content[-_TAIL:]
    if content.startswith(_PNG):
        return b"IEND" not in content[-_TAIL:]
    if content.startswith(_GIF):
        return b";" not in content[-2:]
    if content.startswith(_RIFF) and len(content) >= 12:
        return bool(struct.unpack("<I", content[4:8])[0] + 8 > len(content))
    if content.startswith(b"BM") and len(content) >= 6:
        return bool(struct.unpack("<I", content[2:6])[0] > len(content))
    return False


def gray_below(picture: Image.Image) -> int:
    """The number of rows at the bottom that are the one gray a JPEG decoder fills what is missing with.

    Args:
        picture: ``RGB``.
    """
    if picture.getpixel((0, picture.height - 1)) != (128, 128, 128):
        return 0
    rows = np.asarray(picture)
    filled = (rows == 128).all(axis=(1, 2))
    return int(picture.height if filled.all() else np.argmin(filled[::-1]))
