"""A walk: one phase that moves through depth, as the sets of parameters that its stages train."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.errors import ConfigError
from frostline.specs import EachSpec, WalkMode, WalkOrder, WalkSpec
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


def check_walk(walk: WalkSpec, key: str) -> None:
    """Raise where the numbers of a walk are wrong, or do not go together.

    Raises:
        ConfigError: every fault at once, with ``key`` before each.
    """
    faults = []
    each = walk.each or EachSpec()
    if walk.by < 1:
        faults.append(ConfigError(f"{key}.by is {walk.by}.", mend="It is a number of depth groups, 1 or more."))
    if not 0 <= walk.hold < 1:
        faults.append(ConfigError(f"{key}.hold is {walk.hold}.", mend="It is a share of the phase, from 0 to below 1."))
    by_clock = (each.epochs, each.steps, each.fraction) != (None, None, None) or each == EachSpec()
    if walk.hold and not by_clock:
        mend = f"Set {key}.hold=0, or give {key}.each.fraction as a cap."
        faults.append(ConfigError(f"{key}.hold has no effect: a metric or gradients alone move this walk.", mend=mend))
    drops = WalkMode(walk.mode) is WalkMode.drop
    for unit, value in (("epochs", each.epochs), ("steps", each.steps)):
        if value is not None and value < 1:
            mend = "A stage lasts at least 1; leave out walk.each to spread the stages evenly."
            faults.append(ConfigError(f"{key}.each.{unit} is {value}.", mend=mend))
    if each.fraction is not None and not 0 < each.fraction < 1:
        mend = "It is a share of the phase, between 0 and 1."
        faults.append(ConfigError(f"{key}.each.fraction is {each.fraction}.", mend=mend))
    if each.settle is not None and not drops:
        mend = f"Set {key}.mode=drop, or leave out {key}.each.settle."
        faults.append(ConfigError(f"{key}.each.settle drops depth groups, but the walk does not.", mend=mend))
    if walk.anneal and not drops:
        mend = f"Set {key}.mode=drop, or {key}.anneal=false."
        faults.append(ConfigError(f"{key}.anneal is for groups that drop, but in this walk none does.", mend=mend))
    if walk.anneal and (each.plateau is not None or each.settle is not None):
        mend = f"Give {key}.each.epochs or {key}.each.steps alone."
        problem = f"{key}.anneal needs to know when a group drops, but a metric or its gradients decide that."
        faults.append(ConfigError(problem, mend=mend))
    if faults:
        raise ConfigError.of(faults)
