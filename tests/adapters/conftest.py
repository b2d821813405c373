"""Adapted models: one of each family, at its test size or on small pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frostline.backbones import depth_groups
from frostline.types import DepthGroup

# swin has no test model; this is its small one with less depth
SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "test_vit": (160, {}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}),
    "test_convnext": (64, {}),
    "test_resnet": (64, {}),
    "test_efficientnet": (64, {}),
}


@dataclass
class Subject:
    """A model as it was, and the copy to adapt."""

    plain: nn.Module
    model: nn.Module
    groups: tuple[DepthGroup, ...]
    size: tuple[int, int, int]

    def pictures(self, count: int = 4) -> Tensor:
        return torch.randn(count, *self.size, generator=torch.Generator().manual_seed(1))


MakeSubject = Callable[[str], Subject]


@pytest.fixture
def subject_of() -> MakeSubject:
    def make(name: str) -> Subject:
        torch.manual_seed(0)
        side, arguments = SIZES.get(name, (64, {}))
        model = timm.create_model(name, num_classes=5, **arguments)
        # some scales start at zero, and nothing flows through what stands before them
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.rand_like(parameter) + 0.01)
        return Subject(copy.deepcopy(model), model, depth_groups(model), (3, side, side))

    return make
