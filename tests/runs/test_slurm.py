from __future__ import annotations

import os
from pathlib import Path

import pytest

from frostline.errors import StorageError
from frostline.runs import slurm
from frostline.runs.folder import RunFolder

OVERRIDES = ["freeze=last_n", "seed=3"]


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def fake_scontrol(folder: Path, *, code: int = 0) -> Path:
    """A ``scontrol`` in ``folder/bin`` that writes its arguments to the file that is returned."""
    program, called = folder / "bin" / "scontrol", folder / "called"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "$@" >> "{called}"\n[ {code} = 0 ] || echo "no such job" >&2\nexit {code}\n')
    program.chmod(0o755)
    return called


def set_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def run_in(experiment: Path, name: str = "2026-01-01_00-00-00-abc") -> RunFolder:
    folder = RunFolder(experiment / name)
    folder.path.mkdir(parents=True)
    folder.config.write_text("seed: 3\n")
    return folder


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "17_2"),
    ],
)
def test_a_job_is_requeued_by_its_name(
    environment: dict[str, str],
    job: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    called = fake_scontrol(tmp_path)
    set_path(tmp_path, monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert slurm.requeue()
    assert called.read_text() == f"requeue {job}\n"
    assert capfd.readouterr().err == f"SLURM job {job} is back in the queue\n"


def test_a_refused_requeue_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    fake_scontrol(tmp_path, code=1)
    set_path(tmp_path, monkeypatch)
    assert not slurm.requeue()
    assert "could not be put back into the queue: scontrol ended with 1: no such job" in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.requeue()
    assert "there is no scontrol on the PATH" in capfd.readouterr().err


@pytest.mark.parametrize("job", ["", "17; rm"])
def test_without_a_job_nothing_is_called(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_scontrol(tmp_path)
    set_path(tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    assert not slurm.requeue()
    assert not called.exists()
    folder = run_in(tmp_path / "outputs")
    slurm.remember(folder, OVERRIDES)
    assert list((tmp_path / "outputs").iterdir()) == [folder.path]
    assert slurm.restarted_run(tmp_path / "outputs", OVERRIDES) is None


def test_a_requeued_job_finds_the_run_that_it_had_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tmp_path / "outputs" / "train"
    folder = run_in(experiment)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slurm.remember(folder, OVERRIDES)
    assert slurm.restarted_run(experiment, OVERRIDES) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.restarted_run(experiment, list(reversed(OVERRIDES))) == folder.path
    assert slurm.restarted_run(experiment, ["seed=4"]) is None
    # the outputs may have been moved
    (tmp_path / "outputs").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "train"
    assert slurm.restarted_run(moved, OVERRIDES) == moved / folder.path.name
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert slurm.restarted_run(moved, OVERRIDES) is None


def test_a_job_that_comes_back_after_its_run_was_done_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_in(tmp_path / "train")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    slurm.remember(folder, OVERRIDES)
    folder.metrics.write_text("{}")
    assert slurm.restarted_run(tmp_path / "train", OVERRIDES) == folder.path


@pytest.mark.parametrize("what", ["gone", "outside"])
def test_a_run_that_cannot_go_on_is_not_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_in(tmp_path / "train")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    slurm.remember(folder, OVERRIDES)
    assert slurm.restarted_run(tmp_path / "train", OVERRIDES) == folder.path
    if what == "gone":
        folder.config.unlink()
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "config.yaml").write_text("seed: 3\n")
        (pointer,) = (tmp_path / "train" / ".slurm").iterdir()
        pointer.write_text("../elsewhere\n")
    assert slurm.restarted_run(tmp_path / "train", OVERRIDES) is None


def test_a_pointer_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_in(tmp_path / "train")
    (tmp_path / "train" / ".slurm").write_text("in the way")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(StorageError, match="cannot be written"):
        slurm.remember(folder, OVERRIDES)
