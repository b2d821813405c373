"""Forks that wait until the other threads of a process are at rest."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

import frostline
from frostline.forking import QuietForks, can_fork, fork_context, let_threads_settle

linux = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")


def busy(seconds: float) -> threading.Thread:
    """A thread that is at work outside of the interpreter, as one of gloo is."""

    def work() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            hashlib.sha256(bytes(1 << 20))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@linux
def test_a_thread_at_work_is_waited_for() -> None:
    thread = busy(0.4)
    assert let_threads_settle(limit=30)
    assert not thread.is_alive()


@linux
def test_a_thread_that_never_rests_is_not_waited_for() -> None:
    thread = busy(3)
    began = time.monotonic()
    assert not let_threads_settle(limit=0.2)
    assert time.monotonic() - began < 2
    assert thread.is_alive()


@linux
def test_threads_that_sleep_hold_nothing_up() -> None:
    leave = threading.Event()
    for _ in range(4):
        threading.Thread(target=leave.wait, daemon=True).start()
    try:
        assert let_threads_settle(limit=30)
    finally:
        leave.set()


@linux
def test_a_process_is_forked_once_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = busy(0.4)
    child = QuietForks().Process(target=os._exit, args=(7,))
    child.start()
    assert not thread.is_alive()
    child.join(30)
    assert child.exitcode == 7


def test_data_workers_are_forked_so() -> None:
    assert isinstance(fork_context(1), QuietForks if can_fork() else type(None))
    assert fork_context(0) is None


def test_nothing_in_the_program_forks_in_another_way() -> None:
    package = Path(frostline.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path.name != "forking.py"}
    assert len(texts) > 200
    assert [name for name, text in texts.items() if '"fork"' in text or "os.fork(" in text] == []
