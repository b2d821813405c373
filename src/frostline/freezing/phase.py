"""A phase of a run, resolved to parameter names and optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from frostline.specs import BatchNormSpec, CacheSpec, Curve


@dataclass(frozen=True)
class Warmup:
    """A linear rise of the learning rate; the sum of both, of which one is 0.

    Attributes:
        steps: optimizer steps.
        fraction: share of the phase, which is known when the phase begins.
    """

    steps: int = 0
    fraction: float = 0.0

    def length(self, phase: int) -> int:
        """Optimizer steps of the warm-up in a phase of ``phase`` steps."""
        return self.steps + round(self.fraction * phase)


@dataclass(frozen=True)
class PhaseLr:
    """The learning rate of a phase, with nothing left to look up.

    Attributes:
        scale: the phase's factor on the base.
        curve: the shape after warm-up.
        warmup: the linear rise before it.
        floor: where ``linear`` and ``cosine`` end, as a share of the peak.
        milestones: for ``step``: shares of the phase's length after which ``gamma`` is applied.
        gamma: for ``step``.
    """

    scale: float = 1.0
    curve: Curve = Curve.constant
    warmup: Warmup = Warmup()
    floor: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1


@dataclass(frozen=True)
class Plateau:
    """Fires after ``patience`` validations without an improvement of more than ``min_delta``."""

    metric: str
    larger_is_better: bool
    patience: int
    min_delta: float = 0.0


@dataclass(frozen=True)
class Threshold:
    """Fires where ``metric`` is at or beyond ``value``; beyond is above unless ``below``."""

    metric: str
    value: float
    below: bool = False


@dataclass(frozen=True)
class Settle:
    """Drops the prefix of groups whose gradient norms have settled; see ``specs.SettleSpec``."""

    percentile: float
    every: int


@dataclass(frozen=True)
class Pace:
    """How fast a walk moves by the clock; the sum of ``steps`` and ``fraction``, of which one is 0.

    Attributes:
        steps: optimizer steps a stage.
        fraction: share of the phase a stage.
        hold: share of the phase by which the first stage lasts longer.
    """

    steps: int = 0
    fraction: float = 0.0
    hold: float = 0.0

    def reached(self, stage: int, phase: int) -> int:
        """Optimizer steps before a stage, in a phase of ``phase`` steps; the first stage comes after 0."""
        return stage * self.steps + round((self.hold + stage * self.fraction) * phase) if stage else 0


@dataclass(frozen=True)
class Stage:
    """One absolute set of trainable parameters, the whole of a phase or a step of its walk.

    Attributes:
        trainable: names of the parameters that learn, as in ``model.named_parameters()``; all others are frozen.
        groups: the names of the depth groups that hold one of them, from the stem to the head.
        frost_line: the depth below which nothing is trainable, so that no backward pass reaches it.
    """

    trainable: frozenset[str]
    groups: tuple[str, ...]
    frost_line: int


@dataclass(frozen=True)
class Phase:
    """A span of training.

    Attributes:
        name: its key in ``freeze.phases``.
        stages: what learns, one after the other; one where there is no walk.
        length: its longest duration in optimizer steps; None takes what is left of the run.
        lr: the learning rate's curve, over the longest duration.
        plateau, threshold: a metric that ends it earlier.
        pace: how long a stage lasts at most; None where only a metric or gradients end it. The last stage lasts to the
            phase's end.
        stage_plateau, settle: a metric, or the gradients, that end a stage earlier.
        starts_from_best: whether it begins with the best weights of the phase before.
        resets_optimizer: whether it begins without momentum and the like.
        rewarm: the rise of the learning rate of a depth group that thaws in this phase.
        anneal: whether a depth group's learning rate falls to zero until it drops.
        bn: what batch norms do.
        cache: whether features that stay the same in it are computed once.
    """

    name: str
    stages: tuple[Stage, ...]
    length: int | None
    lr: PhaseLr
    plateau: Plateau | None = None
    threshold: Threshold | None = None
    pace: Pace | None = None
    stage_plateau: Plateau | None = None
    settle: Settle | None = None
    starts_from_best: bool = False
    resets_optimizer: bool = False
    rewarm: Warmup = Warmup()
    anneal: bool = False
    bn: BatchNormSpec = field(default_factory=BatchNormSpec)
    cache: CacheSpec = field(default_factory=CacheSpec)

    @property
    def ends_by_metric(self) -> bool:
        """Whether its end cannot be told before the run."""
        return self.plateau is not None or self.threshold is not None

    @property
    def only_drops(self) -> bool:
        """Whether it walks, and no stage trains what the one before does not."""
        return len(self.stages) > 1 and all(
            after.trainable <= before.trainable for before, after in pairwise(self.stages)
        )

    @property
    def trainable(self) -> frozenset[str]:
        """All that learns in one of its stages."""
        return frozenset().union(*(stage.trainable for stage in self.stages))

    @property
    def frost_line(self) -> int:
        """The depth below which nothing is trainable in any of its stages."""
        return min(stage.frost_line for stage in self.stages)

    @property
    def moves_by_clock(self) -> bool:
        """Whether nothing but its pace moves the walk."""
        return self.pace is not None and self.stage_plateau is None and self.settle is None

    def stage_end(self, stage: int, phase_start: int, stage_start: int, length: int) -> int | None:
        """The step after the last of a stage in a phase of ``length`` steps; None where only a metric ends it."""
        if stage == len(self.stages) - 1:
            return phase_start + length
        if self.pace is None:
            return None
        if self.moves_by_clock:
            return phase_start + self.pace.reached(stage + 1, length)
        took = self.pace.reached(stage + 1, length) - self.pace.reached(stage, length)
        return stage_start + max(took, 1)

    def drop_step(self, group: str, phase_start: int, length: int) -> int | None:
        """The step at which a depth group that learns at first stops doing so, by the clock; None where it does not."""
        for stage, content in enumerate(self.stages):
            if group not in content.groups:
                by_clock = stage > 0 and self.pace is not None and self.moves_by_clock
                return phase_start + self.pace.reached(stage, length) if by_clock and self.pace else None
        return None
