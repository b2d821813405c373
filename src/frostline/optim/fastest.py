"""The fastest of an optimizer's own ways to compute the same step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from timm.optim.lion import Lion
from timm.optim.nadamw import NAdamW
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

# what they keep they keep by parameter, and they treat each parameter by itself
_BY_PARAMETER = (Adam, AdamW, SGD, Lion, NAdamW)
# what a group of `parameter_groups` says of itself, which an optimizer does not read
_LABELS = frozenset({"params", "name", "group", "depth", "is_head", "lr_factor"})


def fastest(optimizer: Callable[..., Optimizer], settings: Mapping[str, Any], *, fused: bool) -> dict[str, bool]:
    """What to give to the constructor of an optimizer so that it takes its fastest way; empty where it has no choice.

    Where torch's own optimizers are left to choose, they go through the parameters one at a time on the CPU, and take
    the ``foreach`` way on a GPU. ``fused`` is faster on both, three to five times on a CPU (158 tensors of
    mobilenetv2_050, 62 of resnet18); it rounds otherwise. timm's have no fused way: they take ``foreach`` on a GPU.

    Args:
        optimizer: the class, or a function that gives one.
        settings: what it is given; one that names a way, or needs one that is not fused, keeps it.
        fused: whether a fused one may be: it takes the scaled gradients of 16-mixed precision, so that Lightning
            cannot clip them.
    """
    named = any(settings.get(key) is not None for key in ("fused", "foreach"))
    if not fused or named or settings.get("differentiable"):
        return {}
    return {"fused": True} if "fused" in inspect.signature(optimizer).parameters else {}


def step_in_few_groups(optimizer: Optimizer) -> Optimizer:
    """Have an optimizer take its steps over groups of equal settings as over one; each parameter's step is the same.

    There is a group for each depth, and its settings are those of its neighbors in most schedules. An optimizer
    prepares every group by itself, which for 38 of them took longer than the arithmetic of a small model. Between steps
    ``param_groups`` is as it was made. Optimizers that may look beyond a parameter, in a group, are left as they are.

    Returns:
        The same optimizer.
    """
    if type(optimizer) not in _BY_PARAMETER:
        return optimizer
    step = optimizer.step

    def step_together(closure: Callable[[], Any] | None = None) -> Any:
        # it sets learning rates and looks at groups
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with _together(optimizer):
            step()
        return loss

    optimizer.step = step_together  # type: ignore[method-assign]
    return optimizer


@contextmanager
def _together(optimizer: Optimizer) -> Iterator[None]:
    # it comes before every step, and a key and a dictionary for each parameter took as long as a small layer
    groups = optimizer.param_groups
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in groups:
        # most are frozen where only the head learns; torch makes an object of a gradient each time it is asked for one
        learning = [parameter for parameter in group["params"] if parameter.requires_grad]
        if not learning:
            continue
        names = tuple(group)
        own = _settings_of(names)(group)
        if list in map(type, own):
            own = tuple(tuple(value) if type(value) is list else value for value in own)
        for begun, parameters in _by_history(optimizer, learning):
            key = (begun, names, own)
            if key not in merged:
                merged[key] = {name: value for name, value in group.items() if name not in _LABELS} | {"params": []}
            merged[key]["params"] += parameters
    optimizer.param_groups = list(merged.values())
    try:
        yield
    finally:
        optimizer.param_groups = groups


@cache
def _settings_of(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """What reads the settings of a group that has these names."""
    settings = [name for name in names if name not in _LABELS]
    return itemgetter(*settings) if len(settings) > 1 else lambda group: tuple(group[name] for name in settings)


def _by_history(optimizer: Optimizer, parameters: list[Parameter]) -> list[tuple[bool, list[Parameter]]]:
    """The parameters that have taken a step and those that have not, where the optimizer asks."""
    if type(optimizer) is not SGD:
        return [(True, parameters)]
    # torch's fused SGD takes a group of which all have momentum, or none
    begun: dict[bool, list[Parameter]] = {}
    for parameter in parameters:
        begun.setdefault(bool(optimizer.state.get(parameter)), []).append(parameter)
    return list(begun.items())
