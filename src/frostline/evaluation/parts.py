"""A table of predictions while it is made: parts in a folder beside it, each of them whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from frostline.errors import StorageError
from frostline.writing import sync_folder, write_text

Fault = tuple[str, str]
"""The name of a picture that could not be read, and why."""

_ROWS, _FAULTS = b"frostline_rows", b"frostline_faults"


class PredictionParts:
    """The parts of a table, by their number from 0.

    A part knows which rows it was made of, so that it counts only for as long as these are the same; the manifest knows
    what all of them were made with.

    Args:
        folder: of the parts alone; made where it is missing.

    Raises:
        StorageError: the folder, or a file in it, cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = folder / "manifest.json"
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)

    def begin(self, settings: Mapping[str, Any]) -> list[str]:
        """Keep the parts that were made with these settings, as plain JSON types, and remove others.

        Returns:
            The settings that have changed, in words; empty where there were no parts or all of them are kept.
        """
        before = self._settings()
        if before == settings:
            return []
        had_parts = any(self._folder.glob("part-*.arrow"))
        with self._writing():
            self._remove_parts()
            write_text(self._manifest, json.dumps(dict(settings), indent=2, ensure_ascii=False) + "\n")
        names = [name for name in settings if before.get(name) != settings[name]]
        return [f"{name} was {before.get(name)}, is {settings[name]}" for name in names] if had_parts else []

    def holds(self, number: int, rows: str, *, faultless: bool) -> bool:
        """Whether a part is there and made of these rows.

        Args:
            number: of the part.
            rows: a hash of what they are.
            faultless: only where all of its pictures could be read.
        """
        told = self._told(number)
        return told.get(_ROWS) == rows.encode() and not (faultless and json.loads(told[_FAULTS]))

    def write(self, number: int, rows: str, table: pa.Table, faults: Sequence[Fault]) -> None:
        """Write a part such that it is whole or absent, also after a crash of the machine.

        Args:
            number: of the part.
            rows: a hash of what they are.
            table: of the pictures that could be read.
            faults: the others.
        """
        whole = table.replace_schema_metadata({_ROWS: rows, _FAULTS: json.dumps(list(faults))})
        path = self._path(number)
        begun = path.with_suffix(".begun")
        with self._writing():
            with begun.open("wb") as file:
                with pyarrow.ipc.new_file(file, whole.schema) as writer:
                    writer.write_table(whole)
                file.flush()
                os.fsync(file.fileno())
            os.replace(begun, path)
            sync_folder(self._folder)

    def schema(self) -> pa.Schema:
        """Of the tables."""
        return self._table(0).schema

    def tables(self, count: int) -> Iterator[pa.Table]:
        """The tables of the first ``count`` parts, which are there, one at a time."""
        return (self._table(number) for number in range(count))

    def faults(self, count: int) -> list[Fault]:
        """Which pictures of the first ``count`` parts could not be read."""
        told = (json.loads(self._told(number)[_FAULTS]) for number in range(count))
        return [(name, why) for faults in told for name, why in faults]

    def clear(self) -> None:
        """Remove the parts, once the table is whole."""
        with self._writing():
            self._remove_parts()

    def close(self) -> None:
        """Remove the folder where there is no part in it, and nothing else."""
        with contextlib.suppress(OSError):
            if not any(self._folder.glob("part-*.arrow")):
                self._manifest.unlink(missing_ok=True)
                self._folder.rmdir()

    def _remove_parts(self) -> None:
        # what else is in the folder is not ours
        for pattern in ("part-*.arrow", "part-*.begun"):
            for path in self._folder.glob(pattern):
                path.unlink()

    def _settings(self) -> dict[str, Any]:
        try:
            found = json.loads(self._manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:07d}.arrow"

    def _told(self, number: int) -> dict[bytes, bytes]:
        """What a part says of itself; nothing where there is none that can be read."""
        try:
            with pa.memory_map(str(self._path(number))) as file:
                return dict(pyarrow.ipc.open_file(file).schema.metadata or {})
        except (OSError, pa.ArrowException):
            return {}

    def _table(self, number: int) -> pa.Table:
        try:
            with pa.memory_map(str(self._path(number))) as file:
                return pyarrow.ipc.open_file(file).read_all().replace_schema_metadata()
        except (OSError, pa.ArrowException) as error:
            mend = "Run the command again: the part is made anew."
            raise StorageError(f"{self._path(number)} cannot be read: {error}", mend=mend) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"{self._folder} cannot be written: {error.strerror or error}"
            raise StorageError(problem, mend="Make room there, or choose another place: output=FILE.") from error
