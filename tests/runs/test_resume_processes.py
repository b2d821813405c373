"""Stopping and going on with two processes that talk over gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from going_on import EVERYTHING, assert_same_run, command, stopped_at

from frostline.runs.folder import RunFolder

DDP = ["trainer=ddp_cpu", "data.batch_size=4", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


def folder_in(cwd: Path) -> RunFolder:
    (run,) = (cwd / "outputs" / "train").iterdir()
    return RunFolder(run)


@pytest.mark.slow
def test_two_processes_stopped_in_and_between_epochs_end_bitwise_the_same(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = [*tiny, *EVERYTHING, *DDP, f'data.root="{pictures}"']
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    done = command("train", *own, cwd=one)
    assert done.returncode == 0, done.stderr
    # two steps an epoch: the second rank gets a signal inside the first epoch, the first rank one at its end
    stop = stopped_at(other / "marks", ["on_train_batch_end:1", "on_train_batch_end:2"], rank=1)
    done = command("train", *own, stop, cwd=other)
    assert done.returncode == 143, done.stderr
    assert "saved after 1 steps" in done.stderr
    assert "Error" not in done.stderr
    run = folder_in(other)
    for expected in (143, 0):
        done = command("train", f"run={run.path}", "resume=true", "trust=[stopping]", cwd=other)
        assert done.returncode == expected, done.stderr
    assert_same_run(folder_in(one), run)


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = [*tiny, "data=folder", *DDP, f'data.root="{pictures}"', "data.workers=1", "trainer.max_epochs=5000"]
    own += ["callbacks=no_early_stopping", f'output="{tmp_path}"']
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    line = [sys.executable, "-X", "faulthandler", "-m", "frostline.cli", "train", *own]
    with subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: any(tmp_path.glob("train/*/checkpoints/*.ckpt")) or process.poll() is not None, seconds=200)
            assert process.poll() is None
            others = descendants(process.pid)
            assert len(others) >= 3  # the other rank, and the workers of both
            process.send_signal(signal.SIGKILL)
        finally:
            end_with_traces(process)
    until(lambda: not any(alive(pid) for pid in others), seconds=30)


def end_with_traces(process: subprocess.Popen[bytes]) -> None:
    """A process that should have gone says on its standard error where each of its threads is, and goes."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, signal.SIGABRT)
            time.sleep(1)
        process.kill()


def until(holds: object, seconds: float) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found
