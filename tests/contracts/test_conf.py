"""Every file of every config group, found by looking: a new one is tested without being listed."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

import frostline
from frostline.checkpoints import checkpoints_in, read_checkpoint
from frostline.config import check_targets, compose, compose_job, conf_folder, hydra_session
from frostline.data import ImageData
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
    ("data", "table"): ["data.table=absent.csv"],
    ("data", "torchvision"): ["data.root=absent", "data.name=CIFAR10"],
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


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data"])
def test_a_source_names_every_argument_with_its_default(option: str) -> None:
    with hydra_session() as hydra:
        node = OmegaConf.to_container(compose_job(hydra, "train", [f"data={option}"], complete=False).data)
    assert isinstance(node, dict)
    source = get_class(node.pop("_target_"))
    assert issubclass(source, ImageData)
    parameters = inspect.signature(source).parameters.values()
    assert set(node) == {parameter.name for parameter in parameters}
    defaults = {parameter.name: parameter.default for parameter in parameters}
    for name, default in defaults.items():
        # a dataclass shows a default that is made anew each time as an object of its own
        value = {} if "factory" in repr(default) else default
        assert node[name] == ("???" if value is inspect.Parameter.empty else value), name


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_its_file_says_what_it_is(group: str, option: str) -> None:
    text = (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert any(line.startswith("# ") and not line.startswith("# @package") for line in lines), "no comment"
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.slow
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
            "report=false",
        ]
    )
    assert run.metrics["test/count"] == 269
    weights = read_checkpoint(checkpoints_in(run.path / "checkpoints")[-1])["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
