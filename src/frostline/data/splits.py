"""Splits of a data set, and how one is derived from another: stratified, seeded, and deaf to listing order."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.int64]


class ImageSplit(Protocol):
    """The labelled pictures of one split; a picture is decoded when it is asked for."""

    @property
    def labels(self) -> Labels:
        """``[N]`` int64 class indices."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The picture in ``RGB``, turned as its EXIF says.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        ...

    def name(self, index: int) -> str:
        """What identifies the picture in the data set: its path relative to the root, or such as ``digits/0123``."""
        ...

    def stamp(self, index: int) -> str:
        """What changes when the picture's content does and is cheap to get, such as the size of its file."""
        ...


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


class SplitView:
    """Some pictures of another split.

    Args:
        source: the split that is looked at.
        positions: ``[N]`` int64 indices into ``source``.
    """

    def __init__(self, source: ImageSplit, positions: Labels) -> None:
        self._source = source
        self._positions = positions
        self.labels: Labels = source.labels[positions]

    def __len__(self) -> int:
        return len(self._positions)

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return self._source.image(int(self._positions[index]))

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        return self._source.name(int(self._positions[index]))

    def stamp(self, index: int) -> str:
        """See `ImageSplit.stamp`."""
        return self._source.stamp(int(self._positions[index]))


class NameTable(Sequence[str]):
    """Many names in one block of memory, so that worker processes share it instead of copying a million strings."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *(len(name) for name in encoded)], dtype=np.int64)
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not needed
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        return self._text[start:end].tobytes().decode("utf-8", "surrogateescape")


def hash_order(split: ImageSplit, positions: Labels, *, seed: int, purpose: str) -> Labels:
    """``positions`` in an order that depends on (seed, purpose, picture name) alone."""

    def digest(position: np.int64) -> bytes:
        # one picture has one name on file systems that compose letters and on those that do not
        name = unicodedata.normalize("NFC", split.name(int(position)))
        text = f"{purpose}:{seed}:{name}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=16).digest()

    return np.array(sorted(positions, key=digest), dtype=np.int64)


def split_off(source: ImageSplit, shares: Mapping[str, float], *, seed: int) -> dict[str, ImageSplit]:
    """Derives splits from ``source``, class by class.

    Of a class of n pictures each split gets ``n * share``, rounded to the nearest and at least one, as long as one
    remains for ``train``.

    Args:
        source: the pictures to distribute.
        shares: share (0..1) per split, in the order in which they choose.
        seed: equal seeds give equal splits.

    Returns:
        A view per name in ``shares``, and the rest as ``train``.
    """
    chosen: dict[str, list[Labels]] = {"train": [], **{name: [] for name in shares}}
    for positions in by_class(source):
        order = hash_order(source, positions, seed=seed, purpose="split")
        total = len(order)
        for name, share in shares.items():
            count = max(0, min(_rounded(total * share), len(order) - 1))
            chosen[name].append(order[:count])
            order = order[count:]
        chosen["train"].append(order)
    return {name: SplitView(source, np.sort(np.concatenate(parts))) for name, parts in chosen.items()}


def subset(source: ImageSplit, count: Callable[[int], int], *, seed: int) -> ImageSplit:
    """Keeps ``count(n)`` of the n pictures of each class; with one seed, fewer are always among more."""
    kept = [
        hash_order(source, positions, seed=seed, purpose="subset")[: count(len(positions))]
        for positions in by_class(source)
    ]
    return SplitView(source, np.sort(np.concatenate(kept)))


def share_of(share: float) -> Callable[[int], int]:
    """For `subset`: the nearest number to ``share`` of a class, at least one."""
    return lambda total: min(total, _rounded(total * share))


def by_class(split: ImageSplit) -> Iterator[Labels]:
    """The positions of each class that occurs, in order of class index."""
    labels = np.asarray(split.labels)
    for label in np.unique(labels):
        yield np.flatnonzero(labels == label)


def _rounded(value: float) -> int:
    return max(1, math.floor(value + 0.5))
