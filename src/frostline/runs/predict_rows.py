"""The rows of each part of a prediction, and a hash of what they are: names, files as they are now, what is carried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from frostline.runs.predict_inputs import NamedPictures


class PartRows:
    """N rows in parts of equal size, the last one perhaps smaller.

    Args:
        pictures: N of them.
        size: rows of a part.
    """

    def __init__(self, pictures: NamedPictures, size: int) -> None:
        self.size = size
        self._pictures = pictures
        self._count = len(pictures.split)

    def __len__(self) -> int:
        """How many parts there are."""
        return -(-self._count // self.size)

    def of_part(self, number: int) -> range:
        """The positions of a part's rows."""
        return range(number * self.size, min((number + 1) * self.size, self._count))

    def begun(self, number: int) -> hashlib.blake2b:
        """The hash of a part, but for its pictures."""
        found = hashlib.blake2b(digest_size=16)
        if self._pictures.columns is not None:
            rows = self.of_part(number)
            found.update(repr(self._pictures.columns.slice(rows.start, len(rows)).to_pydict()).encode())
        return found

    def add(self, found: hashlib.blake2b, position: int) -> None:
        """Add a picture as it is now: its name, and where there is such a file, its place, size and times."""
        split = self._pictures.split
        words = f"{split.name(position)}\0{split.stamp(position)}\0"
        found.update(words.encode("utf-8", "surrogateescape"))

    def now(self, number: int) -> str:
        """The hash of a part, its files as they are at this moment."""
        found = self.begun(number)
        for position in self.of_part(number):
            self.add(found, position)
        return found.hexdigest()


class Asked:
    """The positions of some parts, for a loader; each picture is hashed just before it is asked for.

    A file that changes while it is read is so known to have changed when the prediction goes on another time.

    Args:
        rows: of all parts.
        parts: their numbers.

    Attributes:
        hashes: part to the hash of its rows, of the parts that were asked for as a whole.
    """

    def __init__(self, rows: PartRows, parts: Sequence[int]) -> None:
        self._rows, self._parts = rows, parts
        self.hashes: dict[int, str] = {}

    def __len__(self) -> int:
        return sum(len(self._rows.of_part(number)) for number in self._parts)

    def __iter__(self) -> Iterator[int]:
        for number in self._parts:
            found = self._rows.begun(number)
            positions = self._rows.of_part(number)
            for position in positions:
                self._rows.add(found, position)
                if position == positions[-1]:
                    self.hashes[number] = found.hexdigest()
                yield position
