"""What a run counts for the triggers of its phases: validations without an improvement, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from frostline.freezing.phase import Plateau, Settle, Threshold


@dataclass
class PlateauCounter:
    """Validations since the best one.

    Attributes:
        best: the best value so far; None before any.
        waited: validations since then.
    """

    best: float | None = None
    waited: int = 0

    def fires(self, plateau: Plateau, value: float) -> bool:
        """Count a validation; whether there were enough without an improvement. A NaN is none."""
        sign = 1.0 if plateau.larger_is_better else -1.0
        improves = self.best is None or sign * (value - self.best) > plateau.min_delta
        if improves and not math.isnan(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= plateau.patience

    def __str__(self) -> str:
        return "no number" if self.best is None else f"{self.best:.6g}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def crosses(threshold: Threshold, value: float) -> bool:
    """Whether ``value`` is at the threshold or beyond."""
    return value <= threshold.value if threshold.below else value >= threshold.value


@dataclass
class GradientCounter:
    """The mean gradient norm of each depth group over the current interval, and over the one before.

    Attributes:
        sums: group to the sum of its norms over the steps of this interval.
        steps: how many they are.
        before: group to its mean norm over the interval before.
    """

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    before: dict[str, float] = field(default_factory=dict)

    def add(self, norms: Mapping[str, float]) -> None:
        """Count a step; a norm that is not finite counts as 0."""
        for name, norm in norms.items():
            self.sums[name] = self.sums.get(name, 0.0) + (norm if math.isfinite(norm) else 0.0)
        self.steps += 1

    def forget(self, names: Iterable[str]) -> None:
        """Drop what was counted of groups that no longer learn: a part of an interval is no interval."""
        for name in names:
            self.sums.pop(name, None)

    def settled(self, settle: Settle, order: Sequence[str]) -> int:
        """End an interval where its steps are done; how many of the groups of ``order``, from its start, have settled.

        A group's change is ``|after - before| / before`` of its mean norm. It has settled where that is at most the
        percentile of the changes of all groups that learn, and where all groups before it in ``order`` have. As in
        AutoFreeze (Liu et al. 2021, arXiv:2102.01386, section 3.2), which takes the norm of summed gradients in place
        of the mean of norms: that would need a second copy of all gradients.
        """
        if self.steps < settle.every:
            return 0
        means = {name: total / self.steps for name, total in self.sums.items()}
        changes = {
            name: abs(mean - self.before[name]) / self.before[name]
            for name, mean in means.items()
            if self.before.get(name, 0.0) > 0
        }
        self.sums, self.steps, self.before = {}, 0, means
        if not changes:
            return 0
        cutoff = percentile(sorted(changes.values()), settle.percentile)
        count = 0
        while count < len(order) and changes.get(order[count], math.inf) <= cutoff:
            count += 1
        return count

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The ``share`` percentile (0..100) of ascending values, linear between neighbors."""
    place = share / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
