"""Processes that read data, forked while no other thread is at work.

A fork copies a process as it stands, with what another thread holds and nobody will let go. Up to Python 3.11 its own
list of threads is of that: a child waits for it before its first line of Python, for ever. It happens under several
processes: a thread of gloo enters that list to give up the tensors of a collective, and Lightning waits in a barrier
right before it asks for the first batch. Later versions make that list anew first; of what else a thread may hold when
it is copied nobody can say, so that it is waited for there as well.

What this process has freed and kept (see `frostline.runs.memory`) goes back to the system first: else each page of it
is copied when it is written to again, for as long as the other process lives, which holds the old one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
import warnings
from multiprocessing import context
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess

_LOOK_SECONDS = 0.002
_LIMIT_SECONDS = 1.0
# threads that were awake for longer, and have been whenever they were looked at since
_at_work: set[str] = set()


def can_fork() -> bool:
    """Whether processes are forked: elsewhere they start afresh, or their work is done in the one there is."""
    return sys.platform == "linux"


def fork_context(workers: int) -> context.BaseContext | None:
    """The ``multiprocessing_context`` of a DataLoader with that many processes; None leaves it to the system."""
    return QuietForks() if workers and can_fork() else None


def let_threads_settle(limit: float = _LIMIT_SECONDS) -> bool:
    """Wait until each other thread of this process has slept for a moment; whether they came to that.

    One that has is not looked at again: what gives up a collective does so when it is over, and sleeps until the next.
    A thread that is awake for longer than ``limit`` seconds is at work of its own, and not waited for until it has been
    found asleep.
    """
    end = time.monotonic() + limit
    _at_work.intersection_update(thread for thread in [*_at_work] if _naps(thread) is None)
    awake, before = _other_threads() - _at_work, dict[str, str | None]()
    while awake:
        now = {thread: _naps(thread) for thread in awake}
        awake = {thread for thread, naps in now.items() if naps is None or naps != before.get(thread)}
        if awake and time.monotonic() > end:
            _at_work.update(awake)
            return False
        before = now
        if awake:
            # this lets go of the interpreter as well, for which a thread may be waiting
            time.sleep(_LOOK_SECONDS)
    return True


def give_back_freed_memory() -> None:
    """Give what this process has freed back to the system, where the C library is glibc.

    A pass over 246 pictures of 224 pixels through a frozen mobilenetv2_100, on two cores and after another pass, took
    5.3 s without and 3.1 s with it, the first batch of 64 of them 3.3 and 1.4 s.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _other_threads() -> set[str]:
    try:
        return set(os.listdir("/proc/self/task")) - {os.path.basename(os.readlink("/proc/thread-self"))}
    except OSError:  # no Linux, or nothing is shown of it
        return set()


def _naps(thread: str) -> str | None:
    """How often a thread has gone to sleep, where the kernel says so; None where it is awake."""
    try:
        with open(f"/proc/self/task/{thread}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.partition(":")[::2] for line in file)
    except OSError:
        return ""  # it has ended
    counts = (status.get(key, "") for key in ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"))
    return " ".join(counts) if status.get("State", "").strip().startswith("S") else None


class _QuietProcess(context.ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802  # multiprocessing calls it so
        let_threads_settle()
        give_back_freed_memory()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking beside threads. These processes decode on one thread of their own
            # and take no lock of their parent's; starting afresh would import torch in each of them.
            warnings.filterwarnings("ignore", message=".*use of fork\\(\\) may lead", category=DeprecationWarning)
            return Popen(process_obj)


class QuietForks(context.ForkContext):
    """Forks as multiprocessing does, once the other threads have settled and freed memory is given back."""

    Process = _QuietProcess
