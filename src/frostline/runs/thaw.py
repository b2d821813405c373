"""The thaw plot of a run: which depth group learns when, and how fast, as planned or as it was."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from frostline.freezing import FreezeSchedule, Position
from frostline.optim import learning_rate
from frostline.reports import ThawPlot, thaw_plot

# columns of a plot: more than it has pixels would only cost time
COLUMNS = 1200


def draw_plan(folder: Path, schedule: FreezeSchedule, base: float, title: str) -> list[Path]:
    """Write ``thaw_plan.png`` and ``.svg``: the schedule where no metric ends anything early; their paths."""
    return _draw(folder / "thaw_plan", schedule, schedule.plan(), schedule.total_steps, base, f"{title}, as planned")


def draw_fact(folder: Path, record: Path, schedule: FreezeSchedule, steps: int, base: float, title: str) -> list[Path]:
    """Write ``thaw.png`` and ``.svg`` of a run of ``steps`` whose transitions lie in ``record``; their paths."""
    positions = read_positions(record, schedule)
    return _draw(folder / "thaw", schedule, positions, steps, base, f"{title}, as it was")


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


def _draw(
    path: Path, schedule: FreezeSchedule, positions: Sequence[Position], end: int, base: float, title: str
) -> list[Path]:
    edges = column_edges([position.stage_start for position in positions], end)
    plot = ThawPlot(
        title=title,
        groups=tuple(group.name for group in schedule.groups),
        edges=edges,
        rates=rates(schedule, positions, base, edges[:-1]),
        marks=[(position.stage_start, _label(schedule, position)) for position in positions],
        steps_per_epoch=schedule.steps_per_epoch,
    )
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
