"""The thaw plot of a run: which depth group learns when, and how fast, as planned or as it was."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from frostline.freezing import FreezeSchedule, Position
from frostline.freezing.describe import is_planned
from frostline.optim import learning_rate
from frostline.reports import ThawPlot, thaw_plot

# columns of a plot: more than it has pixels would only cost time
COLUMNS = 1200


def plot_name(config: DictConfig) -> str:
    """What a run's thaw plots are called, as planned and as it was: the experiment and the backbone."""
    return f"{config.name}, {str(config.backbone.name).rpartition('/')[2]}"


def draw_plan(folder: Path, schedule: FreezeSchedule, base: float, name: str) -> list[Path]:
    """Write ``thaw_plan.png`` and ``.svg``: the schedule where no metric ends anything early; their paths."""
    edges, found = planned_rates(schedule, base)
    plot = _plot(schedule, schedule.plan(), edges, found, f"{name}, as planned")
    return _draw(folder / "thaw_plan", replace(plot, note=plan_note(schedule)))


def draw_fact(folder: Path, record: Path, schedule: FreezeSchedule, steps: int, base: float, name: str) -> list[Path]:
    """Write ``thaw.png`` and ``.svg`` of a run of ``steps`` whose transitions lie in ``record``; their paths."""
    positions = read_positions(record, schedule)
    edges = column_edges([position.stage_start for position in positions], steps)
    found = rates(schedule, positions, base, edges[:-1])
    return _draw(folder / "thaw", _plot(schedule, positions, edges, found, f"{name}, as it was"))


def plan_note(schedule: FreezeSchedule) -> str:
    """What no plan can know: when a walk moves on that has no clock; empty where there is none."""
    walks = [phase for phase in schedule.phases if is_planned(phase)]
    ends = ["gradients settle" for phase in walks if phase.settle is not None]
    ends += [f"{phase.stage_plateau.metric} stops improving" for phase in walks if phase.stage_plateau is not None]
    return f"stages end when {' or '.join(dict.fromkeys(ends))}: spread evenly here" if ends else ""


def planned_rates(schedule: FreezeSchedule, base: float) -> tuple[list[int], list[list[float]]]:
    """Edges of the plan's columns, and the learning rate of each depth group at the start of each; 0 is frozen."""
    plan = schedule.plan()
    edges = column_edges([step for position in plan for step in _telling(schedule, position)], schedule.total_steps)
    return edges, rates(schedule, plan, base, edges[:-1])


def _telling(schedule: FreezeSchedule, position: Position) -> tuple[int, int, int]:
    """The steps at which a position begins and its rises end: no peak lies between columns."""
    phase, length = schedule.phase_of(position), schedule.length_at(position)
    rises = position.phase_start + phase.lr.warmup.length(length), position.stage_start + phase.rewarm.length(length)
    return position.stage_start, *rises


def read_positions(record: Path, schedule: FreezeSchedule) -> tuple[Position, ...]:
    """The positions of a run, from its ``schedule.csv``."""
    with record.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    position = schedule.start
    found = [position]
    for row in rows[1:]:
        step, names = int(row["step"]), [phase.name for phase in schedule.phases]
        further = names.index(row["phase"]) > position.phase
        after = schedule.next_phase(position, step) if further else None
        after = after or schedule.next_stage(position, step, int(row["stage"]) - position.stage)
        if after is not None:
            position = after
            found.append(position)
    return tuple(found)


def rates(
    schedule: FreezeSchedule, positions: Sequence[Position], base: float, steps: Sequence[int]
) -> list[list[float]]:
    """The learning rate of each depth group, from the stem to the head, at each of ascending ``steps``; 0 is frozen."""
    columns: list[list[float]] = []
    place = 0
    for step in steps:
        while place + 1 < len(positions) and positions[place + 1].stage_start <= step:
            place += 1
        columns.append(
            [
                learning_rate(schedule, positions[place], base, step, group.name, schedule.lr_factors[group.name])
                for group in schedule.groups
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def _plot(
    schedule: FreezeSchedule,
    positions: Sequence[Position],
    edges: Sequence[int],
    found: Sequence[Sequence[float]],
    title: str,
) -> ThawPlot:
    return ThawPlot(
        title=title,
        groups=tuple(group.name for group in schedule.groups),
        edges=edges,
        rates=found,
        marks=[(position.stage_start, _label(schedule, position)) for position in positions],
        steps_per_epoch=schedule.steps_per_epoch,
    )


def _draw(path: Path, plot: ThawPlot) -> list[Path]:
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    thaw_plot(paths[0], paths[1], plot)
    return paths


def column_edges(starts: Sequence[int], end: int) -> list[int]:
    """At most about ``COLUMNS`` edges from 0 to ``end``, every one of ``starts`` that lies between among them."""
    count = min(COLUMNS, end)
    even = {round(place * end / count) for place in range(count + 1)}
    return sorted(even | {start for start in starts if 0 <= start < end})


def _label(schedule: FreezeSchedule, position: Position) -> str:
    """The phase's name where it begins; nothing for a further stage of its walk."""
    return schedule.phase_of(position).name if position.stage == 0 else ""
