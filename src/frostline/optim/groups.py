"""The parameter groups of an optimizer: all parameters, from the first step on."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from frostline.freezing import check_partition, lr_factor, norm_parameters
from frostline.specs import FreezeSpec
from frostline.types import DepthGroup


def parameter_groups(
    model: nn.Module, groups: Sequence[DepthGroup], spec: FreezeSpec, *, weight_decay: float
) -> list[dict[str, Any]]:
    """One group for an optimizer per depth group and whether weights decay in it.

    Frozen parameters are in as well: an optimizer leaves a parameter without gradient alone, and nothing has to be
    added or repaired when one thaws. The learning rate is not set here.

    Args:
        model: the unwrapped network.
        groups: its depth groups, a partition of its parameters.
        spec: gives each depth group's factor on the learning rate.
        weight_decay: what ``optimizer.weight_decay`` says.

    Returns:
        Dictionaries in order of depth, with the keys ``params``; ``name``, the depth group's, with ``/no_decay``
        appended where weights do not decay; ``group``, the depth group's name; ``depth``; ``is_head``; ``lr_factor``;
        and ``weight_decay``, which is 0 for normalization layers, parameters with fewer than two dimensions (biases,
        scales) and what ``model.no_weight_decay()`` names.

    Raises:
        ConfigError: a parameter that is in no depth group or in several.
    """
    check_partition(groups, model)
    parameters = dict(model.named_parameters())
    exempt = undecayed(model)
    result = []
    for group in groups:
        for suffix, decay, names in (
            ("", weight_decay, [name for name in group.parameters if name not in exempt]),
            ("/no_decay", 0.0, [name for name in group.parameters if name in exempt]),
        ):
            if names:
                result.append(
                    {
                        "params": [parameters[name] for name in names],
                        "name": group.name + suffix,
                        "group": group.name,
                        "depth": group.depth,
                        "is_head": group.is_head,
                        "lr_factor": lr_factor(spec, group, groups),
                        "weight_decay": decay,
                    }
                )
    return result


def undecayed(model: nn.Module) -> frozenset[str]:
    """The names of the parameters that weight decay skips."""
    listed = getattr(model, "no_weight_decay", None)
    patterns = tuple(listed()) if callable(listed) else ()
    norms = norm_parameters(model)
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim < 2
        or name in norms
        or name.endswith("bias")
        or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )
