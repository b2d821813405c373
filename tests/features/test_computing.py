"""A pass into the store: found the second time, without a store from memory, and whole whatever cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frostline.data.loading import Delivery, Unreadable
from frostline.errors import DataError, StorageError
from frostline.features import FeatureStore, NotCached
from frostline.features import computing as room
from frostline.features.computing import Pass, Stopped, found_or_computed
from frostline.storage.entry import Features
from frostline.types import Batch

COUNT, SIZE = 10, 4


def deliveries(missing: set[int] = frozenset(), fault: type[Exception] = DataError) -> Iterator[Delivery]:
    """Pictures of their own number, four at a time, of which some cannot be read."""
    for start in range(0, COUNT, SIZE):
        wanted = range(start, min(start + SIZE, COUNT))
        good = torch.tensor([at for at in wanted if at not in missing], dtype=torch.int64)
        bad = [Unreadable(f"{at}.png", fault(f"{at}.png is none")) for at in wanted if at in missing]
        images = good.float().reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        batch = Batch(images, good, good, torch.ones(len(good), dtype=torch.bool))
        yield Delivery(batch if len(good) else None, bad)


def body(images: Tensor) -> Tensor:
    return images[:, :, 0, 0] * 2


def work(**more: object) -> Pass:
    return Pass(**{"key": "key", "count": COUNT, "deliveries": deliveries, "body": body, **more})


def rows(table: room.FeatureTable) -> Tensor:
    return table.rows(np.arange(COUNT))


WANTED = torch.arange(COUNT).float()[:, None].expand(-1, 3) * 2


def test_it_is_computed_once_and_found_again(tmp_path: Path) -> None:
    first = found_or_computed(FeatureStore(tmp_path, 1 << 20), work())
    assert first.seconds is not None
    again = found_or_computed(FeatureStore(tmp_path, 1 << 20), work(deliveries=lambda: pytest.fail("read again")))
    assert again.seconds is None
    assert torch.equal(rows(first.table), WANTED)
    assert torch.equal(rows(again.table), WANTED)
    assert len(again.table) == COUNT
    assert torch.equal(again.table.rows(np.array([7, 2, 7])), WANTED[[7, 2, 7]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    for _ in range(2):
        found = rows(found_or_computed(store, work(body=lambda images: body(images).to(dtype))).table)
        assert found.dtype == dtype
        assert torch.equal(found, WANTED.to(dtype))


def test_a_large_table_stays_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "IN_MEMORY", 16)
    monkeypatch.setattr("frostline.features.table.IN_MEMORY", 16)
    taken: list[object] = []
    look_up = Features.rows
    monkeypatch.setattr(Features, "rows", lambda self, positions: taken.append(positions) or look_up(self, positions))
    found = found_or_computed(FeatureStore(tmp_path, 1 << 20), work())
    assert torch.equal(rows(found.table), WANTED)
    # by position from the file, and never all of it
    assert taken
    assert not any(isinstance(positions, slice) for positions in taken)


def test_without_a_store_it_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the place of the folder")
    store = FeatureStore(tmp_path / "file", 1 << 20)
    assert torch.equal(rows(found_or_computed(store, work()).table), WANTED)
    assert any("cannot be kept" in note for note in store.notes)
    small = FeatureStore(tmp_path / "small", 10)
    assert torch.equal(rows(found_or_computed(small, work()).table), WANTED)
    monkeypatch.setattr(room, "IN_MEMORY", 16)
    with pytest.raises(NotCached, match="too many for memory"):
        found_or_computed(small, work())


def test_a_store_that_fails_in_the_middle_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frostline.storage import store as stores

    original, written = stores.write_at, []

    def failing(file, content, offset):
        written.append(offset)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        original(file, content, offset)

    monkeypatch.setattr(stores, "write_at", failing)
    store = FeatureStore(tmp_path, 1 << 20)
    assert torch.equal(rows(found_or_computed(store, work()).table), WANTED)
    assert "No space left" in store.notes[0]
    assert store.find("key") is None


@pytest.mark.parametrize("missing", [{0}, {5, 6}, {0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}, {0, 1, 2, 3, 4, 9}])
def test_a_picture_that_cannot_be_read_has_an_empty_row(missing: set[int], tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    for _ in range(2):
        table = found_or_computed(store, work(deliveries=lambda: deliveries(missing))).table
        assert table.empty_rows() == sorted(missing)
        kept = [at for at in range(COUNT) if at not in missing]
        assert torch.equal(rows(table)[kept], WANTED[kept])


def test_nothing_is_kept_of_a_pass_that_does_not_end(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    with pytest.raises(Stopped):
        found_or_computed(store, work(is_stopping=iter([False, True]).__next__))
    with pytest.raises(StorageError):
        found_or_computed(store, work(deliveries=lambda: deliveries({5}, StorageError)))
    with pytest.raises(DataError, match=r"0\.png is none"):
        found_or_computed(store, work(deliveries=lambda: deliveries(set(range(COUNT)))))
    assert store.find("key") is None
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    assert torch.equal(rows(found_or_computed(store, work()).table), WANTED)


def test_a_wait_for_another_run_is_said_and_can_be_given_up(tmp_path: Path) -> None:
    store, said = FeatureStore(tmp_path, 1 << 20), list[str]()
    other = FeatureStore(tmp_path, 1 << 20)
    with other.alone("key"), pytest.raises(Stopped):
        found_or_computed(store, work(is_stopping=iter([False, False, True]).__next__, say=said.append))
    assert said == ["another process computes the same features; this one waits for them"]
    # nothing is left of the lock that was waited for
    assert found_or_computed(store, work(say=said.append)).seconds is not None
    assert len(said) == 1
