from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig

import frostline
from frostline.checkpoints import write_checkpoint
from frostline.data.splits import SplitView
from frostline.errors import ConfigError, DataError, FrostlineError, StorageError
from frostline.runs.folder import RunFolder
from frostline.runs.parts import Parts, build_parts
from frostline.runs.preflight import _checkpoint_bytes, preflight, raise_all
from frostline.runs.sizes import readable_size

MB = 10**6


class Saving(WeightAveraging):
    """Stands for the callback that saves: it says how many checkpoints are kept, and where."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.keep_best, self.keep_latest = folder, 1, 2


class Flight:
    """A run that is about to start."""

    def __init__(self, path: Path, overrides: list[str]) -> None:
        self.config: DictConfig = frostline.compose([*overrides, f"output={path}"])
        self.folder = RunFolder(path / "run")
        self.folder.path.mkdir()
        self.config.folder = str(self.folder.path)
        self.parts: Parts = build_parts(self.config)
        self.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)

    def check(self, **options: Any) -> None:
        preflight(self.config, self.parts, self.folder, self.trainer, **options)

    def fault(self, kind: type[FrostlineError], **options: Any) -> str:
        with pytest.raises(FrostlineError) as caught:
            self.check(**options)
        assert type(caught.value) is kind
        return str(caught.value)


Prepare = Callable[..., Flight]


@pytest.fixture
def prepare(tiny: list[str], pictures: Path, tmp_path: Path) -> Prepare:
    """A run on a copy of the pictures, which may be spoilt."""
    shutil.copytree(pictures, tmp_path / "set")

    def make(*overrides: str) -> Flight:
        own = ["data=folder", f'data.root="{tmp_path}/set"', "data.workers=0"]
        return Flight(tmp_path, [*tiny, *own, *overrides])

    return make


def spoil(tmp_path: Path, split: str, count: int = 1) -> list[str]:
    """Make the first pictures of a split's first class unreadable; their paths."""
    folder = sorted((tmp_path / "set" / split).iterdir())[0]
    spoilt = sorted(folder.iterdir())[:count]
    for path in spoilt:
        path.write_bytes(b"no picture")
    return [str(path) for path in spoilt]


# --- when all is well -------------------------------------------------------------------------------------------------


def test_a_good_run_takes_off_in_silence_and_nothing_has_changed(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    flight = prepare("freeze=linear_probe", "augment=standard")
    task = flight.parts.task
    modes = {name: module.training for name, module in task.named_modules()}
    learns = {name: parameter.requires_grad for name, parameter in task.named_parameters()}
    values = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist())
    files = sorted(flight.folder.path.rglob("*"))
    flight.check()
    assert capsys.readouterr() == ("", "")
    assert {name: module.training for name, module in task.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in task.named_parameters()} == learns
    assert all(torch.equal(tensor, values[name]) for name, tensor in task.state_dict().items())
    now = (random.getstate(), np.random.get_state()[1].tolist(), torch.default_generator.get_state().tolist())
    assert now == generators
    assert sorted(flight.folder.path.rglob("*")) == files


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_gone_is_named(prepare: Prepare) -> None:
    flight = prepare()
    flight.folder.path.rmdir()
    assert f"{flight.folder.path} cannot be written" in flight.fault(StorageError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(prepare: Prepare) -> None:
    flight = prepare()
    flight.folder.path.chmod(0o500)
    assert "Permission denied" in flight.fault(StorageError)


def test_a_folder_of_checkpoints_that_cannot_be_written_is_named(prepare: Prepare) -> None:
    flight = prepare()
    flight.trainer.callbacks.append(Saving("/proc/self"))  # type: ignore[attr-defined]  # Lightning's own list
    assert "/proc/self cannot be written" in flight.fault(StorageError)


def test_a_full_disk_is_told_in_figures(prepare: Prepare) -> None:
    flight = prepare()
    text = flight.fault(StorageError, free=lambda folder: MB)
    checkpoint, model = _checkpoint_bytes(flight.config, flight.parts, flight.trainer)
    needed = readable_size(4 * checkpoint + model)
    assert f"The run needs about {needed}" in text
    assert "the disk has 1.00 MB free" in text
    assert str(flight.folder.path) in text
    assert "output=FOLDER" in text
    flight.check(free=lambda folder: 4 * checkpoint + model)


def test_a_checkpoint_is_about_as_large_as_estimated(prepare: Prepare, tmp_path: Path) -> None:
    flight = prepare()
    task = flight.parts.task
    optimizer = task.configure_optimizers()
    task(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {"state_dict": task.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    write_checkpoint(content, tmp_path / "step-00000001.ckpt")
    estimate = _checkpoint_bytes(flight.config, flight.parts, flight.trainer)[0]
    assert (tmp_path / "step-00000001.ckpt").stat().st_size == pytest.approx(estimate, rel=0.25)


def test_an_optimizer_that_keeps_less_and_an_average_count(prepare: Prepare) -> None:
    flight = prepare("optimizer=sgd")
    checkpoint, model = _checkpoint_bytes(flight.config, flight.parts, flight.trainer)
    assert checkpoint == pytest.approx(2 * model, rel=0.05)
    flight.trainer.callbacks.append(Saving(""))  # type: ignore[attr-defined]  # Lightning's own list
    assert _checkpoint_bytes(flight.config, flight.parts, flight.trainer)[0] == checkpoint + model


def test_checkpoints_of_a_resumed_run_need_no_room_again(prepare: Prepare) -> None:
    flight = prepare()
    checkpoint, model = _checkpoint_bytes(flight.config, flight.parts, flight.trainer)
    flight.folder.checkpoints.mkdir()
    for step in (1, 2, 3):
        (flight.folder.checkpoints / f"step-{step:08d}.ckpt").write_bytes(b"\0" * checkpoint)
    flight.check(free=lambda folder: checkpoint + model)
    assert "The run needs" in flight.fault(StorageError, free=lambda folder: checkpoint + model - 1)


def test_sizes_are_readable() -> None:
    assert readable_size(12_345_678) == "12.3 MB"
    assert readable_size(98_765_432_100) == "98.8 GB"


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_unreadable_picture_among_the_first_is_named(prepare: Prepare, tmp_path: Path, split: str) -> None:
    spoilt = spoil(tmp_path, split)
    assert spoilt[0] in prepare().fault(DataError)


def test_a_training_picture_may_be_unreadable_where_such_are_skipped(prepare: Prepare, tmp_path: Path) -> None:
    spoil(tmp_path, "train", 3)
    prepare("data.on_error=skip").check()


def test_evaluation_skips_nothing(prepare: Prepare, tmp_path: Path) -> None:
    spoilt = spoil(tmp_path, "val")
    assert spoilt[0] in prepare("data.on_error=skip").fault(DataError)


def test_a_test_split_that_is_not_scored_is_not_looked_at(prepare: Prepare, tmp_path: Path) -> None:
    spoil(tmp_path, "test")
    prepare("test=false").check()


def test_a_transform_that_fails_is_a_fault_of_the_config(prepare: Prepare) -> None:
    flight = prepare("+augment.transforms=[{_target_: torchvision.transforms.v2.RandomCrop, size: 5000}]")
    assert "augment.transforms[0] (RandomCrop) fails" in flight.fault(ConfigError)


# --- batch norm -------------------------------------------------------------------------------------------------------


def test_batch_norm_does_not_learn_from_single_pictures(prepare: Prepare) -> None:
    text = prepare("data.batch_size=1").fault(ConfigError)
    assert "With data.batch_size=1 the batch norms" in text
    assert "bn" in text
    assert "data.batch_size=2" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["freeze=linear_probe"],
        ["backbone.name=test_vit"],
        ["backbone.name=test_convnext"],
    ],
    ids=["frozen", "without any", "layer norm"],
)
def test_a_batch_of_one_is_fine_where_no_batch_norm_learns(prepare: Prepare, overrides: list[str]) -> None:
    prepare("data.batch_size=1", *overrides).check()


def test_a_frozen_batch_norm_that_goes_on_counting_is_seen(prepare: Prepare) -> None:
    text = prepare("data.batch_size=1", "freeze=linear_probe", "freeze.bn.frozen=batch").fault(ConfigError)
    assert "freeze.bn.frozen=eval" in text


def test_a_later_phase_counts_too(prepare: Prepare) -> None:
    text = prepare("data.batch_size=1", "freeze=lp_ft", "freeze.phases.probe.until.epochs=1").fault(ConfigError)
    assert "batch norms" in text


def test_a_single_picture_for_each_process_is_seen(prepare: Prepare) -> None:
    flight = prepare("data.labels_per_class=1", "data.batch_size=3")
    flight.check()
    flight.config.trainer.devices = 3
    assert "3 training pictures over 3 processes" in flight.fault(ConfigError)
    flight.config.trainer.sync_batchnorm = True
    flight.check()


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_phases_on_several_processes_are_fine(prepare: Prepare) -> None:
    flight = prepare("trainer=ddp_cpu", "freeze=lp_ft", "freeze.phases.probe.until={epochs: 1}")
    assert len(flight.parts.schedule.phases) == 2
    flight.check()


def test_each_process_has_pictures_to_validate(prepare: Prepare) -> None:
    flight = prepare()
    splits = flight.parts.data.splits
    splits["val"] = SplitView(splits["val"], np.arange(1))
    flight.config.trainer.devices = 2
    assert "1 pictures of the val split cannot be shared by 2 processes" in flight.fault(DataError)


# --- the backbone -----------------------------------------------------------------------------------------------------


def test_a_size_that_the_backbone_refuses_is_named(prepare: Prepare) -> None:
    flight = prepare("backbone.name=test_vit", "data.size=160")
    preprocessing = replace(flight.parts.backbone.preprocessing, size=(3, 72, 72))
    flight.parts.backbone.preprocessing = preprocessing
    text = flight.fault(ConfigError)
    assert "'test_vit' cannot take pictures of 3 x 72 x 72" in text
    assert "It was pre-trained with 3 x 160 x 160" in text


def test_a_backbone_that_gives_no_logits_is_named(prepare: Prepare) -> None:
    flight = prepare()
    flight.parts.task.model.reset_classifier(0)  # type: ignore[operator]  # timm gives no types
    assert "not logits of shape (2, 3)" in flight.fault(ConfigError)


def test_a_compiled_model_is_not_compiled_for_this(prepare: Prepare) -> None:
    flight = prepare()
    asked: list[object] = []
    flight.parts.task.model.compile(backend=lambda graph, inputs: asked.append(graph))
    flight.check()
    assert asked == []


def test_a_model_without_values_is_left_alone(prepare: Prepare) -> None:
    flight = prepare()
    flight.parts.task.model.to("meta")
    flight.check()


# --- several at once --------------------------------------------------------------------------------------------------


def test_all_faults_are_named_and_the_gravest_decides(prepare: Prepare, tmp_path: Path) -> None:
    spoilt = spoil(tmp_path, "val")
    flight = prepare("data.batch_size=1")
    text = flight.fault(ConfigError, free=lambda folder: 0)
    assert text.startswith("3 faults, found before the first step:\n1. With data.batch_size=1")
    assert "2. A picture of the val split cannot be read:" in text
    assert f"The picture {spoilt[0]}" in text
    assert "3. The run needs" in text


def test_data_comes_before_storage() -> None:
    with pytest.raises(DataError, match=r"(?s)1\. b.*2\. a"):
        raise_all([StorageError("a"), DataError("b")])
    with pytest.raises(StorageError, match=r"^a$"):
        raise_all([StorageError("a")])
    raise_all([])


def test_other_ranks_leave_disk_and_pictures_to_the_first(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(tmp_path, "val")
    flight = prepare()
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda trainer: False))
    flight.check(free=lambda folder: 0)
