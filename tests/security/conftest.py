"""Payloads: what each would do if it ran is to make one file, the canary, which no test may find."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import frostline

TINY = [
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "data.labels_per_class=4",
    "data.val_fraction=0.02",
    "data.test_fraction=0.02",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=csv",
    "report=false",
]

MakeRun = Callable[..., Path]


class Trap:
    """Unpickling this calls ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Where a payload that runs leaves its trace; checked after each test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a payload ran"


@pytest.fixture
def traps(canary: Path) -> dict[str, Trap]:
    """Objects that make the canary when they are unpickled."""
    return {
        "system": Trap(os.system, f"touch {canary}"),
        "exec": Trap(exec, f"open({str(canary)!r}, 'w').close()"),
        "eval": Trap(eval, f"open({str(canary)!r}, 'w').close()"),
        "touch": Trap(Path.touch, canary),
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copied before it is spoilt."""
    return frostline.train([*TINY, f"output={tmp_path_factory.mktemp('outputs')}"]).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, as one gets it from someone else."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def timm_folder(tmp_path: Path) -> MakeRun:
    """Writes a timm folder whose ``config.json`` is changed by dotted keys: ``make(**{"model_args.block": "x"})``."""

    def make(changes: dict[str, Any] | None = None, **more: Any) -> Path:
        folder = tmp_path / "model"
        model = timm.create_model("test_resnet", num_classes=3)
        labels = {"label_names": ["a", "b", "c"]}
        timm.models.save_for_hf(model, str(folder), safe_serialization=True, model_config=labels)
        content = json.loads((folder / "config.json").read_text())
        for key, value in {**(changes or {}), **more}.items():
            *parents, name = key.split(".")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def state() -> dict[str, torch.Tensor]:
    """The weights of a test_resnet with three classes."""
    return dict(timm.create_model("test_resnet", num_classes=3).state_dict())
