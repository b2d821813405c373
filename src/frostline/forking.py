"""Processes that read data, forked while no other thread is at work.

A fork copies a process as it stands, with what another thread holds and nobody will let go. Up to Python 3.11 its own
list of threads is of that: a child waits for it before its first line of Python, for ever. It happens under several
processes: a thread of gloo enters that list to give up the tensors of a collective, and Lightning waits in a barrier
right before it asks for the first batch.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from multiprocessing import context
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess

_LOOK_SECONDS = 0.002
_LIMIT_SECONDS = 1.0


def can_fork() -> bool:
    """Whether processes are forked: elsewhere they start afresh, or their work is done in the one there is."""
    return sys.platform == "linux"


def fork_context(workers: int) -> context.BaseContext | None:
    """The ``multiprocessing_context`` of a DataLoader with that many processes; None leaves it to the system."""
    return QuietForks() if workers and can_fork() else None


def let_threads_settle(limit: float = _LIMIT_SECONDS) -> bool:
    """Wait until no other thread of this process has run between two looks; whether it came to that.

    A thread that is awake for longer than ``limit`` seconds is at work of its own, and not waited for.
    """
    end = time.monotonic() + limit
    before, now = None, _switches()
    while now is None or (now and now != before):
        if time.monotonic() > end:
            return False
        # this lets go of the interpreter as well, for which a thread may be waiting
        time.sleep(_LOOK_SECONDS)
        before, now = now, _switches()
    return True


def _switches() -> dict[str, str] | None:
    """How often each of the other threads has left its processor; None where one is on it, or would be."""
    own, switches = str(threading.get_native_id()), {}
    for thread in os.listdir("/proc/self/task"):
        if thread == own:
            continue
        try:
            with open(f"/proc/self/task/{thread}/status", encoding="utf-8") as file:
                status = dict(line.split(":", 1) for line in file)
        except OSError:
            return None  # it was just ending
        if status["State"].split()[0] != "S":
            return None
        switches[thread] = status["voluntary_ctxt_switches"] + status["nonvoluntary_ctxt_switches"]
    return switches


class _QuietProcess(context.ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802  # multiprocessing calls it so
        let_threads_settle()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking beside threads. These processes decode on one thread of their own
            # and take no lock of their parent's; starting afresh would import torch in each of them.
            warnings.filterwarnings("ignore", message=".*use of fork\\(\\) may lead", category=DeprecationWarning)
            return Popen(process_obj)


class QuietForks(context.ForkContext):
    """Forks as multiprocessing does, once the other threads have settled."""

    Process = _QuietProcess
