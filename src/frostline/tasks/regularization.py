"""Penalties on how far a model moves from where it started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Regularizer(Protocol):
    """Adds to the loss what the weights themselves cost; a module, so that it moves with its task."""

    def begin(self, model: nn.Module, start: Mapping[str, Tensor] | None, new: frozenset[str]) -> None:
        """Take the starting point; to be called when the weights are loaded, and before a checkpoint is.

        Args:
            model: the unwrapped network, adapted if it will be.
            start: names and values of its parameters; None takes those that ``model`` has now.
            new: parameters that were not loaded from the weights: the head, the matrices of an adapter. Those that
                ``start`` lacks are new as well.
        """

    def penalty(self, model: nn.Module, trainable: frozenset[str]) -> Tensor | None:
        """What to add to the loss: a float32 scalar over ``trainable``, or None; what is frozen would add a constant.

        Args:
            model: the network that ``begin`` was called with.
            trainable: names of the parameters that learn.
        """


class NoRegularizer(nn.Module):
    """No penalty."""

    def begin(self, model: nn.Module, start: Mapping[str, Tensor] | None, new: frozenset[str]) -> None:
        """Nothing."""

    def penalty(self, model: nn.Module, trainable: frozenset[str]) -> None:
        """Nothing."""


class L2SP(nn.Module):
    """Pulls weights towards those that fine-tuning started from, and new ones towards zero.

    ``alpha / 2 * ||w - w0||^2`` over what was loaded plus ``beta / 2 * ||w||^2`` over what was not: the L2-SP of Li et
    al. 2018, arXiv:1802.01483. It takes the place of weight decay: ``optimizer.weight_decay=0``.

    The starting point is in no checkpoint: a run that is resumed loads the same weights first, and calls ``begin`` with
    them. It is no buffer either, since DDP would send the buffers of a module anew before each step.

    Args:
        alpha: the pull towards the start.
        beta: the pull of new parameters towards zero.
    """

    def __init__(self, alpha: float = 0.01, beta: float = 0.01) -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")
        self.alpha = alpha
        self.beta = beta
        self._start: dict[str, Tensor] = {}

    def begin(self, model: nn.Module, start: Mapping[str, Tensor] | None, new: frozenset[str]) -> None:
        """See ``Regularizer.begin``; values are copied.

        Raises:
            ValueError: ``start`` names a parameter that ``model`` lacks, or has another shape for it.
        """
        foreign = sorted(set(start or ()) - {name for name, _ in model.named_parameters()})
        if foreign:
            raise ValueError(f"the model has no parameter {foreign[0]!r}; was it adapted after its start was taken?")
        parameters = {name: parameter for name, parameter in model.named_parameters() if name not in new}
        values: Mapping[str, Tensor] = parameters if start is None else start
        self._start = {
            name: _copied(values[name], parameter, name) for name, parameter in parameters.items() if name in values
        }

    def penalty(self, model: nn.Module, trainable: frozenset[str]) -> Tensor:
        """See ``Regularizer.penalty``."""
        learning = [(name, parameter) for name, parameter in model.named_parameters() if name in trainable]
        pulled = [(parameter, self._start[name]) for name, parameter in learning if name in self._start]
        new = [parameter for name, parameter in learning if name not in self._start]
        moved = torch._foreach_sub([now for now, _ in pulled], [start for _, start in pulled]) if pulled else []
        device = next(model.parameters()).device
        return self.alpha / 2 * _squared(moved, device) + self.beta / 2 * _squared(new, device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # where torch moves the tensors of a module
        self._start = {name: fn(tensor) for name, tensor in self._start.items()}
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it


def _copied(value: Tensor, parameter: Tensor, name: str) -> Tensor:
    if value.shape != parameter.shape:
        raise ValueError(f"the start of '{name}' is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
    return value.detach().to(parameter.device, parameter.dtype, copy=True)


def _squared(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of the squares of all ``tensors``."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(list(tensors))).float().square().sum()
