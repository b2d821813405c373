"""One way to start work: a folder that holds ``config.yaml``, and a worker that is given its path.

A single run replaces this process by the worker. The jobs of a sweep are forked from one server that has paid for
the imports; a job on several devices gets a process of its own, which Lightning can start again for each rank.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from frostline.config import absolute_paths, save_config
from frostline.errors import ConfigError, DataError, FrostlineError, Interrupted, NumericsError, StorageError
from frostline.runs.folder import RunFolder, make_folder, overrides_hash
from frostline.runs.identity import write_identity
from frostline.runs.jobs import run_alone, run_forked

WORKER = "frostline.runs.worker"


def prepare(config: DictConfig, overrides: Sequence[str], *, parent: Path | None = None, label: str = "") -> RunFolder:
    """Make the run folder with its config and identity; ``config`` gets its absolute paths and ``folder``.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    absolute_paths(config)
    where = parent or Path(config.output) / str(config.name)
    folder = RunFolder(make_folder(where, label + overrides_hash(overrides)))
    config.folder = str(folder.path)
    try:
        save_config(config, folder.config)
        write_identity(folder, config, overrides)
    except OSError as error:
        mend = "Make room there, or choose another folder: output=FOLDER."
        raise StorageError(f"{folder.path} cannot be written: {error.strerror or error}", mend=mend) from error
    return folder


def worker_command(command: str, folder: RunFolder) -> list[str]:
    """The command line of a worker. ``-P`` keeps the working directory off the import path."""
    return [sys.executable, "-P", "-m", WORKER, command, str(folder.path)]


def become_worker(command: str, folder: RunFolder) -> NoReturn:
    """Replace this process by the worker, so that signals and the exit code need no passing on."""
    sys.stdout.flush()
    sys.stderr.flush()
    line = worker_command(command, folder)
    os.execv(line[0], line)


def run_job(command: str, config: DictConfig, folder: RunFolder) -> int:
    """Run one job of a sweep to its end in another process; its exit code, negative for a signal."""
    devices = config.trainer.get("devices", 1)
    if devices not in (1, "1"):
        return run_alone(worker_command(command, folder))
    return run_forked(_work, command, str(folder.path))


def raise_failure(code: int, folder: RunFolder) -> None:
    """Raise what a worker failed with, as this process's own error; nothing where ``code`` is 0."""
    if code == 0:
        return
    problem = f"the run ended with exit code {code}"
    if folder.failure.is_file():
        problem = str(json.loads(folder.failure.read_text(encoding="utf-8"))["message"])
    if code in (130, 143):
        raise Interrupted(problem, code=code)
    kinds = (ConfigError, DataError, NumericsError, StorageError)
    raise next((kind for kind in kinds if kind.exit_code == code), FrostlineError)(problem)


def _work(command: str, folder: str) -> int:
    from frostline.runs.worker import work

    return work(command, Path(folder))
