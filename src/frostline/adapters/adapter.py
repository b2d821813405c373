"""What every adapter can do, and the one that does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import nn

from frostline.types import DepthGroup


class Adapter(Protocol):
    """Adds parameters to a model and says which of all may learn; a freeze schedule says when."""

    def apply(self, model: nn.Module, groups: Sequence[DepthGroup], size: Sequence[int]) -> tuple[DepthGroup, ...]:
        """Adapt ``model`` in place, before it is wrapped or compiled, with its output unchanged.

        Args:
            model: the unwrapped network.
            groups: its depth groups, a partition of its parameters.
            size: channels, height and width of its input in pixels.

        Returns:
            The same groups over the parameters that the model then has: as many, with the same names and order.
        """

    def allowed(
        self, model: nn.Module, groups: Sequence[DepthGroup], new: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """The parameters that may learn; a phase trains those of them that it selects.

        Args:
            model: the adapted network.
            groups: what ``apply`` returned.
            new: parameters that were not loaded from the weights, as ``model`` names them.
        """

    def renamed(self, model: nn.Module, names: Iterable[str]) -> frozenset[str]:
        """Names of parameters before ``apply`` as those that ``model`` has after it."""

    def merge(self, model: nn.Module) -> nn.Module:
        """A model as it was before ``apply``, with what was learned in its weights; ``model`` stays as it is."""

    def sentence(self) -> str:
        """One line for the terminal about what ``apply`` did; empty where there is nothing to say."""


class NoAdapter:
    """Leaves a model as it is, and lets all of it learn."""

    def apply(self, model: nn.Module, groups: Sequence[DepthGroup], size: Sequence[int]) -> tuple[DepthGroup, ...]:
        """``groups``."""
        return tuple(groups)

    def allowed(
        self, model: nn.Module, groups: Sequence[DepthGroup], new: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """Every parameter."""
        return frozenset(name for name, _ in model.named_parameters())

    def renamed(self, model: nn.Module, names: Iterable[str]) -> frozenset[str]:
        """``names``."""
        return frozenset(names)

    def merge(self, model: nn.Module) -> nn.Module:
        """``model`` itself."""
        return model

    def sentence(self) -> str:
        """Nothing."""
        return ""
