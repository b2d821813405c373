"""Checkpoints on disk: written beside their final name, synced, renamed; read only where their checksum agrees.

The name orders them: ``step-00000120.ckpt`` after 120 optimizer steps, ``step-00000120.unvalidated.ckpt`` where the
validation that was due then had not been finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from frostline.errors import StorageError
from frostline.writing import sync_folder, write_text

SUFFIX = ".ckpt"
UNVALIDATED = ".unvalidated"
SUM_SUFFIX = ".sha256"
PART_SUFFIX = ".part"
_BLOCK = 1 << 20


def checkpoint_name(step: int, *, validated: bool = True) -> str:
    """The file name of a checkpoint after ``step`` optimizer steps."""
    return f"step-{step:08d}{'' if validated else UNVALIDATED}{SUFFIX}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; by name alone, whole or not."""
    found = [path for path in folder.glob(f"step-*{SUFFIX}") if _order(path) is not None]
    return sorted(found, key=lambda path: _order(path) or (0, False))


def _order(path: Path) -> tuple[int, bool] | None:
    number, _, rest = path.name.removesuffix(SUFFIX).removeprefix("step-").partition(".")
    return (int(number), not rest) if number.isdigit() else None


def sum_file(path: Path) -> Path:
    """Where the checksum of a checkpoint is."""
    return path.with_name(path.name + SUM_SUFFIX)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint such that a kill at any moment leaves the file whole or absent.

    Args:
        content: tensors and plain types.
        path: the final name; the temporary file lies beside it, on the same file system.

    Raises:
        StorageError: the disk is full, a quota is reached, or the folder cannot be written; nothing is left behind.
    """
    part = path.with_name(f".{path.name}{PART_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _write_synced(content, part)
        # ahead of the checkpoint: a sum without a file does no harm, a file without a sum is not trusted
        write_text(sum_file(path), f"{digest}  {path.name}\n")
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        for leftover in (part, *(() if path.exists() else (sum_file(path),))):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise StorageError(
            f"The checkpoint {path} cannot be written: {error.strerror or error}.",
            mend="Make room or mend the folder, then go on: run=FOLDER resume=true",
        ) from error


class _Hashing:
    """A file that hashes what passes, and remembers the fault that torch's writer would hide."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def _write_synced(content: dict[str, Any], part: Path) -> str:
    with part.open("wb", buffering=0) as file:
        sink = _Hashing(file)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]  # torch asks for IO[bytes] and uses write and flush
        except Exception:
            if sink.fault is not None:
                raise sink.fault from None
            raise
        os.fsync(file.fileno())
    return sink.digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        StorageError: it is missing, its checksum is missing or differs, or it holds more than tensors and plain types.
    """
    if not path.is_file():
        raise StorageError(f"There is no checkpoint {path}.")
    try:
        expected = sum_file(path).read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        raise StorageError(f"{path} has no checksum beside it ({sum_file(path).name}).") from None
    if _sha256(path) != expected:
        raise StorageError(f"{path} is damaged: its checksum is not the one beside it.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whoever wrote the file wrote the checksum: it may lie in any way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StorageError(f"{path} cannot be read as tensors and plain types: {reason}") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} is no checkpoint: it holds a {type(content).__name__}.")
    return content


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def newest_loadable(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that can be read.

    Returns:
        Its path, its content, and a sentence on each newer one that could not be read.

    Raises:
        StorageError: there is none.
    """
    faults: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            return path, read_checkpoint(path), faults
        except StorageError as error:
            faults.append(error.problem)
    listed = "".join(f"\n  {fault}" for fault in faults) or f"\n  {folder} holds none."
    raise StorageError(
        f"There is no checkpoint to go on from:{listed}",
        mend="Start a new run: the same command without run= and resume=true.",
    )


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint and then its checksum; nothing where it is gone already."""
    path.unlink(missing_ok=True)
    sum_file(path).unlink(missing_ok=True)


def remove_leftovers(folder: Path, keep: Container[str]) -> None:
    """Remove what kills left behind: half-written files, sums without a checkpoint, and checkpoints out of use.

    Args:
        folder: of the checkpoints.
        keep: names of the checkpoints that stay.
    """
    for part in folder.glob(f".*{PART_SUFFIX}"):
        part.unlink(missing_ok=True)
    for path in checkpoints_in(folder):
        if path.name not in keep:
            remove_checkpoint(path)
    for digest in folder.glob(f"*{SUFFIX}{SUM_SUFFIX}"):
        if not digest.with_name(digest.name.removesuffix(SUM_SUFFIX)).exists():
            digest.unlink(missing_ok=True)
