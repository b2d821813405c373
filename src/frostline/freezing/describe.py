"""A freeze schedule as plain rows: what is shown before training and by ``frostline inspect``."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.freezing.rates import lr_factor
from frostline.freezing.schedule import FreezeSchedule


@dataclass(frozen=True)
class DepthRow:
    """A depth group.

    Attributes:
        depth: 0 for the stem.
        name: of the group.
        first_parameter: the name of its first parameter.
        parameters: number of elements.
        lr_factor: its constant factor on the base learning rate.
        phases: the phases that train all of it.
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
    """A phase.

    Attributes:
        name: of the phase.
        start: its first optimizer step.
        end: the step after its last.
        parameters: number of trainable elements.
        share: ``parameters`` as a share of the model's, 0..1.
        frost_line: the depth below which nothing is trainable.
        frost_line_name: the depth group there, the first that learns.
        lr_scale: the phase's factor on the base learning rate.
        curve: the shape of its learning rate.
        warmup: optimizer steps of linear rise before it.
    """

    name: str
    start: int
    end: int
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
    rows = []
    for group in schedule.groups:
        held = set(group.parameters)
        rows.append(
            DepthRow(
                depth=group.depth,
                name=group.name,
                first_parameter=group.parameters[0],
                parameters=sum(schedule.sizes[name] for name in held),
                lr_factor=lr_factor(schedule.spec, group, schedule.groups),
                phases=tuple(phase.name for phase in schedule.phases if held <= phase.trainable),
                partly=tuple(
                    phase.name
                    for phase in schedule.phases
                    if not held.isdisjoint(phase.trainable) and not held <= phase.trainable
                ),
            )
        )
    return tuple(rows)


def _phase_rows(schedule: FreezeSchedule) -> tuple[PhaseRow, ...]:
    total = sum(schedule.sizes.values())
    names = {group.depth: group.name for group in schedule.groups}
    rows = []
    for phase in schedule.phases:
        parameters = sum(schedule.sizes[name] for name in phase.trainable)
        rows.append(
            PhaseRow(
                name=phase.name,
                start=phase.start,
                end=phase.end,
                parameters=parameters,
                share=parameters / total,
                frost_line=phase.frost_line,
                frost_line_name=names[phase.frost_line],
                lr_scale=phase.lr.scale,
                curve=phase.lr.curve.name,
                warmup=phase.lr.warmup,
            )
        )
    return tuple(rows)
