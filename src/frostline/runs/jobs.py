"""The processes of a sweep: its jobs, and the signals that it passes on to them.

Jobs are forked from one server that has paid for the imports. Each is a process group of its own, which Ctrl-C at a
terminal does not reach: the sweep passes on what comes, so that a job gets every signal once. It saves itself, and the
next one is not started. A second SIGINT ends both at once.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PRELOAD = ["frostline.runs.preload"]


class Stopping:
    """The signal that stops a sweep, and the processes that are told of it.

    Attributes:
        signum: the first one that came, or 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._interrupts = 0
        self._running: set[int] = set()

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after another signal, 0 after none."""
        if not self.signum:
            return 0
        return 130 if self.signum == signal.SIGINT else 143

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, a signal stops no process by itself; what was ignored before stays ignored."""
        self.signum = self._interrupts = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {**dict.fromkeys(STOP_SIGNALS, self._came), signal.SIGTSTP: self._suspended}
        before = {number: signal.getsignal(number) for number in handlers}
        taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, handlers[number])
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number])

    @contextmanager
    def told(self, pid: int) -> Iterator[None]:
        """Within, ``pid`` gets what comes, and what has come already."""
        self._running.add(pid)
        try:
            if self.signum:
                self._tell(pid, self.signum)
            yield
        finally:
            self._running.discard(pid)

    def raise_if_stopped(self) -> None:
        """Raise ``KeyboardInterrupt`` where a signal has come: nothing new is to be started."""
        if self.signum:
            raise KeyboardInterrupt

    def _came(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        self._interrupts += signum == signal.SIGINT
        for pid in list(self._running):
            self._tell(pid, signum)
        if self._interrupts > 1 and not self._running:
            raise KeyboardInterrupt

    def _suspended(self, _signum: int, _frame: FrameType | None) -> None:
        # Ctrl-Z: the jobs stand still as long as the sweep does
        self._tell_groups(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._tell_groups(signal.SIGCONT)

    def _tell_groups(self, signum: int) -> None:
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signum)

    def _tell(self, pid: int, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if self._interrupts > 2 else signum)


STOPPING = Stopping()
"""Of this process: signals are."""


def run_forked(function: Callable[..., int], *arguments: Any) -> int:
    """Run ``function`` in a process of the fork server; the exit code it returns, negative for a signal."""
    process = _server().Process(target=_forked, args=(function, arguments))
    _start(process)
    assert process.pid is not None
    with STOPPING.told(process.pid):
        process.join()
    return 1 if process.exitcode is None else process.exitcode


def ask_forked(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """What ``function`` returns in a process of the fork server; None where it raises or dies."""
    context = _server()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_forked, args=(_answer, (sender, function, arguments)))
    _start(process)
    sender.close()
    assert process.pid is not None
    with STOPPING.told(process.pid), receiver:
        try:
            answer = receiver.recv()
        except EOFError:
            answer = None
        process.join()
    return answer


_starting = threading.Lock()


def _start(process: BaseProcess) -> None:
    """Start a process whose exit code this thread alone asks for.

    multiprocessing asks all that it has started whenever another one starts. The code can be read once: a thread that
    waits for a process which ends at that moment would get 255 in its place.
    """
    with _starting:
        process.start()
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # private; held by a test


def run_alone(line: Sequence[str]) -> int:
    """Run a command line in a process of its own; its exit code, negative for a signal."""
    from frostline import signals

    ends_too = functools.partial(signals.die_with_parent, signal.SIGTERM, os.getpid())
    with (
        subprocess.Popen(line, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=ends_too) as process,
        STOPPING.told(process.pid),
    ):
        return process.wait()


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # the tracker that the server starts would undo the mask
    multiprocessing.resource_tracker.ensure_running()
    # the server has to outlive its job, so it is deaf to what a terminal or a scheduler sends to all processes
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _forked(function: Callable[..., int], arguments: Sequence[Any]) -> NoReturn:
    from frostline import signals

    os.setpgid(0, 0)
    signals.die_with_parent(signal.SIGTERM, os.getppid())
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    # what has come since the fork comes now, and ends a job that has not begun without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    sys.exit(function(*arguments))


def _end_with_sweep() -> None:
    """Stop this job when the sweep is gone; the server that is its parent lives on as long as the job."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _answer(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> int:
    with sender:
        try:
            sender.send(function(*arguments))
        except Exception:
            return 1
    return 0
