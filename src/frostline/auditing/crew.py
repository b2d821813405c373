"""Work on many pictures in several processes, which a decoder may crash without stopping the others."""

from __future__ import annotations

import contextlib
import mmap
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

import numpy as np
import numpy.typing as npt

from frostline import signals
from frostline.errors import StorageError
from frostline.forking import QuietForks, can_fork

_CHUNK = 16
_NOTHING = -1

Task = tuple[int, int]
Work = Callable[[int], Any]


def shared(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros that forked processes write to and this one reads."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * kind.itemsize))
    return np.frombuffer(memory, dtype=kind, count=count).reshape(shape)


def in_processes(
    work: Work, total: int, workers: int, lost: Callable[[int, str], Any]
) -> Iterator[list[tuple[int, Any]]]:
    """Does ``work(position)`` for each of ``total`` positions, in any order, and yields what comes back.

    A process that dies takes one position with it, the one it was on; another process goes on with the rest.

    Args:
        work: is called in a forked process; what it returns is pickled. It must not raise.
        total: the number of positions.
        workers: processes; with 0 the work is done in this one.
        lost: makes the result of a position at which a process died, from the position and the reason.

    Raises:
        StorageError: processes die before they begin.
    """
    if workers == 0 or not can_fork():
        yield from ([(position, work(position))] for position in range(total))
        return
    tasks = deque((start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK))
    crew = _Crew(work, min(workers, len(tasks)))
    try:
        crew.start(tasks)
        while crew.busy:
            for member in crew.ready():
                results = member.results()
                if results is not None:
                    yield results
                else:
                    yield _lost(member, tasks, lost)
                    crew.replace(member)
                crew.give(tasks)
    finally:
        crew.stop()


def _lost(member: _Member, tasks: deque[Task], lost: Callable[[int, str], Any]) -> list[tuple[int, Any]]:
    """Puts back what the dead process was to do, but for the picture it was on."""
    assert member.task is not None
    start, end = member.task
    position = member.position
    reason = member.reason()
    if position == _NOTHING:
        raise StorageError(
            f"A process that reads pictures {reason} before it began.",
            mend="Check the memory of this machine, or set fewer workers.",
        )
    tasks.extendleft(task for task in ((position + 1, end), (start, position)) if task[0] < task[1])
    return [(position, lost(position, reason))]


class _Crew:
    def __init__(self, work: Work, count: int) -> None:
        self._work = work
        self._at = shared((count,), np.int64)
        self._members: list[_Member] = []

    @property
    def busy(self) -> bool:
        return any(member.task for member in self._members)

    def start(self, tasks: deque[Task]) -> None:
        for number in range(len(self._at)):
            self._members.append(_Member(self._work, self._at[number : number + 1]))
        self.give(tasks)

    def give(self, tasks: deque[Task]) -> None:
        for member in self._members:
            if tasks and member.task is None:
                member.begin(tasks.popleft())

    def ready(self) -> list[_Member]:
        waiting = {member.connection: member for member in self._members if member.task}
        return [waiting[connection] for connection in wait(list(waiting)) if isinstance(connection, Connection)]

    def replace(self, member: _Member) -> None:
        place = self._members.index(member)
        member.end()
        self._members[place] = _Member(self._work, member.at)

    def stop(self) -> None:
        for member in self._members:
            member.end()


class _Member:
    """One process, and the pipe to it.

    Attributes:
        task: what it is to do; None while it waits.
        at: ``[1]`` int64 in shared memory: the position it is on, or -1.
    """

    def __init__(self, work: Work, at: npt.NDArray[np.int64]) -> None:
        self.task: Task | None = None
        self.at = at
        context = QuietForks()
        self.connection, theirs = context.Pipe()
        self._process: ForkProcess = context.Process(
            target=_serve, args=(work, theirs, self.connection, at), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def position(self) -> int:
        return int(self.at[0])

    def begin(self, task: Task) -> None:
        self.task = task
        self.at[0] = _NOTHING
        with contextlib.suppress(OSError):  # of a process that has died: `results` finds it
            self.connection.send(task)

    def results(self) -> list[tuple[int, Any]] | None:
        """What it has sent; None where it has died."""
        try:
            found: list[tuple[int, Any]] = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.task = None
        return found

    def reason(self) -> str:
        self._process.join(5.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            try:
                return f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"was ended by signal {-code}"
        return f"ended with exit code {code}"

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(work: Work, connection: Connection, parents: Connection, at: npt.NDArray[np.int64]) -> None:
    signals.leave_to_main()
    parents.close()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            start, end = connection.recv()
            results = []
            for position in range(start, end):
                at[0] = position
                results.append((position, work(position)))
            connection.send(results)
