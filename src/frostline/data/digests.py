"""What pictures are, in 16 bytes each: digests of their content, read once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from frostline.data.cache import cache_folder
from frostline.data.progress import Progress
from frostline.errors import FrostlineError

Digests = npt.NDArray[np.bytes_]

UNREADABLE = b"!"
"""What the digest of a picture that cannot be read ends with, so that it is that of no picture."""

_SIZE = 16  # bytes
_CHUNK = 500  # stamps in one question to the cache
_TOGETHER = 2000  # pictures between two writes to the cache


class Readable(Protocol):
    """The part of a split that digests are made from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        ...

    def content(self, index: int) -> bytes:
        """See `ImageSplit.content`."""
        ...

    def stamp(self, index: int) -> str | None:
        """See `ImageSplit.stamp`."""
        ...


def digest(content: bytes) -> bytes:
    """BLAKE2b of 128 bits in hexadecimal, 32 ASCII characters."""
    return hashlib.blake2b(content, digest_size=_SIZE).hexdigest().encode()


def digests_of(split: Readable, cache: Path | None = None) -> Digests:
    """``[N]`` digests, ``S32``.

    A picture that has a stamp is read once: its digest is kept by the stamp. One that cannot be read gets a digest of
    its name that ends with `UNREADABLE`, so that it has a place among the others until somebody asks for its pixels.

    Args:
        split: the pictures.
        cache: the folder of the kept digests; the default is `cache_folder`.
    """
    stamps = _stamps(split)
    found: Digests = np.zeros(len(split), dtype=f"S{2 * _SIZE}")
    kept = _Kept(cache or cache_folder()) if any(stamp is not None for stamp in stamps) else None
    missing = _fill(found, stamps, kept)
    if kept is None or not len(missing):
        _read(split, found, missing, lambda positions: None)
        return found
    # of several processes with the same data set, one reads and the others wait for it
    with _alone(kept.folder, stamps[int(missing[0])] or ""):
        missing = _fill(found, stamps, kept)
        _read(split, found, missing, lambda positions: kept.add(stamps, found, positions))
    return found


def _stamps(split: Readable) -> list[bytes | None]:
    def stamp(index: int) -> bytes | None:
        told = split.stamp(index)
        if told is None:
            return None
        return hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=_SIZE).digest()

    return [stamp(index) for index in range(len(split))]


def _fill(found: Digests, stamps: Sequence[bytes | None], kept: _Kept | None) -> npt.NDArray[np.int64]:
    """Puts what is kept into ``found``; the positions of the rest."""
    known = kept.look_up([stamp for stamp in stamps if stamp is not None]) if kept else {}
    for position, stamp in enumerate(stamps):
        if stamp in known:
            found[position] = known[stamp]
    return np.flatnonzero(found == b"")


def _read(
    split: Readable, found: Digests, missing: npt.NDArray[np.int64], keep: Callable[[Sequence[int]], None]
) -> None:
    def one(index: int) -> tuple[bytes, bool]:
        try:
            return digest(split.content(index)), True
        except FrostlineError:
            name = split.name(index).encode("utf-8", "surrogateescape")
            return digest(b"unreadable:" + name)[: -len(UNREADABLE)] + UNREADABLE, False

    progress = Progress("reading pictures", len(missing))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(missing), _TOGETHER):
            positions = missing[start : start + _TOGETHER].tolist()
            good = []
            for position, (value, readable) in zip(positions, pool.map(one, positions), strict=True):
                found[position] = value
                good += [position] if readable else []
            keep(good)
            progress.at(start + len(positions))
    progress.end()


class _Kept:
    """Stamp to digest, in a database in the cache; where there can be none, nothing is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.folder / "digests.sqlite", timeout=60)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS digests (stamp BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID")
            yield database

    def look_up(self, stamps: Sequence[bytes]) -> dict[bytes, bytes]:
        known: dict[bytes, bytes] = {}
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as database:
            for start in range(0, len(stamps), _CHUNK):
                some = stamps[start : start + _CHUNK]
                marks = ",".join("?" * len(some))
                rows = database.execute(f"SELECT stamp, digest FROM digests WHERE stamp IN ({marks})", some)
                known.update((stamp, value.hex().encode()) for stamp, value in rows if len(value) == _SIZE)
        return known

    def add(self, stamps: Sequence[bytes | None], found: Digests, positions: Sequence[int]) -> None:
        rows = [(stamps[at], bytes.fromhex(found[at].decode())) for at in positions if stamps[at] is not None]
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as database, database:
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", rows)


@contextlib.contextmanager
def _alone(folder: Path, first: bytes | str) -> Iterator[None]:
    """Holds a lock that is the data set's own; without one where the cache cannot be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            name = first.hex() if isinstance(first, bytes) else "digests"
            lock = stack.enter_context((folder / f".{name[:2]}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
