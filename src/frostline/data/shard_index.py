"""Where each sample of a shard lies: the headers of a ``.tar``, read once and kept.

A shard is a tar archive whose members ``KEY.EXTENSION`` with one key are a sample, as the webdataset package writes
them. Nothing is extracted, and nothing that an archive says of itself is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frostline.data.archives import TarHeader
from frostline.data.cache import cache_folder
from frostline.data.shard_files import Shard
from frostline.data.splits import NameTable
from frostline.errors import DataError, FrostlineError, StorageError

Arrays = dict[str, npt.NDArray[Any]]

_VERSION = 1  # of what is kept
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__(?:/|$)")  # of the package's own use
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MOST_EXTENSIONS = 60
"""Kinds of members that samples may have; one bit each."""

_MOST_PADDING = 2**20  # bytes of zeros at the end; tar writes up to 10 KiB


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard.

    Attributes:
        ends, text: of the keys, see `NameTable.of_text`.
        extensions: E in lower case, in the order of their first use.
        offsets: ``[S, E]`` int64, where the content of a member starts in the shard; -1 where a sample lacks it.
        sizes: ``[S, E]`` int64, in bytes.
    """

    ends: npt.NDArray[np.int64]
    text: npt.NDArray[np.uint8]
    extensions: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def keys(self) -> NameTable:
        """S names without their extensions."""
        return NameTable.of_text(self.ends, self.text)


def read_index(shard: Shard) -> ShardIndex:
    """The samples of a shard; its headers are read the first time, and then kept in the user's cache.

    Raises:
        DataError: it is compressed, damaged or truncated, has no sample, or has a link, a sparse file or a file twice.
        StorageError: it cannot be read.
    """
    arrays = kept_arrays(("index", *shard), lambda: _scanned(shard))
    extensions = tuple(json.loads(arrays.pop("extensions").tobytes()))
    return ShardIndex(extensions=extensions, **arrays)


def kept_arrays(identity: tuple[object, ...], make: Callable[[], Arrays]) -> Arrays:
    """What ``make`` gives, made once and kept in the user's cache; made each time where nothing can be kept there.

    Args:
        identity: of what is made; it changes when that does.
        make: gives arrays of numbers by name.
    """
    name = hashlib.sha256(repr((_VERSION, *identity)).encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_folder() / "shards" / f"{name}.npz"
    unusable = contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with unusable, path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}
    arrays = make()
    with contextlib.suppress(OSError):
        _keep(path, arrays)
    return arrays


def _keep(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # the names are none of its options
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _scanned(shard: Shard) -> Arrays:
    _refuse_compressed(shard)
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    members = array("q")  # row, column, offset, size of each in turn
    for name, offset, size in _members(shard):
        match = _NAME.fullmatch(name)
        if match is None or _META.match(name):
            continue
        row = rows.setdefault(match[1], len(rows))
        column = columns.setdefault(match[2].lower(), len(columns))
        members.extend((row, column, offset, size))
        if len(columns) > MOST_EXTENSIONS:
            raise _refused(shard, name, f"is one of more than {MOST_EXTENSIONS} kinds of members", _REWRITE)
    if not rows:
        raise DataError(
            f"The shard {shard.path} has no sample.",
            mend="Remove it; a sample has members such as 000.jpg and 000.cls.",
        )
    offsets, sizes = _table(shard, list(rows), list(columns), np.array(members, dtype=np.int64).reshape(-1, 4))
    encoded = [key.encode("utf-8", "surrogateescape") for key in rows]
    return {
        "ends": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "extensions": np.frombuffer(json.dumps(list(columns)).encode(), dtype=np.uint8),
        "offsets": offsets,
        "sizes": sizes,
    }


def _table(
    shard: Shard, keys: list[str], extensions: list[str], members: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rows, columns = members[:, 0], members[:, 1]
    places, counts = np.unique(rows * len(extensions) + columns, return_counts=True)
    if len(places) < len(members):
        row, column = divmod(int(places[np.argmax(counts > 1)]), len(extensions))
        twice = f"{keys[row]}.{extensions[column]}"
        raise _refused(shard, twice, f"is there twice: several samples have the key '{keys[row]}'", _REWRITE)
    offsets = np.full((len(keys), len(extensions)), -1, dtype=np.int64)
    sizes = np.zeros_like(offsets)
    offsets[rows, columns], sizes[rows, columns] = members[:, 2], members[:, 3]
    return offsets, sizes


def _members(shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each file in the shard."""
    name = ""
    try:
        with tarfile.open(shard.path, "r:", tarinfo=TarHeader, encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep all of them
                tar.members.clear()  # type: ignore[attr-defined]
                name = member.name
                if member.isdir():
                    continue
                _check_kind(shard, member)
                yield name, member.offset_data, member.size
            _check_end(shard, tar.offset)
    except FrostlineError:
        raise
    except Exception as error:  # tarfile raises nearly anything on a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"The shard {shard.path} cannot be read: {error.strerror}.") from error
        after = f" after '{name}'" if name else ""
        reason = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__
        raise _damaged(shard, f"{after}: {reason}") from error


def _check_kind(shard: Shard, member: tarfile.TarInfo) -> None:
    if member.islnk() or member.issym():
        raise _refused(shard, member.name, "is a link", "Write the shard with --dereference and --hard-dereference.")
    if member.issparse() or not member.isfile():
        raise _refused(shard, member.name, "is a sparse file, a device or another special file", _REWRITE)
    if member.size < 0 or member.offset_data + member.size > shard.size:
        raise _damaged(shard, f" in '{member.name}': it goes beyond the end of the file")


def _check_end(shard: Shard, offset: int) -> None:
    """Raise where more than padding follows the mark of the end: half of a download, or a second archive."""
    left = shard.size - offset
    with open(shard.path, "rb") as file:
        file.seek(offset)
        zeros = left <= _MOST_PADDING and not any(file.read(left))
    if not zeros:
        raise _damaged(shard, f": {left:,} bytes follow the mark of its end, or are missing before it")


def _refuse_compressed(shard: Shard) -> None:
    start = shard.read(0, min(6, shard.size))
    if not start:
        raise DataError(f"The shard {shard.path} is an empty file.", mend="Copy or download it again.")
    for mark, name in _COMPRESSIONS.items():
        if start.startswith(mark):
            raise DataError(
                f"The shard {shard.path} is compressed by {name}, and its pictures cannot be read one by one.",
                mend="Decompress it to a .tar; pictures are compressed already and hardly grow.",
            )


_REWRITE = "Write the shard anew, each sample as regular files that share a key of its own."


def _refused(shard: Shard, member: str, why: str, mend: str) -> DataError:
    return DataError(f"The shard {shard.path} cannot be used: '{member}' {why}.", mend=mend)


def _damaged(shard: Shard, where: str) -> DataError:
    return DataError(f"The shard {shard.path} is damaged or truncated{where}.", mend="Copy or download it again.")
