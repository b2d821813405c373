"""The store: whole arrays or none, whatever fails, whoever else writes, reads or is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frostline.data.cache import default_store
from frostline.errors import ConfigError, StorageError
from frostline.storage import FeatureStore, StoreFault, Writer, default_limit, entry, room

ROWS, WIDTH = 16, 256
SIZE = entry.HEADER_SIZE + ROWS * WIDTH * 4
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", 3 * SIZE)


def numbers(key: str) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(sum(key.encode())))


@contextlib.contextmanager
def writing(store: FeatureStore, key: str) -> Iterator[Writer]:
    with store.writer(key, ROWS, WIDTH, torch.float32) as writer:
        yield writer


def put(store: FeatureStore, *keys: str) -> None:
    for key in keys:
        with writing(store, key) as writer:
            writer.write(0, numbers(key))


def kept(store: FeatureStore) -> list[str]:
    """Names of all that is in the folder but its lock."""
    return sorted(path.name.removesuffix(".features") for path in store.folder.iterdir() if path.name != ".lock")


def is_right(store: FeatureStore, key: str) -> bool:
    found = store.find(key)
    return found is not None and torch.equal(found.rows(slice(None)), numbers(key))


# ---- writing


def test_nothing_is_found_and_nothing_made_where_nothing_was_written(store: FeatureStore) -> None:
    assert store.find("key") is None
    assert not store.folder.exists()
    assert store.notes == []


def test_rows_come_in_any_order_and_of_either_library(store: FeatureStore) -> None:
    rows = numbers("key")
    with writing(store, "key") as writer:
        writer.write(8, rows[8:].numpy())
        writer.write(5, rows.repeat(1, 2)[5:8, :WIDTH])  # not contiguous
        writer.write(0, np.asfortranarray(rows[:5].numpy()))
        writer.write(3, rows[3:3])
        assert store.find("key") is None
    assert is_right(store, "key")
    assert kept(store) == ["key"]


def test_a_second_writer_replaces_what_the_first_has_written(store: FeatureStore) -> None:
    put(store, "key")
    held = store.find("key")
    with writing(store, "key") as writer:
        writer.write(0, numbers("other"))
    found = store.find("key")
    assert held is not None
    assert found is not None
    assert torch.equal(held.rows(slice(None)), numbers("key"))
    assert torch.equal(found.rows(slice(None)), numbers("other"))


@pytest.mark.parametrize(
    ("start", "rows", "told"),
    [
        (0, torch.zeros(1, WIDTH, dtype=torch.float64), "float64"),
        (0, np.zeros((1, WIDTH), dtype=np.int32), "int32"),
        (0, torch.zeros(1, WIDTH + 1), "257"),
        (0, torch.zeros(WIDTH), r"\[\] float32"),
        (ROWS, torch.zeros(1, WIDTH), "rows 16 to 17"),
        (-1, torch.zeros(1, WIDTH), "rows -1 to 0"),
        (0, np.zeros((1, WIDTH), dtype=">f4"), ">f4"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    store: FeatureStore, start: int, rows: Tensor | np.ndarray, told: str
) -> None:
    with pytest.raises(ValueError, match=told), writing(store, "key") as writer:
        writer.write(start, rows)
    assert kept(store) == []


def test_an_incomplete_array_is_not_kept(store: FeatureStore) -> None:
    with (
        pytest.raises(ValueError, match="15 of 16 rows were not written, the first is 0"),
        writing(store, "k") as writer,
    ):
        writer.write(3, numbers("k")[3:4])
    assert store.find("k") is None
    assert kept(store) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_nothing_is_left_of_what_an_exception_ends(store: FeatureStore, error: type[BaseException]) -> None:
    def fail() -> None:
        with writing(store, "key") as writer:
            writer.write(0, numbers("key"))
            raise error("mine")

    with pytest.raises(error, match="mine"):
        fail()
    assert store.find("key") is None
    assert kept(store) == []
    assert store.notes == []


# ---- a disk that is full, or cannot be written


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_disk_that_is_full_is_a_fault_and_leaves_nothing(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    put(store, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreFault, match="No space left") as caught:
            put(store, "key")
    assert isinstance(caught.value, StorageError)
    assert store.notes == [caught.value.problem]
    assert kept(store) == ["old"]
    assert store.find("key") is None
    put(store, "key")
    assert is_right(store, "key")


def test_a_write_that_failed_is_not_forgotten(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def go_on_after_a_fault() -> None:
        with writing(store, "key") as writer:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                with pytest.raises(StoreFault):
                    writer.write(0, numbers("key"))
            with pytest.raises(StoreFault):
                writer.write(0, numbers("key"))

    with pytest.raises(StoreFault, match="No space left"):
        go_on_after_a_fault()
    assert kept(store) == []


def test_parts_of_a_write_are_put_together(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:1000], offset))
    put(store, "key")
    assert is_right(store, "key")


def test_a_limit_on_the_size_of_files_is_a_fault(store: FeatureStore) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE - 1, limits[1]))
    try:
        with pytest.raises(StoreFault, match="File too large"):
            put(store, "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(store) == []


def test_a_disk_without_room_is_known_at_the_start(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "old")
    free = room.SPARE_ROOM + SIZE - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free - 2 * SIZE))
    with pytest.raises(StoreFault, match=r"take 20 KiB\. .* 256 MiB free; .* not in use there takes 20 KiB"):
        put(store, "key")
    assert kept(store) == ["old"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    put(store, "key")
    assert kept(store) == ["key"]


def test_a_file_in_the_place_of_the_folder_is_a_fault_to_a_writer_and_nothing_to_a_reader(store: FeatureStore) -> None:
    store.folder.write_text("in the way")
    assert store.find("key") is None
    with store.alone("key"), pytest.raises(StoreFault, match=f"cannot be kept in {store.folder}"):
        put(store, "key")
    assert ["cannot be" in note for note in store.notes] == [True, True]
    assert store.folder.read_text() == "in the way"


def test_a_folder_that_cannot_be_written_can_be_read(store: FeatureStore) -> None:
    put(store, "key")
    store.folder.chmod(0o500)
    try:
        if os.access(store.folder, os.W_OK):
            pytest.skip("this user writes anywhere")
        assert is_right(store, "key")
        with store.alone("other"), pytest.raises(StoreFault, match="Permission denied"):
            put(store, "other")
    finally:
        store.folder.chmod(0o700)


def test_a_folder_in_the_place_of_an_array_is_a_fault(store: FeatureStore) -> None:
    (store.folder / "key.features").mkdir(parents=True)
    assert store.find("key") is None
    assert "cannot be read" in store.notes[0]
    with pytest.raises(StoreFault, match="directory"):
        put(store, "key")
    assert kept(store) == ["key"]


# ---- the limit


def test_what_was_used_least_recently_is_evicted(store: FeatureStore) -> None:
    put(store, "a", "b", "c")
    assert store.find("a") is not None
    put(store, "d")
    assert kept(store) == ["a", "c", "d"]
    put(store, "e", "f")
    assert kept(store) == ["d", "e", "f"]
    assert ["b.features was evicted" in note for note in store.notes] == [True, False, False]


def test_what_is_in_use_is_not_evicted(store: FeatureStore) -> None:
    put(store, "a", "b", "c")
    found = store.find("a")
    assert found is not None
    part, path = found.array[2:3], found.path
    os.utime(path, (1, path.stat().st_mtime))  # long not used
    del found
    put(store, "d")
    assert kept(store) == ["a", "c", "d"]
    del part
    put(store, "e")
    assert kept(store) == ["c", "d", "e"]


def test_nothing_is_evicted_in_vain(store: FeatureStore) -> None:
    put(store, "a", "b", "c")
    held = [store.find("b"), store.find("c")]
    wide = WIDTH * 2
    refused = pytest.raises(StoreFault, match=r"take 36 KiB\. .* may hold 60 KiB")
    with refused, store.writer("wide", ROWS, wide, torch.float32):
        pass
    assert kept(store) == ["a", "b", "c"]
    del held
    with store.writer("wide", ROWS, wide, torch.float32) as writer:
        writer.write(0, torch.zeros(ROWS, wide))
    assert kept(store) == ["c", "wide"]


def test_what_is_larger_than_the_limit_is_refused_with_both_figures(store: FeatureStore) -> None:
    put(store, "a")
    refused = pytest.raises(StoreFault, match=r"take 5\.004 MiB, more than the 60 KiB")
    with refused, store.writer("huge", 1280, 1024, torch.float32):
        pass
    assert kept(store) == ["a"]


def test_what_is_being_written_counts(store: FeatureStore) -> None:
    with contextlib.ExitStack() as stack:
        for key in "abc":
            stack.enter_context(writing(store, key)).write(0, numbers(key))
        with pytest.raises(StoreFault, match="take 20 KiB"):
            put(store, "d")
    assert kept(store) == ["a", "b", "c"]


def test_a_lower_limit_holds_from_the_next_array_on(store: FeatureStore) -> None:
    put(store, "a", "b", "c")
    put(FeatureStore(store.folder, SIZE), "d")
    assert kept(store) == ["d"]


def test_the_limit_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE_GIB", "0.5")
    assert default_limit(tmp_path) == 1 << 29
    for wrong in ("much", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("FROSTLINE_CACHE_GIB", wrong)
        with pytest.raises(ConfigError, match=f"FROSTLINE_CACHE_GIB={wrong} is no number of GiB"):
            default_limit(tmp_path)


def test_the_default_limit_is_a_tenth_of_the_disk_and_at_most_10_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 50, 0, 1 << 40))
    store = default_store()
    assert (store.folder, store.limit) == (tmp_path / "frostline" / "features", 10 << 30)
    put(store, "a")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 50, 0, 1 << 30))
    assert default_store().limit == ((1 << 30) + SIZE) // 10


def test_a_folder_that_cannot_be_looked_into_is_a_fault_to_a_writer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the system refuses a name of this length, as it refuses a folder that is closed, whoever runs the test
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))
    store = default_store()
    assert store.find("key") is None
    with store.alone("key"), pytest.raises(StoreFault, match="cannot be kept"):
        put(store, "key")


# ---- where there are no locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_arrays_are_kept_and_none_is_evicted(store: FeatureStore) -> None:
    with store.alone("a"):
        put(store, "a", "b", "c")
    with pytest.raises(StoreFault, match="not in use there takes 0 bytes"):
        put(store, "d")
    assert all(is_right(store, key) for key in "abc")


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_part_goes_when_it_is_a_day_old(store: FeatureStore) -> None:
    store.folder.mkdir()
    young, old = store.folder / ".k.1.aa.part", store.folder / ".k.1.bb.part"
    for path, hours in ((young, 23), (old, 25)):
        path.touch()
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    put(store, "a")
    assert kept(store) == [young.name, "a"]


# ---- several processes


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frostline.storage"])
    return context


@pytest.fixture
def start(server: ForkServerContext, store: FeatureStore) -> Iterator[Callable[..., ForkServerProcess]]:
    """Starts a function with the folder, the limit and more in a process of its own."""
    started = []

    def begin(work: Callable[..., None], *more: object) -> ForkServerProcess:
        process = server.Process(target=work, args=(store.folder, store.limit, *more))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def write_for_ever(folder: Path, limit: int, key: str) -> None:
    while True:
        with writing(FeatureStore(folder, limit), key) as writer:
            for row, content in enumerate(numbers(key).split(1)):
                writer.write(row, content)


def write_often(folder: Path, limit: int, keys: str, times: int) -> None:
    store = FeatureStore(folder, limit)
    for _ in range(times):
        for key in keys:
            with contextlib.suppress(StoreFault):
                put(store, key)
            found = store.find(key)
            assert found is None or torch.equal(found.rows(slice(None)), numbers(key))
    assert not [note for note in store.notes if "damaged" in note or "cannot be read" in note]


def write_half_and_wait(folder: Path, limit: int, key: str) -> None:
    with writing(FeatureStore(folder, limit), key) as writer:
        writer.write(0, numbers(key)[:8])
        (folder.parent / "ready").touch()
        time.sleep(600)


def hold(folder: Path, limit: int, key: str) -> None:
    found = FeatureStore(folder, limit).find(key)
    (folder.parent / "ready").touch()
    time.sleep(600)
    del found


def compute_once(folder: Path, limit: int, key: str, wait: float) -> None:
    store = FeatureStore(folder, limit)
    with store.alone(key):
        if store.find(key) is None:
            with (folder.parent / "computed").open("a") as file:
                file.write("x")
            time.sleep(wait)
            put(store, key)
        assert is_right(store, key)


def count(folder: Path, limit: int, times: int) -> None:
    store, counter = FeatureStore(folder, limit), folder.parent / "counter"
    for _ in range(times):
        with store.alone("key"):
            before = int(counter.read_text() or 0)
            time.sleep(0.0005)
            counter.write_text(str(before + 1))


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_arrays_or_none(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    moments = random.Random(0)
    parts = 0
    for _ in range(15):
        process = start(write_for_ever, "key")
        until(lambda: store.folder.is_dir() and bool(kept(store)))
        time.sleep(moments.uniform(0, 0.01))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        parts += any(name.endswith(".part") for name in kept(store))
        assert store.find("key") is None or is_right(store, "key")
        assert store.notes == []
        put(store, "other")
        assert [name for name in kept(store) if name not in ("key", "other")] == []
        shutil.rmtree(store.folder)
    assert parts, "no writer was killed in the midst of writing"


@pytest.mark.slow
def test_a_part_stays_as_long_as_its_writer_lives(store: FeatureStore, start: Callable[..., ForkServerProcess]) -> None:
    process = start(write_half_and_wait, "key")
    until((store.folder.parent / "ready").exists)
    put(store, "other")
    (part,) = (name for name in kept(store) if name.endswith(".part"))
    assert part.startswith(".key.")
    assert store.find("key") is None
    process.kill()
    process.join()
    put(store, "another")
    assert kept(store) == ["another", "other"]


@pytest.mark.slow
def test_two_processes_that_write_one_key_end_with_valid_data(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    both = [start(write_often, "k", 60) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert is_right(store, "k")
    assert kept(store) == ["k"]


@pytest.mark.slow
def test_processes_that_evict_each_others_arrays_read_no_wrong_ones(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    both = [start(write_often, keys, 20) for keys in ("abcd", "cdef")]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert room.held(store.folder) <= store.limit
    assert all(store.find(key) is None or is_right(store, key) for key in "abcdef")


@pytest.mark.slow
def test_what_another_process_uses_is_not_evicted_until_it_is_gone(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    put(store, "a", "b", "c")
    process = start(hold, "a")
    until((store.folder.parent / "ready").exists)
    put(store, "d", "e", "f")
    assert kept(store) == ["a", "e", "f"]
    process.kill()
    process.join()
    put(store, "g")
    assert kept(store) == ["e", "f", "g"]


@pytest.mark.slow
def test_of_several_processes_one_computes(store: FeatureStore, start: Callable[..., ForkServerProcess]) -> None:
    three = [start(compute_once, "key", 0.2) for _ in range(3)]
    for process in three:
        process.join()
    assert [process.exitcode for process in three] == [0, 0, 0]
    assert (store.folder.parent / "computed").read_text() == "x"
    assert kept(store) == ["key"]


@pytest.mark.slow
def test_alone_is_alone_though_the_lock_is_removed_each_time(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    (store.folder.parent / "counter").touch()
    three = [start(count, 100) for _ in range(3)]
    for process in three:
        process.join()
    assert [process.exitcode for process in three] == [0, 0, 0]
    assert (store.folder.parent / "counter").read_text() == "300"


@pytest.mark.slow
def test_a_process_that_is_killed_lets_others_compute(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    first = start(compute_once, "key", 600)
    until((store.folder.parent / "computed").exists)
    second = start(compute_once, "key", 0)
    second.join(0.3)
    assert second.is_alive()
    first.kill()
    second.join()
    assert second.exitcode == 0
    assert kept(store) == ["key"]


def test_a_lock_that_a_killed_process_left_is_removed(store: FeatureStore) -> None:
    store.folder.mkdir()
    (store.folder / ".key.features.lock").touch()
    with store.alone("held"):
        put(store, "other")
        assert kept(store) == [".held.features.lock", "other"]
    assert kept(store) == ["other"]


def write_beside_a_child(folder: Path, limit: int) -> None:
    store = FeatureStore(folder, limit)
    with store.alone("a"), writing(store, "a") as writer:
        child = os.fork()
        if not child:
            signal.pause()
        writer.write(0, numbers("a"))
    try:
        signal.alarm(60)  # a lock that is waited for in vain ends the process
        with store.alone("a"):
            assert is_right(store, "a")
        put(FeatureStore(folder, SIZE), "b")
        assert kept(store) == ["b"]
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_children_that_were_forked_while_it_was_written_hold_nothing(
    store: FeatureStore, start: Callable[..., ForkServerProcess]
) -> None:
    """As loader workers are."""
    process = start(write_beside_a_child)
    process.join()
    assert process.exitcode == 0
