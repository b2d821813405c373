from __future__ import annotations

import hashlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from frostline.data.digests import UNREADABLE, digests_of
from frostline.data.files import FileSplit
from frostline.errors import DataError


class Counting(FileSplit):
    """Counts what is read."""

    reads = 0

    def content(self, index: int) -> bytes:
        self.reads += 1
        return super().content(index)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(bytes([index]) * 100)
    return [f"{index}.jpg" for index in range(5)]


def split(root: Path, names: list[str]) -> Counting:
    return Counting(root, names, [0] * len(names))


def expected(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, files: list[str]) -> None:
    cache = tmp_path / "cache"
    first, second = split(tmp_path, files), split(tmp_path, files)
    assert digests_of(first, cache).tolist() == [expected(bytes([index]) * 100) for index in range(5)]
    assert np.array_equal(digests_of(second, cache), digests_of(first, cache))
    assert (first.reads, second.reads) == (5, 0)
    changed = tmp_path / "3.jpg"
    before = changed.stat()
    changed.write_bytes(b"x" * 100)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither size nor time of change tell
    third = split(tmp_path, files)
    assert digests_of(third, cache)[3] == expected(b"x" * 100)
    assert third.reads == 1


def test_what_cannot_be_read_has_a_place_and_is_tried_again(tmp_path: Path, files: list[str]) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").unlink()
    found = digests_of(split(tmp_path, files), cache)
    assert len(set(found.tolist())) == 5
    # theirs are no digests of a content
    assert [one.endswith(UNREADABLE) for one in found.tolist()] == [False, True, True, False, False]
    (tmp_path / "1.jpg").write_bytes(b"back")
    again = digests_of(split(tmp_path, files), cache)
    assert again[1] == expected(b"back")
    assert again[2] == found[2]
    with pytest.raises(DataError, match=r"2\.jpg cannot be read"):
        split(tmp_path, files).content(2)


@pytest.mark.parametrize("damage", ["text", "folder", "unwritable"])
def test_a_cache_that_cannot_be_used_costs_time_and_nothing_else(tmp_path: Path, files: list[str], damage: str) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    if damage == "text":
        (cache / "digests.sqlite").write_text("this is no database, whatever its name says" * 100)
    elif damage == "folder":
        (cache / "digests.sqlite").mkdir()
    else:
        cache.rmdir()
        cache.write_text("a file where the folder should be")
    for _ in range(2):
        read = split(tmp_path, files)
        assert digests_of(read, cache)[4] == expected(bytes([4]) * 100)
        assert read.reads == 5


def test_many_share_one_cache_and_one_of_them_reads(tmp_path: Path, files: list[str]) -> None:
    cache, splits = tmp_path / "cache", [split(tmp_path, files) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: digests_of(one, cache), splits))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert sum(one.reads for one in splits) == 5
    with sqlite3.connect(cache / "digests.sqlite") as database:
        assert database.execute("SELECT count(*) FROM digests").fetchone() == (5,)
