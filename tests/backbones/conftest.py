from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a timm folder with timm's own function: ``make_folder(name, classes=5, **kwargs)``."""

    def make(architecture: str = "test_resnet", *, classes: int = 5, at: str = "source", **kwargs: Any) -> Path:
        model = timm.create_model(architecture, num_classes=classes, **kwargs)
        jitter(model)
        data_config = {"img_size": kwargs["img_size"]} if "img_size" in kwargs else None
        timm.models.save_for_hf(model, str(tmp_path / at), safe_serialization=True, data_config=data_config)
        return tmp_path / at

    return make


@pytest.fixture
def resnet_file(tmp_path: Path) -> Path:
    """The weights of a test_resnet with 5 classes as a safetensors file."""
    model = timm.create_model("test_resnet", num_classes=5)
    jitter(model)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    return tmp_path / "resnet.safetensors"


def jitter(model: nn.Module) -> None:
    """Move every value, so that no tensor looks like a fresh one and buffers matter."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand_like(tensor)).add_(0.01)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many of timm's models each source of depth groups serves; see test_every_model.py."""
    counted: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in (report for report in reports if getattr(report, "when", "") == "call"):
            for name, count in getattr(report, "user_properties", ()):
                if name.startswith("depth by "):
                    counted[name] += count
    if counted:
        corrected = counted.pop("depth by corrected", 0)
        listed = ", ".join(f"{count} {name.removeprefix('depth ')}" for name, count in counted.most_common())
        terminalreporter.write_line(f"depth groups of {counted.total()} timm models: {listed}; {corrected} corrected")
