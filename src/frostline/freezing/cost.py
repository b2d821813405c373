"""What a set of trainable parameters costs per picture: floating-point operations and saved activations.

A copy of the model runs once on the meta device, which knows shapes and no values, so that nothing is computed and
neither the model nor a random generator is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from frostline.freezing.flops import FORMULAS
from frostline.types import DepthGroup

aten = torch.ops.aten

# A few stray tensors drag the frost line where they are a smaller share than the first of what the backward pass
# crosses for them, and a larger share than the second of the depth groups lies frozen above them.
_FEW = 0.05
_GAP = 0.25


@dataclass(frozen=True)
class Cost:
    """The cost of one picture in one optimizer step.

    Attributes:
        forward_flops: floating-point operations of matrix products, convolutions and attention in the forward pass.
        backward_flops: the same in the backward pass; 0 where nothing learns.
        activation_bytes: what the forward pass keeps for the backward pass, parameters and buffers not counted.
        estimated: whether it was not measured, but lies between two that were.
    """

    forward_flops: int
    backward_flops: int
    activation_bytes: int
    estimated: bool = False


def relative(cost: Cost, full: Cost) -> float:
    """The operations of ``cost``, forward and backward, as a share of those of ``full``."""
    return (cost.forward_flops + cost.backward_flops) / (full.forward_flops + full.backward_flops)


class Estimator:
    """Costs of several sets of trainable parameters of one model.

    A module is in train mode if one of its parameters learns; one without parameters follows the module around it.
    Attention counts as one fused kernel, which keeps no weights of it. What memory the optimizer takes is not part of
    a cost.

    Args:
        model: on any device; it is only read.
        input_size: channels, height and width of a picture in pixels.
        batch: pictures in the pass that is measured; batch norm needs two. What it keeps once per batch is divided.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int], *, batch: int = 2) -> None:
        self._model = model
        self._names = frozenset(name for name, _ in model.named_parameters())
        self._shape = (batch, *input_size)
        self._copy: nn.Module | None = None
        self._forward_flops: int | None = None
        self._known: dict[frozenset[str], Cost | None] = {}

    def of(self, trainable: frozenset[str]) -> Cost | None:
        """The cost of training ``trainable``, or None for a model that cannot run on the meta device.

        Raises:
            ValueError: ``trainable`` names a parameter that the model lacks.
        """
        foreign = sorted(trainable - self._names)
        if foreign:
            raise ValueError(f"the model has no parameter {foreign[0]!r}")
        if trainable not in self._known:
            self._known[trainable] = self._tried(trainable)
        return self._known[trainable]

    def along(self, stages: Sequence[frozenset[str]], *, most: int = 5) -> list[Cost] | None:
        """The cost of each stage of one phase; None where one that is measured has none.

        At most ``most`` are measured, the first and the last among them; the others lie on straight lines between, and
        are marked as estimated.
        """
        places = _spread(len(stages), most)
        measured = [cost for place in places if (cost := self.of(stages[place])) is not None]
        if not places or len(measured) < len(places):
            return None
        found = measured[:1]
        for (left, right), (low, high) in zip(pairwise(places), pairwise(measured), strict=True):
            found += [_between(low, high, place / (right - left)) for place in range(1, right - left)]
            found.append(high)
        return found

    def _tried(self, trainable: frozenset[str]) -> Cost | None:
        # checkpointing runs a block again where no function mode reaches, so that its attention must not be replaced
        for attention in (_FusedAttention(), nullcontext()):
            try:
                return self._measure(trainable, attention)
            except Exception:  # a strange forward pass may fail in any way; an estimate is no reason to stop a run
                continue
        return None

    def _measure(self, trainable: frozenset[str], attention: AbstractContextManager[object]) -> Cost:
        if self._copy is None:
            self._copy = _on_meta(self._model)
        model, batch = self._copy, self._shape[0]
        learning = _let_learn(model, trainable)
        with torch.random.fork_rng(devices=[]), torch.device("meta"), attention:
            pictures = torch.empty(self._shape, dtype=_dtype(model))
            if self._forward_flops is None:
                with torch.no_grad(), _counter() as forward:
                    model(pictures)
                self._forward_flops = forward.get_total_flops()
            saved = _Saved((*model.parameters(), *model.buffers()))
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                output: Tensor = model(pictures)
            with _counter() as backward:
                # unlike ``grad``, ``backward`` leaves the function modes on, for checkpointing
                if output.requires_grad:
                    torch.autograd.backward(output, torch.ones_like(output), inputs=learning)
            model.zero_grad()
        return Cost(self._forward_flops // batch, backward.get_total_flops() // batch, saved.bytes // batch)


def dragging(
    groups: Sequence[DepthGroup],
    trainable: frozenset[str],
    sizes: Mapping[str, int],
    allowed: frozenset[str] | None = None,
) -> tuple[str, ...]:
    """Trainable parameters so few and so early that the backward pass goes deep for their sake alone.

    Such as ``pos_embed`` beside a head. They are what learns in the first depth groups that learn at all, if

    - each of these groups learns in part only, or has one parameter: a stem that is trained whole is meant;
    - at least a quarter of all depth groups lies between them and the next that learns, wholly frozen: a set that
      learns a little everywhere, such as all biases, is meant too;
    - they have less than 5 % of the elements of the groups below that next one.

    Args:
        groups: the depth groups, from the stem to the head.
        trainable: names of the parameters that learn.
        sizes: elements of each parameter.
        allowed: the parameters that may learn at all, as with an adapter; a group that trains all of its own is trained
            whole. None for all.

    Returns:
        Their names, from the stem on; empty where nothing drags. Without them the frost line is above the gap.
    """
    may = [[name for name in group.parameters if allowed is None or name in allowed] for group in groups]
    learning = [[name for name in group.parameters if name in trainable] for group in groups]
    places = [place for place, names in enumerate(learning) if names]
    found: list[str] = []
    early: list[str] = []
    for place, following in pairwise(places):
        early += learning[place]
        if 1 < len(may[place]) == len(learning[place]):
            break
        crossed = sum(sizes[name] for group in groups[places[0] : following] for name in group.parameters)
        far = following - place - 1 >= _GAP * len(groups)
        if far and sum(sizes[name] for name in early) < _FEW * crossed:
            found = list(early)
    return tuple(found)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _between(low: Cost, high: Cost, share: float) -> Cost:
    """The cost at ``share`` of the way from ``low`` to ``high``."""

    def line(start: int, end: int) -> int:
        return round(start + (end - start) * share)

    return Cost(
        line(low.forward_flops, high.forward_flops),
        line(low.backward_flops, high.backward_flops),
        line(low.activation_bytes, high.activation_bytes),
        estimated=True,
    )


def _on_meta(model: nn.Module) -> nn.Module:
    """A deep copy whose tensors, stray ones too, have shapes alone; no weight is copied on the way."""
    with _ToMeta():
        return copy.deepcopy(model)


class _ToMeta(TorchFunctionMode):
    """Copying a tensor makes one on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.clone:  # this is how a parameter copies its values
            return torch.empty_like(args[0], device="meta")
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


class _FusedAttention(TorchFunctionMode):
    """Attention as one kernel; on the meta device it would be taken apart, and keep all of its weights."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fused = _fused(*args, **(kwargs or {})) if func is F.scaled_dot_product_attention else None
        return func(*args, **(kwargs or {})) if fused is None else fused


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """What attention returns, or None where no fused kernel is sure to take it, as with a mask that learns."""
    if query.ndim != 4 or dropout_p or enable_gqa or (attn_mask is not None and attn_mask.requires_grad):
        return None
    attend = aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = attend(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output


class _Saved:
    """The storages that autograd keeps, each counted once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        # held by reference, so that no other storage takes its place in memory
        self._found: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            self._found[id(storage)] = storage
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._found.values())


def _let_learn(model: nn.Module, trainable: frozenset[str]) -> list[nn.Parameter]:
    """Gradients and train mode for what learns; returns its parameters."""
    learning = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
        if name in trainable:
            learning.append(parameter)
    modes: dict[str, bool] = {}
    for name, module in model.named_modules():
        own = [parameter.requires_grad for parameter in module.parameters()]
        modes[name] = any(own) if own or not name else modes[name.rpartition(".")[0]]
        module.training = modes[name]
    return learning


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)
