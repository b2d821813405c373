"""A pass of pictures through a frozen body, into the store: only of those whose features it does not have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.data.loading import Delivery
from frostline.data.progress import Progress
from frostline.errors import DataError, FrostlineError
from frostline.features.boundary import NotCached
from frostline.features.known import Positions, known_rows
from frostline.features.table import IN_MEMORY, FeatureTable, table_of, table_of_parts
from frostline.storage import FeatureStore, Names, StoreFault, Writer

Body = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Takes ``[B, C, H, W]`` pictures on the CPU, and the names of the tables that are wanted; gives ``[B, ...]`` features
there for each."""


class Stopped(Exception):  # noqa: N818  # no error: the pass was given up
    """A signal has come: the run is about to be saved."""


@dataclass(frozen=True)
class Pass:
    """What is to be computed: a table, or several that come of one pass.

    Attributes:
        keys: of each table in the store, by its name; None where it cannot be told what it comes from, and nothing is
            kept.
        count: pictures of the split.
        deliveries: begins to read those of the ``positions`` that it is given, rising; of None, all.
        body: runs on a batch of them.
        pictures: their digests, where features of a picture are the same in any split; None where they are not, and
            none are taken from other tables.
        expect: told how many pictures are to come, before the first of them.
        is_stopping: whether to give up.
        say: takes a line for the person.
        is_shared: whether other processes need the result, so that the store has to keep it.
        memory: bytes up to which a table is kept in memory if the store cannot.
    """

    keys: Mapping[str, str | None]
    count: int
    deliveries: Callable[..., Iterator[Delivery]]
    body: Body
    pictures: Names | None = None
    expect: Callable[[int], None] = lambda count: None
    is_stopping: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda line: None
    is_shared: bool = False
    memory: float = IN_MEMORY


@dataclass(frozen=True)
class Computed:
    """The tables, and how they came.

    Attributes:
        tables: of all pictures, by name.
        lacking: the names of those that were not in the store.
        asked: pictures that were asked for, of which the store had no row.
        count: those of them that could be read, and went through the body.
        seconds: that this took, the reading of pictures included.
        waited: whether another process computed meanwhile what was lacking.
    """

    tables: Mapping[str, FeatureTable]
    lacking: tuple[str, ...] = ()
    asked: int = 0
    count: int = 0
    seconds: float = 0.0
    waited: bool = False

    def how(self) -> str:
        """The end of a sentence on features: how they came."""
        if not self.lacking:
            return "computed by another process" if self.waited else "found"
        if not self.count:
            return "found, picture by picture"
        known = max(map(len, self.tables.values())) - self.asked
        pace = f"in {self.seconds:.1f} s ({self.count / max(self.seconds, 1e-9):,.0f} a second)"
        return f"{known:,} found, {self.count:,} computed {pace}" if known else f"computed {pace}"


def found_or_computed(store: FeatureStore, work: Pass, *, anew: bool = False) -> Computed:
    """The tables of a pass, from the store or computed, which the store then keeps.

    Of a table that the store lacks it may have rows under other keys; only the pictures without one go through the
    body. Of several processes that want the same table, one computes and the others wait. A picture that cannot be read
    has a row without a number.

    Args:
        store: keeps them.
        work: makes them.
        anew: whether what the store has is left aside, and replaced.

    Raises:
        NotCached: one can be kept neither in the store nor in memory.
        FrostlineError: a picture could not be read for a reason that may be gone the next time; or none could be.
        Stopped: the pass was given up, or the wait for another process.
    """
    found = {} if anew else _found(store, work, work.keys)
    waiting = _Waiting(work)
    with ExitStack() as held:
        # always in one order, so that two processes do not wait for each other
        for key in sorted(key for name, key in work.keys.items() if key is not None and name not in found):
            held.enter_context(store.alone(key, waiting))
        found |= {} if anew else _found(store, work, [name for name in work.keys if name not in found])
        lacking = tuple(name for name in work.keys if name not in found)
        if not lacking:
            return Computed(found, waited=waiting.has_said)
        started = time.perf_counter()
        made, asked, count = _made(store, work, lacking, anew=anew)
    tables = {name: (found | made)[name] for name in work.keys}
    return Computed(tables, lacking, asked, count, time.perf_counter() - started)


def _found(store: FeatureStore, work: Pass, names: Iterable[str]) -> dict[str, FeatureTable]:
    stored = {name: store.find(key) for name in names if (key := work.keys[name]) is not None}
    return {name: table_of(features) for name, features in stored.items() if features is not None}


class _Waiting:
    """Says once that another process computes the same, and gives up where the run is to be saved."""

    def __init__(self, work: Pass) -> None:
        self._work = work
        self.has_said = False

    def __call__(self) -> None:
        if self._work.is_stopping():
            raise Stopped
        if not self.has_said:
            self._work.say("another process computes the same features; this one waits for them")
            self.has_said = True


def _made(
    store: FeatureStore, work: Pass, names: Sequence[str], *, anew: bool
) -> tuple[dict[str, FeatureTable], int, int]:
    """Tables of what the store has and of a pass for the rest; the pictures of it, and those that could be read."""
    if work.pictures is not None and not anew:
        noted = len(store.notes)
        try:
            return _gathered(store, work, names, work.pictures)
        except _NoRoom:
            # perhaps because what lends rows is in use, and did not go to make room
            del store.notes[noted:]
    return _gathered(store, work, names, None)


def _gathered(
    store: FeatureStore, work: Pass, names: Sequence[str], pictures: Names | None
) -> tuple[dict[str, FeatureTable], int, int]:
    with ExitStack() as stack:
        growing: dict[str, _Growing] = {}

        def put(name: str, positions: Positions, rows: Tensor, *, lent: bool = False) -> None:
            if name not in growing:
                growing[name] = stack.enter_context(_Growing(store, work, name, rows, follows_lenders=lent))
            growing[name].put(positions, rows)

        for name in names:
            for positions, rows in _lent(store, work.keys[name], pictures):
                put(name, positions, rows, lent=True)
        complete = [growing[name].has if name in growing else np.zeros(work.count, dtype=np.bool_) for name in names]
        lacking, count = np.flatnonzero(~np.logical_and.reduce(complete)), 0
        for positions, made in _passed(work, names, lacking) if len(lacking) else ():
            count += len(positions)
            for name, rows in made.items():
                put(name, positions, rows)
        return {name: growing[name].table() for name in names}, len(lacking), count


def _lent(store: FeatureStore, key: str | None, pictures: Names | None) -> Iterator[tuple[Positions, Tensor]]:
    if key is not None and pictures is not None:
        for lender in known_rows(store, key, pictures):
            yield from lender.parts()


def _passed(work: Pass, names: Sequence[str], wanted: Positions) -> Iterator[tuple[Positions, Mapping[str, Tensor]]]:
    """The positions of pictures that can be read, and their rows in each table.

    Raises:
        FrostlineError: one cannot be read for a reason that may be gone the next time; or none can, of all.
        Stopped: the run is about to be saved.
    """
    progress = Progress("computing features", len(wanted))
    done, is_any_read = 0, len(wanted) < work.count
    fault: FrostlineError | None = None
    work.expect(len(wanted))
    for delivery in work.deliveries(positions=None if len(wanted) == work.count else wanted.tolist()):
        if work.is_stopping():
            raise Stopped
        fault = fault or _fault(delivery)
        done += len(delivery.unreadable)
        if delivery.batch is not None:
            yield delivery.batch.indices.numpy(), work.body(delivery.batch.images, names)
            done, is_any_read = done + len(delivery.batch.indices), True
        progress.at(done)
    progress.end()
    if fault is not None and not is_any_read:
        raise fault


def _fault(delivery: Delivery) -> FrostlineError | None:
    """What the first picture that cannot be read says; raised where the machine failed, and may not the next time."""
    for picture in delivery.unreadable:
        if not isinstance(picture.fault, DataError):
            raise picture.fault
    return delivery.unreadable[0].fault if delivery.unreadable else None


class _NoRoom(NotCached):
    """The store has none to begin with, while one of its arrays is in use to lend rows."""


class _Growing:
    """A table whose rows come in any order, into the store and, while they are few, into memory: the store may fail.

    Args:
        store: keeps it.
        work: that makes it.
        name: of it.
        rows: some of them, for their shape and dtype.
        follows_lenders: whether arrays of the store that lend the first rows are in use until then.

    Attributes:
        has: ``[count]`` bool, the rows that it has been given.

    Raises:
        NotCached: the store cannot keep it, and the memory is not to; by `put` and `table` as well.
    """

    def __init__(self, store: FeatureStore, work: Pass, name: str, rows: Tensor, *, follows_lenders: bool) -> None:
        self.has: npt.NDArray[np.bool_] = np.zeros(work.count, dtype=np.bool_)
        self._store, self._work, self._key = store, work, work.keys[name]
        self._stack = ExitStack()
        self._follows_lenders, self._fault = follows_lenders, ""
        self._writer: Writer | None = None
        self._row = rows.new_full((1, *rows.shape[1:]), torch.nan)
        size = work.count * self._row.numel() * self._row.element_size()
        is_kept = self._key is None or (size <= work.memory and not work.is_shared)
        self._kept = self._row.repeat(work.count, *[1] * (rows.ndim - 1)) if is_kept else None

    def __enter__(self) -> _Growing:
        if self._key is not None:
            try:
                self._writer = self._stack.enter_context(self._new_writer(self._key))
            except StoreFault as fault:
                self._do_without(fault, _NoRoom if self._follows_lenders else NotCached)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> Any:
        return self._stack.__exit__(kind, error, at)

    def put(self, positions: Positions, rows: Tensor) -> None:
        """Take the rows of some positions."""
        self.has[positions] = True
        if self._kept is not None:
            self._kept[torch.from_numpy(positions)] = rows
        if self._writer is not None:
            try:
                self._writer.write_rows(positions, rows)
            except StoreFault as fault:
                self._do_without(fault)

    def table(self) -> FeatureTable:
        """All rows, those that were not given without a number; and keep them."""
        for start in np.flatnonzero(~self.has) if self._writer is not None else ():
            self.put(np.array([start]), self._row)
        try:
            self._stack.close()
        except StoreFault as fault:
            self._do_without(fault)
        if self._kept is not None:
            if self._fault and self._follows_lenders and self._key is not None:
                self._keep_after_all(self._key, self._kept)
            return table_of_parts([self._kept])
        assert self._key is not None
        found = self._store.find(self._key)
        if found is None:
            raise NotCached("its features were evicted as soon as they were computed")
        return table_of(found)

    def _keep_after_all(self, key: str, rows: Tensor) -> None:
        """Now that what has lent rows is not in use any more."""
        with suppress(StoreFault):
            with self._new_writer(key) as writer:
                writer.write(0, rows)
            self._store.notes.remove(self._fault)

    def _new_writer(self, key: str) -> AbstractContextManager[Writer]:
        return self._store.writer(key, self._work.count, self._row.shape[1:], self._row.dtype, self._work.pictures)

    def _do_without(self, fault: StoreFault, reason: type[NotCached] = NotCached) -> None:
        """Go on in memory, if that is to hold it."""
        self._writer, self._fault = None, fault.problem
        self._stack.__exit__(type(fault), fault, fault.__traceback__)
        if self._kept is None:
            shared = self._work.is_shared
            why = "several processes share its features" if shared else "its features are too many for memory"
            raise reason(f"{why}. {fault.problem}") from fault
