"""Which layers of a model a low-rank adapter can be added to, and which of them it should be."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from torch import nn

from frostline.errors import ConfigError, suggestion
from frostline.types import DepthGroup

AUTO = "auto"

# how timm's attention modules call what makes queries, keys and values, and what comes after
_INPUTS = re.compile(r"qkvs?|qk|kv|[qkv]|(qkv|[qkv])_proj|query|key|value|to_(query|key|value)")
_OUTPUTS = ("proj", "out_proj", "o_proj", "output")
# layers whose forward pass is linear in their weight; a weight that is standardized on the way, say, cannot be merged
_PLAIN = (nn.Linear, Linear, nn.Conv2d, Conv2dSame)


@dataclass(frozen=True)
class Targets:
    """Layers to adapt.

    Attributes:
        layers: their module paths, in the model's order.
        left_out: module path to why a layer that was asked for is not adapted.
    """

    layers: tuple[str, ...]
    left_out: Mapping[str, str]


def find_targets(
    model: nn.Module, groups: Sequence[DepthGroup], wanted: str | Sequence[str], size: Sequence[int]
) -> Targets:
    """The layers that ``wanted`` names and that can be adapted: linear layers and convolutions without groups.

    A layer is left out where its adapter could not be merged, or would have no effect: timm's BEiT, EVA and Swin V2
    read the weight of ``qkv`` without calling the layer. One forward pass of a copy tells.

    Args:
        model: a network that is not adapted yet, on any device.
        groups: its depth groups; the layers of the head are never adapted.
        wanted: ``auto``: queries, keys, values and output projections of the attention; in a model without attention,
            every layer of the body behind the stem. Else names: of a module, for all layers in it
            (``blocks.3``); the end of a path, for all that end so (``qkv``, ``mlp.fc1``); or ``re:`` and a regular
            expression that matches whole paths.
        size: channels, height and width of the input in pixels.

    Raises:
        ConfigError: a name that no layer has, or no layer that can be adapted.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    chosen = _chosen(wanted, list(layers), groups)
    left_out = _obstacles(model, {path: layers[path] for path in chosen})
    rest = [path for path in chosen if path not in left_out]
    called = _called(model, rest, size) if rest else frozenset()
    left_out |= {path: "that the model reads without calling them" for path in rest if path not in called}
    found = tuple(path for path in rest if path in called)
    if not found:
        raise ConfigError(
            f"adapter.targets={wanted}: no layer can be adapted; left out: {summary(left_out) or 'none'}.",
            mend="Name others, such as adapter.targets='[fc1,fc2]', or train without adapter=lora.",
        )
    return Targets(found, left_out)


def summary(left_out: Mapping[str, str]) -> str:
    """How many layers were left out for which reason, with the first of each."""
    first = {reason: path for path, reason in reversed(list(left_out.items()))}
    counts = Counter(left_out.values())
    return ", ".join(f"{count} {reason} ('{first[reason]}')" for reason, count in counts.items())


def _chosen(wanted: str | Sequence[str], layers: Sequence[str], groups: Sequence[DepthGroup]) -> list[str]:
    classifier = {name for group in groups if group.is_head for name in group.parameters}
    head = {path for path in layers if f"{path}.weight" in classifier}
    if wanted == AUTO:
        return _automatic([path for path in layers if path not in head], groups)
    return _named([wanted] if isinstance(wanted, str) else wanted, layers, head)


def _automatic(body: Sequence[str], groups: Sequence[DepthGroup]) -> list[str]:
    makes = {path: before for path in body if (before := _before(path, _INPUTS.fullmatch)) is not None}
    attention = set(makes.values())
    chosen = [path for path in body if path in makes or _before(path, _OUTPUTS.__contains__) in attention]
    stem = {name for group in groups[:1] for name in group.parameters}
    return chosen or [path for path in body if f"{path}.weight" not in stem]


def _before(path: str, test: Callable[[str], object]) -> str | None:
    """What stands in ``path`` before its last part that passes ``test``; None where none does."""
    parts = path.split(".")
    places = [place for place, part in enumerate(parts) if test(part)]
    return ".".join(parts[: places[-1]]) if places else None


def _named(wanted: Sequence[str], layers: Sequence[str], head: set[str]) -> list[str]:
    chosen: set[str] = set()
    for entry in wanted:
        found = _matching(entry, layers)
        if not found:
            raise ConfigError(
                f"adapter.targets: no linear layer or convolution is called '{entry}'.",
                mend=suggestion(entry, {*layers, *_ends(layers)}),
            )
        if head.issuperset(found):
            raise ConfigError(
                f"adapter.targets: '{entry}' is the head, which learns as it is.", mend="Name layers of the body."
            )
        chosen |= found
    return [path for path in layers if path in chosen - head]


def _matching(entry: str, layers: Sequence[str]) -> set[str]:
    if entry.startswith("re:"):
        try:
            expression = re.compile(entry.removeprefix("re:"))
        except re.error as error:
            raise ConfigError(
                f"adapter.targets: '{entry}' is no regular expression: {error}.", mend="For example 're:.*fc[12]'."
            ) from error
        return {path for path in layers if expression.fullmatch(path)}
    return {path for path in layers if f".{path}".endswith(f".{entry}") or path.startswith(f"{entry}.")}


def _ends(layers: Iterable[str]) -> set[str]:
    """The last parts of the paths, without numbers."""
    return {end for path in layers if not (end := path.rpartition(".")[2]).isdecimal()}


def _obstacles(model: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d]) -> dict[str, str]:
    """Why the adapter of a layer could not be computed or merged, for those of which that is so."""
    shared = _shared(model)
    reasons = {path: "that share their weights" if path in shared else _obstacle(layers[path]) for path in layers}
    return {path: reason for path, reason in reasons.items() if reason}


def _obstacle(layer: nn.Linear | nn.Conv2d) -> str | None:
    if type(layer) not in _PLAIN:
        return f"of the type {type(layer).__name__}"
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups > 1:
        return "with groups"
    if any(step != 1 for step in layer.dilation):
        return "that are dilated"
    return None if layer.padding_mode == "zeros" else "with other padding than zeros"


def _shared(model: nn.Module) -> set[str]:
    """Paths of layers whose weight belongs to several modules, or that stand in several places."""
    places = [
        (path, id(weight))
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter)
    ]
    counts = Counter(weight for _, weight in places)
    return {path for path, weight in places if counts[weight] > 1}


def _called(model: nn.Module, layers: Sequence[str], size: Sequence[int]) -> frozenset[str]:
    """Which layers a forward pass goes through."""
    # a copy, since some models keep what they computed in eval mode
    trial = copy.deepcopy(model).eval()
    seen: set[str] = set()

    def watch(path: str) -> None:
        trial.get_submodule(path).register_forward_pre_hook(lambda module, inputs: seen.add(path))

    for path in layers:
        watch(path)
    like = next(trial.parameters())
    with torch.no_grad():
        trial(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    return frozenset(seen)
