"""Proof 2: a run of three phases that is stopped at every step is the run that nothing stops, bitwise.

With batch norm, dropout, mixed and augmented pictures, accumulation, momentum and averaged weights. The first phase is
ended by a plateau, before its cap and with the best weights behind it; the second is a walk that starts from the best,
with a new optimizer state and groups that warm up; the third starts from the best of the walk.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from going_on import assert_same_run, begin, command, rows, stopped_at, to_the_end

from frostline.runs.folder import RunFolder
from frostline.runs.resuming import prepare_resume
from frostline.runs.worker import work

STEPS = 3  # an epoch: 30 pictures, batches of 5, two to a step
EPOCHS = 6
SCHEDULE = [
    "freeze=linear_probe",
    "freeze.depth.bins=2",
    # no validation is that much better than the first, so that the second ends the phase
    "freeze.phases.probe.until={epochs: 3, plateau: {patience: 1, min_delta: 50.0}}",
    "freeze.phases.thaw={train: all, walk: {each: {steps: 2}}, start: best, optimizer: reset, rewarm: {steps: 2}}",
    "freeze.phases.full={train: 'all - bottom:1', start: best, lr: {scale: 0.5, curve: cosine, warmup: {steps: 2}}}",
    # the least accurate are the best: early ones, so that to start from the best is not to go on
    "monitor.metric=val/accuracy",
    "monitor.mode=min",
    "optimizer=sgd",
    "optimizer.lr=0.3",
    "callbacks.early_stopping.patience=9",
    "data.batch_size=5",
    "data.workers=0",
    f"trainer.max_epochs={EPOCHS}",
    "test=false",
]
TRANSITIONS = [("probe", "0", "0"), ("thaw", "0", "6"), ("thaw", "1", "8"), ("thaw", "2", "10"), ("full", "0", "12")]
EVERY_STEP = [f"on_train_batch_end:{step}" for step in range(1, EPOCHS * STEPS + 1)]
# between a validation and what its triggers have decided, and inside one
AROUND = [f"{hook}:{step}" for step in (3, 6, 9, 12) for hook in ("on_validation_batch_end", "on_validation_end")]


@pytest.fixture(scope="module")
def straight(tiny: list[str], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nothing stops."""
    folder = begin(tiny, pictures, tmp_path_factory.mktemp("straight"), *SCHEDULE)
    assert work("train", folder.path) == 0
    return folder


def test_the_run_has_what_is_to_be_proved(straight: RunFolder) -> None:
    record = rows(straight.schedule)
    assert [(row["phase"], row["stage"], row["step"]) for row in record] == TRANSITIONS
    assert record[1]["reason"].startswith("plateau of val/accuracy")
    scores = [float(row["val/accuracy"]) for row in rows(straight.path / "metrics.csv") if row["val/accuracy"]]
    # of the two validations of the first phase the earlier is the best: the walk starts from before the phase's end
    assert scores[0] <= scores[1]


@pytest.mark.slow
def test_stopped_at_every_step_it_ends_bitwise_the_same(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    folder = begin(tiny, pictures, tmp_path, *SCHEDULE, stopped_at(tmp_path / "marks", EVERY_STEP))
    assert to_the_end(folder) == len(EVERY_STEP)
    assert_same_run(straight, folder)


@pytest.mark.slow
def test_stopped_around_the_decisions_of_triggers_it_ends_bitwise_the_same(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    folder = begin(tiny, pictures, tmp_path, *SCHEDULE, stopped_at(tmp_path / "marks", AROUND))
    assert to_the_end(folder) == len(AROUND)
    assert_same_run(straight, folder)


def test_a_run_that_its_last_phase_has_ended_is_done(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = "freeze.phases.full.until={plateau: {patience: 1, min_delta: 50.0}}"
    own = ["callbacks.early_stopping.patience=9", "trainer.max_epochs=5", "test=false", ends]
    folder = begin(tiny, pictures, tmp_path, *own)
    assert work("train", folder.path) == 0
    before = folder.metrics.read_bytes()
    assert folder.read_metrics()["epochs"] == 2
    assert "full: ends the run, plateau of val/accuracy" in capfd.readouterr().out
    assert work("train", prepare_resume(folder.path).path) == 0
    assert "This run is done" in capfd.readouterr().out
    assert folder.metrics.read_bytes() == before


@pytest.mark.slow
def test_the_command_goes_on_in_a_new_process(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    # inside the walk, two steps after the optimizer's state was reset
    folder = begin(tiny, pictures, tmp_path, *SCHEDULE, stopped_at(tmp_path / "marks", ["on_train_batch_end:8"]))
    assert work("train", folder.path) == 143
    done = command("train", f"run={folder.path}", "resume=true", "trust=[stopping]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(straight, folder)
