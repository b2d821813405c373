"""A run that stops anywhere is the same run when it goes on: bitwise, with everything that has a state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from going_on import EVERYTHING, assert_equal, assert_same_run, begin, command, rows, state, stopped_at, to_the_end

from frostline.config import compose, load_config
from frostline.errors import ConfigError, StorageError
from frostline.runs import trainers
from frostline.runs.folder import RunFolder
from frostline.runs.resuming import prepare_resume
from frostline.runs.starting import prepare
from frostline.runs.step_loop import StepLoop
from frostline.runs.worker import work

SPOILT = """
import torch


class SpoiltLoss(torch.nn.CrossEntropyLoss):
    calls = 0

    def forward(self, logits, targets):
        self.calls += logits.requires_grad
        loss = super().forward(logits, targets)
        return loss * torch.nan if logits.requires_grad and self.calls == 11 else loss
"""

STEPS = 4  # an epoch: 30 pictures, batches of 4, two to a step
STOPS = [
    "on_train_batch_end:1",
    "on_train_batch_end:3",
    "on_train_batch_end:4",  # the last step of an epoch, its validation still to come
    "on_validation_batch_end:4",  # the validation, begun again
    "on_train_batch_end:5",
    "on_validation_end:8",
    "on_train_epoch_end:12",
    "on_train_batch_end:14",
]


@pytest.fixture(scope="module")
def straight(tiny: list[str], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run that nothing stops."""
    folder = begin(tiny, pictures, tmp_path_factory.mktemp("straight"))
    assert work("train", folder.path) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_at_epochs_and_steps_it_ends_bitwise_the_same(
    workers: int, straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    stop = stopped_at(tmp_path / "marks", STOPS)
    folder = begin(tiny, pictures, tmp_path, stop, f"data.workers={workers}")
    assert to_the_end(folder) == len(STOPS)
    assert_same_run(straight, folder)
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.slow
def test_stopped_after_every_step_it_ends_bitwise_the_same(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    every = [f"on_train_batch_end:{step}" for step in range(1, 4 * STEPS + 1)]
    folder = begin(tiny, pictures, tmp_path, stopped_at(tmp_path / "marks", every))
    assert to_the_end(folder) >= 2 * STEPS
    assert_same_run(straight, folder)


@pytest.mark.slow
def test_a_step_for_each_batch_ends_bitwise_the_same_too(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    """Which goes by `StepLoop`, where a run of accumulated batches goes by Lightning's."""
    own = ["trainer.accumulate_grad_batches=1", "trainer.gradient_clip_val=1.0", "on_nan.action=skip"]
    own += ["callbacks.checkpoint.every_n_steps=3", "trainer.max_epochs=3"]
    whole = begin(tiny, pictures, tmp_path / "whole", *own)
    assert work("train", whole.path) == 0
    stop = stopped_at(tmp_path / "marks", ["on_train_batch_end:3", "on_train_batch_end:8", "on_validation_end:16"])
    stopped = begin(tiny, pictures, tmp_path, stop, *own)
    assert to_the_end(stopped) == 3
    assert_same_run(whole, stopped)


@pytest.mark.slow
def test_a_run_is_the_one_by_lightnings_own_loop(
    tiny: list[str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With averaged weights, a mixed loss, clipping and a step that is left out."""
    own = ["trainer.accumulate_grad_batches=1", "trainer.gradient_clip_val=0.5", "augment.mixup=0.2"]
    own += ["on_nan.action=skip", "loss._target_=spoilt.SpoiltLoss", "freeze=lp_ft", "trainer.max_epochs=3"]
    (tmp_path / "spoilt.py").write_text(SPOILT)
    monkeypatch.syspath_prepend(tmp_path)
    steps: list[int] = []
    step = StepLoop._step
    monkeypatch.setattr(StepLoop, "_step", lambda self, *given: steps.append(1) or step(self, *given))
    straight = begin(tiny, pictures, tmp_path / "straight", *own)
    assert work("train", straight.path) == 0
    assert len(steps) == 3 * 8  # 30 pictures in batches of 4
    assert straight.read_metrics()["skipped_steps"] == 1
    monkeypatch.setattr(trainers, "use_step_loop", lambda trainer: None)
    theirs = begin(tiny, pictures, tmp_path / "theirs", *own)
    assert work("train", theirs.path) == 0
    assert_same_run(straight, theirs)


@pytest.mark.slow
def test_a_schedule_of_phases_goes_on_around_its_transition(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    phases = ["freeze=lp_ft", "freeze.phases.probe.until={epochs: 1}", "trainer.max_epochs=3"]
    whole = begin(tiny, pictures, tmp_path / "whole", *phases)
    assert work("train", whole.path) == 0
    # before the transition, between the last step of the first phase and the first of the second, and after it
    stops = [f"on_train_batch_end:{step}" for step in (STEPS - 1, STEPS, STEPS + 1)] + [f"on_validation_end:{STEPS}"]
    folder = begin(tiny, pictures, tmp_path, *phases, stopped_at(tmp_path / "marks", stops))
    assert to_the_end(folder) == len(stops)
    assert_same_run(whole, folder)
    assert [row["phase"] for row in rows(folder.schedule)] == ["probe", "full"]


@pytest.mark.slow
def test_tensorboard_shows_no_step_twice(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop = stopped_at(tmp_path / "marks", ["on_train_batch_end:3", "on_validation_end:8"])
    folder = begin(tiny, pictures, tmp_path, stop, "logger=default")
    assert to_the_end(folder) == 2
    # the newest checkpoint is lost, so that steps come again
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("lr")]
    assert steps == list(range(4 * STEPS))


@pytest.mark.slow
def test_the_public_command_goes_on_in_a_new_process(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    stop = stopped_at(tmp_path / "marks", ["on_train_batch_end:6"])
    own = [*tiny, *EVERYTHING, f'data.root="{pictures}"', "data.workers=2"]
    done = command("train", *own, stop, cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    assert "saved after 6 steps" in done.stderr
    assert "resume=true" in done.stderr
    (run,) = (tmp_path / "outputs" / "train").iterdir()
    assert not (run / "metrics.json").exists()
    shutil.copytree(pictures, tmp_path / "moved, pictures")
    moved = 'data.root="moved, pictures"'
    done = command("train", f"run={run}", "resume=true", "trust=[stopping]", moved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed   after 6 steps (1 epochs and 4 batches)" in done.stdout
    assert_same_run(straight, RunFolder(run))
    assert load_config(run / "config.yaml").data.root == str(tmp_path / "moved, pictures")
    assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 1


@pytest.mark.slow
def test_more_epochs_go_on_after_the_end_and_none_says_that_it_is_done(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = ["trainer.max_epochs=2", "lr=constant", "lr.warmup.fraction=null"]
    longer = begin(tiny, pictures, tmp_path / "longer", *own, "trainer.max_epochs=4")
    assert work("train", longer.path) == 0
    folder = begin(tiny, pictures, tmp_path, *own)
    assert work("train", folder.path) == 0
    before = folder.metrics.read_bytes()
    capfd.readouterr()
    assert work("train", prepare_resume(folder.path).path) == 0
    assert "This run is done: it is trained to its end, after 2 epochs." in capfd.readouterr().out
    assert folder.metrics.read_bytes() == before
    assert work("train", prepare_resume(folder.path, ["trainer.max_epochs=4"]).path) == 0
    # at a constant rate a run that was made longer is the longer run
    first, second = (run.read_metrics() for run in (longer, folder))
    assert first["epochs"] == second["epochs"] == 4
    assert first["val/loss"] == second["val/loss"]


@pytest.mark.slow
def test_early_stopping_counts_on_and_more_patience_trains_on(
    tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # a run that never gets better: the second epoch without progress ends it
    own = ["optimizer.lr=1e-12", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9", "callbacks.ema=null"]
    folder = begin(tiny, pictures, tmp_path, *own, stopped_at(tmp_path / "marks", ["on_validation_end:8"]))
    assert work("train", folder.path) == 143
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert folder.read_metrics()["epochs"] == 3
    capfd.readouterr()
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert "early stopping ended it after 3 epochs" in capfd.readouterr().out
    patient = ["callbacks.early_stopping.patience=4"]
    assert work("train", prepare_resume(folder.path, patient, trust=["stopping"]).path) == 0
    assert folder.read_metrics()["epochs"] == 5


@pytest.fixture(scope="module")
def half_done(tiny: list[str], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was stopped after 6 of 16 steps."""
    output = tmp_path_factory.mktemp("half")
    folder = begin(tiny, pictures, output, stopped_at(output / "marks", ["on_train_batch_end:6"]))
    assert work("train", folder.path) == 143
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=1", "backbone.name=test_vit"], "seed: 0 -> 1; backbone.name: test_resnet -> test_vit"),
        (["optimizer.lr=0.5"], "optimizer.lr: 0.001 -> 0.5"),
        (["data.batch_size=8"], "data.batch_size: 4 -> 8"),
        (["freeze=linear_probe"], "a resumed run keeps its freeze"),
        (["trainer.max_epoch=5"], "there is no key 'trainer.max_epoch'"),
        (["trainer.max_epochs=5,6"], "has several values"),
    ],
)
def test_another_run_is_refused_with_the_differences_and_nothing_is_changed(
    overrides: list[str], part: str, half_done: RunFolder
) -> None:
    before = half_done.config.read_bytes()
    with pytest.raises(ConfigError) as caught:
        prepare_resume(half_done.path, overrides, trust=["stopping"])
    assert part in str(caught.value)
    assert half_done.config.read_bytes() == before


@pytest.mark.slow
def test_a_run_from_before_a_setting_of_the_process_goes_on_and_may_change_it(half_done: RunFolder) -> None:
    before = half_done.config.read_bytes()
    assert b"keep_memory: true" in before
    try:
        half_done.config.write_bytes(before.replace(b"  keep_memory: true\n", b""))
        resumed = prepare_resume(half_done.path, ["speed.keep_memory=false"], trust=["stopping"])
        assert load_config(resumed.config).speed.keep_memory is False
    finally:
        half_done.config.write_bytes(before)


def test_a_target_that_is_not_trusted_now_is_refused(half_done: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"stopping\.SignalAt"):
        prepare_resume(half_done.path)


def test_other_pictures_or_classes_are_refused_and_the_config_is_put_back(
    half_done: RunFolder, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = half_done.config.read_bytes()
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    for split in ("train", "val", "test"):
        (other / split / "red=1").rename(other / split / "purple")
    changed = prepare_resume(half_done.path, [f'data.root="{other}"'], trust=["stopping"])
    assert work("train", changed.path) == 2
    said = capfd.readouterr().err
    assert "classes: without ['red=1'], with ['purple']" in said
    assert "data: other pictures, labels or splits" in said
    assert half_done.config.read_bytes() == before


@pytest.mark.slow
def test_a_run_that_was_moved_with_its_pictures_goes_on_where_it_is(
    half_done: RunFolder, straight: RunFolder, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(half_done.path, tmp_path / "moved")
    shutil.copytree(pictures, tmp_path / "moved pictures")
    root = [f'data.root="{tmp_path / "moved pictures"}"']
    moved = prepare_resume(tmp_path / "moved", root, trust=["stopping"])
    assert work("train", moved.path) == 0
    assert_same_run(straight, moved)
    assert not half_done.finished


def test_a_run_that_another_process_trains_is_left_alone(half_done: RunFolder) -> None:
    before = half_done.config.read_bytes()
    with half_done.lock(), pytest.raises(StorageError, match="is being trained by another process"):
        prepare_resume(half_done.path, ["trainer.max_epochs=9"], trust=["stopping"])
    assert half_done.config.read_bytes() == before


def test_a_resumption_that_fails_before_it_begins_leaves_the_config_as_it_was(
    half_done: RunFolder, tmp_path: Path
) -> None:
    before = half_done.config.read_bytes()
    nowhere = prepare_resume(half_done.path, [f'data.root="{tmp_path}/nowhere"'], trust=["stopping"])
    assert work("train", nowhere.path) == 3
    assert half_done.config.read_bytes() == before


@pytest.mark.slow
def test_stopped_while_the_test_split_is_scored_nothing_is_trained_and_no_row_comes_twice(
    straight: RunFolder, tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tiny, pictures, tmp_path, stopped_at(tmp_path / "marks", ["on_test_batch_end:16"]))
    assert work("train", folder.path) == 143
    assert "Go on: frostline train run=" in capfd.readouterr().err
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert "nothing left to train" in capfd.readouterr().out
    assert_same_run(straight, folder)
    # killed between the last row and metrics.json
    folder.metrics.unlink()
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert_same_run(straight, folder)


@pytest.mark.slow
def test_a_run_that_a_threshold_ended_stays_ended(tiny: list[str], pictures: Path, tmp_path: Path) -> None:
    own = ["+callbacks.early_stopping.stopping_threshold=0.01"]
    folder = begin(tiny, pictures, tmp_path, *own, stopped_at(tmp_path / "marks", [f"on_test_batch_end:{STEPS}"]))
    assert work("train", folder.path) == 143
    assert work("train", prepare_resume(folder.path, trust=["stopping"]).path) == 0
    assert folder.read_metrics()["epochs"] == 1


@pytest.mark.slow
def test_a_length_in_steps_is_the_same_run_and_can_be_made_longer(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = ["lr=constant", "lr.warmup.fraction=null", "trainer.max_epochs=-1"]
    longer = begin(tiny, pictures, tmp_path / "longer", *own, "trainer.max_steps=12")
    assert work("train", longer.path) == 0
    folder = begin(tiny, pictures, tmp_path, *own, "trainer.max_steps=6")
    assert work("train", folder.path) == 0
    assert state(folder)["frostline"]["cursor"]["batch"] == 4
    assert work("train", prepare_resume(folder.path, ["trainer.max_steps=12"]).path) == 0
    one, other = state(longer), state(folder)
    assert_equal(one["current_model_state"], other["current_model_state"])
    assert_equal(one["optimizer_states"], other["optimizer_states"])


@pytest.mark.slow
def test_a_signal_in_the_validation_after_the_last_step_loses_nothing(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    own = [f"trainer.max_steps={STEPS}", "trainer.max_epochs=-1"]
    whole = begin(tiny, pictures, tmp_path / "whole", *own)
    assert work("train", whole.path) == 0
    folder = begin(tiny, pictures, tmp_path, *own, stopped_at(tmp_path / "m", [f"on_validation_batch_end:{STEPS}"]))
    assert to_the_end(folder) == 1
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_pictures_that_were_left_out_before_a_stop_are_still_listed(
    tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(pictures, spoilt)
    (spoilt / "train" / "red=1" / "3.jpg").write_bytes(b"no picture")
    own = ["data.on_error=skip", "trainer.max_epochs=1"]
    whole = begin(tiny, spoilt, tmp_path / "whole", *own)
    assert work("train", whole.path) == 0
    folder = begin(tiny, spoilt, tmp_path, *own, stopped_at(tmp_path / "marks", ["on_train_batch_end:4"]))
    assert to_the_end(folder) == 1
    assert_same_run(whole, folder)
    assert folder.read_metrics()["skipped_pictures"] == 1
    listed = rows(folder.path / "skipped.csv")
    assert [Path(row["picture"]).name for row in listed] == ["3.jpg"]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("+trainer.val_check_interval=0.5", "a run is validated between epochs"),
        ("trainer.max_steps=2", "nothing is validated"),
        ("trainer.check_val_every_n_epoch=9", "nothing is validated"),
    ],
)
def test_a_run_that_could_not_be_gone_on_with_or_selected_is_refused(
    override: str, part: str, tiny: list[str], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tiny, pictures, tmp_path, override)
    assert work("train", folder.path) == 2
    assert part in capfd.readouterr().err


def test_a_checkpoint_holds_plain_types_alone(half_done: RunFolder) -> None:
    content = torch.load(half_done.checkpoints / "step-00000006.ckpt", weights_only=True)
    assert content["frostline"]["cursor"]["step"] == 6
    assert content["frostline"]["identity"]["classes"] == ["blue, deep", "gréen", "red=1"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["resume=true"], "which run?"),
        (["run=somewhere"], "without resume=true has no meaning"),
        (["run=nowhere", "resume=true"], "is not a run"),
    ],
)
def test_half_an_order_to_resume_is_refused(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from frostline.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments, f'output="{tmp_path}"'])
    assert caught.value.code == 2
    assert part in capsys.readouterr().err


def test_lightning_does_not_put_its_handlers_over_ours() -> None:
    # what runs/parts.py:leave_signals_alone replaces; a Lightning without it has to be looked at again
    from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

    assert callable(_SignalConnector.register_signal_handlers)


@pytest.mark.slow
def test_pretraining_goes_on_bitwise(pictures: Path, tmp_path: Path) -> None:
    own = [
        "data=pictures",
        f'data.root="{pictures}"',
        "data.size=32",
        "data.batch_size=8",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "callbacks.checkpoint.every_n_epochs=1",
        "logger=csv",
        "trainer.log_every_n_steps=1",
    ]

    def started(name: str, *more: str) -> RunFolder:
        overrides = [*own, f'output="{tmp_path / name}"', *more]
        return prepare(compose("pretrain", overrides), overrides)

    straight = started("straight")
    assert work("pretrain", straight.path) == 0
    folder = started("stopped", stopped_at(tmp_path / "marks", ["on_train_batch_end:3", "on_train_batch_end:9"]))
    code, stops = work("pretrain", folder.path), 0
    while code == 143:
        stops += 1
        code = work("pretrain", prepare_resume(folder.path, command="pretrain", trust=["stopping"]).path)
    assert (code, stops) == (0, 2)
    one, other = state(straight), state(folder)
    assert_equal(one["state_dict"], other["state_dict"])
    assert_equal(one["optimizer_states"], other["optimizer_states"])
    assert rows(straight.path / "metrics.csv") == rows(folder.path / "metrics.csv")
    with pytest.raises(ConfigError, match="is a run of pretrain"):
        prepare_resume(folder.path, trust=["stopping"])
