"""A phase applied to a model: which parameters take gradients, and which modules are in eval meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from torch import nn

from frostline.freezing.layers import keeps_statistics
from frostline.specs import BatchNormMode, BatchNormSpec, FrozenMode
from frostline.types import DepthGroup


def apply_phase(model: nn.Module, trainable: frozenset[str]) -> None:
    """Let exactly ``trainable`` learn: ``requires_grad``, and ``grad = None`` on what is frozen.

    Without a gradient an optimizer skips a parameter whole, weight decay and momentum included. Module modes are
    the matter of ``assert_modes``, which must follow.

    Args:
        model: the unwrapped network that the names of ``trainable`` refer to.
        trainable: parameter names; the rest freezes.

    Raises:
        ValueError: ``trainable`` names a parameter that ``model`` lacks.
    """
    _reshard(model)
    parameters = dict(model.named_parameters())
    foreign = sorted(trainable - parameters.keys())
    if foreign:
        raise ValueError(f"the model has no parameter {foreign[0]!r}; was it wrapped after its groups were resolved?")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
        if name not in trainable:
            parameter.grad = None


def _reshard(model: nn.Module) -> None:
    """Have FSDP2 let go of whole copies of parameters, which stay after a pass without a backward one.

    The flags of such a copy do not last: the next pass takes those of the shards.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def assert_modes(
    model: nn.Module,
    groups: Sequence[DepthGroup],
    trainable: frozenset[str],
    bn: BatchNormSpec,
    frozen: FrozenMode = FrozenMode.eval,
) -> None:
    """Put every module in the mode that its place in the freeze schedule asks for; see ``module_modes``.

    To be called after each ``model.train()``, which puts all modules in train mode; never after ``model.eval()``.
    """
    modes = module_modes(model, groups, trainable, bn, frozen)
    for name, module in model.named_modules():
        module.training = modes[name]


def module_modes(
    model: nn.Module,
    groups: Sequence[DepthGroup],
    trainable: frozenset[str],
    bn: BatchNormSpec,
    frozen: FrozenMode = FrozenMode.eval,
) -> dict[str, bool]:
    """For each module name of ``model``, whether it is in train mode (else eval) during training.

    A depth group without a trainable parameter is frozen, and so are the modules that hold its parameters: batch
    norm, dropout and drop path are in eval. One trainable parameter is enough for the group to train. Then:

    - a module whose parameters belong to several groups follows the head if it holds the head (functional dropout
      before a classifier reads the whole network's flag), else it trains if one of them does;
    - a module without parameters follows the nearest module around it that has some; where that one spans several
      groups, it follows the parameters registered before it, or the head where the head comes next (its dropout);
    - a layer with running statistics whose own parameters are all frozen is frozen even in a group that trains, so
      that its buffers stay as they are; ``bn.frozen=batch`` lets frozen ones go on updating them, and
      ``bn.trainable=eval`` keeps those of all others too.

    Args:
        model: the unwrapped network.
        groups: its depth groups, a partition of its parameters.
        trainable: the names of the parameters that learn.
        bn: the policy for running statistics.
        frozen: ``train`` leaves the dropout and drop path of frozen groups on.
    """
    owners = _Owners(model, groups)
    trains = [not trainable.isdisjoint(group.parameters) for group in groups]
    learning = {id(parameter) for name, parameter in model.named_parameters() if name in trainable}
    modes = {}
    for name, module, owner in owners:
        learns = trains[owner] if owner is not None else any(trains[i] for i in owners.within(module))
        if keeps_statistics(module):
            own = list(module.parameters(recurse=False))
            learns = learns and (not own or any(id(parameter) in learning for parameter in own))
            modes[name] = BatchNormMode(bn.trainable if learns else bn.frozen) is BatchNormMode.batch
        else:
            modes[name] = learns or FrozenMode(frozen) is FrozenMode.train
    return modes


class _Owners:
    """Which depth group, by position, each module of a model belongs to."""

    def __init__(self, model: nn.Module, groups: Sequence[DepthGroup]) -> None:
        position = {name: i for i, group in enumerate(groups) for name in group.parameters}
        # by identity: a tied parameter has one name but several modules
        self._group_of = {id(parameter): position[name] for name, parameter in model.named_parameters()}
        self._head = next((i for i, group in enumerate(groups) if group.is_head), len(groups) - 1)
        self._model = model

    def within(self, module: nn.Module, *, recurse: bool = True) -> set[int]:
        """The groups that hold a parameter of ``module``."""
        return {self._group_of[id(parameter)] for parameter in module.parameters(recurse)}

    def __iter__(self) -> Iterator[tuple[str, nn.Module, int | None]]:
        """Each module with its owner, or None for one that spans several groups of the body."""
        modules = dict(self._model.named_modules())
        order = [sorted(self.within(module, recurse=False)) for module in modules.values()]
        owner: dict[str, int | None] = {}
        for i, (name, module) in enumerate(modules.items()):
            held = self.within(module)
            parent = name.rpartition(".")[0]
            if len(held) == 1:
                owner[name] = held.pop()
            elif held:
                owner[name] = self._head if self._head in held else None
            elif self._spans(modules[parent]):
                owner[name] = self._neighbor(order, i)
            else:
                owner[name] = owner[parent]
            yield name, module, owner[name]

    def _spans(self, module: nn.Module) -> bool:
        return len(self.within(module)) > 1

    def _neighbor(self, order: Sequence[Sequence[int]], i: int) -> int:
        """The owner of the module at position ``i`` by the parameters registered around it."""
        before = next((held[-1] for held in reversed(order[:i]) if held), None)
        after = next((held[0] for held in order[i + 1 :] if held), None)
        if after == self._head or before is None:
            return self._head if after is None else after
        return before
