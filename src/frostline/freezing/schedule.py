"""The freeze schedule of a run: its phases in order, and where in them a step is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from frostline.errors import ConfigError
from frostline.freezing.lengths import Clock
from frostline.freezing.partition import check_partition
from frostline.freezing.phase import Phase, Stage
from frostline.freezing.rates import lr_factor
from frostline.freezing.resolving import Subject, resolve_phases
from frostline.freezing.triggers import Validation
from frostline.specs import FreezeSpec, LrSpec
from frostline.types import DepthGroup


@dataclass(frozen=True)
class Position:
    """Where a run is in its schedule: all that what learns, and how fast, depends on beside the step.

    Attributes:
        phase: the index of the phase.
        phase_start: its first optimizer step, counted from the start of the run.
        stage: the index of the stage in it.
        stage_start: its first optimizer step.
        thawed: depth group to the step at which it began to learn; only those that learn.
    """

    phase: int = 0
    phase_start: int = 0
    stage: int = 0
    stage_start: int = 0
    thawed: Mapping[str, int] = field(default_factory=dict)


class FreezeSchedule:
    """Which parameters learn, and on which learning-rate curve.

    A phase states an absolute set of trainable parameters, so that a position alone determines everything and a
    resumed run replays nothing.

    Args:
        spec: the schedule; the values of ``spec.phases`` are ``PhaseSpec``.
        run_lr: the curve of phases that state none.
        groups: the depth groups of ``model``, a partition of its parameters.
        model: read, not changed and not kept; it may lie on the meta device.
        steps_per_epoch: optimizer steps in an epoch, after gradient accumulation.
        total_steps: optimizer steps of the run.
        validation: the metrics that triggers may watch.
        new: the parameters that were not loaded from the weights; None where that is unknown.
        allowed: the parameters that may learn at all; None for all.

    Attributes:
        phases: in order; as planned they cover the steps from 0 to ``total_steps`` without a gap.
        groups: as given.
        spec: as given.
        sizes: parameter name to number of elements.
        lr_factors: depth group to its constant factor on the base learning rate.
        steps_per_epoch, total_steps, allowed: as given.

    Raises:
        ConfigError: every fault of the schedule at once, each with its key.
    """

    def __init__(
        self,
        spec: FreezeSpec,
        run_lr: LrSpec,
        groups: Sequence[DepthGroup],
        model: nn.Module,
        *,
        steps_per_epoch: int,
        total_steps: int,
        validation: Validation | None = None,
        new: frozenset[str] | None = None,
        allowed: frozenset[str] | None = None,
    ) -> None:
        if total_steps < 1 or steps_per_epoch < 1:
            raise ConfigError(
                f"The run has {total_steps} optimizer steps, {steps_per_epoch} in an epoch.",
                mend="Raise trainer.max_epochs, or lower data.batch_size or trainer.accumulate_grad_batches.",
            )
        check_partition(groups, model)
        self.spec = spec
        self.groups = tuple(groups)
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self.lr_factors = {group.name: lr_factor(spec, group, groups) for group in groups}
        self.allowed = allowed
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        clock = Clock(steps_per_epoch, total_steps)
        self.phases = resolve_phases(
            spec, run_lr, Subject(groups, model, clock, validation or Validation(), new, allowed)
        )

    @property
    def start(self) -> Position:
        """The position before the first step."""
        return Position(thawed=dict.fromkeys(self.phases[0].stages[0].groups, 0))

    def phase_of(self, position: Position) -> Phase:
        """The phase of a position."""
        return self.phases[position.phase]

    def stage_of(self, position: Position) -> Stage:
        """The stage of a position: what learns there."""
        return self.phase_of(position).stages[position.stage]

    def length_at(self, position: Position) -> int:
        """The longest duration of the position's phase, in optimizer steps; its curves span it."""
        length = self.phase_of(position).length
        return self.total_steps - position.phase_start if length is None else length

    def phase_end(self, position: Position) -> int:
        """The step after the last of the position's phase, where no metric ends it earlier."""
        return position.phase_start + self.length_at(position)

    def stage_end(self, position: Position) -> int | None:
        """The step after the last of the position's stage; None where only a metric or gradients end it."""
        phase, length = self.phase_of(position), self.length_at(position)
        return phase.stage_end(position.stage, position.phase_start, position.stage_start, length)

    def next_phase(self, position: Position, step: int) -> Position | None:
        """The start of the phase after the position's, at ``step``; None after the last."""
        if position.phase + 1 == len(self.phases):
            return None
        return self._with_thawed(Position(position.phase + 1, step, 0, step), position, step)

    def next_stage(self, position: Position, step: int, count: int = 1) -> Position | None:
        """The start of the stage that is ``count`` further in the same phase, at ``step``; None after the last."""
        stage = min(position.stage + count, len(self.phase_of(position).stages) - 1)
        if stage == position.stage:
            return None
        return self._with_thawed(replace(position, stage=stage, stage_start=step), position, step)

    def _with_thawed(self, position: Position, before: Position, step: int) -> Position:
        thawed = {name: before.thawed.get(name, step) for name in self.stage_of(position).groups}
        return replace(position, thawed=thawed)

    def after(self, position: Position, step: int) -> Position | None:
        """The position that follows by the clock alone at ``step``, or None where none is due."""
        if step >= self.phase_end(position):
            return self.next_phase(position, step)
        end = self.stage_end(position)
        return self.next_stage(position, step) if end is not None and step >= end else None

    def plan(self, start: Position | None = None) -> tuple[Position, ...]:
        """Every position of the run in order, where no metric and no gradient ends anything early.

        A stage that only these end has no planned end of its own: the stages of such a walk are spread over the phase.

        Args:
            start: where a run that goes on is; None for the start of the run.
        """
        return tuple(self._planned(start or self.start))

    def check_rest(self, position: Position, step: int) -> None:
        """Raise where a run that goes on from a position, perhaps with another length, would not reach every phase.

        Raises:
            ConfigError: it would end before a phase that is still to come.
        """
        planned = self.plan(position)
        missed = [phase.name for phase in self.phases[planned[-1].phase + 1 :]]
        missed += [self.phase_of(one).name for one in planned[1:] if one.phase_start >= self.total_steps]
        if missed:
            raise ConfigError(
                f"freeze.phases.{missed[0]} can never start: the run is at step {step} of {self.total_steps}, and the "
                "phases before it take the rest.",
                mend="Keep the length that the run had (trainer.max_epochs), or raise it.",
            )

    def _planned(self, start: Position) -> Iterator[Position]:
        position: Position | None = start
        while position is not None:
            yield position
            end = self.stage_end(position)
            if end is None:
                share = (position.stage + 1) * self.length_at(position) / len(self.phase_of(position).stages)
                end = max(position.phase_start + round(share), position.stage_start + 1)
            if end >= self.phase_end(position):
                position = self.next_phase(position, self.phase_end(position))
            else:
                position = self.next_stage(position, end)

    def position_at(self, step: int) -> Position:
        """The planned position of optimizer step ``step`` (from 0); past the end of the run it is the last one.

        Raises:
            ValueError: ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"optimizer steps count from 0, got {step}")
        return [position for position in self.plan() if position.stage_start <= step][-1]


def position_state(position: Position) -> dict[str, Any]:
    """A position as plain types."""
    return {
        "phase": position.phase,
        "phase_start": position.phase_start,
        "stage": position.stage,
        "stage_start": position.stage_start,
        "thawed": dict(position.thawed),
    }
