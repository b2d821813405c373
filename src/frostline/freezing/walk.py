"""A walk: one phase that moves through depth, as the sets of parameters that its stages train."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.specs import WalkMode, WalkOrder, WalkSpec
from frostline.types import DepthGroup


def walk_stages(
    walk: WalkSpec, selected: frozenset[str], kept: frozenset[str], groups: Sequence[DepthGroup]
) -> tuple[frozenset[str], ...]:
    """What each stage of a walk trains.

    It steps over the depth groups that hold something of ``selected``, ``walk.by`` at a time, from the head to the stem
    or the other way round. With n of them:

    - ``add``: stage k trains the first ``by * (k + 1)`` (gradual unfreezing; Howard and Ruder 2018, arXiv:1801.06146);
    - ``solo``: stage k trains the k-th ``by`` alone (chain-thaw; Felbo et al. 2017, arXiv:1708.00524);
    - ``drop``: stage k trains all but the first ``by * k`` (progressive freezing; Brock et al. 2017, arXiv:1706.04983);
      something is left in the last.

    Args:
        walk: order, step and mode.
        selected: the parameters that the walk goes through.
        kept: parameters that learn in every stage.
        groups: the depth groups of the model, from the stem to the head.
    """
    parts = [part for group in groups if (part := selected.intersection(group.parameters))]
    if WalkOrder(walk.order) is WalkOrder.top_down:
        parts.reverse()
    steps = [frozenset().union(*parts[i : i + walk.by]) for i in range(0, len(parts), walk.by)]
    mode = WalkMode(walk.mode)
    if mode is WalkMode.solo:
        return tuple(step | kept for step in steps)
    spans = [steps[: k + 1] if mode is WalkMode.add else steps[k:] for k in range(len(steps))]
    return tuple(frozenset().union(kept, *span) for span in spans)
