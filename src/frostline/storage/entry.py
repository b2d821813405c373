"""One array in one file: a page that says what it is and what its checksum is, then the numbers, then the rows' names.

The checksum covers all, so that a changed shape, dtype or key is found like a changed number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.storage.locks import share

HEADER_SIZE = 4096  # bytes: a page, so that the numbers begin at one
SUFFIX = ".features"

Names = npt.NDArray[np.bytes_]
"""``[rows]``, ``S32``."""

_NAME = np.dtype("S32")
_MAGIC = "frostline features 2"
_BLOCK = 1 << 20
_STORED = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",  # NumPy has none: its bits
    "int64": "<i8",
    "int32": "<i4",
    "uint8": "|u1",
    "bool": "|b1",
}
_verified: set[tuple[int, ...]] = set()  # files whose checksum this process has seen to agree


class Damaged(Exception):  # noqa: N818  # never leaves this room
    """A file is not what was written."""


@dataclass(frozen=True)
class Features:
    """An array of the store; while it or a part of it is held, nobody evicts it.

    Attributes:
        array: ``[rows, ...]``, read-only and mapped; ``bfloat16`` is there as its bits, ``uint16``.
        path: of the file.
        dtype: of the numbers.
        names: of the rows, mapped; None where they have none.
    """

    array: np.memmap[Any, np.dtype[Any]]
    path: Path
    dtype: torch.dtype
    names: Names | None = None

    def rows(self, positions: npt.ArrayLike | slice) -> Tensor:
        """A copy of some rows.

        Args:
            positions: ``[N]`` integers, or a slice.

        Returns:
            ``[N, ...]`` of ``dtype``, on the CPU.
        """
        chosen = positions if isinstance(positions, slice) else np.asarray(positions, dtype=np.int64)
        return torch.from_numpy(np.array(self.array[chosen])).view(self.dtype)


@dataclass(frozen=True)
class Form:
    """What an array is.

    Attributes:
        key: what it was computed from.
        shape: ``(rows, ...)``.
        dtype: name of the numbers' type, as torch has it.
        named: whether its rows have names.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    named: bool = False

    @classmethod
    def of(
        cls,
        key: str,
        rows: int,
        width: int | Sequence[int],
        dtype: torch.dtype | npt.DTypeLike,
        *,
        named: bool = False,
    ) -> Form:
        """See `FeatureStore.writer`.

        Raises:
            ValueError: the key is no plain name, a size is not positive, or the dtype is not supported.
        """
        shape = (rows, *([width] if isinstance(width, int) else width))
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"an array of the store has rows of at least one number, not the shape {shape}")
        name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else np.dtype(dtype).name
        if name not in _STORED:
            raise ValueError(f"the store holds {', '.join(_STORED)}, not {name}")
        return cls(plain(key), tuple(map(int, shape)), name, named)

    @property
    def stored(self) -> np.dtype[Any]:
        """NumPy's type of what is in the file."""
        return np.dtype(_STORED[self.dtype])

    @property
    def row_size(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.stored.itemsize

    @property
    def names_at(self) -> int:
        """Where in the file the names of the rows begin."""
        return HEADER_SIZE + self.shape[0] * self.row_size

    @property
    def file_size(self) -> int:
        """Bytes of the file."""
        return self.names_at + (self.shape[0] * _NAME.itemsize if self.named else 0)

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps({"key": self.key, "shape": self.shape, "dtype": self.dtype, "named": self.named})

    def check_names(self, names: Names) -> None:
        """See that there is one for each row.

        Raises:
            ValueError: there is not, or they are of another type.
        """
        if names.shape != self.shape[:1] or names.dtype != _NAME:
            problem = f"{self.shape[0]} rows have as many names of {_NAME}, not {list(names.shape)} of {names.dtype}"
            raise ValueError(problem)


def is_plain(key: str) -> bool:
    """Whether a key can be a file name everywhere."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key) is not None


def plain(key: str) -> str:
    """The key itself.

    Raises:
        ValueError: it cannot be a file name everywhere.
    """
    if not is_plain(key):
        raise ValueError(f"a key of the store has up to 128 letters, digits, - and _, not {key!r}")
    return key


def seal(file: IO[bytes], form: Form) -> None:
    """Write the first page of a file whose numbers are there, and sync it.

    Args:
        file: open for reading and writing, without a buffer.
        form: of the numbers.

    Raises:
        OSError: it cannot be written or read.
    """
    page = f"{_MAGIC}\n{form.text()}\n{_checksum(file, form)}\n".encode().ljust(HEADER_SIZE, b"\0")
    write_at(file, page, 0)
    os.fsync(file.fileno())
    _verified.add(_stamp(os.fstat(file.fileno())))


def write_at(file: IO[bytes], content: bytes | memoryview, offset: int) -> None:
    """Write all of the bytes, of which the system may take a part at a time.

    Raises:
        OSError: they cannot be written.
    """
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def map_entry(path: Path, key: str) -> Features:
    """Map an array, marked as used now; its checksum is looked at once per process.

    One that is evicted or replaced between the opening and the lock is whole all the same.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is truncated, changed, or of another key.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        share(file)
        status = os.fstat(file.fileno())
        form = _verify(file, status, key)
        with contextlib.suppress(OSError):  # not ours: read all the same
            os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
        # the mapping keeps a copy of the handle, and the lock with it
        array: np.memmap[Any, np.dtype[Any]] = np.memmap(file, form.stored, "r", HEADER_SIZE, form.shape)
        names = np.memmap(file, _NAME, "r", form.names_at, form.shape[:1]) if form.named else None
    return Features(array, path, getattr(torch, form.dtype), names)


def read_names(path: Path, key: str) -> Names | None:
    """The names of the rows, of which no checksum is looked at; None where there are none.

    Raises:
        Damaged: the file is of another form or key.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        form, _ = _read_page(file)
        if form.key != key or os.fstat(file.fileno()).st_size != form.file_size:
            raise Damaged("it is of another form")
        if not form.named:
            return None
        return np.array(np.memmap(file, _NAME, "r", form.names_at, form.shape[:1]))


def _verify(file: IO[bytes], status: os.stat_result, key: str) -> Form:
    form, checksum = _read_page(file)
    if form.key != key:
        raise Damaged("it is of another key")
    if status.st_size != form.file_size:
        raise Damaged(f"it has {status.st_size} bytes of {form.file_size}")
    if _stamp(status) not in _verified:
        if _checksum(file, form) != checksum:
            raise Damaged("its checksum does not agree")
        _verified.add(_stamp(status))
    return form


def _read_page(file: IO[bytes]) -> tuple[Form, str]:
    try:
        magic, text, checksum, _ = os.pread(file.fileno(), HEADER_SIZE, 0).decode("ascii").split("\n")
        told = json.loads(text)
        dtype, named = getattr(torch, told["dtype"]), bool(told["named"])
        form = Form.of(told["key"], told["shape"][0], told["shape"][1:], dtype, named=named)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Damaged("its first page cannot be read") from None
    if magic != _MAGIC:
        raise Damaged("its first page is of another format")
    return form, checksum


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    # the time of access stays out: it says when the file was last used
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _checksum(file: IO[bytes], form: Form) -> str:
    digest = hashlib.sha256(form.text().encode())
    offset = HEADER_SIZE
    while block := os.pread(file.fileno(), _BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
