"""Depth groups: every parameter in exactly one group, ordered from the stem to the head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm.models
from torch import nn

from frostline.backbones.building import classifier_tensors
from frostline.types import DepthGroup

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depth_groups(model: nn.Module) -> tuple[DepthGroup, ...]:
    """The parameters of a timm model by depth.

    The order is that of timm's ``group_matcher``. What it leaves unmatched joins the group of the parameter that is
    registered before it, so that what stands between the last block and the classifier belongs to that block; a stray
    tensor of the model itself, such as ``pos_embed``, joins the stem. A model without a usable matcher is grouped by
    its top-level modules, in the order of their registration, with containers opened.

    Args:
        model: a timm model; works on the meta device too.

    Returns:
        Groups with ``depth`` 0, 1, ... in order. The last one, and only that, is the head: the parameters of
        ``get_classifier()``; there is none in a model that was built without a classifier.
    """
    names = [name for name, _ in model.named_parameters()]
    head = classifier_tensors(model)
    body = [name for name in names if name not in head]
    order = _completed(_by_matcher(model, body) or _by_module(model, body, head), body)
    held = _gathered(model, order)
    groups = tuple(DepthGroup(depth, *named) for depth, named in enumerate(zip(_titles(held), held, strict=True)))
    own = tuple(name for name in names if name in head)
    return (*groups, DepthGroup(len(groups), "head", own, is_head=True)) if own else groups


def _by_matcher(model: nn.Module, body: Sequence[str]) -> dict[str, int]:
    """What timm's matcher places, by parameter; empty where it tells fewer than two places apart."""
    try:
        timm_model: Any = model
        matcher = timm_model.group_matcher(coarse=False)
        found = timm.models.group_parameters(model, matcher, reverse=True)
    except Exception:  # no matcher, or one that fails: either way it is of no use
        return {}
    # timm puts all that no expression matches behind everything else, stray tensors of the input too
    expressions = list(_expressions(matcher)) if isinstance(matcher, dict) else [""]
    placed = {
        name: found[name] for name in body if name in found and any(re.match(entry, name) for entry in expressions)
    }
    return placed if len(set(placed.values())) > 1 else {}


def _gathered(model: nn.Module, order: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Names by place, in order; norms alone at the end belong to the block before them."""
    layers: dict[int, tuple[str, ...]] = {}
    for name, place in order.items():
        layers[place] = (*layers.get(place, ()), name)
    held = [layers[place] for place in sorted(layers)]
    while len(held) > 1 and all(model.get_parameter(name).ndim < 2 for name in held[-1]):
        held[-2:] = [(*held[-2], *held[-1])]
    return held


def _expressions(matcher: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a matcher: one, several with their suffixes, or none per group."""
    for entry in matcher.values():
        if isinstance(entry, (tuple, list)):
            yield from (expression for expression, _ in entry)
        elif entry is not None:
            yield entry


def _by_module(model: nn.Module, body: Sequence[str], head: frozenset[str]) -> dict[str, int]:
    """The place of each parameter's top-level module; without tensors of the model itself and around the head."""
    around_head = {_unit(model, name) for name in head}
    units = [unit for unit in (_unit(model, name) for name in body) if unit and unit not in around_head]
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    return {name: places[unit] for name in body if (unit := _unit(model, name)) in places}


def _unit(model: nn.Module, name: str) -> str:
    """The top-level module of a parameter, or its entry where that module is a container; empty for a root tensor."""
    parts = name.split(".")[:-1]
    opened = bool(parts) and isinstance(model.get_submodule(parts[0]), _CONTAINERS)
    return ".".join(parts[: 2 if opened else 1])


def _completed(order: Mapping[str, int], body: Sequence[str]) -> dict[str, int]:
    """``order`` with all of ``body``: root tensors first, the others beside the one registered before them."""
    complete = {}
    first = place = min(order.values(), default=0)
    for name in body:
        if "." in name:
            place = order.get(name, place)
        complete[name] = place if "." in name else order.get(name, first)
    return complete


def _titles(held: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each group: ``stem``, then the module that holds most of it; unique, and never the head's."""
    titles: list[str] = []
    for names in held:
        title = _main_module(names) if titles else "stem"
        again = (title == "head") + sum(known == title or known.startswith(f"{title} (") for known in titles)
        titles.append(f"{title} ({again + 1})" if again else title)
    return titles


def _main_module(names: Sequence[str]) -> str:
    """The module that holds most of the parameters: its innermost part with a number that holds over half of them."""
    inside = [name.split(".")[:-1] or [name] for name in names]
    chosen: list[str] = []
    while inside:
        part, count = Counter(path[len(chosen)] for path in inside).most_common(1)[0]
        if chosen and 2 * count <= len(inside):
            break
        chosen.append(part)
        inside = [path for path in inside if path[: len(chosen)] == chosen and len(path) > len(chosen)]
    numbered = [place for place, part in enumerate(chosen, start=1) if part.isdigit()]
    return ".".join(chosen[: numbered[-1]] if numbered else chosen)
