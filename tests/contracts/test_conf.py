"""Every file of every config group, found by looking: a new one is tested without being listed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

import frostline
from frostline.checkpoints import checkpoints_in, read_checkpoint
from frostline.config import check_targets, compose, conf_folder
from frostline.runs.parts import SUPPLIED

ROOTS = {"train": "train", "pretraining": "pretrain"}
OPTIONS = sorted(
    (path.parent.name, path.stem) for path in conf_folder().glob("*/*.yaml") if path.parent.name not in ("hydra",)
)
NEEDS = {
    "data": ["data.root=absent"],
    "experiment": ["data.root=absent"],
}
OPTION_NEEDS = {
    ("data", "digits"): [],
    ("backbone", "module"): ["backbone.module._target_=torchvision.models.resnet18"],
}
RUN_GROUPS = ("freeze", "adapter", "optimizer", "lr", "augment", "loss", "regularizer", "callbacks", "metrics", "speed")


def command_of(group: str) -> str:
    return ROOTS.get(group, "train")


def needs(group: str, option: str) -> list[str]:
    return OPTION_NEEDS.get((group, option), NEEDS.get(group, []))


def skip_without_extra(option: str) -> None:
    package = {"wandb": "wandb", "lora": "peft"}.get(option)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra {option} is not installed")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_it_composes_and_its_targets_can_be_built(group: str, option: str) -> None:
    sign = "+" if group not in compose("train") and group not in ("experiment", *ROOTS) else ""
    config = compose(command_of(group), [f"{sign}{group}={option}", *needs(group, option)])
    skip_without_extra(option)
    config.folder = "folder"
    check_targets(config, supplied=SUPPLIED)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_its_file_says_what_it_is(group: str, option: str) -> None:
    text = (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert any(line.startswith("# ") and not line.startswith("# @package") for line in lines), "no comment"
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize(
    ("group", "option"), [item for item in OPTIONS if item[0] in RUN_GROUPS], ids=lambda value: str(value)
)
def test_it_trains(group: str, option: str, tmp_path: Path) -> None:
    skip_without_extra(option)
    # enough steps for each stage of a walk
    epochs, batch = (3, 8) if group == "freeze" else (1, 32)
    run = frostline.train(
        [
            f"{group}={option}",
            "backbone.name=test_resnet",
            "backbone.weights=none",
            "data.labels_per_class=7",
            f"data.batch_size={batch}",
            "trainer=cpu",
            f"trainer.max_epochs={epochs}",
            f"output={tmp_path}",
            "logger=csv",
        ]
    )
    assert run.metrics["test/count"] == 269
    weights = read_checkpoint(checkpoints_in(run.path / "checkpoints")[-1])["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
