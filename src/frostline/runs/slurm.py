"""Jobs of a SLURM cluster: given back to the queue before their time is up, and found again when they come back.

A requeued job runs its batch script from the start, so ``frostline train …`` anew. A pointer beside the runs, named
by the job and the overrides, leads that second start to the folder of the first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from frostline.errors import StorageError
from frostline.runs.folder import RunFolder, overrides_hash

POINTERS = ".slurm"


def job_id() -> str | None:
    """``JOB``, or ``ARRAY_TASK`` in an array of jobs, as ``scontrol`` takes it; None where SLURM runs nothing."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    found = os.environ.get("SLURM_JOB_ID", "")
    if found and array and task:
        found = f"{array}_{task}"
    return found if re.fullmatch(r"\d+(_\d+)?", found) else None


def requeue() -> bool:
    """Put this process's job back into the queue and say so; whether that worked. False outside SLURM."""
    job = job_id()
    if job is None:
        return False
    fault = _fault_of(["scontrol", "requeue", job])
    done = "is back in the queue" if fault is None else f"could not be put back into the queue: {fault}"
    print(f"SLURM job {job} {done}", file=sys.stderr, flush=True)
    return fault is None


def _fault_of(command: list[str]) -> str | None:
    program = shutil.which(command[0])
    if program is None:
        return f"there is no {command[0]} on the PATH"
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip()
    return f"{command[0]} ended with {done.returncode}" + (f": {said}" if said else "")


def remember(folder: RunFolder, overrides: Sequence[str]) -> None:
    """Leave a pointer to a run that starts under SLURM; does nothing elsewhere.

    Args:
        folder: of the new run.
        overrides: those of the command line.

    Raises:
        StorageError: the pointer cannot be written.
    """
    pointer = _pointer(folder.path.parent, overrides)
    if pointer is None:
        return
    part = pointer.with_name(f"{pointer.name}.{os.getpid()}.part")
    try:
        pointer.parent.mkdir(exist_ok=True)
        # by its name, so that the outputs can be moved
        part.write_text(folder.path.name + "\n", encoding="utf-8")
        os.replace(part, pointer)
    except OSError as error:
        raise StorageError(f"{pointer} cannot be written: {error.strerror or error}") from error


def restarted_run(experiment: Path, overrides: Sequence[str]) -> Path | None:
    """The run that this job had started before it was requeued; None for a first start.

    It may be finished (``RunFolder.finished``), as where the job was requeued by hand or after the run's end: then
    there is nothing to train. It may also have no checkpoint to go on from.

    Args:
        experiment: ``<output>/<name>``, the folder of the runs.
        overrides: those of the command line.
    """
    pointer = _pointer(experiment, overrides)
    if pointer is None or not _was_restarted() or not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    folder = RunFolder(experiment / name)
    is_inside = bool(name) and Path(name).name == name and name != ".."
    return folder.path if is_inside and folder.config.is_file() else None


def _pointer(experiment: Path, overrides: Sequence[str]) -> Path | None:
    job = job_id()
    return experiment / POINTERS / f"{job}-{overrides_hash(overrides)}" if job else None


def _was_restarted() -> bool:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return count.isdigit() and int(count) >= 1
