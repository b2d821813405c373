"""Room in the folder of the store: what goes to make it, and what killed processes have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from frostline.errors import ConfigError, StorageError
from frostline.storage.entry import SUFFIX
from frostline.storage.locks import try_lock, unlock

PART_SUFFIX = ".part"
LOCK_SUFFIX = ".lock"
SPARE_ROOM = 1 << 28  # bytes of the disk that stay free
_LIMIT = 10 << 30  # bytes
LIMIT_VARIABLE = "FROSTLINE_CACHE_GIB"
_ABANDONED_SECONDS = 86_400.0


class StoreFault(StorageError):  # noqa: N818  # no error to a run: it goes on without
    """An array cannot be kept; whoever computes it can go on without."""


@contextlib.contextmanager
def faults_named(folder: Path) -> Iterator[None]:
    """Turns a fault of the disk into one that says what it means.

    Raises:
        StoreFault: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StoreFault(
            f"Arrays cannot be kept in {folder}: {error.strerror or error}.",
            mend="Make room or mend the folder, or set XDG_CACHE_HOME to another one.",
        ) from error


def make_room(folder: Path, need: int, limit: int) -> list[str]:
    """Evict what was used least recently until ``need`` more bytes fit; none that is in use, and none in vain.

    Args:
        folder: of the store, for oneself alone.
        need: bytes.
        limit: bytes of all files together.

    Returns:
        The names of what was evicted.

    Raises:
        StoreFault: there is no room; nothing was evicted.
        OSError: the folder cannot be read.
    """
    if need > limit:
        raise StoreFault(
            f"The arrays take {size_text(need)}, more than the {size_text(limit)} that {folder} may hold.",
            mend=f"Set {LIMIT_VARIABLE} to more.",
        )
    free = shutil.disk_usage(folder).free
    missing = max(held(folder) + need - limit, need + SPARE_ROOM - free)
    with contextlib.ExitStack() as locks:
        chosen, gained = _idle(folder, missing, locks)
        if gained < missing:
            raise StoreFault(
                f"The arrays take {size_text(need)}. {folder} may hold {size_text(limit)} and its disk has "
                f"{size_text(free)} free; what is not in use there takes {size_text(gained)}.",
                mend="Make room, wait until other runs have ended, or set XDG_CACHE_HOME to another folder.",
            )
        for path in chosen:
            path.unlink(missing_ok=True)
    return [path.name for path in chosen]


def _idle(folder: Path, missing: int, locks: contextlib.ExitStack) -> tuple[list[Path], int]:
    """The files used least recently that are in nobody's use and have ``missing`` bytes, locked; and their bytes."""
    chosen: list[Path] = []
    gained = 0
    for path, status in sorted(files_in(folder, SUFFIX), key=lambda item: item[1].st_atime_ns):
        if gained >= missing:
            break
        with contextlib.suppress(OSError):
            file = path.open("rb")
            if try_lock(file):
                locks.callback(unlock, file)
                chosen.append(path)
                gained += status.st_size
            else:
                file.close()
    return chosen, gained


def held(folder: Path) -> int:
    """Bytes of the arrays in a folder, of those too that are being written.

    Raises:
        OSError: the folder cannot be read.
    """
    return sum(status.st_size for suffix in (SUFFIX, PART_SUFFIX) for _, status in files_in(folder, suffix))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left: files that nobody is writing, and locks that nobody holds.

    Args:
        folder: of the store, for oneself alone.
    """
    for path, status in [*files_in(folder, PART_SUFFIX), *files_in(folder, SUFFIX + LOCK_SUFFIX)]:
        with contextlib.suppress(OSError), path.open("rb") as file:
            # the age is for file systems without locks
            if try_lock(file) or time.time() - status.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)


def files_in(folder: Path, ending: str) -> list[tuple[Path, os.stat_result]]:
    """The files of a folder whose names end so, each with what the system says of it.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(ending) and entry.is_file(follow_symlinks=False):
                    found.append((folder / entry.name, entry.stat(follow_symlinks=False)))
    return found


def size_text(size: int) -> str:
    """``1.5 GiB``."""
    amount, units = float(size), ["bytes", "KiB", "MiB", "GiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.4g} {units[0]}"


def _bytes_of(said: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        size = int(float(said) * (1 << 30))
        if size > 0:
            return size
    problem = f"{LIMIT_VARIABLE}={said} is no number of GiB"
    raise ConfigError(problem, mend=f"Set it to a positive number, such as 50, or unset it: env -u {LIMIT_VARIABLE}")


def default_limit(folder: Path) -> int:
    """10 GiB, or a tenth of what the disk has free or holds of the store already if that is less; in bytes.

    The variable ``FROSTLINE_CACHE_GIB`` says otherwise; more than what the disk has free is no use.

    Raises:
        ConfigError: it is no positive number.
    """
    if said := os.environ.get(LIMIT_VARIABLE, "").strip():
        return _bytes_of(said)
    # Path.is_dir raises where a folder above may not be looked into
    there = next(path for path in (folder, *folder.parents) if os.path.isdir(path))
    with contextlib.suppress(OSError):
        return min(_LIMIT, (shutil.disk_usage(there).free + (held(folder) if there == folder else 0)) // 10)
    return _LIMIT
