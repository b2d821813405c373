"""Locks between processes, which end with the process that holds them, however it ends.

An advisory lock belongs to the opened file: it is shared by the copies of its handle in a mapping and in forked
children. It is therefore let go by name and not by closing alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_PAUSE = 0.1  # seconds between two looks at a lock that somebody has


def try_lock(file: IO[Any]) -> bool:
    """Take a file for oneself alone without waiting.

    Returns:
        False where somebody has it, for oneself or shared, or the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def share(file: IO[Any]) -> None:
    """Hold a file such that nobody can take it alone; nothing where the file system has no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)


def unlock(file: IO[Any]) -> None:
    """Let go of a file, also on behalf of forked children, and close it."""
    with file, contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def alone(path: Path, *, remove: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Let one process at a time go on; where there can be no lock, each does.

    Args:
        path: the lock file, made where it is missing.
        remove: whether it is removed at the end, for locks of which there are many.
        waiting: called again and again while another process goes on; what it raises ends the wait.
    """
    file = None
    with contextlib.suppress(OSError):
        file = _locked(path, waiting)
    try:
        yield
    finally:
        if file is not None:
            _let_go(file, path, remove)


def _let_go(file: IO[Any], path: Path, remove: bool) -> None:
    if remove:  # while it is held: whoever waits for it sees that it is gone
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    unlock(file)


def _locked(path: Path, waiting: Callable[[], None] | None) -> IO[bytes]:
    while True:
        file = path.open("ab")
        try:
            _take(file, waiting)
            if _is_at(file, path):
                return file
        except BaseException:
            unlock(file)
            raise
        unlock(file)  # whoever had it has removed it


def _take(file: IO[Any], waiting: Callable[[], None] | None) -> None:
    while waiting is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            time.sleep(_PAUSE)
        else:
            return
    fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an opened file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
