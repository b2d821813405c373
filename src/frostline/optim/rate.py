"""The learning rate of a parameter group at a step: a pure function, so that there is no scheduler state."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from frostline.freezing import FreezeSchedule, PhaseLr, Position
from frostline.specs import Curve


def learning_rate(
    schedule: FreezeSchedule, position: Position, base: float, step: int, group: str, lr_factor: float = 1.0
) -> float:
    """The learning rate of a depth group at optimizer step ``step`` of the run.

    ::

        base * phase scale * group factor * warm-up * curve * rewarm

    and 0 where the group is frozen. In a walk that anneals, the curve of a group that drops is a half cosine from the
    phase's warm-up to 0 at the step of the drop (Brock et al. 2017, arXiv:1706.04983, equation 1).

    Args:
        schedule: of the run.
        position: where ``step`` is in it.
        base: ``optimizer.lr``.
        step: counted from the start of the run; past the phase's end its last value holds.
        group: the name of the depth group.
        lr_factor: its constant factor: head or body scale times layer-wise decay.
    """
    thawed = position.thawed.get(group)
    if thawed is None:
        return 0.0
    phase, length = schedule.phase_of(position), schedule.length_at(position)
    clock = min(max(step - position.phase_start, 0), length - 1)
    warmup = phase.lr.warmup.length(length)
    drop = phase.drop_step(group, position.phase_start, length) if phase.anneal else None
    if drop is None:
        curve = curve_factor(phase.lr, clock, length)
    else:
        curve = half_cosine(clock - warmup, drop - position.phase_start - warmup)
    # a group that has learned before the phase has nothing to warm up from
    rewarm = warmup_factor(step - thawed, phase.rewarm.length(length)) if thawed >= position.phase_start else 1.0
    return base * phase.lr.scale * lr_factor * warmup_factor(clock, warmup) * curve * rewarm


def warmup_factor(clock: int, warmup: int) -> float:
    """``(t + 1) / (W + 1)`` for step t of a warm-up of W steps, then 1.

    The line through 0 one step before the phase starts and 1 where the curve begins: no step is spent at 0 (Goyal
    et al. 2017, arXiv:1706.02677, section 2.2, ramp up linearly as well).
    """
    return (clock + 1) / (warmup + 1) if clock < warmup else 1.0


def curve_factor(lr: PhaseLr, clock: int, steps: int) -> float:
    """The factor of the curve at step ``clock`` of a phase of ``steps``; 1 during warm-up.

    With p = (t - W) / (T - W), the share of the steps after warm-up that are done, and f = ``floor``:

    - ``constant``: 1
    - ``linear``: f + (1 - f) (1 - p)
    - ``cosine``: f + (1 - f) (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without
      restarts)
    - ``step``: gamma to the power of how many milestones m have t / T >= m (He et al. 2016, arXiv:1512.03385)
    """
    warmup = lr.warmup.length(steps)
    if clock < warmup or lr.curve is Curve.constant:
        return 1.0
    if lr.curve is Curve.step:
        # milestones are shares of the whole phase, warm-up included
        passed: int = sum(clock / steps >= milestone for milestone in lr.milestones)
        return math.pow(lr.gamma, passed)
    if lr.curve is Curve.linear:
        left = 1 - (clock - warmup) / (steps - warmup)
    else:
        left = half_cosine(clock - warmup, steps - warmup)
    return lr.floor + (1 - lr.floor) * left


def half_cosine(clock: int, steps: int) -> float:
    """``(1 + cos(pi t / T)) / 2``: 1 at step t = 0 and before, 0 at T and after."""
    if steps <= 0:
        return 0.0
    return (1 + math.cos(math.pi * min(max(clock / steps, 0.0), 1.0))) / 2


class LearningRates:
    """Sets the learning rate of every group of an optimizer, made of ``parameter_groups``, at each step.

    A group without a trainable parameter gets 0, also where others of its depth group learn. Which they are is looked
    at once for a position, since it comes before every step and there are two groups for each depth: the parameters
    have to be frozen and thawed for the position by then.

    Args:
        schedule: of the run.
    """

    def __init__(self, schedule: FreezeSchedule) -> None:
        self.schedule = schedule
        self._position: Position | None = None
        self._groups: list[dict[str, Any]] = []
        self._alike: list[tuple[str, float, list[dict[str, Any]]]] = []

    def set(self, optimizer: Optimizer, base: float, position: Position, step: int) -> None:
        """Set ``lr`` of every group for optimizer step ``step``; see ``learning_rate``."""
        # loading an optimizer's state gives it other groups
        if position is not self._position or optimizer.param_groups is not self._groups:
            self._position, self._groups = position, optimizer.param_groups
            self._alike = self._look(position)
        for name, factor, groups in self._alike:
            rate = learning_rate(self.schedule, position, base, step, name, factor)
            for group in groups:
                group["lr"] = rate

    def _look(self, position: Position) -> list[tuple[str, float, list[dict[str, Any]]]]:
        """The groups that learn, those together whose rate is the same at all steps; the others get 0."""
        # a rate depends on when its group thawed, and where the phase anneals on when it drops
        anneals = self.schedule.phase_of(position).anneal
        alike: dict[tuple[int | None, float, str | None], tuple[str, float, list[dict[str, Any]]]] = {}
        for group in self._groups:
            if not any(parameter.requires_grad for parameter in group["params"]):
                group["lr"] = 0.0
                continue
            name, factor = group["group"], group["lr_factor"]
            key = position.thawed.get(name), factor, name if anneals else None
            alike.setdefault(key, (name, factor, []))[2].append(group)
        return list(alike.values())
