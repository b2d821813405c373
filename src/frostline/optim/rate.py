"""The learning rate of a parameter group at a step: a pure function, so that there is no scheduler state."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from frostline.freezing import Phase, PhaseLr
from frostline.specs import Curve


def learning_rate(base: float, phase: Phase, lr_factor: float, step: int) -> float:
    """The learning rate of a group with ``lr_factor`` at optimizer step ``step`` of the run, which is in ``phase``.

    ::

        base * phase scale * group factor * warm-up * curve

    Args:
        base: ``optimizer.lr``.
        phase: the phase that holds ``step``.
        lr_factor: the group's constant factor: head or body scale times layer-wise decay.
        step: counted from the start of the run; past the phase's end its last value holds.
    """
    clock = min(max(step - phase.start, 0), phase.steps - 1)
    return (
        base
        * phase.lr.scale
        * lr_factor
        * warmup_factor(clock, phase.lr.warmup)
        * curve_factor(phase.lr, clock, phase.steps)
    )


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
    if clock < lr.warmup or lr.curve is Curve.constant:
        return 1.0
    if lr.curve is Curve.step:
        # milestones are shares of the whole phase, warm-up included
        passed: int = sum(clock / steps >= milestone for milestone in lr.milestones)
        return math.pow(lr.gamma, passed)
    done = (clock - lr.warmup) / (steps - lr.warmup)
    left = 1 - done if lr.curve is Curve.linear else (1 + math.cos(math.pi * done)) / 2
    return lr.floor + (1 - lr.floor) * left


def set_learning_rates(optimizer: Optimizer, base: float, phase: Phase, step: int) -> None:
    """Set ``lr`` of every group of ``optimizer``, made of ``parameter_groups``, for optimizer step ``step``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(base, phase, group["lr_factor"], step)
