"""Depth groups: every parameter in exactly one group, ordered from the stem to the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import timm.models
from torch import nn

from frostline.backbones.body_order import order_body, tied_names
from frostline.backbones.building import classifier_tensors
from frostline.backbones.titles import span
from frostline.errors import ConfigError, suggestion
from frostline.specs import DepthSource, DepthSpec
from frostline.types import DepthGroup

_SIDE = 224  # of the pictures for a model that does not say


@dataclass(frozen=True)
class Depth:
    """The parameters of a model by depth, and how that was found.

    Attributes:
        groups: an ordered partition of ``model.named_parameters()`` with ``depth`` 0, 1, ...; the last one, and only
            that, is the head. There is none in a model without a classifier.
        source: ``matcher`` (timm's own groups), ``trace`` (the model's blocks in the order of first use), or
            ``modules`` (the blocks in the order of their registration, where no forward pass can be traced).
        corrections: a sentence for each thing that is not as timm's matcher has it, and for what could not be checked.
    """

    groups: tuple[DepthGroup, ...]
    source: str
    corrections: tuple[str, ...]


def depth_groups(model: nn.Module) -> tuple[DepthGroup, ...]:
    """The parameters of a timm model by depth; see ``depth_of``."""
    return depth_of(model).groups


def depth_of(
    model: nn.Module,
    spec: DepthSpec | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    head: str | None = None,
) -> Depth:
    """Find the depth of every parameter.

    timm's ``group_matcher`` proposes groups, and a forward pass on the meta device tells when each parameter is first
    used. A tensor that belongs to no block, such as ``pos_embed``, a relative position table or the last norm, joins
    the group in which it is first used. Where the matcher is of no use, or has whole blocks in another order than they
    run, the blocks themselves are the groups, in the order of first use. Norms between the last block and the
    classifier belong to the last block. Tied parameters are together, where the first of them is.

    Args:
        model: a timm model or any other module, on any device; it stays as it is.
        spec: the source, and how many groups the body shall have; the defaults where None.
        input_size: channels, height and width of a picture in pixels; None: what the model was made for.
        head: the module path of the classifier; None: that of timm's ``get_classifier()``.

    Raises:
        ConfigError: a source that is of no use for the model, no bins, a head that is no module or all of
            the model, or none named for a model that is not timm's.
    """
    spec = DepthSpec() if spec is None else spec
    names = [name for name, _ in model.named_parameters()]
    own = _head_of(model, head)
    body = [name for name in names if name not in own]
    found = order_body(model, body, DepthSource(spec.source), input_size or _input_size(model))
    named = zip(found.titles, found.held, strict=True)
    groups = _binned([DepthGroup(depth, *pair) for depth, pair in enumerate(named)], spec.bins)
    classifier = tuple(name for name in names if name in own)
    if classifier:
        groups = (*groups, DepthGroup(len(groups), "head", classifier, is_head=True))
    return Depth(groups, found.source, found.corrections)


def _binned(groups: Sequence[DepthGroup], bins: int | None) -> tuple[DepthGroup, ...]:
    """Neighbors joined into at most ``bins`` groups, of numbers that differ by one at most."""
    if bins is None:
        return tuple(groups)
    if bins < 1:
        mend = "It is a number of depth groups, 1 or more; null keeps them all."
        raise ConfigError(f"freeze.depth.bins is {bins}.", mend=mend)
    bins = min(bins, len(groups))
    edges = [index * len(groups) // bins for index in range(bins + 1)]
    joined = [groups[start:end] for start, end in pairwise(edges)]
    return tuple(
        DepthGroup(depth, span(bin_[0].name, bin_[-1].name), tuple(name for group in bin_ for name in group.parameters))
        for depth, bin_ in enumerate(joined)
    )


def _head_of(model: nn.Module, path: str | None) -> frozenset[str]:
    """The names of the classifier's parameters; what it shares with the body belongs to the body."""
    if path is not None:
        own = _tensors_below(model, path)
    elif hasattr(model, "get_classifier"):
        own = classifier_tensors(model)
    elif hasattr(model, "pretrained_cfg"):  # one of timm's bare encoders
        return frozenset()
    else:
        last = [name.rpartition(".")[0] for name, _ in model.named_parameters()][-1:]
        raise ConfigError(
            f"{type(model).__name__} is no timm model, so that its head must be named.",
            mend=f"Give the module path of the classifier; the last layer is '{''.join(last)}'.",
        )
    tied = tied_names(model)
    shared = {tied[name] for name in tied if name not in own}
    return frozenset(name for name in own if tied.get(name) not in shared)


def _tensors_below(model: nn.Module, path: str) -> frozenset[str]:
    """The parameters of the module at ``path``, under whichever name it is registered first."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        raise ConfigError(
            f"{type(model).__name__} has no module '{path}' to be its head.",
            mend=suggestion(path, [name for name in modules if name]),
        )
    members = {id(module) for module in modules[path].modules()}
    found = {f"{name}." for name, module in modules.items() if id(module) in members}
    own = frozenset(name for name, _ in model.named_parameters() if name[: name.rfind(".") + 1] in found)
    if not own or len(own) == len(list(model.parameters())):
        raise ConfigError(
            f"The head '{path}' holds {'all parameters' if own else 'no parameter'} of {type(model).__name__}.",
            mend="Name the module of the last layer, the classifier.",
        )
    return own


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """What the model says about its pictures, else the channels of its first convolution at the usual side."""
    if hasattr(model, "pretrained_cfg"):
        channels, height, width = timm.models.get_model_input_config(model)["input_size"]
        return int(channels), int(height), int(width)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels, _SIDE, _SIDE
