"""Arrays on disk, by key: computed once, then mapped by every run, seed and job that needs them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.storage.entry import (
    HEADER_SIZE,
    SUFFIX,
    Damaged,
    Features,
    Form,
    Names,
    is_plain,
    map_entry,
    plain,
    read_names,
    seal,
    write_at,
)
from frostline.storage.locks import alone, try_lock, unlock
from frostline.storage.room import (
    LOCK_SUFFIX,
    PART_SUFFIX,
    StoreFault,
    faults_named,
    files_in,
    make_room,
    remove_leftovers,
)
from frostline.writing import sync_folder

__all__ = ["FeatureStore", "Features", "StoreFault", "Writer"]


class FeatureStore:
    """Arrays on disk, by key, shared by runs, seeds and jobs of a sweep; mapped, checksummed, limited in size.

    Use it so that of several processes one computes and the others wait for it::

        with store.alone(key):
            features = store.find(key)
            if features is None:
                with store.writer(key, rows, width, dtype) as writer:
                    ...
                features = store.find(key)

    Args:
        folder: where the arrays are; made when the first is written.
        limit: bytes of all arrays together.

    Attributes:
        notes: what happened, for the person: evicted, damaged, bypassed; each once.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.notes: list[str] = []

    def find(self, key: str) -> Features | None:
        """The array of a key; its checksum is looked at once per process, and it counts as used now.

        Returns:
            None where there is none, it cannot be read, or it is damaged; a damaged one is removed.

        Raises:
            ValueError: the key is no plain name.
        """
        path = self._path(key)
        try:
            return map_entry(path, key)
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self._note(f"{path} is damaged ({damage}): it is computed anew.")
            self._remove_damaged(path, key)
        except OSError as error:
            self._note(f"{path} cannot be read ({error.strerror or error}): it is computed anew.")
        return None

    def keys(self, beginning: str) -> list[str]:
        """Those of arrays that are there which begin so, the largest first; none where the folder cannot be read."""
        try:
            files = files_in(self.folder, SUFFIX)
        except OSError:
            return []
        files.sort(key=lambda item: (-item[1].st_size, item[0].name))
        keys = [path.name.removesuffix(SUFFIX) for path, _ in files if path.name.startswith(beginning)]
        return [key for key in keys if is_plain(key)]

    def names(self, key: str) -> Names | None:
        """The names of an array's rows as they are on disk, a hint: only those of `find` have been checked.

        Returns:
            None where there is no such array, its rows have no names, or it cannot be read.
        """
        try:
            return read_names(self._path(key), key)
        except (OSError, Damaged):
            return None

    @contextlib.contextmanager
    def alone(self, key: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Let one process at a time go on with a key; where there can be no lock, each does.

        A process that is killed lets go. One that asks for a key that it has itself waits for ever.

        Args:
            key: see `writer`.
            waiting: called again and again while another process goes on; what it raises ends the wait.

        Raises:
            ValueError: the key is no plain name.
        """
        path = self._path(key)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        with alone(path.with_name(f".{path.name}{LOCK_SUFFIX}"), remove=True, waiting=waiting):
            yield

    @contextlib.contextmanager
    def writer(
        self,
        key: str,
        rows: int,
        width: int | Sequence[int],
        dtype: torch.dtype | npt.DTypeLike,
        names: Names | None = None,
    ) -> Iterator[Writer]:
        """Write an array. It is there when the block ends well, whole; otherwise nothing is left of it.

        A process that is killed in between leaves a part, which the next writer removes. Of several processes that
        write one key at once, the last one's stays.

        Args:
            key: letters, digits, ``-`` and ``_``.
            rows: their number; each has to be written.
            width: the shape of a row.
            dtype: of the numbers, such as ``torch.float32``.
            names: ``[rows]``, ``S32``, by which a row can be found; None where rows have none.

        Raises:
            StoreFault: the disk is full, the folder cannot be written, or the limit leaves no room; at the start, at
                a write, or at the end.
            ValueError: the key, the shape, the dtype or the names cannot be, or a row was not written.
        """
        form = Form.of(key, rows, width, dtype, named=names is not None)
        if names is not None:
            form.check_names(names)
        try:
            with self._part(form) as (part, file):
                if names is not None:
                    with faults_named(self.folder):
                        write_at(file, names.tobytes(), form.names_at)
                writer = Writer(file, form, self.folder)
                yield writer
                writer.check()
                with faults_named(self.folder):
                    self._commit(part, file, form)
        except StoreFault as fault:
            self._note(fault.problem)
            raise

    @contextlib.contextmanager
    def _part(self, form: Form) -> Iterator[tuple[Path, IO[bytes]]]:
        """A file of the final size that its owner has locked, and that is gone in the end unless it was renamed."""
        part = self.folder / f".{form.key}.{os.getpid()}.{secrets.token_hex(4)}{PART_SUFFIX}"
        with contextlib.ExitStack() as stack:
            with faults_named(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._folder_lock():
                    remove_leftovers(self.folder)
                    evicted = make_room(self.folder, form.file_size, self.limit)
                    file = part.open("x+b", buffering=0)
                    stack.callback(_discard, part, file)
                    try_lock(file)
                    file.truncate(form.file_size)
            for name in evicted:
                self._note(f"{name} was evicted from {self.folder} to make room.")
            yield part, file

    def _commit(self, part: Path, file: IO[bytes], form: Form) -> None:
        seal(file, form)
        with self._folder_lock():
            os.replace(part, self._path(form.key))
        sync_folder(self.folder)

    def _remove_damaged(self, path: Path, key: str) -> None:
        with contextlib.suppress(OSError), self._folder_lock():
            try:
                map_entry(path, key)  # another process may have written a good one by now
            except Damaged:
                path.unlink(missing_ok=True)

    def _folder_lock(self) -> contextlib.AbstractContextManager[None]:
        return alone(self.folder / LOCK_SUFFIX)

    def _path(self, key: str) -> Path:
        return self.folder / (plain(key) + SUFFIX)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _discard(part: Path, file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    unlock(file)


class Writer:
    """Takes the rows of an array, in any order; made by `FeatureStore.writer`."""

    def __init__(self, file: IO[bytes], form: Form, folder: Path) -> None:
        self._file = file
        self._form = form
        self._folder = folder
        self._written = np.zeros(form.shape[0], dtype=np.bool_)
        self._fault: StoreFault | None = None

    def write_rows(self, positions: npt.NDArray[np.int64], array: npt.NDArray[Any] | Tensor) -> None:
        """Write rows at ``[N]`` positions, of which those that lie one behind the other are written together.

        Raises:
            StoreFault: they cannot be written.
            ValueError: they do not fit in shape, dtype or position.
        """
        start = 0
        for run in np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1) if len(positions) else ():
            self.write(int(run[0]), array[start : start + len(run)])
            start += len(run)

    def write(self, start: int, array: npt.NDArray[Any] | Tensor) -> None:
        """Write some rows.

        Args:
            start: the position of the first.
            array: ``[N, ...]`` of the shape and dtype that the writer was made for.

        Raises:
            StoreFault: they cannot be written.
            ValueError: they do not fit in shape, dtype or position.
        """
        content = self._fitting(start, array)
        if self._fault is not None:
            raise self._fault
        try:
            with faults_named(self._folder):
                write_at(self._file, content.tobytes(), HEADER_SIZE + start * self._form.row_size)
        except StoreFault as fault:
            self._fault = fault
            raise
        self._written[start : start + len(content)] = True

    def _fitting(self, start: int, array: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
        rows, *row = self._form.shape
        name = str(array.dtype).removeprefix("torch.")
        if name != self._form.dtype or list(array.shape[1:]) != row:
            raise ValueError(f"rows of {row} {self._form.dtype} are written, not {list(array.shape[1:])} {name}")
        if not 0 <= start <= start + len(array) <= rows:
            raise ValueError(f"rows {start} to {start + len(array)} do not lie within the {rows} rows of the array")
        if isinstance(array, Tensor):
            bits = array.detach().cpu().contiguous()
            return (bits.view(torch.uint16) if bits.dtype == torch.bfloat16 else bits).numpy()
        return array

    def check(self) -> None:
        """See that the array is complete.

        Raises:
            StoreFault: a write failed.
            ValueError: a row was not written.
        """
        if self._fault is not None:
            raise self._fault
        missing = np.flatnonzero(~self._written)
        if len(missing):
            raise ValueError(f"{len(missing)} of {len(self._written)} rows were not written, the first is {missing[0]}")
