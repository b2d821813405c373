"""Pictures and labels as arrays in one ``.npz`` file, as MedMNIST has them."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from frostline.data.base import ImageData
from frostline.data.digits import ArraySplit
from frostline.data.joint_labels import encode_splits
from frostline.data.listing import SPLIT_FOLDERS
from frostline.data.splits import ImageSplit, LabelledSet
from frostline.errors import DataError, StorageError, suggestion

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADER_LIMIT = 10_000  # bytes; the header of an array of numbers has 128
_MEMORY_SHARE = 0.8  # of the machine's, which the arrays may take
_DAMAGE = (
    ValueError,
    SyntaxError,
    RuntimeError,
    LookupError,
    NotImplementedError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(kw_only=True, eq=False, repr=False)
class ArraysData(ImageData):
    """The arrays ``train_images`` and ``train_labels``, and likewise of ``val`` and ``test`` where they exist.

    Images are ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W, 3]`` uint8; labels ``[N]`` or ``[N, 1]``, integers or
    text. All of them are read into memory. ``valid`` and ``validation`` are taken as ``val``. The pictures are called
    ``train/0000`` and so on, by their position.

    Attributes:
        root: the ``.npz`` file.
        classes: the class names in order, of which integer labels are positions; None takes the labels themselves.
    """

    in_memory: ClassVar[bool] = True

    root: str = field(kw_only=False)
    classes: InitVar[Sequence[str] | None] = None

    def __post_init__(self, classes: Sequence[str] | None) -> None:
        super().__post_init__()
        self._known = classes

    def read(self) -> LabelledSet:
        """Reads the arrays of the official splits.

        Raises:
            DataError: there is no such file or it is damaged; arrays are missing, disagree, or are of another kind
                than described; a picture has several labels; or the arrays are larger than the memory.
        """
        file = _ArrayFile(Path(self.root).expanduser())
        pairs, foreign = _pairs(file)
        for images, labels in pairs.values():
            _check_images(file, images, self.pixel_limit)
            _check_labels(file, images, labels)
        _check_memory(file, [header for pair in pairs.values() for header in pair])
        columns = {split: file.read(labels).reshape(-1) for split, (_, labels) in pairs.items()}

        def place(split: str, position: int) -> str:
            return f"{pairs[split].labels.name}[{position}] in {file.path}"

        classes, encoded = encode_splits(columns, place=place, known=self._known)
        splits: dict[str, ImageSplit] = {
            split: ArraySplit(_squeezed(file.read(pair.images)), encoded[split], split) for split, pair in pairs.items()
        }
        notes = [f"Ignored other arrays of {file.path.name}: {', '.join(foreign)}."] if foreign else []
        return LabelledSet(classes, splits, notes)


class _Header(NamedTuple):
    """What an array says of itself before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Pair(NamedTuple):
    images: _Header
    labels: _Header


class _ArrayFile:
    """An archive of arrays, of which none can hold objects.

    Args:
        path: the file.

    Raises:
        DataError: it is absent or no such archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            near = sorted(entry.name for entry in path.parent.glob("*.npz")) if path.parent.is_dir() else []
            known = suggestion(path.name, near, known_as=f"in {path.parent}") if near else "Name a .npz file."
            raise DataError(f"The file {path} does not exist.", mend=f"Set data.root. {known}")
        with self._faults_named(), zipfile.ZipFile(path) as archive:
            self.arrays = [info.filename.removesuffix(".npy") for info in archive.infolist()]

    def header(self, name: str) -> _Header:
        """What an array says of itself; the sizes are compared with those that the archive says."""
        with self._opened(name) as (stream, size):
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"the array format {version} is unknown")
            shape, _, dtype = _HEADERS[version](stream, max_header_size=_HEADER_LIMIT)
            header = _Header(name, shape, dtype)
            if not dtype.hasobject and stream.tell() + header.nbytes != size:
                raise ValueError(f"it has {size} bytes, which its shape {shape} of {dtype} does not make")
        return header

    def read(self, header: _Header) -> npt.NDArray[Any]:
        """An array."""
        with self._opened(header.name) as (stream, _):
            array: npt.NDArray[Any] = np.lib.format.read_array(
                stream, allow_pickle=False, max_header_size=_HEADER_LIMIT
            )
            stream.read(1)  # the end, at which the checksum is compared
        return array

    def refused(self, what: str, mend: str) -> DataError:
        """The error that names the file."""
        return DataError(f"{self.path}: {what}.", mend=mend)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        with self._faults_named(name), zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type not in _METHODS:  # zipfile expands those in pieces of any length
                raise ValueError("it is compressed by another method than deflate")
            with archive.open(info) as stream:
                yield stream, info.file_size

    @contextlib.contextmanager
    def _faults_named(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"The file {self.path} cannot be read: {error.strerror or error}.") from error
        except _DAMAGE as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            where = f", array {name}" if name else ""
            raise DataError(
                f"The file {self.path} is damaged or no .npz file{where}: {reason}.", mend="Copy or download it again."
            ) from error


def _pairs(file: _ArrayFile) -> tuple[dict[str, _Pair], list[str]]:
    """The images and labels of each split, in the order of training, and the names of other arrays."""
    found: dict[str, str] = {}
    for name in file.arrays:
        prefix, _, kind = name.rpartition("_")
        split = SPLIT_FOLDERS.get(prefix.lower()) if kind in ("images", "labels") else None
        if split is None:
            continue
        if found.setdefault(split, prefix) != prefix:
            raise file.refused(f"it has two {split} splits, {found[split]} and {prefix}", "Remove one of them.")
    wanted = [f"{prefix}_{kind}" for prefix in found.values() for kind in ("images", "labels")]
    absent = [name for name in wanted if name not in file.arrays]
    if absent or "train" not in found:
        raise file.refused(
            f"it has no array {absent[0] if absent else 'train_images'}, but {', '.join(file.arrays) or 'none at all'}",
            "Name the arrays train_images and train_labels, and likewise for val and test.",
        )
    ordered = {split: found[split] for split in dict.fromkeys(SPLIT_FOLDERS.values()) if split in found}
    pairs = {
        split: _Pair(file.header(f"{prefix}_images"), file.header(f"{prefix}_labels"))
        for split, prefix in ordered.items()
    }
    return pairs, [name for name in file.arrays if name not in wanted]


def _check_images(file: _ArrayFile, images: _Header, pixel_limit: int) -> None:
    if images.dtype != np.uint8:
        raise file.refused(
            f"{images.name} is {images.dtype}, where uint8 is taken",
            "Scale the values to 0..255 and save them as uint8.",
        )
    flat = len(images.shape) == 3 or (len(images.shape) == 4 and images.shape[3] in (1, 3))
    if not flat or 0 in images.shape[1:]:
        raise file.refused(
            f"{images.name} has the shape {images.shape}, where [N, H, W], [N, H, W, 1] or [N, H, W, 3] is taken",
            "Volumes and videos are not pictures; channels come last.",
        )
    height, width = images.shape[1:3]
    if height * width > pixel_limit:
        raise file.refused(
            f"the pictures of {images.name} have {width} x {height} pixels, more than data.pixel_limit={pixel_limit}",
            "Raise data.pixel_limit if you trust the file.",
        )


def _check_labels(file: _ArrayFile, images: _Header, labels: _Header) -> None:
    if labels.dtype.kind not in "iubU":
        raise file.refused(f"{labels.name} is {labels.dtype}, where integers or text are taken", "Save it as int64.")
    if len(labels.shape) == 2 and labels.shape[1] > 1:
        raise file.refused(
            f"{labels.name} has the shape {labels.shape}: {labels.shape[1]} values per picture, where a single label "
            "is taken",
            "Several labels per picture cannot be learned here. If a single one is set in each row, save its position.",
        )
    if len(labels.shape) not in (1, 2):
        raise file.refused(f"{labels.name} has the shape {labels.shape}, where [N] or [N, 1] is taken", "Reshape it.")
    if labels.shape[0] != images.shape[0]:
        raise file.refused(
            f"{images.name} has {images.shape[0]} pictures and {labels.name} {labels.shape[0]} labels",
            "Give each picture one label.",
        )


def _check_memory(file: _ArrayFile, headers: Sequence[_Header]) -> None:
    needed, limit = sum(header.nbytes for header in headers), int(_memory() * _MEMORY_SHARE)
    if needed > limit:
        raise file.refused(
            f"the arrays say that they take {needed:,} bytes, more than this machine may hold ({limit:,})",
            "Save the pictures as files, and use data=folder.",
        )


def _memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _squeezed(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
