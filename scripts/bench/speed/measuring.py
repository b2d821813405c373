"""One training in a process of its own, with its clocks and its memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PEERS = Path(__file__).resolve().parent / "peers"
INTERVAL = 0.25  # seconds between two looks at the memory


@dataclass(frozen=True)
class Measured:
    """What a training gave and took.

    Attributes:
        wall: seconds from after the imports to the test score.
        cpu: likewise, of the processors, those of workers included.
        whole: seconds of the process from its start to its end.
        peak_mib: the most memory of the process and its workers together, what they share counted once; None where
            the system does not tell.
        accuracy: share (0..1) of the test pictures.
        epochs: seconds of the training part of each epoch.
        pictures: that an epoch trains on.
        device_mib: the most memory of a GPU.
    """

    wall: float
    cpu: float
    whole: float
    peak_mib: float | None = None
    accuracy: float | None = None
    epochs: list[float] = field(default_factory=list)
    pictures: int = 0
    device_mib: float | None = None

    @property
    def rate(self) -> float:
        """Pictures a second of the epochs after the first."""
        return self.pictures / statistics.median(self.epochs[1:])


@dataclass(frozen=True)
class Failed:
    """Why a training gave nothing."""

    reason: str


def measure(
    python: str, file: str, way: str, job: Mapping[str, Any], *, cache: Path, limit: float
) -> Measured | Failed:
    """Run one way of one peer, and wait for its end.

    Args:
        python: the interpreter.
        file: of the folder ``peers``.
        way: that the file knows.
        job: the fields of ``peers/job.py``.
        cache: where caches go that a tool keeps for its user.
        limit: seconds after which it is ended.
    """
    scratch = Path(job["scratch"])
    scratch.mkdir(parents=True)
    files = {name: scratch / name for name in ("job.json", "result.json", "output.txt")}
    files["job.json"].write_text(json.dumps(dict(job)), encoding="utf-8")
    command = [python, str(PEERS / file), way, str(files["job.json"]), str(files["result.json"])]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    environment["PYTHONWARNINGS"] = "ignore"
    with files["output.txt"].open("wb") as output:
        watched = watch(command, environment, limit, stdout=output, stderr=output, folder=scratch)
    if watched.code is None:
        return Failed(f"not done after {limit:.0f} s")
    if watched.code:
        return Failed(reason(files["output.txt"], watched.code))
    told = json.loads(files["result.json"].read_text(encoding="utf-8"))
    known = {name: told[name] for name in Measured.__dataclass_fields__ if name in told}
    return Measured(**known, whole=watched.wall, peak_mib=watched.peak_mib)


@dataclass(frozen=True)
class Watched:
    """What a process took, with all below it.

    Attributes:
        code: its exit code; None where it was ended at the limit.
        wall: seconds.
        cpu: seconds of the processors, of what has been waited for.
        peak_mib: the most memory; None where the system does not tell.
    """

    code: int | None
    wall: float
    cpu: float
    peak_mib: float | None


def watch(
    command: Sequence[str],
    environment: Mapping[str, str],
    limit: float,
    *,
    stdout: IO[bytes],
    stderr: IO[bytes],
    folder: Path | None = None,
) -> Watched:
    """Run a command to its end, or to the limit in seconds, and nothing of it after that."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        cwd=folder,
        start_new_session=True,  # so that its workers end with it
    )
    code: int | None = None
    with Memory(process.pid) as memory:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Watched(code, time.perf_counter() - started, cpu, memory.peak_mib)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what goes on of a process and of all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(output: Path, code: int) -> str:
    """The last line that a process wrote, short enough for a table."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {code}"


class Memory:
    """The most memory of a process and all below it, by looking now and then.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mib: float | None = None

    def __enter__(self) -> Memory:
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            used = sum(proportional_kib(pid) for pid in family(self._pid)) / 1024
            self.peak_mib = max(self.peak_mib or 0.0, used)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in children.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def proportional_kib(pid: int) -> int:
    """Memory in KiB, where a page that n processes share counts as a n-th; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
