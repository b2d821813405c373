"""A pass of pictures through a frozen body, into the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from frostline.data.loading import Delivery
from frostline.data.progress import Progress
from frostline.errors import DataError, FrostlineError
from frostline.features.boundary import NotCached
from frostline.features.table import IN_MEMORY, FeatureTable, table_of, table_of_parts
from frostline.storage.room import StoreFault
from frostline.storage.store import FeatureStore

Body = Callable[[Tensor], Tensor]
"""Takes ``[B, C, H, W]`` pictures on the CPU, gives ``[B, ...]`` features there."""


class Stopped(Exception):  # noqa: N818  # no error: the pass was given up
    """A signal has come: the run is about to be saved."""


@dataclass(frozen=True)
class Pass:
    """What is to be computed.

    Attributes:
        key: of the result in the store.
        count: pictures of the split.
        deliveries: begins to read them, in the order of their positions.
        body: runs on a batch of them.
        is_stopping: whether to give up.
        say: takes a line for the person.
        is_shared: whether other processes need the result, so that the store has to keep it.
    """

    key: str
    count: int
    deliveries: Callable[[], Iterator[Delivery]]
    body: Body
    is_stopping: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda line: None
    is_shared: bool = False


@dataclass(frozen=True)
class Computed:
    """The table, and how it came.

    Attributes:
        table: of all pictures.
        seconds: of a pass over the pictures; None where it was in the store.
        waited: whether another process computed it meanwhile.
    """

    table: FeatureTable
    seconds: float | None = None
    waited: bool = False


def found_or_computed(store: FeatureStore, work: Pass, *, anew: bool = False) -> Computed:
    """The table of a key, from the store or by a pass of which the store keeps the result.

    Of several processes that want the same, one computes and the others wait. A picture that cannot be read has a row
    without a number.

    Args:
        store: keeps it.
        work: makes it.
        anew: whether what the store has is left aside, and replaced.

    Raises:
        NotCached: it can be kept neither in the store nor in memory.
        FrostlineError: a picture could not be read for a reason that may be gone the next time.
        Stopped: the pass was given up, or the wait for another process.
    """
    if not anew and (found := store.find(work.key)) is not None:
        return Computed(table_of(found))
    waiting = _Waiting(work)
    with store.alone(work.key, waiting):
        if not anew and (found := store.find(work.key)) is not None:
            return Computed(table_of(found), waited=waiting.has_said)
        started = time.perf_counter()
        table = _computed(store, work)
        return Computed(table, time.perf_counter() - started)


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


def _computed(store: FeatureStore, work: Pass) -> FeatureTable:
    rows = _rows(work)
    first = next(rows)
    parts = chain([first], rows)
    size = work.count * first[0].numel() * first.element_size()
    # in memory as well, as long as they are few: the store may fail
    kept: list[Tensor] | None = [] if size <= IN_MEMORY and not work.is_shared else None
    start = 0
    try:
        with store.writer(work.key, work.count, first.shape[1:], first.dtype) as writer:
            for part in parts:
                if kept is not None:
                    kept.append(part)
                writer.write(start, part)
                start += len(part)
    except StoreFault as fault:
        if kept is None:
            why = "several processes share its features" if work.is_shared else "its features are too many for memory"
            raise NotCached(f"{why}. {fault.problem}") from fault
        kept += parts
    if kept is not None:
        return table_of_parts(kept)
    found = store.find(work.key)
    if found is None:
        raise NotCached("its features were evicted as soon as they were computed")
    return table_of(found)


def _rows(work: Pass) -> Iterator[Tensor]:
    """The rows of each delivery, in order."""
    progress = Progress("computing features", work.count)
    done = passed = 0
    row: Tensor | None = None
    fault: FrostlineError | None = None
    for delivery in work.deliveries():
        if work.is_stopping():
            raise Stopped
        fault = fault or _fault(delivery)
        count = len(delivery.unreadable) + (0 if delivery.batch is None else len(delivery.batch.images))
        found = None if delivery.batch is None else work.body(delivery.batch.images)
        row = row if found is None else found[:1]
        if row is None:
            passed += count
            continue
        if found is None or delivery.unreadable:
            found = _spread(found, delivery, done + passed, count, row)
        # what came before the first picture that could be read
        yield torch.cat([_empty(row, passed), found]) if passed else found
        done, passed = done + passed + count, 0
        progress.at(done)
    progress.end()
    if fault is not None and row is None:
        raise fault


def _fault(delivery: Delivery) -> FrostlineError | None:
    """What the first picture that cannot be read says; raised where the machine failed, and may not the next time."""
    for picture in delivery.unreadable:
        if not isinstance(picture.fault, DataError):
            raise picture.fault
    return delivery.unreadable[0].fault if delivery.unreadable else None


def _spread(found: Tensor | None, delivery: Delivery, start: int, count: int, row: Tensor) -> Tensor:
    rows = _empty(row, count)
    if found is not None and delivery.batch is not None:
        rows[delivery.batch.indices - start] = found
    return rows


def _empty(row: Tensor, count: int) -> Tensor:
    return row.new_full((count, *row.shape[1:]), torch.nan)
