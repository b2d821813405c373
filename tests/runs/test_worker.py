from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from frostline.errors import ConfigError, DataError, Interrupted, StorageError
from frostline.runs import worker
from frostline.runs.folder import RunFolder
from frostline.signals import STOP

Work = Callable[[Any], object]
Execute = Callable[[Work], int]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> Execute:
    """Runs a function as a command of this process, on a run folder."""
    for name in ("LOCAL_RANK", "RANK", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker, "quiet_frameworks", lambda: None)

    def run(work: Work, **config: Any) -> int:
        module = types.ModuleType("frostline.runs.pretended")
        module.pretended = work  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return worker.execute("pretended", OmegaConf.create(config), folder)

    return run


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_is_kept_where_the_config_says_so(
    keeps: bool, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: called.append("keep"))
    assert execute(lambda config: None, speed={"keep_memory": keeps}) == 0
    assert execute(lambda config: None) == 0
    assert called == ["keep"] * keeps


def raising(error: BaseException) -> Work:
    def work(config: Any) -> object:
        raise error

    return work


def send(signum: int) -> Work:
    return lambda config: os.kill(os.getpid(), signum)


def failure(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.failure.read_text()))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_with_its_code(
    execute: Execute, folder: RunFolder, signum: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signum)
    assert execute(send(signum)) == code
    assert signal.getsignal(signum) is before
    name = signal.Signals(signum).name
    assert capfd.readouterr().err == f"{name}: stopped.\nstopped run: {folder.path}\n"
    assert failure(folder) == {"exit_code": code, "message": f"{name}: stopped."}


def test_what_the_run_says_of_its_end_is_the_message(
    execute: Execute, folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(config: Any) -> None:
        with STOP.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise Interrupted("SIGTERM: stopped; saved after 3 steps.", mend="Go on: resume=true", code=143)

    assert execute(work) == 143
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:] == [
        "SIGTERM: stopped; saved after 3 steps.",
        "  Go on: resume=true",
        f"stopped run: {folder.path}",
    ]
    assert failure(folder)["message"].startswith("SIGTERM: stopped; saved after 3 steps.")


def test_a_signal_while_a_failure_is_told_does_not_replace_it(
    execute: Execute, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = worker._record

    def slow_record(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        record(*arguments)

    monkeypatch.setattr(worker, "_record", slow_record)
    assert execute(raising(DataError("a picture"))) == 3
    assert failure(folder)["message"] == "a picture"


def test_an_interrupt_is_130_also_where_lightning_made_an_exit_of_it(execute: Execute, folder: RunFolder) -> None:
    def work(config: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert execute(raising(KeyboardInterrupt())) == 130
    assert execute(work) == 130
    assert failure(folder)["message"] == "interrupted"


@pytest.mark.parametrize("code", [0, 1])
def test_an_exit_from_within_is_not_success_and_not_an_interrupt(
    execute: Execute, folder: RunFolder, code: int
) -> None:
    assert execute(raising(SystemExit(code))) == 1
    assert f"SystemExit: {code}" in failure(folder)["message"]


def test_what_fails_after_an_interruption_does_not_hide_it(execute: Execute, folder: RunFolder) -> None:
    def work(config: Any) -> None:
        try:
            raise Interrupted("SIGTERM: stopped; saved.", code=143)
        except Interrupted as error:
            raise DataError("a logger could not end") from error

    assert execute(work) == 143
    assert failure(folder)["message"] == "SIGTERM: stopped; saved.\n  then a logger could not end"


def test_a_consequence_of_a_signal_is_told_as_one(execute: Execute, folder: RunFolder) -> None:
    def work(config: Any) -> None:
        with STOP.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker is killed")

    assert execute(work) == 143
    assert failure(folder)["message"].startswith("SIGTERM: stopped before the run could be saved; RuntimeError: Data")


def test_an_earlier_failure_is_forgotten_when_a_run_starts(execute: Execute, folder: RunFolder) -> None:
    folder.failure.write_text('{"exit_code": 3, "message": "of yesterday"}')
    assert execute(raising(RuntimeError("today"))) == 1
    assert "today" in failure(folder)["message"]
    assert execute(lambda config: None) == 0
    assert not folder.failure.exists()


def test_a_folder_that_another_process_trains_in_is_not_touched(
    execute: Execute, folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(config: Any) -> None:
        with folder.lock():
            pytest.fail("it ran")

    folder.failure.write_text('{"exit_code": 3, "message": "of the other"}')
    with folder.lock():
        assert execute(work) == StorageError.exit_code
    assert failure(folder)["message"] == "of the other"
    said = capfd.readouterr().err
    assert "is being trained by" in said
    assert "failed run" not in said


def test_a_loader_does_not_talk_to_workers_that_were_ended(execute: Execute) -> None:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(range(100), num_workers=2, persistent_workers=True, multiprocessing_context="fork")  # type: ignore[arg-type]
    readers: list[Any] = []

    def work(config: Any) -> None:
        next(iter(loader))
        readers.extend(loader._iterator._workers)
        os.kill(os.getpid(), signal.SIGTERM)

    assert execute(work) == 143
    assert [reader.exitcode for reader in readers] == [-signal.SIGKILL] * 2
    loader._iterator._mark_worker_as_unavailable = lambda *_, **__: pytest.fail("it talks to a killed worker")
    loader._iterator._shutdown_workers()


@pytest.mark.parametrize(("code", "said"), [(3, "failed"), (143, "stopped"), (130, "stopped")])
def test_the_code_of_the_rank_that_ended_counts(
    execute: Execute, folder: RunFolder, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(config: Any) -> None:
        folder.failure.write_text(json.dumps({"exit_code": code, "message": "of rank 1"}))
        raise RuntimeError("connection closed by peer")

    assert execute(work) == code
    assert capfd.readouterr().err == f"{said} run: {folder.path}\n"
    assert failure(folder)["message"] == "of rank 1"


@pytest.mark.parametrize(("everywhere", "code"), [(True, 0), (False, 143)])
def test_another_rank_leaves_the_last_word_to_the_first_where_all_stop(
    execute: Execute, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, everywhere: bool, code: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(worker.signals, "die_with_parent", lambda *_: None)

    def work(config: Any) -> None:
        STOP.everywhere = everywhere
        raise Interrupted("SIGTERM: stopped.", code=143)

    assert execute(work) == code
    assert folder.failure.exists() is not everywhere


def test_unsafe_loading_is_refused_before_anything_runs(
    execute: Execute, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert execute(lambda config: pytest.fail("it ran")) == ConfigError.exit_code
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in failure(folder)["message"]


@pytest.mark.parametrize(("signum", "calls"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_schedulers_warning_puts_the_job_back_into_the_queue(
    execute: Execute, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, signum: int, calls: int, tmp_path: Path
) -> None:
    program, called = tmp_path / "scontrol", tmp_path / "called"
    # when it is called, the failure is recorded: the scheduler may end this process at once
    program.write_text(f'#!/bin/sh\n[ -f "{folder.failure}" ] && echo "$@" >> "{called}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert execute(send(signum)) == 143
    assert (called.read_text() if called.exists() else "") == "requeue 17\n" * calls


def test_lightnings_observer_is_as_this_expects() -> None:
    launcher = importlib.import_module("lightning.fabric.strategies.launchers.subprocess_script")
    observer = launcher._ChildProcessObserver(os.getpid(), [object()])
    assert observer.name == "child-process-observer"
    observer._child_processes = []
    assert observer._run()


@pytest.mark.slow
@LINUX
def test_no_rank_outlives_the_first(tmp_path: Path) -> None:
    code = """
        import os, sys, time, types, subprocess
        from omegaconf import OmegaConf
        from frostline.runs import worker
        module = types.ModuleType("frostline.runs.pretended")
        def pretended(config):
            if worker.is_main_process():
                subprocess.Popen([sys.executable, __file__], env=dict(os.environ, LOCAL_RANK="1"))
            else:
                print(os.getpid(), flush=True)
            time.sleep(300)
        module.pretended = pretended
        sys.modules[module.__name__] = module
        worker.execute("pretended", OmegaConf.create())
    """
    path = tmp_path / "ranks.py"
    path.write_text(textwrap.dedent(code))
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK")}
    first = subprocess.Popen([sys.executable, str(path)], env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    other = Path("/proc") / first.stdout.readline().strip() / "stat"
    assert other.exists()
    first.kill()
    first.wait()
    first.stdout.close()
    for _ in range(100):
        if not other.exists() or other.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    pytest.fail("the second rank lives on")


TWO_RANKS = """
    import os, signal, subprocess, sys, time, types
    from omegaconf import OmegaConf
    from lightning.pytorch.strategies.launchers import subprocess_script
    from frostline.runs import worker
    module = types.ModuleType("frostline.runs.pretended")
    kind = subprocess_script._SubprocessScriptLauncher
    def start(launcher):
        other = subprocess.Popen([sys.executable, __file__], env=dict(os.environ, LOCAL_RANK="1"))
        other.send_signal(signal.SIGTERM)  # it has not come to import anything
        print("other", other.wait(), flush=True)
    kind._call_children_scripts = start
    def pretended(config):
        if worker.is_main_process():
            kind._call_children_scripts(None)
            print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), flush=True)
        else:
            print(worker.STOP.received, flush=True)
    module.pretended = pretended
    sys.modules[module.__name__] = module
    sys.exit(worker.execute("pretended", OmegaConf.create()))
"""


@pytest.mark.slow
@LINUX
def test_another_rank_only_notes_signals_from_its_birth_on(tmp_path: Path) -> None:
    path = tmp_path / "ranks.py"
    path.write_text(textwrap.dedent(TWO_RANKS))
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK")}
    line = [sys.executable, str(path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["15", "other", "0", "True"]


def second_rank(leader: int) -> int | None:
    """The process of the second rank in the process group of ``leader``."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) != leader or b"frostline.runs.worker" not in (path / "cmdline").read_bytes():
                continue
            if b"LOCAL_RANK=1" in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:
            continue
    return None


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(("signum", "after"), [(signal.SIGTERM, 0.0), (signal.SIGUSR1, 1.0)])
def test_a_signal_to_the_group_while_another_rank_starts_stops_the_run(
    signum: int, after: float, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = [*tiny, "data=folder", "trainer=ddp_cpu", f'data.root="{pictures}"', f'output="{tmp_path}"']
    own += ["trainer.max_epochs=5000", "callbacks=no_early_stopping"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    environment.pop("LOCAL_RANK", None)
    line = [sys.executable, "-m", "frostline.cli", "train", *own]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        end = time.monotonic() + 120
        while second_rank(run.pid) is None:
            assert time.monotonic() < end
            assert run.poll() is None
            time.sleep(0.02)
        time.sleep(after)
        os.killpg(run.pid, signum)
        try:
            said = run.communicate(timeout=100)[1]
        finally:
            run.kill()
    assert run.returncode == 143, said
    assert "stopped run" in said
    assert "Error" not in said
