"""Depth groups must cover a model's parameters, each exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from frostline.errors import ConfigError
from frostline.types import DepthGroup


def check_partition(groups: Sequence[DepthGroup], model: nn.Module) -> None:
    """Raise unless ``groups`` partition ``model.named_parameters()``: a silent miss would never train, or never freeze.

    Raises:
        ConfigError: naming the parameters that no group holds, that several hold, and that the model lacks.
    """
    held = Counter(name for group in groups for name in group.parameters)
    names = {name for name, _ in model.named_parameters()}
    complaints = {
        "no depth group holds": sorted(names - held.keys()),
        "several depth groups hold": sorted(name for name, count in held.items() if count > 1),
        "the model lacks": sorted(held.keys() - names),
    }
    faults = [
        ConfigError(
            f"{complaint} {_listed(parameters)}.",
            mend="Depth groups must hold each parameter of the model exactly once.",
        )
        for complaint, parameters in complaints.items()
        if parameters
    ]
    if faults:
        raise ConfigError.of(faults)


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more
