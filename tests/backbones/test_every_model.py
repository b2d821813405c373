"""Depth groups of all of timm's models, or of one a module by default.

All of them take some minutes: ``FROSTLINE_EVERY_MODEL=1 scripts/test tests/backbones/test_every_model.py --dist load``.
Each one can be built without an optional package. They are built on the meta device, which takes no memory.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import nn

from frostline.backbones.depth import Depth, depth_of
from frostline.errors import ConfigError
from frostline.freezing import check_partition, select
from frostline.types import DepthGroup

EVERY = os.environ.get("FROSTLINE_EVERY_MODEL") == "1"
CHUNKS = 96
SELECTORS = ("head", "bottom:1", "top:1", "depth:0.5..1")
# what timm calls its small models, from the smallest on
SMALL = ("test", "atto", "femto", "pico", "nano", "xxs", "xxt", "xxtiny", "mini", "tiny", "ti", "t", "xs", "small", "s")


def smallest(names: Sequence[str]) -> str:
    """The first by what the names say of their size, then the shortest name, which has the fewest variants."""
    rank = {word: index for index, word in enumerate(SMALL)}
    return min(names, key=lambda name: (min(rank.get(part, len(SMALL)) for part in name.split("_")), len(name), name))


def chunks() -> dict[str, list[str]]:
    if EVERY:
        return {f"{i + 1} of {CHUNKS}": timm.list_models()[i::CHUNKS] for i in range(CHUNKS)}
    return {module: [smallest(timm.list_models(module=module))] for module in timm.list_modules()}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what timm says about its older models
        return timm.create_model(name, num_classes=10)


def fault_of(model: nn.Module, depth: Depth) -> str | None:
    """What is wrong with the depth groups of a timm model."""
    groups = depth.groups
    try:
        check_partition(groups, model)
        if [group.depth for group in groups] != list(range(len(groups))):
            return "the groups are not numbered in order"
        if len({group.name for group in groups}) < len(groups) or not all(group.parameters for group in groups):
            return "a name is there twice, or a group is empty"
        heads = [group.is_head for group in groups]
        if not hasattr(model, "get_classifier"):
            return "an encoder has a head" if any(heads) else None
        if heads != [False] * (len(groups) - 1) + [True]:
            return f"{sum(heads)} of {len(heads)} groups are a head, or it is not the last"
        empty = [selector for selector in SELECTORS if not select(selector, groups, model)]
        return f"{empty[0]} selects nothing" if empty else None
    except ConfigError as fault:
        return str(fault)


@pytest.mark.parametrize("names", [pytest.param(names, id=name) for name, names in chunks().items()])
def test_every_model_resolves_to_a_total_ordered_partition_with_one_head(
    names: list[str], record_property: Callable[[str, object], None]
) -> None:
    faults = {}
    counted: Counter[str] = Counter()
    for name in names:
        model = on_meta(name)
        try:
            depth = depth_of(model)
        except Exception as fault:  # the others of the chunk count as well
            faults[name] = f"{type(fault).__name__}: {fault}"
            continue
        counted[depth.source] += 1
        counted["corrected"] += bool(depth.corrections)
        wrong = fault_of(model, depth)
        if depth.source == "modules" or wrong:
            faults[name] = wrong or f"no forward pass can be traced: {depth.corrections}"
    for source, count in counted.items():
        record_property(f"depth by {source}", count)
    assert not faults


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda groups: groups[1:], "no depth group holds"),
        (lambda groups: (*groups, groups[0]), "several depth groups hold"),
        (lambda groups: groups[::-1], "not numbered in order"),
        (lambda groups: [DepthGroup(i, group.name, group.parameters) for i, group in enumerate(groups)], "0 of 8"),
        (lambda groups: [DepthGroup(i, "a", group.parameters) for i, group in enumerate(groups)], "there twice"),
    ],
)
def test_a_wrong_partition_is_seen(broken: Any, message: str) -> None:
    model = on_meta("test_vit")
    depth = depth_of(model)
    assert fault_of(model, depth) is None
    assert message in str(fault_of(model, Depth(tuple(broken(depth.groups)), depth.source, ())))
