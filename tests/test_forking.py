"""Forks that wait until the other threads of a process are at rest."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import frostline
from frostline.forking import QuietForks, can_fork, fork_context, let_threads_settle

linux = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that a test lets work does not count in the next one."""
    monkeypatch.setattr("frostline.forking._at_work", set())


@contextmanager
def at_work(seconds: float) -> Iterator[threading.Thread]:
    """A thread that works outside of the interpreter, as one of gloo does, for so long at the most."""
    leave = threading.Event()

    def work() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not leave.is_set():
            hashlib.sha256(bytes(1 << 20))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        leave.set()
        thread.join()


@linux
def test_a_thread_at_work_is_waited_for() -> None:
    with at_work(0.4) as thread:
        assert let_threads_settle(limit=30)
        assert not thread.is_alive()


@linux
def test_a_thread_that_never_rests_is_waited_for_once() -> None:
    with at_work(60) as thread:
        began = time.monotonic()
        assert not let_threads_settle(limit=0.3)
        assert time.monotonic() - began >= 0.3
        assert let_threads_settle(limit=30)
        assert time.monotonic() - began < 20
        assert thread.is_alive()


@linux
def test_threads_that_sleep_hold_nothing_up() -> None:
    leave = threading.Event()
    for _ in range(4):
        threading.Thread(target=leave.wait, daemon=True).start()
    try:
        began = time.monotonic()
        assert let_threads_settle(limit=30)
        assert time.monotonic() - began < 10
    finally:
        leave.set()


@linux
def test_a_thread_may_have_any_name_and_its_kernel_count_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is cut in the middle of a letter, and gVisor counts no switches."""
    status = tmp_path / "status"
    status.write_bytes("Name:\tdécod".encode()[:-4] + b"\xc3\nState:\tS (sleeping)\n")
    monkeypatch.setattr("frostline.forking.open", lambda *_, **how: status.open(**how), raising=False)
    monkeypatch.setattr("frostline.forking._other_threads", lambda: {"1"})
    assert let_threads_settle(limit=30)
    status.write_bytes(b"State:\tR (running)\n")
    assert not let_threads_settle(limit=0)


@linux
def test_a_process_is_forked_once_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(let_threads_settle, "__defaults__", (30.0,))
    with at_work(0.4) as thread:
        child = QuietForks().Process(target=os._exit, args=(7,))
        child.start()
        assert not thread.is_alive()
    child.join(30)
    assert child.exitcode == 7


@linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_given_back_before_it_would_be_copied() -> None:
    code = """
        import os
        from ctypes import CDLL
        import numpy as np
        from frostline.forking import QuietForks
        from frostline.runs.memory import keep_freed_memory

        def held():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

        assert keep_freed_memory()
        arrays = [np.ones(1 << 19) for _ in range(64)]  # of 4 MiB
        full = held()
        del arrays
        kept = held()
        child = QuietForks().Process(target=os._exit, args=(0,))
        child.start()
        child.join()
        print(full - kept, kept - held())
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    at_once, then = map(int, done.stdout.split())
    assert at_once < 50
    assert then > 200


def test_data_workers_are_forked_so() -> None:
    assert isinstance(fork_context(1), QuietForks if can_fork() else type(None))
    assert fork_context(0) is None


def test_nothing_that_reads_data_is_started_in_another_way() -> None:
    package = Path(frostline.__file__).parent
    texts = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert len(texts) > 250
    del texts["forking.py"]
    forks = re.compile(r"""["']fork["']|os\.fork\(|ProcessPoolExecutor""")
    assert [name for name, text in texts.items() if forks.search(text)] == []
    loaders = [name for name, text in texts.items() if "num_workers=" in text]
    assert loaders
    assert [name for name in loaders if "multiprocessing_context=fork_context(" not in texts[name]] == []
