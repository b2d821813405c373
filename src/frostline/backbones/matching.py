"""Where timm's ``group_matcher`` places parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm.models
from torch import nn


@dataclass(frozen=True)
class Matched:
    """What timm's matcher says.

    Attributes:
        places: the place of each parameter that an expression of the matcher matches; empty where it is of no use.
        fault: why it is of no use; None where it is.
    """

    places: Mapping[str, int]
    fault: str | None = None


def matched(model: nn.Module, body: Sequence[str]) -> Matched:
    """The places of ``body``, the parameters without the head, by the fine matcher of a timm model.

    timm itself puts all that no expression matches behind everything else, stray tensors of the input too; here such
    a parameter has no place.
    """
    timm_model: Any = model
    if not hasattr(model, "group_matcher"):
        return Matched({}, "the model has none")
    try:
        matcher = timm_model.group_matcher(coarse=False)
        found = timm.models.group_parameters(model, matcher, reverse=True)
        expressions = list(_expressions(matcher)) if isinstance(matcher, dict) else [""]
        places = {
            name: found[name] for name in body if name in found and any(re.match(entry, name) for entry in expressions)
        }
    except Exception as fault:  # any code may stand in a matcher
        return Matched({}, f"it fails ({type(fault).__name__})")
    if len(set(places.values())) < 2:
        return Matched({}, "it tells fewer than two places apart")
    return Matched(places)


def _expressions(matcher: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a matcher: one, several with their suffixes, or none per group."""
    for entry in matcher.values():
        if isinstance(entry, (tuple, list)):
            yield from (expression for expression, _ in entry)
        elif entry is not None:
            yield entry
