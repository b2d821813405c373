from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from frostline.errors import ConfigError, StorageError
from frostline.runs.folder import RunFolder, make_folder, overrides_hash, write_json
from frostline.writing import write_text

HOLD = """
import os, sys, time
from pathlib import Path
from frostline.runs.folder import RunFolder

with RunFolder(Path(sys.argv[1])).lock():
    if "fork" in sys.argv and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    if "fork" not in sys.argv:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(folder: Path, *how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the lock of ``folder``, and the process that it said it is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", HOLD, str(folder), *how]
    holder = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def test_a_folder_is_never_reused(tmp_path: Path) -> None:
    made = {make_folder(tmp_path / "deep", "x") for _ in range(20)}
    assert len(made) == 20
    assert all(path.is_dir() for path in made)


def _make(parent: str, ready: Barrier, results: multiprocessing.Queue[str]) -> None:
    ready.wait(timeout=60)
    for _ in range(5):
        results.put(str(make_folder(Path(parent), "x")))


def test_processes_that_start_at_once_share_no_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    ready = context.Barrier(20)
    workers = [context.Process(target=_make, args=(str(tmp_path), ready, results)) for _ in range(20)]
    for worker in workers:
        worker.start()
    made = [results.get(timeout=60) for _ in range(100)]
    for worker in workers:
        worker.join()
    assert len(set(made)) == 100


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot hold a run"):
        make_folder(tmp_path / "x", "y")


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    with pytest.raises(StorageError, match="cannot hold a run"):
        make_folder(tmp_path / "outputs" / "train", "y")


def test_the_hash_tells_overrides_apart_and_not_their_order() -> None:
    assert overrides_hash(["a=1", "b=2"]) == overrides_hash(["b=2", "a=1"]) != overrides_hash(["a=1"])


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "m.json", {"val/accuracy": 0.5, "name": "é"})
    assert json.loads((tmp_path / "a" / "m.json").read_text()) == {"val/accuracy": 0.5, "name": "é"}
    assert os.listdir(tmp_path / "a") == ["m.json"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        RunFolder.existing(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="did not finish"):
        RunFolder.existing(tmp_path)
    assert RunFolder(tmp_path).read_metrics() == {}


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old, and long")
    write_text(tmp_path / "a.txt", "né")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "né"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_second_process_is_told_who_trains(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.locked
    holder, process = hold(tmp_path)
    try:
        assert folder.locked
        with pytest.raises(StorageError, match=f"is being trained by process {process}\n") as caught, folder.lock():
            pass
        assert caught.value.mend
    finally:
        holder.kill()
        holder.communicate()
    assert not folder.locked


def test_a_lock_of_another_machine_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path).lock():
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        here = os.uname().nodename
        with pytest.raises(StorageError, match=f"process {os.getpid()} on {here}"), RunFolder(tmp_path).lock():
            pass


def test_a_killed_process_holds_no_lock_even_where_its_children_live_on(tmp_path: Path) -> None:
    holder, child = hold(tmp_path, "fork")
    assert RunFolder(tmp_path).locked
    holder.kill()
    holder.wait()
    try:
        with RunFolder(tmp_path).lock():
            assert RunFolder(tmp_path).locked
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_a_lock_is_let_go_with_its_block_and_after_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyError), folder.lock():
        raise KeyError
    with folder.lock():
        assert folder.locked
    assert not folder.locked


def test_a_file_system_without_locks_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunFolder(tmp_path).lock():
        assert not RunFolder(tmp_path).locked
    assert "cannot lock" in capsys.readouterr().err


def test_a_folder_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be locked"), RunFolder(tmp_path / "gone").lock():
        pass
