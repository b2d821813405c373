"""Numbers and a thumbnail of one picture, from its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMB, TINT = 32, 8
# measured at this size and below 2 x it: sharper than a network's input is no matter, and it costs
_SIDE = 512
# below it there are too few pixels to tell a blur from a small picture
_SMALLEST = 24

Gray = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured of a picture; brightness is 0..255.

    Attributes:
        pixels: BLAKE2b-128 of size and pixels, in hexadecimal.
        mean, contrast: mean and standard deviation of the brightness.
        p1, p5, p50, p95, p99: percentiles of the brightness.
        entropy: of the histogram of the brightness, in bits.
        sharpness: see `sharpness`; NaN of a picture that is too small.
        colorless: whether red, green and blue are equal, but for what compression adds.
        thumb: ``[32, 32]`` uint8 brightness.
        tint: ``[8, 8, 2]`` uint8 blue and red differences (Cb, Cr).
    """

    pixels: bytes
    mean: float
    contrast: float
    p1: float
    p5: float
    p50: float
    p95: float
    p99: float
    entropy: float
    sharpness: float
    colorless: bool
    thumb: Bytes
    tint: Bytes


def measure(picture: Image.Image) -> Measures:
    """Measures a picture.

    Args:
        picture: ``RGB``.
    """
    digest = hashlib.blake2b(f"{picture.width} {picture.height} ".encode(), digest_size=16)
    digest.update(picture.tobytes())
    factor = max(1, max(picture.size) // _SIDE)
    small = picture.reduce(factor) if factor > 1 else picture
    gray = small.convert("L")
    counts = np.array(gray.histogram(), dtype=np.float64)
    shares = counts / counts.sum()
    levels = np.arange(256)
    mean = float(shares @ levels)
    p1, p5, p50, p95, p99 = np.searchsorted(np.cumsum(shares), (0.01, 0.05, 0.5, 0.95, 0.99)).tolist()
    present = shares[shares > 0]
    tiny = small.resize((THUMB, THUMB), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return Measures(
        pixels=digest.hexdigest().encode(),
        mean=mean,
        contrast=float(np.sqrt(shares @ (levels - mean) ** 2)),
        p1=p1,
        p5=p5,
        p50=p50,
        p95=p95,
        p99=p99,
        entropy=float(-(present @ np.log2(present))),
        sharpness=sharpness(np.asarray(gray, dtype=np.float32), p99 - p1),
        colorless=_colorless(small),
        thumb=np.asarray(tiny.convert("L")),
        tint=np.asarray(tiny.convert("YCbCr").resize((TINT, TINT), Image.Resampling.BOX))[:, :, 1:],
    )


def sharpness(gray: Gray, spread: float) -> float:
    """How steep the steepest places of a picture are, for its contrast.

    The 99.5th percentile of the difference between a pixel and its surroundings (binomial, 3 x 3), divided by the
    spread of the brightness. A picture with a smooth background and one sharp edge is sharp.

    Args:
        gray: ``[H, W]`` brightness.
        spread: between the 1st and the 99th percentile.
    """
    if min(gray.shape) < _SMALLEST:
        return float("nan")
    rows = gray[:-2] + 2 * gray[1:-1] + gray[2:]
    around = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    fine = np.abs(gray[1:-1, 1:-1] - around).ravel()
    place = int(0.995 * (len(fine) - 1))
    return float(np.partition(fine, place)[place] / (spread + 8.0))


def _colorless(picture: Image.Image) -> bool:
    # the middle rows first: they tell of nearly every picture with color that it has some
    middle = np.asarray(picture.crop((0, picture.height // 2, picture.width, picture.height // 2 + 1)))
    return _is_gray(middle) and _is_gray(np.asarray(picture))


def _is_gray(rgb: Bytes) -> bool:
    values = rgb.astype(np.int16)
    return bool(np.abs(values - values[:, :, 1:2]).max() <= 2)
