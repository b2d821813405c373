"""LoRA on timm's layers, injected by peft so that the model stays timm's and its depth groups survive."""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Iterable, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from frostline.adapters.targets import AUTO, Targets, find_targets, summary
from frostline.errors import ConfigError
from frostline.types import DepthGroup


class Lora:
    """Low-rank adaptation: a layer's weight W becomes ``W + alpha / rank * B A``, and only A, B and the head learn.

    Hu et al. 2022, arXiv:2106.09685. A convolution gets a convolution with its kernel to ``rank`` channels as A and a
    1x1 convolution as B. B starts at zero, so that nothing changes at first.

    Args:
        rank: inner width of the two matrices.
        alpha: scale of their product, which is ``alpha / rank``.
        dropout: on the input of A, in training.
        targets: the layers; see ``find_targets``.

    Raises:
        ConfigError: peft is not installed, or an argument is out of range.
    """

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: str | Sequence[str] = AUTO
    ) -> None:
        faults = [
            ConfigError(f"adapter.{key}={value}: {rule}")
            for key, value, right, rule in (
                ("rank", rank, isinstance(rank, int) and rank >= 1, "a rank is a whole number from 1."),
                ("alpha", alpha, alpha > 0, "the scale is above 0."),
                ("dropout", dropout, 0 <= dropout < 1, "dropout is a share from 0 up to, not including, 1."),
                ("targets", targets, bool(targets), "no layer is named."),
            )
            if not right
        ]
        if faults:
            raise ConfigError.of(faults)
        _peft()
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self._found: Targets | None = None
        self._added = 0

    def apply(self, model: nn.Module, groups: Sequence[DepthGroup], size: Sequence[int]) -> tuple[DepthGroup, ...]:
        """Adapt ``model`` in place; see ``Adapter.apply``.

        The weight ``NAME.weight`` of an adapted layer becomes ``NAME.base_layer.weight``, and beside it come
        ``NAME.lora_A.default.weight`` and ``NAME.lora_B.default.weight``, drawn from torch's global generator.

        Raises:
            ConfigError: ``targets`` names a layer that the model lacks, or none that can be adapted.
            ValueError: the model is adapted already.
        """
        if _adapted(model):
            raise ValueError("the model has adapters already")
        before = sum(parameter.numel() for parameter in model.parameters())
        self._found = find_targets(model, groups, self.targets, size)
        self._inject(model, self._found.layers)
        self._added = sum(parameter.numel() for parameter in model.parameters()) - before
        return tuple(_regrouped(group, set(self._found.layers)) for group in groups)

    def _inject(self, model: nn.Module, layers: Sequence[str]) -> None:
        peft = _peft()
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            # an expression has to match the whole path, where a name in a list may be the end of another one
            target_modules="|".join(map(re.escape, layers)),
        )
        peft.inject_adapter_in_model(config, model)
        del model.peft_config
        # peft freezes all else, the head too; what learns is the freeze schedule's to say
        model.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)

    def allowed(
        self, model: nn.Module, groups: Sequence[DepthGroup], new: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """The matrices of all adapted layers, the head, and ``new``; see ``Adapter.allowed``."""
        head = {name for group in groups if group.is_head for name in group.parameters}
        return frozenset(head | new | {name for path in _adapted(model) for name in _matrices(path)})

    def renamed(self, model: nn.Module, names: Iterable[str]) -> frozenset[str]:
        """See ``Adapter.renamed``."""
        adapted = _adapted(model)
        return frozenset(_renamed(name, adapted) for name in names)

    def merge(self, model: nn.Module) -> nn.Module:
        """A plain timm model with the same outputs in eval mode; see ``Adapter.merge``."""
        plain = copy.deepcopy(model)
        for path, layer in _adapted(plain).items():
            layer.merge()
            parent, _, name = path.rpartition(".")
            setattr(plain.get_submodule(parent), name, layer.get_base_layer())
        return plain

    def sentence(self) -> str:
        """How many layers were adapted and which were left out."""
        if self._found is None:
            return ""
        layers, left_out = self._found.layers, self._found.left_out
        named = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
        told = f"LoRA of rank {self.rank} on {len(layers)} layers ({named}), {self._added:,} parameters"
        return told + (f"; left out: {summary(left_out)}" if left_out else "")


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"adapter=lora needs the package peft: {error}.", mend="Install the extra: pip install 'frostline[lora]'"
        ) from error
    module: ModuleType = peft
    return module


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that peft put into ``model``, by path."""
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def _matrices(path: str) -> tuple[str, str]:
    return f"{path}.lora_A.default.weight", f"{path}.lora_B.default.weight"


def _renamed(name: str, adapted: Container[str]) -> str:
    path, _, own = name.rpartition(".")
    return f"{path}.base_layer.{own}" if path in adapted else name


def _regrouped(group: DepthGroup, adapted: set[str]) -> DepthGroup:
    """The group with new names, and the matrices of a layer beside its weight."""
    names: list[str] = []
    for name in group.parameters:
        path, _, own = name.rpartition(".")
        names += [_renamed(name, adapted), *(_matrices(path) if path in adapted and own == "weight" else ())]
    return DepthGroup(group.depth, group.name, tuple(names), group.is_head)
