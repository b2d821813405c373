from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.config import compose
from frostline.errors import StorageError
from frostline.runs import jobs, starting
from frostline.runs.jobs import Stopping, ask_forked, run_alone, run_forked
from frostline.runs.starting import prepare

# a sweep whose job tells its number and sleeps; the server imports nothing of weight
SWEEP = """
import sys
from frostline.runs import jobs

jobs.PRELOAD = []
job = "import os, time; open({0!r}, 'w').write(str(os.getpid())); time.sleep(60)".format(sys.argv[1])
with jobs.STOPPING.listening():
    if sys.argv[2] == "forked":
        code = jobs.run_forked(exec, job)
    else:
        code = jobs.run_alone([sys.executable, "-c", job])
print(code, jobs.STOPPING.exit_code)
"""


def start_sweep(told: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """The process of a sweep, and the number of its job."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", SWEEP, str(told), how]
    sweep = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    wait_until(lambda: told.is_file() and told.read_text() != "")
    return sweep, int(told.read_text())


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def state_of(pid: int) -> str:
    """``R``, ``S``, ``T`` (stopped) … as ``/proc`` has it; ``X`` where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_a_prepared_folder_says_what_the_run_is_to_be(tmp_path: Path) -> None:
    folder = prepare(compose("train", [f"output={tmp_path}"]), ["a=1"])
    assert folder.config.is_file()
    assert folder.identity.is_file()
    assert not folder.finished


@pytest.mark.parametrize("writer", ["save_config", "write_identity"])
def test_a_full_disk_is_named_with_the_folder(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(starting, writer, full)
    with pytest.raises(StorageError, match="No space left") as caught:
        prepare(compose("train", [f"output={tmp_path}"]), ["a=1"])
    (folder,) = (tmp_path / "train").iterdir()
    assert str(folder) in str(caught.value)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PRELOAD", [])


@pytest.mark.usefixtures("light")
def test_however_a_job_ends_its_code_comes_back() -> None:
    assert run_forked(int, "0") == 0
    assert run_forked(os._exit, 3) == 3
    assert run_forked(signal.raise_signal, signal.SIGKILL) == -9
    assert run_forked(signal.raise_signal, signal.SIGSEGV) == -11
    assert run_alone([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -9


@pytest.mark.usefixtures("light")
def test_a_question_has_an_answer_or_none() -> None:
    assert ask_forked(os.path.join, "a", "b") == "a/b"
    assert ask_forked(int, "no number") is None
    assert ask_forked(os._exit, 0) is None


@pytest.mark.parametrize("how", ["forked", "alone"])
def test_a_job_does_not_outlive_a_killed_sweep(how: str, tmp_path: Path) -> None:
    sweep, job = start_sweep(tmp_path / "told", how)
    sweep.kill()
    sweep.communicate()
    wait_until(lambda: state_of(job) in "ZX", 10)


@pytest.mark.parametrize("how", ["forked", "alone"])
def test_a_signal_to_the_sweep_or_to_its_group_reaches_the_job_once(how: str, tmp_path: Path) -> None:
    sweep, _ = start_sweep(tmp_path / "one", how)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.communicate(timeout=30)[0].split() == ["-15", "143"]
    sweep, _ = start_sweep(tmp_path / "two", how)
    os.killpg(sweep.pid, signal.SIGTERM)
    assert sweep.communicate(timeout=30)[0].split() == ["-15", "143"]


def test_a_signal_to_the_job_alone_leaves_the_sweep(tmp_path: Path) -> None:
    sweep, job = start_sweep(tmp_path / "told", "forked")
    os.kill(job, signal.SIGTERM)
    assert sweep.communicate(timeout=30)[0].split() == ["-15", "0"]


@pytest.mark.parametrize("how", ["forked", "alone"])
def test_a_suspended_sweep_suspends_its_job(how: str, tmp_path: Path) -> None:
    sweep, job = start_sweep(tmp_path / "told", how)
    sweep.send_signal(signal.SIGTSTP)
    wait_until(lambda: state_of(sweep.pid) == state_of(job) == "T", 10)
    sweep.send_signal(signal.SIGCONT)
    wait_until(lambda: state_of(job) == "S", 10)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.communicate(timeout=30)[0].split() == ["-15", "143"]


def test_an_interrupt_while_a_job_starts_ends_it_quietly() -> None:
    code = (
        "import os, signal, time; from frostline.runs import jobs; jobs.PRELOAD = []\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with jobs.STOPPING.listening():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(jobs.run_forked(time.sleep, 60), jobs.STOPPING.exit_code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment, timeout=30)
    assert (done.stdout.split(), done.stderr) == (["-2", "130"], "")


def test_the_first_signal_gives_the_exit_code_and_is_passed_on() -> None:
    stopping = Stopping()
    before = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(["sleep", "60"]) as child, stopping.listening(), stopping.told(child.pid):
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.wait(timeout=30) == -signal.SIGTERM
    assert stopping.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        stopping.raise_if_stopped()
    with stopping.listening():
        assert stopping.exit_code == 0


def test_what_starts_after_a_signal_is_told_at_once() -> None:
    stopping = Stopping()
    with stopping.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        with subprocess.Popen(["sleep", "60"]) as child, stopping.told(child.pid):
            assert child.wait(timeout=30) == -signal.SIGUSR1
    assert stopping.exit_code == 143


def test_a_second_interrupt_ends_at_once_and_a_third_kills_what_does_not_listen() -> None:
    stopping = Stopping()
    deaf = ["sh", "-c", "trap '' INT; echo deaf; exec sleep 60"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stopping.listening():
            with subprocess.Popen(deaf, stdout=subprocess.PIPE) as child, stopping.told(child.pid):
                assert child.stdout is not None
                assert child.stdout.readline() == b"deaf\n"
                for _ in range(3):
                    os.kill(os.getpid(), signal.SIGINT)
                assert child.wait(timeout=30) == -signal.SIGKILL
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopping.exit_code == 130


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    stopping = Stopping()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stopping.exit_code == 0
