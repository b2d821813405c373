"""A freeze schedule as plain rows: what is shown before training and by ``frostline inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.freezing.phase import Phase, Stage
from frostline.freezing.schedule import FreezeSchedule, Position
from frostline.types import DepthGroup


@dataclass(frozen=True)
class DepthRow:
    """A depth group.

    Attributes:
        depth: 0 for the stem.
        name: of the group.
        first_parameter: the name of its first parameter.
        parameters: number of elements.
        lr_factor: its constant factor on the base learning rate.
        phases: the phases that train all of it; of a walk, ``name[2..4]`` for its stages 2 to 4, counted from 1.
        partly: the phases that train some of it.
    """

    depth: int
    name: str
    first_parameter: str
    parameters: int
    lr_factor: float
    phases: tuple[str, ...]
    partly: tuple[str, ...]


@dataclass(frozen=True)
class PhaseRow:
    """A phase, or a stage of one that walks.

    Attributes:
        name: of the phase; of a stage, ``name 2/5``.
        phase_name: of the phase.
        start: its first optimizer step, as planned.
        end: the step after its last, as planned: the latest, where a metric may end it.
        until: what may end it earlier; empty where nothing does.
        trainable: the names of the parameters that learn.
        parameters: number of trainable elements.
        share: ``parameters`` as a share of the model's, 0..1.
        frost_line: the depth below which nothing is trainable.
        frost_line_name: the depth group there, the first that learns.
        lr_scale: the phase's factor on the base learning rate.
        curve: the shape of its learning rate.
        warmup: optimizer steps of linear rise before it.
    """

    name: str
    phase_name: str
    start: int
    end: int
    until: str
    trainable: frozenset[str]
    parameters: int
    share: float
    frost_line: int
    frost_line_name: str
    lr_scale: float
    curve: str
    warmup: int


@dataclass(frozen=True)
class Description:
    """The depth table and the phase table of a schedule."""

    groups: tuple[DepthRow, ...]
    phases: tuple[PhaseRow, ...]


def describe(schedule: FreezeSchedule) -> Description:
    """The rows of the depth table, from the stem to the head, and of the phase table, in order."""
    return Description(groups=_depth_rows(schedule), phases=_phase_rows(schedule))


def _depth_rows(schedule: FreezeSchedule) -> tuple[DepthRow, ...]:
    return tuple(
        DepthRow(
            depth=group.depth,
            name=group.name,
            first_parameter=group.parameters[0],
            parameters=sum(schedule.sizes[name] for name in group.parameters),
            lr_factor=schedule.lr_factors[group.name],
            phases=tuple(_training(schedule.phases, group, whole=True)),
            partly=tuple(_training(schedule.phases, group, whole=False)),
        )
        for group in schedule.groups
    )


def _training(phases: Sequence[Phase], group: DepthGroup, *, whole: bool) -> list[str]:
    """The phases in which all of a group learns, or else only some of it."""
    held = set(group.parameters)
    found = []
    for phase in phases:
        stages = [
            number
            for number, stage in enumerate(phase.stages, start=1)
            if not held.isdisjoint(stage.trainable) and (held <= stage.trainable) == whole
        ]
        if stages:
            found.append(phase.name if len(stages) == len(phase.stages) else f"{phase.name}[{_ranges(stages)}]")
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """``1..3,7`` for 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _phase_rows(schedule: FreezeSchedule) -> tuple[PhaseRow, ...]:
    plan = schedule.plan()
    ends = [*(position.stage_start for position in plan[1:]), schedule.total_steps]
    return tuple(_phase_row(schedule, position, end) for position, end in zip(plan, ends, strict=True))


def _phase_row(schedule: FreezeSchedule, position: Position, end: int) -> PhaseRow:
    phase, stage = schedule.phase_of(position), schedule.stage_of(position)
    parameters = sum(schedule.sizes[name] for name in stage.trainable)
    names = {group.depth: group.name for group in schedule.groups}
    count = len(phase.stages)
    return PhaseRow(
        name=phase.name if count == 1 else f"{phase.name} {position.stage + 1}/{count}",
        phase_name=phase.name,
        start=position.stage_start,
        end=end,
        until=_until(phase, stage),
        trainable=stage.trainable,
        parameters=parameters,
        share=parameters / sum(schedule.sizes.values()),
        frost_line=stage.frost_line,
        frost_line_name=names[stage.frost_line],
        lr_scale=phase.lr.scale,
        curve=phase.lr.curve.name,
        warmup=phase.lr.warmup.length(schedule.length_at(position)) if position.stage == 0 else 0,
    )


def _until(phase: Phase, stage: Stage) -> str:
    """What may end a stage earlier than planned."""
    found = []
    if phase.plateau is not None:
        found.append(f"{phase.plateau.metric} no better for {phase.plateau.patience}")
    if phase.threshold is not None:
        sign = "<=" if phase.threshold.below else ">="
        found.append(f"{phase.threshold.metric} {sign} {phase.threshold.value:g}")
    if stage is not phase.stages[-1]:
        if phase.stage_plateau is not None:
            found.append(f"{phase.stage_plateau.metric} no better for {phase.stage_plateau.patience}")
        if phase.settle is not None:
            found.append(f"gradients settled, every {phase.settle.every} steps")
    return "; ".join(found)
