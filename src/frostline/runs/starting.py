"""One way to start work: a folder that holds ``config.yaml``, and a worker that is given its path.

A single run replaces this process by the worker. The jobs of a sweep are forked from one server that has paid for
the imports; a job on several devices gets a process of its own, which Lightning can start again for each rank.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from frostline.config import absolute_paths, save_config
from frostline.errors import ConfigError, DataError, FrostlineError, NumericsError, StorageError
from frostline.runs.folder import RunFolder, make_folder, overrides_hash

WORKER = "frostline.runs.worker"


def prepare(config: DictConfig, overrides: Sequence[str], *, parent: Path | None = None, label: str = "") -> RunFolder:
    """Make the run folder and write the config into it; ``config`` gets its absolute paths and ``folder``."""
    absolute_paths(config)
    where = parent or Path(config.output) / str(config.name)
    folder = RunFolder(make_folder(where, label + overrides_hash(overrides)))
    config.folder = str(folder.path)
    save_config(config, folder.config)
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
        return subprocess.run(worker_command(command, folder), check=False).returncode
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frostline.runs.preload"])
    process = context.Process(target=_forked, args=(command, str(folder.path)))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else 1


def raise_failure(code: int, folder: RunFolder) -> None:
    """Raise what a worker failed with, as this process's own error; nothing where ``code`` is 0."""
    if code == 0:
        return
    problem = f"the run ended with exit code {code}"
    if folder.failure.is_file():
        problem = str(json.loads(folder.failure.read_text(encoding="utf-8"))["message"])
    kinds = (ConfigError, DataError, NumericsError, StorageError)
    raise next((kind for kind in kinds if kind.exit_code == code), FrostlineError)(problem)


def _forked(command: str, folder: str) -> NoReturn:
    from frostline.runs.worker import work

    sys.exit(work(command, Path(folder)))
