"""One process at a time: a lock on a file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frostline.errors import StorageError

CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system without locks answers."""


class Busy(StorageError):  # noqa: N818  # it says what the folder is
    """Another process holds the lock; nothing was touched."""


_TRIES = 5
_PAUSE = 0.05
_mine: set[int] = set()


@contextmanager
def held(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made where it is missing and stays.

    Args:
        path: the file; it holds the process and the machine of the last holder.
        what: is trained under this lock; for the message.

    Raises:
        Busy: another process holds it.
        StorageError: the file cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        problem = f"{what} cannot be locked: {error.strerror or error}"
        raise StorageError(problem, mend="Mend the folder, or choose another: output=FOLDER.") from error
    _mine.add(handle)
    try:
        _acquire(handle, what)
        with contextlib.suppress(OSError):  # a full disk: the message of the next one has to do without
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if handle in _mine:
            _mine.remove(handle)
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of ``path``; False where the file system cannot tell."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _acquire(handle: int, what: str) -> None:
    for attempt in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # who only looks whether it is held holds it for a moment
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise StorageError(f"{what} cannot be locked: {error.strerror or error}") from error
            note = "this file system cannot lock, so see that only one process trains in it"
            print(f"warning: {what}: {note}", file=sys.stderr, flush=True)
            return
        else:
            return
    mend = "Wait until it has ended, or end it first; then go on with resume=true."
    raise Busy(f"{what} is being trained by {_holder(handle)}", mend=mend)


def _holder(handle: int) -> str:
    process, _, machine = os.pread(handle, 1000, 0).decode(errors="replace").strip().partition("\n")
    if not process:
        return "another process"
    return f"process {process}" + (f" on {machine}" if machine != socket.gethostname() else "")


def _let_go() -> None:
    # what a run forks, such as the processes that decode pictures, must not keep its lock when it is killed
    for handle in _mine:
        with contextlib.suppress(OSError):
            os.close(handle)
    _mine.clear()


os.register_at_fork(after_in_child=_let_go)
