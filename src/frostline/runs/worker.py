"""The process that does the work of one folder: ``python -m frostline.runs.worker COMMAND FOLDER``."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from pathlib import Path

from omegaconf import DictConfig

from frostline.config import load_config
from frostline.errors import FrostlineError, StorageError
from frostline.runs.folder import RunFolder, write_json


def work(command: str, path: Path) -> int:
    """Do the work of a run folder; the exit code. A failure is written to ``failure.json`` as well."""
    folder = RunFolder(path)
    return execute(command, load_config(folder.config), folder)


def execute(command: str, config: DictConfig, folder: RunFolder | None = None) -> int:
    """Run a command on its config and turn what goes wrong into one message and an exit code."""
    # the processes that Lightning starts for other ranks keep the working directory off the import path as well
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        module = importlib.import_module(f"frostline.runs.{command}")
        # after the import, since Lightning sets up its loggers then
        quiet_frameworks()
        getattr(module, command)(config)
    except FrostlineError as error:
        return _failed(config, folder, str(error), error.exit_code)
    except OSError as error:
        return _failed(config, folder, f"{type(error).__name__}: {error}", StorageError.exit_code)
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns an interrupt into an exit
        return _failed(config, folder, "interrupted", 130)
    except Exception as error:
        hint = "" if config.get("debug") else "\n  This is not a fault that Frostline knows. debug=true shows where."
        return _failed(config, folder, f"{type(error).__name__}: {error}{hint}", 1)
    return 0


def _failed(config: DictConfig, folder: RunFolder | None, message: str, code: int) -> int:
    if config.get("debug"):
        traceback.print_exc()
    if not is_main_process():
        # what this rank knows, rank 0 only sees as a lost connection
        if folder is not None and code != 1:
            _record(folder, message, code)
            print(f"error: {message}", file=sys.stderr, flush=True)
        return code
    if folder is None:
        print(f"error: {message}", file=sys.stderr)
        return code
    if code == 1 and folder.failure.is_file():
        code = int(json.loads(folder.failure.read_text(encoding="utf-8"))["exit_code"])
    else:
        _record(folder, message, code)
        print(f"error: {message}", file=sys.stderr)
    print(f"failed run: {folder.path}", file=sys.stderr)
    return code


def _record(folder: RunFolder, message: str, code: int) -> None:
    # where the disk is full, the message on the screen has to do
    with contextlib.suppress(OSError):
        write_json(folder.failure, {"exit_code": code, "message": message})


def is_main_process() -> bool:
    """False in the processes that Lightning starts for the other ranks."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def quiet_frameworks() -> None:
    """Silence advertisements, advice that a person can do nothing about, and reports of use; faults stay."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*using `DistributedSampler`.*",
        ".*nn.functional.all_gather is deprecated.*",  # Lightning 2.6 with torch 2.14
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning 2.6 with torch 2.14
    ):
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    sys.exit(work(sys.argv[1], Path(sys.argv[2])))
