"""A pass into the store: found the second time, without a store from memory, and whole whatever cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frostline.data.loading import Delivery, Unreadable
from frostline.errors import DataError, StorageError
from frostline.features import FeatureStore, NotCached, is_known
from frostline.features.computing import Computed, Pass, Stopped, found_or_computed
from frostline.storage import Features, Names
from frostline.types import Batch

COUNT, SIZE = 10, 4
FACTORS = {"twice": 2, "thrice": 3}


def deliveries(
    missing: set[int] = frozenset(), fault: type[Exception] = DataError, positions: Sequence[int] | None = None
) -> Iterator[Delivery]:
    """Pictures of their own number, four at a time, of which some cannot be read."""
    asked = list(range(COUNT) if positions is None else positions)
    for start in range(0, len(asked), SIZE):
        wanted = asked[start : start + SIZE]
        good = torch.tensor([at for at in wanted if at not in missing], dtype=torch.int64)
        bad = [Unreadable(f"{at}.png", fault(f"{at}.png is none")) for at in wanted if at in missing]
        images = good.float().reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        batch = Batch(images, good, good, torch.ones(len(good), dtype=torch.bool))
        yield Delivery(batch if len(good) else None, bad)


def body(images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: images[:, :, 0, 0] * FACTORS[name] for name in names}


def work(**more: object) -> Pass:
    return Pass(**{"keys": {"twice": "key"}, "count": COUNT, "deliveries": deliveries, "body": body, **more})


def rows(found: Computed, name: str = "twice") -> Tensor:
    return found.tables[name].rows(np.arange(len(found.tables[name])))


WANTED = torch.arange(COUNT).float()[:, None].expand(-1, 3) * 2


def test_it_is_computed_once_and_found_again(tmp_path: Path) -> None:
    first = found_or_computed(FeatureStore(tmp_path, 1 << 20), work())
    assert first.count == COUNT
    assert first.how().startswith("computed in ")
    again = found_or_computed(FeatureStore(tmp_path, 1 << 20), work(deliveries=unread))
    assert (again.count, again.how()) == (0, "found")
    assert torch.equal(rows(first), WANTED)
    assert torch.equal(rows(again), WANTED)
    assert torch.equal(again.tables["twice"].rows(np.array([7, 2, 7])), WANTED[[7, 2, 7]])


def unread(positions: Sequence[int] | None = None) -> Iterator[Delivery]:
    pytest.fail("read again")


def digests(*numbers: int) -> Names:
    return np.array([f"{number:032x}" for number in numbers], dtype="S32")


def test_pictures_of_other_splits_are_not_computed_again(tmp_path: Path) -> None:
    """Rows go by what the pictures are, in whatever place, and under keys of the same kin only."""
    kin = "k" * 40
    store, seen = FeatureStore(tmp_path, 1 << 20), list[int]()

    def counting(images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        seen.extend(images[:, 0, 0, 0].int().tolist())
        return body(images, names)

    def split(*numbers: int, kin: str = kin) -> Computed:
        def reading(positions: Sequence[int] | None = None) -> Iterator[Delivery]:
            for at in range(len(numbers)) if positions is None else positions:
                images, index = torch.full((1, 3, 2, 2), float(numbers[at])), torch.tensor([at])
                yield Delivery(Batch(images, index, index, torch.ones(1, dtype=torch.bool)), [])

        key = f"{kin}-{'-'.join(map(str, numbers))}"
        wanted = Pass({"twice": key}, len(numbers), reading, counting, digests(*numbers))
        found = found_or_computed(store, wanted)
        expected = torch.tensor(numbers).float()[:, None].expand(-1, 3) * 2
        for _ in range(2):
            assert torch.equal(rows(found), expected)
            found_again = found_or_computed(store, wanted)
            assert found_again.how() == "found"
            assert torch.equal(rows(found_again), expected)
        return found

    assert split(3, 1, 4, 5).count == 4
    assert split(9, 2, 6).count == 3
    mixed = split(5, 7, 2, 3, 8, 5)
    assert seen == [3, 1, 4, 5, 9, 2, 6, 7, 8]
    assert mixed.count == 2
    assert mixed.how().startswith("4 found, 2 computed in ")
    known = split(6, 5, 8)
    assert (known.count, known.how()) == (0, "found, picture by picture")
    assert split(3, 1, kin="o" * 40).count == 2
    assert len(seen) == 11


def test_a_row_without_a_number_or_a_name_is_lent_to_nobody(tmp_path: Path) -> None:
    store, kin = FeatureStore(tmp_path, 1 << 20), "k" * 40
    names = digests(*range(COUNT))

    def computed(key: str, pictures: Names | None, missing: set[int], *, anew: bool = False) -> int:
        reading = partial(deliveries, missing)
        wanted = work(keys={"twice": f"{kin}-{key}"}, pictures=pictures, deliveries=reading)
        return found_or_computed(store, wanted, anew=anew).count

    assert computed("nameless", None, set()) == COUNT
    assert computed("a", names, {2, 5}) == COUNT - 2
    assert computed("b", names, set()) == 2
    # what is left aside lends nothing
    assert computed("c", names, set(), anew=True) == COUNT


def test_a_damaged_lender_is_left_aside(tmp_path: Path) -> None:
    store, kin, names = FeatureStore(tmp_path, 1 << 20), "k" * 40, digests(*range(COUNT))
    first = work(keys={"twice": f"{kin}-a"}, pictures=names)
    assert found_or_computed(store, first).count == COUNT
    (path,) = tmp_path.glob("*.features")
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    path.write_bytes(content)
    found = found_or_computed(store, work(keys={"twice": f"{kin}-b"}, pictures=names))
    assert found.count == COUNT
    assert torch.equal(rows(found), WANTED)
    assert "damaged" in store.notes[0]


def test_lenders_give_way_where_there_is_room_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = digests(*range(COUNT))
    monkeypatch.setattr("frostline.features.table.IN_MEMORY", 16)
    size = 4096 + COUNT * (3 * 4 + 32)
    store = FeatureStore(tmp_path, size + 100)
    for key, count in (("a", COUNT), ("b", COUNT)):
        wanted = work(keys={"twice": f"{'k' * 40}-{key}"}, pictures=names, memory=16)
        found = found_or_computed(store, wanted)
        assert found.count == count
        assert torch.equal(rows(found), WANTED)
        assert [note for note in store.notes if "was evicted" not in note] == []
        del found


def test_a_table_in_memory_is_kept_once_its_lenders_are_let_go(tmp_path: Path) -> None:
    names, size = digests(*range(COUNT)), 4096 + COUNT * (3 * 4 + 32)
    store = FeatureStore(tmp_path, size + 100)
    first = work(keys={"twice": f"{'k' * 40}-a"}, pictures=names)
    assert found_or_computed(store, first).count == COUNT
    second = work(keys={"twice": f"{'k' * 40}-b"}, pictures=names, deliveries=unread)
    found = found_or_computed(store, second)
    assert (found.count, torch.equal(rows(found), WANTED)) == (0, True)
    assert store.keys("") == [f"{'k' * 40}-b"]
    assert [note for note in store.notes if "was evicted" not in note] == []


def test_a_picture_without_a_name_is_none_of_another_split(tmp_path: Path) -> None:
    """What cannot be read has none: it may be any."""
    store, kin = FeatureStore(tmp_path, 1 << 20), "k" * 40
    names = digests(*range(COUNT))
    names[[2, 7]] = b""
    for key, count in (("a", COUNT), ("b", 2)):
        found = found_or_computed(store, work(keys={"twice": f"{kin}-{key}"}, pictures=names))
        assert found.count == count
        assert torch.equal(rows(found), WANTED)
    assert not is_known(store, f"{kin}-c", names)
    assert is_known(store, f"{kin}-c", digests(3, 4))
    assert not is_known(store, f"{kin}-c", digests(3, 99))
    assert not is_known(store, f"{kin}-c", None)
    assert is_known(store, f"{kin}-a", None)


def test_a_file_of_somebody_elses_is_no_lender(tmp_path: Path) -> None:
    store, kin, names = FeatureStore(tmp_path, 1 << 20), "k" * 40, digests(*range(COUNT))
    (tmp_path / f"{kin}-x (copy).features").write_bytes(b"?")
    (tmp_path / f"{kin}-y.features").write_bytes(b"frostline features 1\n{}\n\n")
    assert found_or_computed(store, work(keys={"twice": f"{kin}-a"}, pictures=names)).count == COUNT


def test_it_is_told_how_many_are_to_come(tmp_path: Path) -> None:
    store, kin, told = FeatureStore(tmp_path, 1 << 20), "k" * 40, list[int]()
    for key, names in (("a", digests(*range(COUNT))), ("b", digests(*range(3, COUNT + 3)))):
        found_or_computed(store, work(keys={"twice": f"{kin}-{key}"}, pictures=names, expect=told.append))
    assert told == [COUNT, 3]


def test_several_tables_come_of_one_pass(tmp_path: Path) -> None:
    store, passes = FeatureStore(tmp_path, 1 << 20), list[tuple[str, ...]]()

    def watched(images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        passes.append(tuple(names))
        return body(images, names)

    kin, names = "k" * 40, digests(*range(COUNT))
    found_or_computed(store, work(keys={"thrice": f"{kin}-half"}, pictures=names, body=watched))
    assert set(passes) == {("thrice",)}
    both = {"twice": "two-key", "thrice": "other"}
    found = found_or_computed(store, work(keys=both, pictures=names, body=watched))
    assert found.lacking == ("twice", "thrice")
    assert torch.equal(rows(found), WANTED)
    assert torch.equal(rows(found, "thrice"), WANTED * 1.5)
    passes.clear()
    third = found_or_computed(store, work(keys={**both, "thrice": f"{kin}-another"}, pictures=names, body=watched))
    assert (third.lacking, third.count, passes) == (("thrice",), 0, [])
    assert torch.equal(rows(third, "thrice"), WANTED * 1.5)
    nowhere = found_or_computed(store, work(keys={"twice": None}, body=watched))
    assert (nowhere.count, len(passes)) == (COUNT, 3)
    assert torch.equal(rows(nowhere), WANTED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    for _ in range(2):
        found = rows(
            found_or_computed(store, work(body=lambda images, names: {"twice": body(images, names)["twice"].to(dtype)}))
        )
        assert found.dtype == dtype
        assert torch.equal(found, WANTED.to(dtype))


def test_a_large_table_stays_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.features.table.IN_MEMORY", 16)
    taken: list[object] = []
    look_up = Features.rows
    monkeypatch.setattr(Features, "rows", lambda self, positions: taken.append(positions) or look_up(self, positions))
    found = found_or_computed(FeatureStore(tmp_path, 1 << 20), work(memory=16))
    assert torch.equal(rows(found), WANTED)
    # by position from the file, and never all of it
    assert taken
    assert not any(isinstance(positions, slice) for positions in taken)


def test_without_a_store_it_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of the folder")
    store = FeatureStore(tmp_path / "file", 1 << 20)
    assert torch.equal(rows(found_or_computed(store, work())), WANTED)
    assert any("cannot be kept" in note for note in store.notes)
    small = FeatureStore(tmp_path / "small", 10)
    assert torch.equal(rows(found_or_computed(small, work())), WANTED)
    with pytest.raises(NotCached, match="too many for memory"):
        found_or_computed(small, work(memory=16))


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
    assert torch.equal(rows(found_or_computed(store, work())), WANTED)
    assert "No space left" in store.notes[0]
    assert store.find("key") is None


@pytest.mark.parametrize("missing", [{0}, {5, 6}, {0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}, {0, 1, 2, 3, 4, 9}])
def test_a_picture_that_cannot_be_read_has_an_empty_row(missing: set[int], tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    for _ in range(2):
        found = found_or_computed(store, work(deliveries=partial(deliveries, missing)))
        assert found.tables["twice"].empty_rows() == sorted(missing)
        kept = [at for at in range(COUNT) if at not in missing]
        assert torch.equal(rows(found)[kept], WANTED[kept])


def test_nothing_is_kept_of_a_pass_that_does_not_end(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1 << 20)
    with pytest.raises(Stopped):
        found_or_computed(store, work(is_stopping=iter([False, True]).__next__))
    with pytest.raises(StorageError):
        found_or_computed(store, work(deliveries=partial(deliveries, {5}, StorageError)))
    with pytest.raises(DataError, match=r"0\.png is none"):
        found_or_computed(store, work(deliveries=partial(deliveries, set(range(COUNT)))))
    assert store.find("key") is None
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    assert torch.equal(rows(found_or_computed(store, work())), WANTED)


def test_a_wait_for_another_run_is_said_and_can_be_given_up(tmp_path: Path) -> None:
    store, said = FeatureStore(tmp_path, 1 << 20), list[str]()
    other = FeatureStore(tmp_path, 1 << 20)
    with other.alone("key"), pytest.raises(Stopped):
        found_or_computed(store, work(is_stopping=iter([False, False, True]).__next__, say=said.append))
    assert said == ["another process computes the same features; this one waits for them"]
    # nothing is left of the lock that was waited for
    assert found_or_computed(store, work(say=said.append)).count == COUNT
    assert len(said) == 1
