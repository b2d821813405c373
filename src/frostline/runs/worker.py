"""The process that does the work of one folder: ``python -m frostline.runs.worker COMMAND FOLDER``."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from frostline import signals
from frostline.config import load_config
from frostline.errors import FrostlineError, Interrupted, StorageError
from frostline.runs import slurm
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.locking import Busy
from frostline.runs.memory import keep_freed_memory
from frostline.signals import STOP

# how the processes that Lightning starts know who started them
MAIN_PROCESS = "FROSTLINE_MAIN_PROCESS"
STOPPED = (130, 143)


def work(command: str, path: Path) -> int:
    """Do the work of a run folder; the exit code. A failure is written to ``failure.json`` as well."""
    folder = RunFolder(path)
    return execute(command, load_config(folder.config), folder)


def execute(command: str, config: DictConfig, folder: RunFolder | None = None) -> int:
    """Run a command on its config and turn what goes wrong into one message and an exit code.

    A signal ends it with 143 or 130; where a run was saved before, it can go on.
    """
    try:
        failure = _attempt(command, config, folder)
        return 0 if failure is None else _report(failure, folder)
    finally:
        _end_data_workers()
        os.environ.pop(MAIN_PROCESS, None)
        STOP.restore()


def _end_data_workers() -> None:
    # they leave the first SIGTERM to this process, and Python, which sends one at its exit, would wait for them
    readers = [process for process in multiprocessing.active_children() if process.daemon]
    if not readers or threading.current_thread() is not threading.main_thread():
        return
    # torch's handler would raise the end of a worker as a fault
    watching = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _abandon_loaders()
    for process in readers:
        process.kill()
        process.join(timeout=5)
    signal.signal(signal.SIGCHLD, watching)


def _abandon_loaders() -> None:
    """Keep torch from writing to its killed workers when a loader is collected or Python exits: that may fail."""
    loading = sys.modules.get("torch.utils.data.dataloader")
    if loading is None:
        return
    for one in gc.get_objects():
        if type(one) is not loading._MultiProcessingDataLoaderIter or one._shutdown:
            continue
        one._shutdown = True
        loading._utils.signal_handling._remove_worker_pids(id(one))
        one._worker_pids_set = False
        if hasattr(one, "_pin_memory_thread"):
            one._pin_memory_thread_done_event.set()
        for queue in one._index_queues:
            queue.cancel_join_thread()


@dataclass(frozen=True)
class _Failure:
    message: str
    code: int
    # False for what is no failure of the run in the folder
    of_run: bool = True


def _attempt(command: str, config: DictConfig, folder: RunFolder | None) -> _Failure | None:
    try:
        STOP.install()
        with _left_to_the_first_rank():
            try:
                _set_up_process(folder)
                module = importlib.import_module(f"frostline.runs.{command}")
                # after the import, since Lightning sets up its loggers then
                quiet_frameworks()
                make_steps_cheap(config)
                start_ranks_deaf()
                getattr(module, command)(config)
            finally:
                STOP.ending()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if config.get("debug"):
            traceback.print_exc()
        return _failure_of(error, debug=bool(config.get("debug")))
    return None


@contextlib.contextmanager
def _left_to_the_first_rank() -> Iterator[None]:
    """In the process of another rank, only note signals: it ends when all have agreed to, or with the first."""
    if is_main_process():
        yield
        return
    with STOP.deferred():
        # what came since `start_ranks_deaf`
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOPPING)
        yield


def start_ranks_deaf() -> None:
    """Have Lightning start other ranks with the signals blocked, until ``STOP`` has taken them over there.

    One that is still importing would end with what is sent to the whole group, and Lightning then kills the first.
    """
    module = sys.modules.get("lightning.pytorch.strategies.launchers.subprocess_script")
    if module is None or hasattr(module._SubprocessScriptLauncher._call_children_scripts, "__wrapped__"):
        return
    start = module._SubprocessScriptLauncher._call_children_scripts

    @functools.wraps(start)
    def start_deaf(launcher: Any) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPPING)
        try:
            start(launcher)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    module._SubprocessScriptLauncher._call_children_scripts = start_deaf


def make_steps_cheap(config: DictConfig) -> None:
    """Settings of the whole process that a step on the CPU profits from; after Lightning's import."""
    if (config.get("speed") or {}).get("keep_memory"):
        keep_freed_memory()
    look_for_gpus_once()


def look_for_gpus_once() -> None:
    """Have torch remember that there is no GPU: as Lightning sets it, every optimizer step looks in the driver."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def _set_up_process(folder: RunFolder | None) -> None:
    # the processes that Lightning starts for other ranks keep the working directory off the import path as well
    os.environ["PYTHONSAFEPATH"] = "1"
    if is_main_process():
        os.environ[MAIN_PROCESS] = str(os.getpid())
        if folder is not None and not folder.locked:
            # of an earlier attempt at this run
            folder.failure.unlink(missing_ok=True)
    else:
        signals.die_with_parent(signal.SIGKILL, int(os.environ.get(MAIN_PROCESS, os.getppid())))
    from frostline.backbones.reading import refuse_unsafe_environment

    refuse_unsafe_environment()


def _failure_of(error: BaseException, *, debug: bool) -> _Failure:
    """What to say of an error; an interruption that it came of, or that came first, counts for more."""
    stop = _interruption_behind(error)
    if stop is not None:
        then = "" if error is stop or isinstance(error, SystemExit) else f"\n  then {_described(error)}"
        return _Failure(_described(stop) + then, stop.exit_code if isinstance(stop, Interrupted) else 130)
    if isinstance(error, FrostlineError):
        return _Failure(str(error), error.exit_code, of_run=not isinstance(error, Busy))
    if isinstance(error, OSError):
        return _Failure(_described(error), StorageError.exit_code)
    if STOP.received:
        # such as the loss of a process that got the signal too
        message = f"{signals.name(STOP.received)}: stopped before the run could be saved; {_described(error)}"
        return _Failure(message, signals.exit_code(STOP.received))
    hint = "" if debug else "\n  This is not a fault that Frostline knows. debug=true shows where."
    return _Failure(_described(error) + hint, 1)


def _described(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FrostlineError) else f"{type(error).__name__}: {error}"


def _interruption_behind(error: BaseException) -> Interrupted | KeyboardInterrupt | None:
    """The interruption that ``error`` is or was raised after, as Lightning raises SystemExit after an interrupt."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, Interrupted | KeyboardInterrupt):
            return one
        seen.add(id(one))
        waiting += [one.__context__, one.__cause__]
    return None


def _report(failure: _Failure, folder: RunFolder | None) -> int:
    if not is_main_process():
        return _report_of_rank(failure, folder)
    if folder is None or not failure.of_run:
        _print_message(failure)
        return failure.code
    _let_other_ranks_end()
    # what this rank only sees as a lost connection, the rank that ended has recorded
    code = _recorded_code(folder) if failure.code == 1 else None
    if code is None:
        code = failure.code
        _record(failure, folder)
        _print_message(failure)
    print(f"{'stopped' if code in STOPPED else 'failed'} run: {folder.path}", file=sys.stderr, flush=True)
    if code in STOPPED and STOP.received == signal.SIGUSR1:
        slurm.requeue()
    return code


def _report_of_rank(failure: _Failure, folder: RunFolder | None) -> int:
    if STOP.everywhere and failure.code in STOPPED:
        # rank 0 says it; Lightning would kill rank 0 on seeing another code than 0 here before it is done
        return 0
    # the first that ended has said why, and others fail because it is gone
    if folder is not None and failure.code != 1 and not folder.failure.is_file():
        _record(failure, folder)
        _print_message(failure)
    return failure.code


def _print_message(failure: _Failure) -> None:
    start = "" if failure.code in STOPPED else "error: "
    print(f"{start}{failure.message}", file=sys.stderr, flush=True)


def _recorded_code(folder: RunFolder) -> int | None:
    if not folder.failure.is_file():
        return None
    return int(json.loads(folder.failure.read_text(encoding="utf-8"))["exit_code"])


def _record(failure: _Failure, folder: RunFolder) -> None:
    # where the disk is full, the message on the screen has to do
    with contextlib.suppress(OSError):
        write_json(folder.failure, {"exit_code": failure.code, "message": failure.message})


def _let_other_ranks_end() -> None:
    """Keep Lightning's observer from killing this process, which is ending, because another rank has ended."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            observer._child_processes = []


def is_main_process() -> bool:
    """False in the processes that Lightning starts for the other ranks."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def quiet_frameworks() -> None:
    """Silence advertisements, advice that a person can do nothing about, and reports of use; faults stay."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # it would ask the package registry for a newer release when it is imported
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*using `DistributedSampler`.*",
        ".*in eval mode at the start of training.*",  # frozen layers are meant to be
        ".*nn.functional.all_gather is deprecated.*",  # Lightning 2.6 with torch 2.14
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning 2.6 with torch 2.14
    ):
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    sys.exit(work(sys.argv[1], Path(sys.argv[2])))
