"""A freeze schedule as plain rows: what is shown before training and by ``frostline inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.freezing.phase import Phase
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
        phases: the phases that train all of it, or all that an adapter lets learn; of a walk, ``name[2..4]`` for its
            stages 2 to 4, counted from 1.
        partly: the phases that train some of it.
        learns_in: both, in the order of the run, with `` (partly)`` after the second kind.
        learning: the names of its parameters that learn in one of the phases.
    """

    depth: int
    name: str
    first_parameter: str
    parameters: int
    lr_factor: float
    phases: tuple[str, ...]
    partly: tuple[str, ...]
    learns_in: tuple[str, ...]
    learning: frozenset[str]


@dataclass(frozen=True)
class PhaseRow:
    """A phase, or a stage of one that walks.

    Attributes:
        name: of the phase; of a stage, ``name 2/5``.
        phase_name: of the phase.
        stage: its number, counted from 1.
        stages: how many the phase has.
        start: its first optimizer step, as planned.
        end: the step after its last, as planned: the latest, where a metric may end it.
        planned: whether only a metric or gradients move the walk on: its stages are spread evenly over the phase, and
            no run need keep to that.
        until: what may end it earlier; empty where nothing does.
        stage_until: the part of ``until`` that ends the stage and not the phase.
        trainable: the names of the parameters that learn.
        parameters: number of trainable elements.
        share: ``parameters`` as a share of the model's, 0..1.
        frost_line: the depth below which nothing is trainable.
        frost_line_name: the depth group there, the first that learns.
        curve: the shape of its learning rate.
        warmup: optimizer steps of linear rise before it.
    """

    name: str
    phase_name: str
    stage: int
    stages: int
    start: int
    end: int
    planned: bool
    until: str
    stage_until: str
    trainable: frozenset[str]
    parameters: int
    share: float
    frost_line: int
    frost_line_name: str
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
    return tuple(_depth_row(schedule, group) for group in schedule.groups)


def _depth_row(schedule: FreezeSchedule, group: DepthGroup) -> DepthRow:
    held = frozenset(group.parameters)
    training = [found for phase in schedule.phases for found in _training(phase, held, schedule.allowed)]
    return DepthRow(
        depth=group.depth,
        name=group.name,
        first_parameter=group.parameters[0],
        parameters=sum(schedule.sizes[name] for name in group.parameters),
        lr_factor=schedule.lr_factors[group.name],
        phases=tuple(name for name, whole in training if whole),
        partly=tuple(name for name, whole in training if not whole),
        learns_in=tuple(name if whole else f"{name} (partly)" for name, whole in training),
        learning=held.intersection(frozenset().union(*(phase.trainable for phase in schedule.phases))),
    )


def _training(phase: Phase, held: frozenset[str], allowed: frozenset[str] | None) -> list[tuple[str, bool]]:
    """The stages of a phase in which a group learns, and whether whole: at most one of each kind, in order."""
    may = held if allowed is None else held & allowed
    stages: dict[bool, list[int]] = {}
    for number, stage in enumerate(phase.stages, start=1):
        if not held.isdisjoint(stage.trainable):
            stages.setdefault(may <= stage.trainable, []).append(number)
    return [
        (phase.name if len(numbers) == len(phase.stages) else f"{phase.name}[{_ranges(numbers)}]", whole)
        for whole, numbers in stages.items()
    ]


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
    stage_until = [] if stage is phase.stages[-1] else _stage_until(phase)
    return PhaseRow(
        name=phase.name if count == 1 else f"{phase.name} {position.stage + 1}/{count}",
        phase_name=phase.name,
        stage=position.stage + 1,
        stages=count,
        start=position.stage_start,
        end=end,
        planned=is_planned(phase),
        until="; ".join([*_phase_until(phase), *stage_until]),
        stage_until="; ".join(stage_until),
        trainable=stage.trainable,
        parameters=parameters,
        share=parameters / sum(schedule.sizes.values()),
        frost_line=stage.frost_line,
        frost_line_name=names[stage.frost_line],
        curve=phase.lr.curve.name,
        warmup=phase.lr.warmup.length(schedule.length_at(position)) if position.stage == 0 else 0,
    )


def is_planned(phase: Phase) -> bool:
    """Whether a phase is a walk that only a metric or gradients move, so that its plan is an even spread."""
    return len(phase.stages) > 1 and phase.pace is None


def _phase_until(phase: Phase) -> list[str]:
    """What may end a phase earlier than planned."""
    found = []
    if phase.plateau is not None:
        found.append(f"{phase.plateau.metric} no better for {phase.plateau.patience}")
    if phase.threshold is not None:
        sign = "<=" if phase.threshold.below else ">="
        found.append(f"{phase.threshold.metric} {sign} {phase.threshold.value:g}")
    return found


def _stage_until(phase: Phase) -> list[str]:
    """What may end a stage earlier than planned."""
    found = []
    if phase.stage_plateau is not None:
        found.append(f"{phase.stage_plateau.metric} no better for {phase.stage_plateau.patience}")
    if phase.settle is not None:
        found.append(f"gradients settled, every {phase.settle.every} steps")
    return found
