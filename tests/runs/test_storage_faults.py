"""What a fault of the disk or a kill leaves behind: always a run that goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from going_on import assert_same_run, begin, stopped_at

from frostline.checkpoints import checkpoints_in
from frostline.config import compose
from frostline.runs.folder import RunFolder
from frostline.runs.resuming import is_started, prepare_resume
from frostline.runs.starting import prepare
from frostline.runs.worker import work

OFTEN = ["callbacks.checkpoint.every_n_steps=1", "trainer.max_epochs=60", "callbacks.early_stopping=null"]


def work_in_child(folder: str, temporary: str) -> None:
    # the server has looked its own up already
    tempfile.tempdir = os.environ["TMPDIR"] = temporary
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.exit(work("train", Path(folder)))


@pytest.mark.slow
def test_twenty_kills_in_the_midst_of_saving_are_survived(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    """The temporary folder is on another file system, where Lightning's own saving leaves truncated files."""
    temporary = "/dev/shm"
    if not Path(temporary).is_dir() or os.stat(temporary).st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no /dev/shm on a file system of its own here")
    straight = begin(tiny, pictures, tmp_path / "straight", *OFTEN)
    assert work("train", straight.path) == 0
    folder = begin(tiny, pictures, tmp_path / "killed", *OFTEN)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["frostline.runs.preload"])
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        process = server.Process(target=work_in_child, args=(str(folder.path), temporary))
        before = newest(folder)
        process.start()
        while process.is_alive() and newest(folder) == before:
            time.sleep(0.005)
        process.join(moments.uniform(0.0, 0.4))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
        prepare_resume(folder.path)
    assert kills == 20, "the run was over before it was killed often enough"
    assert work("train", prepare_resume(folder.path).path) == 0
    assert_same_run(straight, folder)
    kept = [path.name for path in checkpoints_in(folder.checkpoints)]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == sorted(
        [*kept, *(f"{name}.sha256" for name in kept)]
    )
    assert len(kept) <= 4


def newest(folder: RunFolder) -> Path | None:
    found = checkpoints_in(folder.checkpoints)
    return found[-1] if found else None


def stopped(tiny: list[str], pictures: Path, output: Path) -> RunFolder:
    """A run that was stopped after 6 of 16 steps, with two checkpoints."""
    stop = stopped_at(output / "marks", ["on_train_batch_end:6"])
    folder = begin(tiny, pictures, output, stop)
    assert work("train", folder.path) == 143
    assert [path.name for path in checkpoints_in(folder.checkpoints)] == ["step-00000004.ckpt", "step-00000006.ckpt"]
    return folder


def damage(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_truncated_newest_checkpoint_falls_back_loudly_to_the_one_before(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    straight = begin(tiny, pictures, tmp_path / "straight")
    assert work("train", straight.path) == 0
    folder = stopped(tiny, pictures, tmp_path)
    damage(folder.checkpoints / "step-00000006.ckpt")
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    said = capfd.readouterr()
    assert "step-00000006.ckpt is damaged" in said.err
    assert "Going on from the one before" in said.err
    assert "resumed   after 4 steps" in said.out
    assert_same_run(straight, folder)


def test_nothing_loadable_is_an_error_and_never_a_fresh_start(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(tiny, pictures, tmp_path)
    damage(folder.checkpoints / "step-00000004.ckpt")
    (folder.checkpoints / "step-00000006.ckpt.sha256").unlink()
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 5
    said = capfd.readouterr().err
    assert "no checkpoint to go on from" in said
    assert "step-00000004.ckpt is damaged" in said
    assert "step-00000006.ckpt has no checksum" in said


def fill(step: int, junk: Path | None = None) -> str:
    where = f', junk: "{junk}"' if junk else ""
    return f"+callbacks.fill={{_target_: stopping.Fill, step: {step}{where}}}"


def test_a_quota_that_is_reached_ends_the_run_with_5_and_keeps_what_was_saved(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = begin(tiny, pictures, tmp_path, fill(6))
    try:
        assert work("train", folder.path) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    said = capfd.readouterr().err
    assert "step-00000008.ckpt cannot be written: File too large" in said
    assert [path.name for path in folder.checkpoints.iterdir() if "00000008" in path.name] == []
    assert [path.name for path in checkpoints_in(folder.checkpoints)] == ["step-00000004.ckpt"]
    assert not folder.finished


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this test may not mount a small file system; the quota test stands in for it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_with_5_and_the_run_goes_on_once_there_is_room(
    tiny: list[str], pictures: Path, tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    straight = begin(tiny, pictures, tmp_path / "straight")
    assert work("train", straight.path) == 0
    junk = small_disk / "junk"
    folder = begin(tiny, pictures, small_disk, fill(6, junk))
    assert work("train", folder.path) == 5
    assert "No space left on device" in capfd.readouterr().err
    assert is_started(folder)
    junk.unlink()
    junk.touch()
    os.chdir(tmp_path)
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert_same_run(straight, folder)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tiny: list[str]) -> None:
    line = [sys.executable, "-m", "frostline.cli", "train", *tiny, "output=/proc/frostline"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 5
    assert "/proc/frostline" in done.stderr
    assert "epoch" not in done.stdout


def test_a_run_without_a_checkpoint_cannot_be_resumed(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    overrides = [*tiny, "data=folder", f'data.root="{pictures}"', f'output="{tmp_path}"']
    folder = prepare(compose("train", overrides), overrides)
    with pytest.raises(Exception, match="no checkpoint to go on from"):
        prepare_resume(folder.path)
