"""scikit-learn's handwritten digits: always there, no network."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from frostline.data.base import ImageData
from frostline.data.splits import ImageSplit, Keys, LabelledSet, Labels


class ArraySplit(ImageSplit):
    """Pictures in memory.

    Args:
        pixels: ``[N, H, W]`` gray or ``[N, H, W, 3]`` RGB values, uint8.
        labels: ``[N]`` int64 class indices.
        prefix: of the names, which are ``prefix/0000`` and so on.
    """

    def __init__(self, pixels: npt.NDArray[np.uint8], labels: Labels, prefix: str) -> None:
        self._pixels = pixels
        self._prefix = prefix
        self.labels = labels

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        return f"{self._prefix}/{index:04d}"

    def content(self, index: int) -> bytes:
        """The picture's shape and its pixels."""
        pixels = self._pixels[index]
        stored: bytes = repr(pixels.shape).encode() + pixels.tobytes()
        return stored


class DigitsSplit(ArraySplit):
    """The digits of scikit-learn, which never change: a picture's number says what it is.

    The weights that Frostline ships were pre-trained on ``train`` as this order divides it.
    """

    def order_keys(self) -> Keys:
        """The names."""
        return np.array([self.name(index).encode() for index in range(len(self))])


@dataclass(kw_only=True, eq=False, repr=False)
class DigitsData(ImageData):
    """1797 gray pictures of 8x8 pixels in 10 classes (Alpaydin and Kaynak 1998, as ``sklearn.datasets.load_digits``).

    The transform brings them to the backbone's input size. With the fractions as given here they fall into 1259
    pictures for ``train`` and 269 each for ``val`` and ``test``, whatever ``split_seed`` is: of every class 15 %, 26
    or 27 pictures, for each. Which ones depends on ``split_seed`` and the picture's number in scikit-learn alone.
    """

    in_memory: ClassVar[bool] = True

    size: int | None = 32
    test_fraction: float = 0.15

    def read(self) -> LabelledSet:
        """All pictures as ``train``."""
        rows = _rows()
        pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255.0 / 16.0)).astype(np.uint8)
        everything: ImageSplit = DigitsSplit(pixels, rows[:, -1].astype(np.int64), "digits")
        return LabelledSet(tuple(str(digit) for digit in range(10)), {"train": everything})


def _rows() -> npt.NDArray[np.float64]:
    """``[1797, 65]``: 64 values from 0 to 16, and the digit.

    From scikit-learn's file: importing scikit-learn takes longer than all else between the imports and a first step.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        return np.loadtxt(file, delimiter=",")
