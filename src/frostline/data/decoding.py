"""From a picture file to an 8-bit RGB picture that looks as its author saw it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from frostline.errors import DataError, StorageError

PIXEL_LIMIT = 178_956_970
"""Width times height above which a picture is refused: Pillow's own threshold for an error."""

FILE_LIMIT = 2**28
"""Bytes above which a picture file is refused: 256 MiB."""

Reduction = Callable[[int, int], int]
"""Takes width and height of a picture as its author saw it; gives 1, 2, 4 or 8: by how much it may be smaller."""

_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", *_NETPBM)
)
"""File name endings, in lower case, that make a file a picture."""

# Only these decoders see a file, whatever its name says: Pillow has others that start programs (EPS) or are rare.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_EXIF_FAULTS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
_TURNED = range(2, 9)
_TURNED_ASIDE = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
_BACKGROUND = (255, 255, 255)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# these say that the machine or its network fails, not the file: as a damaged file it would be left out of training
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)
# Pillow names a picture that is in memory by its address
_OBJECT = re.compile(r" <[\w.]+ object at 0x[0-9a-f]+>")
_opening = threading.Lock()


def open_picture(
    path: str | Path,
    pixel_limit: int = PIXEL_LIMIT,
    file_limit: int = FILE_LIMIT,
    reduction: Reduction | None = None,
) -> Image.Image:
    """Decodes a picture file.

    EXIF orientation is applied; CMYK is converted; transparent pixels are laid over white; 16-bit gray is scaled, not
    clipped; the first frame of several is taken. What Pillow warns of while it decodes is not shown.

    Args:
        path: the file; its content decides the format, not its name.
        pixel_limit: the largest allowed width times height. It is compared with the header before anything is decoded.
        file_limit: the largest allowed size of the file in bytes; a larger one is not opened.
        reduction: asked of a JPEG before it is decoded. The decoder makes the smaller picture at once, with sides
            rounded up, which takes a part of the time; other formats are decoded as they are.

    Returns:
        A loaded ``RGB`` picture.

    Raises:
        DataError: the file is missing, is no picture, is damaged or truncated, or is larger than a limit.
        StorageError: the machine cannot open any file at the moment, such as when too many are open.
    """
    with _faults_named(path):
        _check_file(path, file_limit)
        return _decoded(path, path, pixel_limit, reduction)


def decode_picture(
    content: bytes, name: str, pixel_limit: int = PIXEL_LIMIT, reduction: Reduction | None = None
) -> Image.Image:
    """As `open_picture`, of an encoded picture in memory.

    Args:
        content: a file's bytes.
        name: of the picture, for messages.
        pixel_limit: see `open_picture`.
        reduction: see `open_picture`.

    Returns:
        A loaded ``RGB`` picture.

    Raises:
        DataError: it is no picture, is damaged or truncated, or is larger than the limit.
    """
    with _faults_named(name):
        return _decoded(io.BytesIO(content), name, pixel_limit, reduction)


def picture_size(
    source: Path | bytes, name: str, pixel_limit: int = PIXEL_LIMIT, file_limit: int = FILE_LIMIT
) -> tuple[int, int]:
    """Width and height of a picture as its author saw it, from its header; decodes nothing.

    Args:
        source: a file, or its bytes.
        name: of the picture, for messages.
        pixel_limit: see `open_picture`.
        file_limit: see `open_picture`.

    Raises:
        FrostlineError: as `open_picture`.
    """
    with _faults_named(name):
        if isinstance(source, Path):
            _check_file(source, file_limit)
        with _open_header(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _check_size(image, name, pixel_limit)
            turned = _orientation(image) in _TURNED_ASIDE
            return (image.height, image.width) if turned else (image.width, image.height)


def _decoded(
    source: str | Path | io.BytesIO, name: str | Path, pixel_limit: int, reduction: Reduction | None
) -> Image.Image:
    with _open_header(source) as image:
        _check_size(image, name, pixel_limit)
        if reduction is not None and isinstance(image, JpegImageFile):
            _reduce(image, reduction)
        picture = _turned(image)
    try:
        # to_rgb would copy it
        return picture if picture.mode == "RGB" and "transparency" not in picture.info else to_rgb(picture)
    except DataError as error:
        raise _unreadable(name, error.problem, error.mend) from error


@contextlib.contextmanager
def _faults_named(name: str | Path) -> Iterator[None]:
    """Turns whatever a decoder raises into an error that names the picture."""
    _mute_pillow()
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"The picture {name} does not exist.", mend="Check the path, or read the data anew.") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise StorageError(f"The picture {name} cannot be opened: {error.strerror}.") from error
        raise _unreadable(name, _OBJECT.sub("", str(error)) or type(error).__name__) from error


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


def _unreadable(path: str | Path, reason: str, mend: str | None = None) -> DataError:
    return DataError(
        f"The picture {path} cannot be read: {reason.rstrip('.')}.",
        mend=mend or "Repair the file, or remove it from the data set.",
    )


def _mute_pillow() -> None:
    # Pillow warns of what is wrong with a file, and often goes on to fail. Neither helps among the lines of a run. A
    # filter for the moment is not safe between threads, and lets all other warnings be shown anew at each picture.
    muted = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if muted not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_file(path: str | Path, file_limit: int) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device has no end
        raise _unreadable(path, "it is no regular file", "Remove it from the data set.")
    if found.st_size > file_limit:
        raise DataError(
            f"The picture {path} has {found.st_size} bytes, more than the limit of {file_limit}.",
            mend="Remove it, or raise data.file_limit if you trust the file.",
        )


def _open_header(source: str | Path | io.BytesIO) -> ImageFile:
    # Pillow's own limit is a global. It is lifted for the moment in which the header is read, so that the limit of
    # the caller decides, be it larger or smaller; decoding starts after the size was checked.
    with _opening:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: ImageFile, path: str | Path, pixel_limit: int) -> None:
    for what, (width, height) in {"": image.size, " in a tile": _tile_size(image)}.items():
        if width * height > pixel_limit:
            raise DataError(
                f"The picture {path} has {width} x {height} pixels{what}, more than the limit of {pixel_limit} in all.",
                mend="Remove it, or raise data.pixel_limit if you trust the file.",
            )


def _tile_size(image: ImageFile) -> tuple[int, int]:
    """Of a TIFF, whose tiles are decoded whole, however small the picture is."""
    if not isinstance(image, TiffImageFile):
        return 0, 0
    return int(image.tag_v2.get(_TILE_WIDTH, 0)), int(image.tag_v2.get(_TILE_HEIGHT, 0))


def _reduce(image: JpegImageFile, reduction: Reduction) -> None:
    """Has the decoder make a smaller picture."""
    orientation = _orientation(image)
    size = (image.height, image.width) if orientation in _TURNED_ASIDE else image.size
    by = reduction(*size)
    # the last pixels of a row and a column may lie partly outside; turned, they would be the first
    while by > 1 and orientation in _TURNED and (image.width % by or image.height % by):
        by //= 2
    if by > 1:
        image.draft(None, (max(1, image.width // by), max(1, image.height // by)))


def _orientation(image: ImageFile) -> int | None:
    """As EXIF has it, from the header alone; None where it is not told."""
    try:
        # a PNG's own getexif decodes all of it, which may be too much
        told: int | None = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except _EXIF_FAULTS:
        return None
    return told


def _turned(image: Image.Image) -> Image.Image:
    image.load()
    try:
        # exif_transpose would copy it
        if image.getexif().get(ExifTags.Base.Orientation) not in _TURNED:
            return image
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
