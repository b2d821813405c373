"""timm's test models with their depth groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from frostline.types import DepthGroup

Grouped = tuple[nn.Module, tuple[DepthGroup, ...]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def timm_model() -> Callable[..., Grouped]:
    """Groups come from timm's own matcher, with the classifier in one of its own."""

    def create(name: str, **kwargs: object) -> Grouped:
        model = timm.create_model(name, num_classes=3, **kwargs)
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        held: dict[int, list[str]] = {}
        for parameter, value in model.named_parameters():
            held.setdefault(10**6 if id(value) in head else layers[parameter], []).append(parameter)
        return model, tuple(
            DepthGroup(i, "head" if key == 10**6 else f"layer {i}", tuple(held[key]), is_head=key == 10**6)
            for i, key in enumerate(sorted(held))
        )

    return create
