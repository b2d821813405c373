"""Signals that end a run: noted while a step runs, agreed on by all ranks, taken at the run's safe points.

SIGTERM and SIGINT are a person's or a system's; SIGUSR1 is what a scheduler sends before the time of a job is up.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from frostline.errors import Interrupted

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
# no hand sends two interrupts within this time
TWICE_SECONDS = 0.1


def name(signum: int) -> str:
    """``SIGTERM`` and the like."""
    return signal.Signals(signum).name


def exit_code(signum: int) -> int:
    """130 for SIGINT, 143 for SIGTERM and a scheduler's SIGUSR1."""
    return 130 if signum == signal.SIGINT else 143


class StopSignals:
    """What to do about the signals that end a process; one for the process: ``STOP``.

    Outside ``deferred()`` a signal raises ``Interrupted`` where the process is. Inside it is noted, and whoever runs
    there asks ``agreed()`` at its safe points. A second SIGINT ends the process and its children at once, always.

    Attributes:
        received: the signal that came; SIGTERM and SIGUSR1 count for more than SIGINT. None before any.
        everywhere: whether all ranks know of it, so that each of them ends by itself.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._process = 0
        self._watch: _SecondInterrupt | None = None
        self._group: Any = None
        self._group_of: Any = None
        self._reset()

    def _reset(self) -> None:
        self.received: int | None = None
        self.everywhere = False
        self._interrupts = 0
        self._deferrals = 0
        self._kept = "the run is saved first"
        self._is_ending = False

    def install(self) -> None:
        """Take over the signals, in the main thread; one that is ignored, as of a job in the background, stays so."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._reset()
        self._process = os.getpid()
        for signum in STOPPING:
            before = signal.getsignal(signum)
            if before is not None and not (signum == signal.SIGINT and before is signal.SIG_IGN):
                self._previous[signum] = signal.signal(signum, self._handle)
        if signal.SIGINT in self._previous:
            self._watch = _SecondInterrupt()

    def restore(self) -> None:
        """Give the signals back, and forget what came."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
        self._reset()

    @property
    def installed(self) -> bool:
        """Whether signals are taken over in this process, or were in the one that it was forked from."""
        return bool(self._previous)

    @contextlib.contextmanager
    def deferred(self, kept: str = "the run is saved first") -> Iterator[None]:
        """Only note signals in this block; one that nobody has taken by its end is taken there.

        Args:
            kept: what becomes of the work, for the line that says that a signal came.

        Raises:
            Interrupted: a signal came, and the block ended without an exception.
        """
        self._deferrals += 1
        self._kept = kept
        try:
            yield
        finally:
            self._deferrals -= 1
        if self.received and not self._deferrals and not self._is_ending:
            raise _interrupted(self.received)

    def ending(self) -> None:
        """From now on signals are only noted: the process is about to end, and says so itself."""
        self._is_ending = True

    def leave_the_watch(self) -> None:
        """In a fork: the pipe is the parent's, which would count the interrupts of its children as its own."""
        if self._watch is not None:
            self._watch = None
            signal.set_wakeup_fd(-1)

    def prepare(self) -> None:
        """Make what ``agreed`` needs; all ranks of a distributed run call it together."""
        import torch.distributed as ranks

        if not self._is_distributed() or ranks.group.WORLD is self._group_of:
            return
        # a flag of the CPU would wait for the whole queue of a GPU
        self._group = None if "gloo" in str(ranks.get_backend()) else ranks.new_group(backend="gloo")
        self._group_of = ranks.group.WORLD

    def agreed(self) -> int:
        """The signal that came on any rank, or 0; the same on all ranks, which have to call it together."""
        if not self._is_distributed():
            return self.received or 0
        import torch

        self.prepare()
        flag = torch.tensor(self.received or 0)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        found = int(flag)
        if found:
            self.received, self.everywhere = found, True
        return found

    @staticmethod
    def _is_distributed() -> bool:
        if "torch" not in sys.modules:
            return False
        import torch.distributed as ranks

        return ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _handle_in_fork(signum)
            return
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                end_at_once()
        is_first = self.received is None
        self.received = max(self.received or 0, signum)
        if self._is_ending:
            return
        if not self._deferrals:
            raise _interrupted(signum)
        if is_first:
            again = " Again to stop at once." if signum == signal.SIGINT else ""
            _say(f"{name(signum)}: stopping after this step; {self._kept}.{again}")


def _interrupted(signum: int) -> Interrupted:
    return Interrupted(f"{name(signum)}: stopped.", code=exit_code(signum))


def _say(line: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("RANK", "0") != "0":
        return
    # a handler may come in the middle of a print, so that it cannot print
    with contextlib.suppress(OSError):
        os.write(2, (line + "\n").encode())


def _handle_in_fork(signum: int) -> None:
    """What a forked process inherits: it leaves the end of the run to its parent, but can be terminated."""
    if signum == signal.SIGTERM:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


class _SecondInterrupt:
    """A thread that ends the process at its second SIGINT, also where the main thread is stuck in a foreign call.

    The C part of Python's handler writes each signal's number into a pipe, whatever the main thread does.
    """

    def __init__(self) -> None:
        source, self._sink = os.pipe()
        os.set_blocking(self._sink, False)
        self._previous = signal.set_wakeup_fd(self._sink, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(source,), name="second-interrupt", daemon=True).start()

    @staticmethod
    def _read(source: int) -> None:
        first: float | None = None
        while numbers := os.read(source, 64):
            if signal.SIGINT not in numbers:
                continue
            now = time.monotonic()
            first = now if first is None else first
            # one interrupt of the group may come twice, through a child that is being forked
            if now - first > TWICE_SECONDS:
                end_at_once()
        os.close(source)

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous)
        os.close(self._sink)


_ending_at_once = threading.Lock()


def end_at_once() -> None:
    """Kill all processes below this one and exit with 130; nothing is saved and nothing cleaned up."""
    if not _ending_at_once.acquire(blocking=False):
        return
    try:
        _say("SIGINT again: stopped at once. What came after the last checkpoint is lost.")
        with contextlib.suppress(ValueError):
            # torch raises from its own handler when a process that reads data ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in _processes_below(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
    finally:
        os._exit(130)


def _processes_below(pid: int) -> set[int]:
    """The children, as multiprocessing knows them and as ``/proc`` shows them, and theirs."""
    found = {child.pid for child in multiprocessing.process.active_children() if child.pid is not None}
    parents = _parents()
    fresh = {child for child, parent in parents.items() if parent == pid} | found
    while fresh:
        found |= fresh
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
    return found


def _parents() -> dict[int, int]:
    """Process to parent, of all that ``/proc`` shows; empty where there is none."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                    # pid (command, which may hold anything) state parent …
                    parents[int(entry)] = int(file.read().rpartition(b")")[2].split()[1])
    return parents


def die_with_parent(signum: int, parent: int | None = None) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends (Linux), however that ends.

    Args:
        signum: SIGKILL, say.
        parent: the process that started this one: where it has gone already, ``signum`` comes now. A process that
            multiprocessing has started knows it without.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    started_by = multiprocessing.process.parent_process()
    known = parent or (started_by.pid if started_by else None)
    if known is not None and os.getppid() != known:
        os.kill(os.getpid(), signum)


def leave_to_main() -> None:
    """In a process that reads data: signals to the whole group are the main process's affair, and so is its end.

    Without it, Ctrl-C or a scheduler's SIGTERM would end this process before the run is saved. SIGTERM counts from the
    second time on, so that it can be terminated.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _once_more)
    die_with_parent(signal.SIGKILL)


def _once_more(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)


STOP = StopSignals()
os.register_at_fork(after_in_child=STOP.leave_the_watch)
