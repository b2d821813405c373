"""The file of an array: what comes back is what was written, or nothing."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frostline.storage import FeatureStore, entry

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", 1 << 20)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def put(store: FeatureStore, key: str, rows: Tensor) -> Path:
    with store.writer(key, len(rows), rows.shape[1:], rows.dtype) as writer:
        writer.write(0, rows)
    return store.folder / f"{key}.features"


def seen_anew(path: Path, content: bytes) -> None:
    """Another content with another time of change, however coarse the clock of the file system is."""
    path.write_bytes(content)
    os.utime(path, (1, random.randrange(1 << 30)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [(1,), (5,), (2, 3)], ids=str)
def test_what_comes_back_is_what_was_written(store: FeatureStore, dtype: torch.dtype, width: tuple[int, ...]) -> None:
    rows = numbers(7, *width, dtype=dtype)
    put(store, "key", rows)
    found = store.find("key")
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found.rows(slice(None)), rows)
    assert torch.equal(found.rows([6, 0, 0]), rows[[6, 0, 0]])
    assert found.rows(np.zeros(0, dtype=np.int64)).shape == (0, *width)
    assert store.notes == []


def test_the_array_is_mapped_and_read_only_and_the_rows_are_copies(store: FeatureStore) -> None:
    rows = numbers(4, 3)
    path = put(store, "key", rows)
    found = store.find("key")
    assert found is not None
    assert (found.path, found.array.shape, found.array.dtype) == (path, (4, 3), np.float32)
    assert isinstance(found.array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found.array[0] = 0
    found.rows([0]).zero_()
    assert torch.equal(found.rows([0]), rows[:1])


def test_not_a_number_and_negative_zero_keep_their_bits(store: FeatureStore) -> None:
    rows = torch.tensor([[0x7FC12345, -0x80000000], [0x7F800000, 1]]).to(torch.int32)
    put(store, "key", rows.view(torch.float32))
    found = store.find("key")
    assert found is not None
    assert torch.equal(found.rows(slice(None)).view(torch.int32), rows)


@pytest.mark.parametrize("size", [0, 1, 50, entry.HEADER_SIZE - 1, entry.HEADER_SIZE, -4, -1, 5000])
def test_a_truncated_or_grown_file_is_removed_and_never_returned(store: FeatureStore, size: int) -> None:
    path = put(store, "key", numbers(10, 8))
    whole = path.read_bytes()
    seen_anew(path, whole + bytes(5000) if size == 5000 else whole[:size])
    assert store.find("key") is None
    assert not path.exists()
    assert ["damaged" in note and str(path) in note for note in store.notes] == [True]
    put(store, "key", numbers(10, 8))
    assert store.find("key") is not None


def test_any_flipped_bit_is_found(store: FeatureStore) -> None:
    rows = numbers(10, 8)
    path = put(store, "key", rows)
    whole = path.read_bytes()
    page = len(whole[: entry.HEADER_SIZE].rstrip(b"\0"))
    chance = random.Random(0)
    for place in [*range(page), *range(entry.HEADER_SIZE, len(whole))]:
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        seen_anew(path, bytes(changed))
        assert store.find("key") is None, f"byte {place}"
        assert not path.exists()


@pytest.mark.parametrize(("told", "lie"), [(b"[10, 8]", b"[8, 10]"), (b'"float32"', b'"int32"  ')])
def test_the_checksum_covers_what_the_numbers_are(store: FeatureStore, told: bytes, lie: bytes) -> None:
    path = put(store, "key", numbers(10, 8))
    seen_anew(path, path.read_bytes().replace(told, lie))
    assert store.find("key") is None
    assert "checksum" in store.notes[0]


def test_a_good_array_that_another_process_writes_meanwhile_stays(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(store, "key", numbers(4, 3))
    seen_anew(path, b"damaged")
    lock = store._folder_lock

    def write_meanwhile() -> contextlib.AbstractContextManager[None]:
        put(FeatureStore(store.folder, store.limit), "key", numbers(4, 3))
        return lock()

    monkeypatch.setattr(store, "_folder_lock", write_meanwhile)
    assert store.find("key") is None
    assert store.find("key") is not None


def test_the_rest_of_the_first_page_says_nothing(store: FeatureStore) -> None:
    rows = numbers(10, 8)
    path = put(store, "key", rows)
    changed = bytearray(path.read_bytes())
    changed[entry.HEADER_SIZE - 1] ^= 1
    seen_anew(path, bytes(changed))
    found = store.find("key")
    assert found is None or torch.equal(found.rows(slice(None)), rows)


def test_a_file_of_another_key_is_not_taken_for_this_one(store: FeatureStore) -> None:
    put(store, "one", numbers(2, 2)).rename(store.folder / "other.features")
    assert store.find("other") is None
    assert "another key" in store.notes[0]


def test_a_checksum_is_looked_at_once_per_process(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store, "key", numbers(4, 3))
    summed = []
    checksum = entry._checksum
    monkeypatch.setattr(entry, "_checksum", lambda *arguments: summed.append(1) or checksum(*arguments))
    entry._verified.clear()
    assert store.find("key") is not None
    assert FeatureStore(store.folder, 1).find("key") is not None
    assert len(summed) == 1
    os.utime(path, (1, 1))  # somebody has changed it
    assert store.find("key") is not None
    assert len(summed) == 2


def test_a_find_marks_the_array_as_used_whether_or_not_the_file_system_does(store: FeatureStore) -> None:
    path = put(store, "key", numbers(4, 3))
    later = time.time() + 3600  # a reading alone does not set the time back
    os.utime(path, (later, 1))
    assert store.find("key") is not None
    assert abs(path.stat().st_atime - time.time()) < 600
    assert path.stat().st_mtime == 1


def test_what_cannot_be_marked_as_used_is_read_all_the_same(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    put(store, "key", numbers(4, 3))
    monkeypatch.setattr(os, "utime", refuse)
    assert store.find("key") is not None
    assert store.notes == []


@pytest.mark.parametrize("key", ["", "../up", "a/b", "a.b", "a\n", "ä", "x" * 129])
def test_a_key_is_a_plain_name(store: FeatureStore, key: str) -> None:
    with pytest.raises(ValueError, match="a key of the store"):
        store.find(key)
    with pytest.raises(ValueError, match="a key of the store"), store.writer(key, 1, 1, torch.float32):
        pass
    with pytest.raises(ValueError, match="a key of the store"), store.alone(key):
        pass
    assert not store.folder.exists()


def test_rows_may_have_names(store: FeatureStore) -> None:
    names = np.array([f"{number:032x}" for number in (3, 0, 2)], dtype="S32")
    with store.writer("kin-a", 3, 2, torch.float32, names) as writer:
        writer.write_rows(np.array([2, 0]), numbers(2, 2))
        writer.write_rows(np.array([1]), numbers(1, 2))
    found = store.find("kin-a")
    assert found is not None
    assert found.names is not None
    assert found.names.tolist() == names.tolist()
    assert torch.equal(found.rows([2, 0, 1]), torch.cat([numbers(2, 2), numbers(1, 2)]))
    put(store, "kin-b", numbers(100, 2))
    put(store, "other", numbers(2, 2))
    assert store.keys("kin-") == ["kin-b", "kin-a"]
    hint = store.names("kin-a")
    assert hint is not None
    assert hint.tolist() == names.tolist()
    assert store.names("kin-b") is None
    assert store.names("nowhere") is None
    assert FeatureStore(store.folder / "nowhere", 1).keys("") == []
    # a name is checked like a number
    content = bytearray(found.path.read_bytes())
    content[-1] ^= 1
    seen_anew(found.path, bytes(content))
    assert store.find("kin-a") is None
    assert "its checksum does not agree" in store.notes[0]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_each_row_has_a_name_or_none_has(store: FeatureStore, names: list[str]) -> None:
    with (
        pytest.raises(ValueError, match="2 rows have as many names"),
        store.writer("key", 2, 1, torch.float32, np.array(names, dtype="S32")),
    ):
        pass


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "told"),
    [
        (0, 3, torch.float32, "at least one number"),
        (3, 0, torch.float32, "at least one number"),
        (3, [], torch.float32, "at least one number"),
        (3, 3, torch.complex64, "not complex64"),
        (3, 3, np.dtype("U4"), "not str"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    store: FeatureStore, rows: int, width: int | list[int], dtype: torch.dtype, told: str
) -> None:
    with pytest.raises(ValueError, match=told), store.writer("key", rows, width, dtype):
        pass
