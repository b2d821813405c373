"""One pass over the pictures of a data set: what each of them is, and what cannot be read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from frostline.auditing.crew import in_processes, shared
from frostline.auditing.findings import Kind, Place
from frostline.auditing.headers import Header, ends_early, gray_below, read_header
from frostline.auditing.measures import THUMB, TINT, Measures, measure
from frostline.data.digests import digest
from frostline.data.splits import ImageSplit
from frostline.errors import DataError, FrostlineError, StorageError

# rows of gray at the bottom of a JPEG that are taken for missing, as a share of its height
_MISSING = 0.03

FACTS = np.dtype(
    [
        ("read", "?"),
        ("digest", "S32"),
        ("pixels", "S32"),
        ("width", "i4"),
        ("height", "i4"),
        ("format", "S8"),
        ("mode", "S12"),
        ("orientation", "u1"),
        ("colorless", "?"),
        *((name, "f4") for name in ("mean", "contrast", "p1", "p5", "p50", "p95", "p99", "entropy", "sharpness")),
    ]
)
"""What is kept of a picture beside its thumbnail: see `Header` and `Measures`. ``read`` says that it was decoded;
``digest`` is of the stored bytes; width and height are in pixels, as the picture is seen (turned as EXIF says)."""

Facts = npt.NDArray[Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a picture could not be read, or not all of it: ``UNREADABLE`` or ``TRUNCATED``."""

    kind: Kind
    problem: str
    mend: str


@dataclass
class SplitScan:
    """What was found of the pictures of one split.

    Attributes:
        split: the pictures.
        facts: ``[N]`` records, see `FACTS`.
        thumbs: ``[N, 32, 32]`` uint8 brightness.
        tints: ``[N, 8, 8, 2]`` uint8 color.
        faults: position to what is wrong with the file.
    """

    split: ImageSplit
    facts: Facts
    thumbs: npt.NDArray[np.uint8]
    tints: npt.NDArray[np.uint8]
    faults: dict[int, Fault] = field(default_factory=dict)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """``[N]`` bool: the pictures that were decoded."""
        return np.asarray(self.facts["read"], dtype=np.bool_)

    def properties(self) -> dict[str, npt.NDArray[np.float64]]:
        """Name to ``[N]`` values, NaN where a picture could not be read: what splits can be compared by."""
        facts = self.facts
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "brightness": facts["mean"],
                "contrast": facts["contrast"],
                "sharpness": facts["sharpness"],
                "size in pixels": facts["width"].astype(np.float64) * facts["height"],
                "aspect": facts["width"] / facts["height"],
            }
        return {name: np.where(self.readable, value, np.nan).astype(np.float64) for name, value in values.items()}


@dataclass
class Scan:
    """What was found of the pictures of a data set.

    Attributes:
        classes: class names.
        splits: by the name of the split.
        seconds: how long it took.
    """

    classes: tuple[str, ...]
    splits: dict[str, SplitScan]
    seconds: float = 0.0

    @property
    def pictures(self) -> int:
        """How many pictures were looked at."""
        return sum(len(part.facts) for part in self.splits.values())

    def place(self, split: str, index: int) -> Place:
        """The picture at a position of a split."""
        pictures = self.splits[split].split
        return Place(split, index, pictures.name(index), self.classes[int(pictures.labels[index])])


def scan(
    classes: Sequence[str],
    splits: Mapping[str, ImageSplit],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Reads and decodes every picture once, in several processes.

    A picture that cannot be read is noted; so is one that crashes its decoder. Takes about 1.4 KB of memory a picture.

    Args:
        classes: class names.
        splits: the pictures.
        workers: processes; the default is one for each core, 0 reads in this process.
        progress: called with the number of pictures that are done, of how many.

    Raises:
        StorageError: the machine cannot open files or start processes.
    """
    started = time.monotonic()
    pictures = _Pictures(splits)
    total = len(pictures)
    count = _cores() if workers is None else workers
    faults: dict[int, Fault] = {}
    done = 0
    for results in in_processes(
        pictures.look, total, os.cpu_count() or 1 if count is None else count, pictures.crashed
    ):
        for position, fault in results:
            if isinstance(fault, StorageError):
                raise fault
            if fault is not None:
                faults[position] = fault
        done += len(results)
        if progress is not None:
            progress(done, total)
    return Scan(tuple(classes), pictures.parts(faults), time.monotonic() - started)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pictures:
    """The pictures of all splits in one row, and what is known of them."""

    def __init__(self, splits: Mapping[str, ImageSplit]) -> None:
        self._splits = splits
        self._pictures = list(splits.values())
        self._starts = np.cumsum([0, *map(len, self._pictures)])
        self._facts = shared((len(self),), FACTS)
        self._thumbs = shared((len(self), THUMB, THUMB), np.uint8)
        self._tints = shared((len(self), TINT, TINT, 2), np.uint8)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _at(self, position: int) -> tuple[ImageSplit, int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._pictures[number], position - int(self._starts[number])

    def look(self, position: int) -> Fault | StorageError | None:
        """Reads a picture and writes down what it is; what is wrong with its file, or with the machine, if anything."""
        split, index = self._at(position)
        content = b""
        try:
            content = split.content(index)
            header = read_header(content) if split.encoded else Header()
            self._write_header(position, digest(content), header)
            picture = split.image(index)
            self._write(position, picture.size, measure(picture))
        except StorageError as error:
            return error
        except Exception as error:  # a picture is not worth the audit; a decoder may raise anything
            return _fault(split, index, error, content)
        if header.format == "JPEG" and gray_below(picture) > _MISSING * picture.height:
            return _cut_short(split, index, "its lower part is the gray that stands for missing data")
        return None

    def crashed(self, position: int, reason: str) -> Fault:
        """What is wrong with a picture that a process did not survive."""
        split, index = self._at(position)
        self._facts[position]["read"] = False
        return Fault(
            Kind.UNREADABLE,
            f"The picture {split.name(index)} cannot be read: the process that decoded it {reason}.",
            "Remove it from the data set: it would end a training as well.",
        )

    def _write_header(self, position: int, content: bytes, header: Header) -> None:
        facts = self._facts[position]
        facts["digest"] = content
        facts["format"], facts["mode"] = header.format.encode(), header.mode.encode()
        facts["orientation"] = header.orientation

    def _write(self, position: int, size: tuple[int, int], measures: Measures) -> None:
        facts = self._facts[position]
        for name in FACTS.names or ():
            if hasattr(measures, name):
                facts[name] = getattr(measures, name)
        self._thumbs[position], self._tints[position] = measures.thumb, measures.tint
        facts["width"], facts["height"] = size
        facts["read"] = True

    def parts(self, faults: Mapping[int, Fault]) -> dict[str, SplitScan]:
        """What is known, split by split."""
        found = {}
        for number, (name, split) in enumerate(self._splits.items()):
            start, end = self._starts[number : number + 2].tolist()
            own = {position - start: fault for position, fault in sorted(faults.items()) if start <= position < end}
            found[name] = SplitScan(split, self._facts[start:end], self._thumbs[start:end], self._tints[start:end], own)
        return found


def _fault(split: ImageSplit, index: int, error: Exception, content: bytes) -> Fault:
    problem = error.problem if isinstance(error, FrostlineError) else f"{type(error).__name__}: {error}"
    if "truncated" in problem or (split.encoded and ends_early(content)):
        return _cut_short(split, index, "the file ends early")
    mend = error.mend if isinstance(error, DataError) else None
    name = split.name(index)
    said = problem if name in problem else f"The picture {name} cannot be read: {problem}"
    return Fault(Kind.UNREADABLE, said, mend or "Repair the file, or remove it from the data set.")


def _cut_short(split: ImageSplit, index: int, reason: str) -> Fault:
    return Fault(
        Kind.TRUNCATED,
        f"The picture {split.name(index)} is not complete: {reason}.",
        "Copy it again from where it came from, or remove it from the data set.",
    )
