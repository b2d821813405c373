"""The pictures of a split, and views of it."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from frostline.data.decoding import Reduction
from frostline.data.digests import Digests, digests_of

Labels = npt.NDArray[np.int64]
Keys = npt.NDArray[np.bytes_]


class ImageSplit(ABC):
    """The labelled pictures of one split; a picture is decoded when it is asked for.

    A subclass sets `labels` and implements `image` and `name`. The other methods say more of pictures that lie in
    files: with them, digests are taken from the files and kept, and the audit sees how the pictures are stored.

    Attributes:
        encoded: whether `content` is a picture file as it is stored, and not pixels.
        labels: ``[N]`` int64 class indices.
        groups: ``[N]`` int64 numbers, equal for pictures that belong together, such as those of one patient, over all
            splits of the data set; None where nothing is known.
    """

    encoded: bool = False
    labels: Labels
    groups: Labels | None = None
    _digests: Digests | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The picture in ``RGB``, turned as its EXIF says.

        Raises:
            DataError: it cannot be read; the message names it.
        """

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """The picture, or a smaller one that is read in less time, with its sides rounded up.

        A subclass that can make a smaller one asks how much smaller it may be, before it decodes.

        Args:
            index: of the picture.
            reduction: takes width and height of the picture.

        Raises:
            DataError: as `image`.
        """
        return self.image(index)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the picture; where it can be, from its header alone.

        Raises:
            DataError: as `image`.
        """
        return self.image(index).size

    @abstractmethod
    def name(self, index: int) -> str:
        """What identifies the picture in the data set: its path relative to the root, or such as ``digits/0123``."""

    def content(self, index: int) -> bytes:
        """The picture as it is stored: its encoded file; where there is none, its size and its pixels.

        Raises:
            DataError: it cannot be read.
        """
        picture = self.image(index)
        return struct.pack(">II", *picture.size) + picture.mode.encode() + picture.tobytes()

    def stamp(self, index: int) -> str | None:
        """What changes when the content does and is cheap to get: path, size and times of a file.

        None where nothing is cheap, or the file is not there: the content is then read whenever it matters.
        """
        return None

    def path(self, index: int) -> Path | None:
        """The picture's own file; None where it has none."""
        return None

    def digests(self) -> Digests:
        """``[N]`` BLAKE2b-128 of `content` in hexadecimal, as ``S32``; read once, see `frostline.data.digests`."""
        if self._digests is None:
            self._digests = digests_of(self)
        return self._digests

    def is_known_by_content(self) -> bool:
        """Whether pictures of one `content` are one picture.

        A class that changes the picture and leaves `content` to the class that it is made of may show two parts of one
        file.
        """

        def maker(name: str) -> type:
            return next(kind for kind in type(self).__mro__ if name in vars(kind))

        content, image, reduced = map(maker, ("content", "image", "reduced"))
        # these two of this class go by the picture
        content = image if content is ImageSplit else content
        return issubclass(content, image) and (reduced is ImageSplit or issubclass(content, reduced))

    def _is_read(self) -> bool:
        """Whether the digests are at hand."""
        return self._digests is not None

    def order_keys(self) -> Keys:
        """``[N]`` byte strings that splits and the order of training are a function of: what the pictures are."""
        return self.digests()


@dataclass
class LabelledSet:
    """What a source found.

    Attributes:
        classes: class names; a label is an index into them.
        splits: ``train``, and ``val`` and ``test`` where the source has them.
        notes: sentences that the person who starts a run should read.
    """

    classes: tuple[str, ...]
    splits: dict[str, ImageSplit]
    notes: list[str] = field(default_factory=list)


class SplitView(ImageSplit):
    """Some pictures of another split.

    Args:
        source: the split that is looked at.
        positions: ``[N]`` int64 indices into ``source``.
    """

    _source: ImageSplit
    _positions: Labels

    def __init__(self, source: ImageSplit, positions: Labels) -> None:
        if isinstance(source, SplitView):
            positions = source._positions[positions]
            source = source._source
        self._source, self._positions = source, positions
        self.encoded = source.encoded
        self.labels = source.labels[positions]
        self.groups = None if source.groups is None else source.groups[positions]

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return self._source.image(int(self._positions[index]))

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        return self._source.reduced(int(self._positions[index]), reduction)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSplit.size`."""
        return self._source.size(int(self._positions[index]))

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        return self._source.name(int(self._positions[index]))

    def content(self, index: int) -> bytes:
        """See `ImageSplit.content`."""
        return self._source.content(int(self._positions[index]))

    def stamp(self, index: int) -> str | None:
        """See `ImageSplit.stamp`."""
        return self._source.stamp(int(self._positions[index]))

    def path(self, index: int) -> Path | None:
        """See `ImageSplit.path`."""
        return self._source.path(int(self._positions[index]))

    def digests(self) -> Digests:
        """See `ImageSplit.digests`."""
        if not self._source._is_read() and len(self._positions) < len(self._source) // 2:
            return super().digests()  # the rest need not be read for these
        return self._source.digests()[self._positions]

    def is_known_by_content(self) -> bool:
        """See `ImageSplit.is_known_by_content`."""
        return self._source.is_known_by_content()

    def _is_read(self) -> bool:
        return self._digests is not None or self._source._is_read()

    def order_keys(self) -> Keys:
        """See `ImageSplit.order_keys`."""
        if type(self._source).order_keys is ImageSplit.order_keys:
            return self.digests()
        return self._source.order_keys()[self._positions]


class Joined(ImageSplit):
    """The pictures of several splits, one after the other.

    Args:
        parts: the splits; either all of them have groups or none.
    """

    def __init__(self, parts: Sequence[ImageSplit]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.encoded = all(part.encoded for part in parts)
        self.labels = np.concatenate([part.labels for part in parts])
        groups = [part.groups for part in parts if part.groups is not None]
        self.groups = np.concatenate(groups) if len(groups) == len(self._parts) else None

    def _at(self, index: int) -> tuple[ImageSplit, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        part, place = self._at(index)
        return part.image(place)

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        part, place = self._at(index)
        return part.reduced(place, reduction)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSplit.size`."""
        part, place = self._at(index)
        return part.size(place)

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        part, place = self._at(index)
        return part.name(place)

    def content(self, index: int) -> bytes:
        """See `ImageSplit.content`."""
        part, place = self._at(index)
        return part.content(place)

    def stamp(self, index: int) -> str | None:
        """See `ImageSplit.stamp`."""
        part, place = self._at(index)
        return part.stamp(place)

    def path(self, index: int) -> Path | None:
        """See `ImageSplit.path`."""
        part, place = self._at(index)
        return part.path(place)

    def digests(self) -> Digests:
        """See `ImageSplit.digests`."""
        return np.concatenate([part.digests() for part in self._parts])

    def is_known_by_content(self) -> bool:
        """See `ImageSplit.is_known_by_content`."""
        return all(part.is_known_by_content() for part in self._parts)

    def _is_read(self) -> bool:
        return all(part._is_read() for part in self._parts)

    def order_keys(self) -> Keys:
        """See `ImageSplit.order_keys`."""
        return np.concatenate([part.order_keys() for part in self._parts])


class NameTable(Sequence[str]):
    """Many names in one block of memory, so that worker processes share it instead of copying a million strings."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *(len(name) for name in encoded)], dtype=np.int64)
        self._text: npt.NDArray[np.uint8] = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of_text(cls, ends: npt.NDArray[Any], text: npt.NDArray[np.uint8]) -> NameTable:
        """A table over what is in memory already.

        Args:
            ends: ``[N + 1]`` integers: where each name starts in ``text``, and where the last one ends.
            text: the names in UTF-8, one after the other.
        """
        table = cls.__new__(cls)
        table._ends, table._text = ends, text
        return table

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not needed
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        return self._text[start:end].tobytes().decode("utf-8", "surrogateescape")


def by_class(labels: Labels) -> list[Labels]:
    """The positions of each class that occurs, in order of class index."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return list(np.split(order, starts)) if len(labels) else []
