"""Sweeps: what was done is not done again, and what ends one job or the whole sweep loses nothing."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from frostline.config import compose, hydra_session, load_config
from frostline.errors import StorageError
from frostline.runs import earlier, sweep
from frostline.runs.folder import RunFolder, write_json
from frostline.runs.starting import prepare
from frostline.runs.sweep import Job

# a callback that ends its process as `how` says, once for each way, when the second epoch begins
ENDINGS = """
import ctypes, os, signal
from pathlib import Path
from lightning import Callback

class Ending(Callback):
    def __init__(self, how, marks):
        self.how, self.mark = how, Path(marks) / how

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 0 or self.how == "none" or self.mark.exists():
            return
        self.mark.touch()
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "segfault":
            ctypes.string_at(0)
        os._exit({"leave": 7, "vanish": 0}[self.how])
"""


def start(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    paths = os.pathsep.join([*sys.path, str(cwd)])
    environment = {**os.environ, "PYTHONPATH": paths, "HOME": str(cwd), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "frostline.cli", "train", "-m", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment, **options)


def run(*arguments: str, cwd: Path) -> tuple[int, str]:
    with start(*arguments, cwd=cwd) as process:
        text = process.communicate(timeout=300)[0]
    return process.returncode, text


def rows_of(text: str) -> list[dict[str, str]]:
    last = text.strip().splitlines()[-1]
    assert last.startswith("sweep: ")
    with (Path(last.removeprefix("sweep: ")) / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def column(rows: Sequence[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]


@pytest.fixture
def job_of(tiny: list[str], pictures: Path, tmp_path: Path) -> list[str]:
    """Overrides of a job on pictures of its own."""
    shutil.copytree(pictures, tmp_path / "pictures")
    return [*tiny, "data=folder", "data.root=pictures"]


@pytest.mark.slow
def test_a_larger_grid_trains_only_what_is_missing_until_the_data_changes(job_of: list[str], tmp_path: Path) -> None:
    code, text = run(*job_of, "seed=0,1", cwd=tmp_path)
    assert code == 0
    before = rows_of(text)
    assert column(before, "status") == ["done", "done"]
    assert "Mean ± standard deviation over seed" in text

    code, text = run(*job_of, "seed=0,1,2", "data.workers=1", cwd=tmp_path)
    assert code == 0
    after = rows_of(text)
    assert column(after, "status") == ["done before", "done before", "done"]
    assert [{**row, "status": ""} for row in after[:2]] == [{**row, "status": ""} for row in before]
    assert text.count("epoch 2/2") == 1

    picture = next((tmp_path / "pictures" / "train").rglob("*.jpg"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    code, text = run(*job_of, "seed=0,0", cwd=tmp_path)
    assert code == 0
    rows = rows_of(text)
    assert column(rows, "status") == ["done", "done before"]
    assert rows[0]["folder"] == rows[1]["folder"] != before[0]["folder"]


@pytest.mark.slow
def test_however_a_job_dies_the_sweep_goes_on_and_the_next_one_completes_it(job_of: list[str], tmp_path: Path) -> None:
    (tmp_path / "endings.py").write_text(ENDINGS)
    own = ["+callbacks.ending._target_=endings.Ending", f'+callbacks.ending.marks="{tmp_path}"']
    own += ["+callbacks.ending.how=none,kill,leave,segfault,vanish"]
    code, text = run(*job_of, *own, cwd=tmp_path)
    assert code == 1
    first = rows_of(text)
    assert column(first, "status") == [
        "done",
        "failed: ended by signal 9",
        "failed: exit code 7",
        "failed: ended by signal 11",
        "failed: exit code 0, but there are no results",
    ]

    code, text = run(*job_of, *own, cwd=tmp_path)
    assert code == 0
    second = rows_of(text)
    assert column(second, "status") == ["done before", "done", "done", "done", "done"]
    assert column(second, "folder") == column(first, "folder")
    assert column(second, "val/loss") == [first[0]["val/loss"]] * 5
    assert text.count("resumed") >= 4
    assert text.count("epoch 1/2") == 0


def wait_for_epoch(process: subprocess.Popen[str], number: int) -> str:
    """Read what a sweep says until the job ``number`` has trained an epoch."""
    assert process.stdout is not None
    text = ""
    end = time.monotonic() + 120
    while not (f"job {number}:" in text and "\nepoch " in text.split(f"job {number}:")[1]):
        line = process.stdout.readline()
        assert line, text
        assert time.monotonic() < end
        text += line
    return text


def process_of(output: Path, number: int) -> int:
    """The process that trains the job, as its lock names it."""
    (lock,) = output.glob(f"train/*/*-{number:03d}-*/.lock")
    return int(lock.read_text().splitlines()[0])


def listen_to_interrupts() -> None:
    # a test run in the background of a script has SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_a_signal_stops_the_sweep_but_one_to_its_job_does_not(job_of: list[str], tmp_path: Path) -> None:
    own = [*job_of, "trainer.max_epochs=2000", "callbacks=no_early_stopping", "seed=0,1,2"]
    options: dict[str, Any] = {"cwd": tmp_path, "start_new_session": True, "preexec_fn": listen_to_interrupts}
    with start(*own, **options) as process:
        wait_for_epoch(process, 0)
        os.kill(process_of(tmp_path / "outputs", 0), signal.SIGTERM)
        wait_for_epoch(process, 1)
        os.killpg(process.pid, signal.SIGINT)
        text = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    first = rows_of(text)
    assert column(first, "seed") == ["0", "1"]
    assert first[0]["status"].startswith("failed: SIGTERM: stopped; saved after ")
    assert first[1]["status"].startswith("failed: SIGINT: stopped; saved after ")

    with start(*own, **options) as process:
        begun = wait_for_epoch(process, 0)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=60)[0]
    assert process.returncode == 143
    (row,) = rows_of(text)
    assert row["folder"] == first[0]["folder"]
    assert "epoch 1/2000 " not in begun
    assert row["status"].startswith("failed: SIGTERM: stopped; saved after ")


@dataclass
class Fakes:
    """Stands in for the processes of a sweep.

    Attributes:
        output: the folder of all experiments.
        fingerprint: of the data as it is now.
        asked: how often it was asked for.
        trained: the folders of the jobs that were started.
        ends: what a job ends with.
        command: that the sweep is of.
    """

    output: Path
    fingerprint: str | None = "now"
    asked: int = 0
    trained: list[RunFolder] = field(default_factory=list)
    ends: Callable[[RunFolder], int] = lambda folder: 0
    command: str = "train"

    def config(self, *overrides: str) -> DictConfig:
        return compose(self.command, [f"output={self.output}", *overrides])

    def ask(self, function: object, node: object) -> str | None:
        self.asked += 1
        return self.fingerprint

    def train(self, command: str, config: DictConfig, folder: RunFolder) -> int:
        self.trained.append(folder)
        return self.ends(folder)

    def before(self, *overrides: str, fingerprint: str | None = "now", step: int = 0, done: bool = False) -> RunFolder:
        folder = prepare(self.config(*overrides), [])
        if fingerprint:
            write_json(folder.provenance, {"data_fingerprint": fingerprint})
        if step:
            folder.checkpoints.mkdir()
            (folder.checkpoints / f"step-{step:08d}.ckpt").touch()
        if done:
            write_json(folder.metrics, {"val/accuracy": 1.0})
        return folder

    def job(self, *overrides: str, known: dict[str, str | None] | None = None) -> Job:
        job = Job(0, ("seed=0",), RunFolder(self.output / "train" / "2026-01-01_00-00-00-sweep-0"), 0)
        return sweep._run(self.command, self.config(*overrides), job, {} if known is None else known)


def finish(folder: RunFolder) -> int:
    write_json(folder.metrics, {"val/accuracy": 0.5})
    return 0


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes(tmp_path / "outputs", ends=finish)
    monkeypatch.setattr(earlier, "ask_forked", fakes.ask)
    monkeypatch.setattr(sweep, "run_job", fakes.train)
    return fakes


def test_the_first_of_its_kind_is_trained_without_a_look_at_the_data(fakes: Fakes) -> None:
    job = fakes.job()
    assert (job.status, job.folder.read_metrics()) == ("done", {"val/accuracy": 0.5})
    assert fakes.asked == 0


def test_a_finished_run_on_the_same_data_is_not_trained_again(fakes: Fakes) -> None:
    done = fakes.before(done=True)
    fakes.before(step=3)
    assert fakes.job() == Job(0, ("seed=0",), done, 0, before=True)
    assert fakes.trained == []


@pytest.mark.parametrize("fingerprint", ["other", None])
def test_other_data_or_data_that_cannot_be_read_is_trained_on(fakes: Fakes, fingerprint: str | None) -> None:
    done, started = fakes.before(done=True), fakes.before(step=3)
    fakes.fingerprint = fingerprint
    assert fakes.job().status == "done"
    assert fakes.trained[0] not in (done, started)


def test_rerun_trains_again(fakes: Fakes) -> None:
    done = fakes.before(done=True)
    assert fakes.job("rerun=true").folder != done
    assert len(fakes.trained) == 1


def test_the_data_is_asked_once_in_a_sweep(fakes: Fakes) -> None:
    known: dict[str, str | None] = {}
    for seed in ("seed=1", "seed=2"):
        fakes.before(seed, done=True)
        assert fakes.job(seed, known=known).before
    assert fakes.asked == 1


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_stopped_run_goes_on_in_its_folder_and_with_what_the_command_line_trusts(fakes: Fakes, command: str) -> None:
    fakes.command = command
    own = "+callbacks.mine._target_=my_own.Callback"
    stopped = fakes.before(own, step=3)
    write_json(stopped.failure, {"exit_code": 1, "message": "what was before"})
    assert fakes.job(own).folder == stopped
    assert fakes.trained == [stopped]
    assert load_config(stopped.config).resume is True
    assert not stopped.failure.exists()
    assert fakes.job(own).before


def test_the_folders_of_configs_are_kept_where_a_run_goes_on(fakes: Fakes, tmp_path: Path) -> None:
    stopped = fakes.before(step=3)
    fakes.job(f'config_dirs=["{tmp_path}"]')
    assert fakes.trained == [stopped]
    assert load_config(stopped.config).config_dirs == [str(tmp_path)]


def test_a_full_disk_ends_a_sweep_with_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with hydra_session() as hydra:
        monkeypatch.setattr(hydra, "multirun", full)
        with pytest.raises(StorageError, match=r"the sweep cannot go on: .*No space left") as caught:
            sweep.sweep(hydra, "train", ["seed=0,1", f"output={tmp_path}"])
    (folder,) = (tmp_path / "train").iterdir()
    assert str(folder) in str(caught.value)


def test_a_run_that_saved_nothing_starts_anew(fakes: Fakes) -> None:
    stopped = fakes.before()
    assert fakes.job().folder != stopped


@pytest.mark.parametrize("fingerprint", ["now", None])
def test_what_another_process_trains_is_left_to_it(fakes: Fakes, fingerprint: str | None) -> None:
    busy = fakes.before(fingerprint=fingerprint, step=3)
    with busy.lock():
        job = fakes.job()
    assert (job.folder, job.status) == (busy, "failed: is being trained by another process")
    assert fakes.trained == []


def test_a_job_that_ends_well_without_results_has_failed(fakes: Fakes) -> None:
    fakes.ends = lambda folder: 0
    assert fakes.job().status == "failed: exit code 0, but there are no results"


def test_a_failure_is_that_of_this_ending(fakes: Fakes) -> None:
    folder = fakes.before()
    write_json(folder.failure, {"exit_code": 4, "message": "the loss is nan\n  mend"})
    assert Job(0, (), folder, 4).failure == "the loss is nan"
    assert Job(0, (), folder, -9).failure == "ended by signal 9"
    assert Job(0, (), folder, 7).failure == "exit code 7"


def test_the_exit_code_of_a_sweep_names_a_failed_job(tmp_path: Path) -> None:
    done, failed = Job(0, (), RunFolder(tmp_path), 0), Job(1, (), RunFolder(tmp_path), 143)
    assert sweep.exit_code([done]) == 0
    assert sweep.exit_code([done, failed]) == 1


FOLDS = ["data=folder", "data.folds=3"]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Whether a sweep leaves it to its jobs to score the test split; ``own``: what is known of it from the data."""

    def ask(*overrides: str, own: bool | None = False) -> bool:
        monkeypatch.setattr(sweep, "ask_forked", lambda function, node: own)
        with hydra_session() as hydra:
            plain = sweep._plain_overrides(hydra, overrides)
            settings = hydra.compose_config("train", plain, run_mode=sweep._run_mode())
            return sweep.untested(hydra, overrides, settings) == []

    return ask


def test_a_cross_validation_scores_its_folds_where_they_are_the_test_split(tested: Callable[..., bool]) -> None:
    own = [*FOLDS, "data.root=pictures"]
    assert tested(*own, "data.fold=range(3)")
    assert tested(*own, "data.fold=0,1,2", "seed=0,1", "optimizer.lr=1e-4")
    # a test split of its own is left alone, and so is one of data that cannot be read
    assert not tested(*own, "data.fold=range(3)", own=True)
    assert not tested(*own, "data.fold=range(3)", own=None)


@pytest.mark.parametrize(
    "varied",
    [
        ["seed=0,1"],
        ["data.fold=range(3)", "optimizer.lr=1e-3,1e-4"],
        ["data.fold=range(3)", "freeze=full,linear_probe"],
        ["data.fold=range(3)", "data.split_seed=0,1"],
    ],
)
def test_a_sweep_that_can_select_leaves_the_test_split_alone(tested: Callable[..., bool], varied: list[str]) -> None:
    assert not tested(*FOLDS, "data.root=pictures", *varied)


@pytest.mark.parametrize(
    ("sweeper", "alone"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": {"seed": "0,1"}}, True),
        ({"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": {"lr": "0,1"}}, False),
        ({"_target_": "somebodys.Search"}, False),
    ],
)
def test_what_a_sweeper_varies_by_itself_counts(sweeper: dict[str, Any], alone: bool) -> None:
    settings = OmegaConf.create({"hydra": {"sweeper": sweeper}, "data": {"folds": 3}})
    assert sweep._is_cross_validation(["data.fold"], settings) is alone
    settings.data.folds = None
    assert sweep._is_cross_validation(["data.fold"], settings) is False


def test_what_is_said_of_the_test_split_holds(tested: Callable[..., bool]) -> None:
    # nothing is added, for or against
    assert tested(*FOLDS, "data.root=pictures", "optimizer.lr=1e-3,1e-4", "test=true")
    assert tested(*FOLDS, "data.root=pictures", "data.fold=range(3)", "test=false", own=True)


def test_whether_a_set_has_a_test_split_of_its_own(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "train", tmp_path / "train")
    for root, expected in ((pictures, True), (tmp_path, False)):
        config = compose("train", ["data=folder", f'data.root="{root}"', "data.folds=3", "data.fold=1"])
        node = OmegaConf.to_container(config.data, resolve=True)
        assert isinstance(node, dict)
        assert sweep.has_own_test_split({**node, "test_fraction": 0.2}) is expected
