"""The files of shards: known by path, size and times, read by random access, and open for as long as they are read."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path
from typing import NamedTuple

from frostline.errors import DataError, StorageError

_OPEN = 64  # shards at once and process


class Shard(NamedTuple):
    """A shard as it was when it was first looked at.

    Attributes:
        path: where it is.
        size: in bytes.
        modified, changed: times in nanoseconds: of its content, and of its place in the file system.
    """

    path: str
    size: int
    modified: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> Shard:
        """Looks at a file.

        Raises:
            DataError: it is not there, or no regular file.
            StorageError: it cannot be looked at.
        """
        try:
            found = os.stat(path)
        except FileNotFoundError:
            raise DataError(f"The shard {path} does not exist.", mend="Check the path.") from None
        except OSError as error:
            raise StorageError(f"The shard {path} cannot be read: {error.strerror}.") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"The shard {path} is no regular file.", mend="Copy the shard to a disk.")
        return cls(str(path), *_state(found))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the shard.

        Raises:
            StorageError: it cannot be read, or is not what it was.
        """
        return _opened(self).read(offset, size)

    @property
    def stamp(self) -> str:
        """Changes when the shard does."""
        return f"{self.path} {self.size} {self.modified} {self.changed}"


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _OpenShard:
    """A file descriptor, which closes when nobody holds it any longer: threads may read while it is given up."""

    def __init__(self, shard: Shard) -> None:
        self._descriptor = -1
        self._shard = shard
        try:
            self._descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
            state = _state(os.fstat(self._descriptor))
        except OSError as error:
            raise StorageError(f"The shard {shard.path} cannot be opened: {error.strerror}.") from error
        if state[:2] != (shard.size, shard.modified):  # a new link to it changes the third
            raise self._changed()

    def read(self, offset: int, size: int) -> bytes:
        content = b""
        while len(content) < size:
            try:
                piece = os.pread(self._descriptor, size - len(content), offset + len(content))
            except OSError as error:
                raise StorageError(f"The shard {self._shard.path} cannot be read: {error.strerror}.") from error
            if not piece:
                raise self._changed()
            content = content + piece if content else piece
        return content

    def _changed(self) -> StorageError:
        return StorageError(
            f"The shard {self._shard.path} has changed since it was first read.", mend="Leave it as it is during a run."
        )

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


@functools.lru_cache(maxsize=_OPEN)
def _opened(shard: Shard) -> _OpenShard:
    return _OpenShard(shard)
