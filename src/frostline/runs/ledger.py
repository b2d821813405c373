"""The ledger of the test split: a line for each time that a model was scored on it.

A test split that many models are scored on, and one of them chosen by it, is validation by another name. Nothing can
keep a person from looking; what can be done is to count, over all runs below one output folder. The split is known by
the fingerprint of its pictures and labels, so that other names, forms and places of the data do not start anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from frostline.runs.folder import RunFolder

LEDGER = "test_looks.jsonl"
_LEVELS = 4  # outputs/NAME/SWEEP/RUN and one to spare


@dataclass(frozen=True)
class Looks:
    """How often models were scored on the pictures of a test split.

    Attributes:
        count: all looks so far, the one that was just written down included.
        other_runs: how many other runs had a look.
        ledger: the file.
        fault: why this look could not be written down; empty where it was.
    """

    count: int
    other_runs: int
    ledger: Path
    fault: str = ""

    @property
    def sentence(self) -> str:
        """Such as ``test split scored 3 times, by this run and 2 others``."""
        if self.count == 1:
            said = "test split scored once"
        elif self.other_runs == 0:
            said = f"test split scored {self.count} times, all by this run"
        else:
            others = "1 other" if self.other_runs == 1 else f"{self.other_runs} others"
            said = f"test split scored {self.count} times, by this run and {others}"
        return said + (f"; this look is not in {self.ledger}: {self.fault}" if self.fault else "")

    def record(self) -> dict[str, Any]:
        """As plain types."""
        own = {"count": self.count, "other_runs": self.other_runs, "ledger": str(self.ledger)}
        return own | ({"fault": self.fault} if self.fault else {})


def ledger_of(folder: RunFolder, output: str | None = None) -> Path:
    """Where the looks of a run are counted: in its output folder, wherever that was moved with all in it.

    Args:
        folder: of the run.
        output: the output folder that its config names.
    """
    # a link to a run is that run
    above = folder.path.resolve().parents[:_LEVELS]
    if output is not None and (named := Path(output).resolve()) in above:
        return named / LEDGER
    found = next((parent / LEDGER for parent in above if (parent / LEDGER).is_file()), None)
    return found or above[0] / LEDGER


def look(folder: RunFolder, split: str, *, pictures: int, command: str, output: str | None = None) -> Looks:
    """Write down that the model of a run was scored on a test split, and count the looks.

    The look of a training is written once for each model that came of it, so that a run that was stopped after it and
    gone on with does not count twice. Each ``evaluate`` counts. A ledger that cannot be written is no failure.

    Args:
        folder: of the run, with its ``model/``.
        split: the fingerprint of the split.
        pictures: how many there are.
        command: ``train``, ``probe``, ``soup`` or ``evaluate``.
        output: the output folder that the run's config names.
    """
    ledger = ledger_of(folder, output)
    run = os.path.relpath(folder.path.resolve(), ledger.parent)
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": split,
        "pictures": pictures,
        "run": run,
        "command": command,
        "model": model_hash(folder),
    }
    fault, earlier = "", list[dict[str, Any]]()
    try:
        with _opened(ledger) as handle:
            earlier = _lines(handle)
            if command != "train" or not any(_is_same(found, line) for found in earlier):
                _append(handle, line)
                earlier.append(line)
    except OSError as error:
        fault = error.strerror or str(error)
        earlier = [*_readable(ledger), line]
    runs = [found.get("run") for found in earlier if found.get("split") == split]
    return Looks(len(runs), len({*runs} - {run}), ledger, fault)


def counted(folder: RunFolder, split: str, *, output: str | None = None) -> Looks:
    """How often a test split was scored until now; nothing is written down.

    Args:
        folder: of a run.
        split: the fingerprint of the split.
        output: the output folder that the run's config names.
    """
    ledger = ledger_of(folder, output)
    run = os.path.relpath(folder.path.resolve(), ledger.parent)
    runs = [found.get("run") for found in _readable(ledger) if found.get("split") == split]
    return Looks(len(runs), len({*runs} - {run}), ledger)


def model_hash(folder: RunFolder) -> str:
    """SHA-256 over the weights in ``model/``, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.model.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other[key] for key in ("split", "run", "command", "model"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The ledger, which no other process writes meanwhile; a link or anything but a file is refused."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no file")
        with contextlib.suppress(OSError):  # a file system without locks; each line is written in one piece anyway
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _append(handle: int, line: dict[str, Any]) -> None:
    size = os.fstat(handle).st_size
    # what a crash cut short must not swallow this line
    start = b"" if size == 0 or os.pread(handle, 1, size - 1) == b"\n" else b"\n"
    os.write(handle, start + json.dumps(line).encode() + b"\n")
    os.fsync(handle)


def _readable(path: Path) -> list[dict[str, Any]]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return _lines(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else []
    finally:
        os.close(handle)


def _lines(handle: int) -> list[dict[str, Any]]:
    """The looks; a line that cannot be read is left out."""
    found = []
    for line in os.pread(handle, os.fstat(handle).st_size, 0).splitlines():
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict):
                found.append(content)
    return found
