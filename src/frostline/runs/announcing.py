"""What is about to be trained, on the screen before the first step, and the scores after the last."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby

from frostline.backbones import Backbone
from frostline.data import ImageData
from frostline.data.geometry import resized_sides
from frostline.data.typical import typical_loss
from frostline.freezing import FreezeSchedule, PhaseRow, describe
from frostline.runs.tables import print_table
from frostline.types import Preprocessing


def announce(
    data: ImageData,
    backbone: Backbone,
    schedule: FreezeSchedule,
    name: str,
    *,
    adapted: str = "",
    notes: Sequence[str] = (),
    phases: bool = True,
) -> None:
    """Print data, backbone, input, depth, what an adapter did, phases unless told not to, a line each, and notes."""
    counts = ", ".join(f"{split} {len(pictures)}" for split, pictures in data.splits.items())
    print(f"data      {f'{len(data.classes)} classes' if data.labelled else 'no labels'}; {counts}")
    for note in data.notes:
        print(f"          note: {note}")
    channels, height, width = backbone.preprocessing.size
    print(f"backbone  {name} at {height}x{width}x{channels}; {backbone.report.sentence()}")
    print(f"input     {input_line(data, backbone.preprocessing)}")
    depth = backbone.depth
    print(f"depth     {len(depth.groups)} groups, {depth.groups[0].name} to {depth.groups[-1].name}, by {depth.source}")
    for correction in depth.corrections[:3]:
        print(f"          {correction}")
    if len(depth.corrections) > 3:
        print(f"          and {len(depth.corrections) - 3} more corrections, in provenance.json")
    if adapted:
        print(f"adapter   {adapted}")
    for line in phase_lines(schedule) if phases else ():
        print(f"phase     {line}")
    for note in notes:
        print(f"note      {note}")
    sys.stdout.flush()


def input_line(data: ImageData, preprocessing: Preprocessing) -> str:
    """How a picture gets the shape of the input, and how much of a typical one is lost by it."""
    line = f"{preprocessing.size[1]} x {preprocessing.size[2]}: {_geometry(preprocessing)}"
    lost = typical_loss(data.splits["train"], preprocessing)
    if lost is None:
        return line
    if round(lost.share, 3) == 0:
        return f"{line}; nothing of a training picture is lost (median of {lost.pictures})"
    mend = "" if data.resize == "crop" else "; data.resize=squash or pad loses nothing"
    return f"{line}; {lost.share:.0%} of a training picture's area is lost (median of {lost.pictures}){mend}"


def _geometry(preprocessing: Preprocessing) -> str:
    height, width = resized_sides(preprocessing)
    whole = str(height) if height == width else f"{height} x {width}"
    cut = "" if (height, width) == preprocessing.size[1:] else " and cropped at the center"
    if preprocessing.crop_mode == "squash":
        return f"squashed to {height} x {width}{cut}"
    if preprocessing.crop_mode == "border":
        return f"the longer side resized to {whole}, the rest filled with the mean color{cut}"
    return f"the shorter side resized to {whole} and cropped at the center"


def phase_lines(schedule: FreezeSchedule) -> list[str]:
    """A sentence for each phase; a walk has one."""
    total = sum(schedule.sizes.values())
    found = groupby(describe(schedule).phases, key=lambda row: row.phase_name)
    return [f"{name}: {_phase_line(list(rows), total)}" for name, rows in found]


def _phase_line(rows: Sequence[PhaseRow], total: int) -> str:
    first, last = rows[0], rows[-1]
    # what ends the last stage ends the phase
    steps = f"steps {first.start} to {last.end}" + (f", or until {last.until}" if last.until else "")
    if len(rows) == 1:
        return f"{first.parameters:,} of {total:,} parameters learn ({first.share:.1%}), {steps}"
    counts, shares = _spans(rows)
    stages = f"{'up to ' if first.planned else ''}{len(rows)} stages"
    stages += f", each until {first.stage_until}" if first.stage_until else ""
    return f"{counts} of {total:,} parameters learn ({shares}) in {stages}; {steps}"


def _spans(rows: Sequence[PhaseRow]) -> tuple[str, str]:
    """How many parameters learn in a walk, and which share: from its first stage on where no clock moves it."""
    ordered = sorted(rows, key=lambda row: row.parameters)
    low, high, first = ordered[0], ordered[-1], rows[0]
    if first.planned and rows[-1].parameters in (low.parameters, high.parameters) and first in (low, high):
        way = "down" if rows[-1].parameters == low.parameters else "up"
        counts = f"{first.parameters:,}, {way} to {rows[-1].parameters:,} at most,"
        return counts, f"{first.share:.1%}, {way} to {rows[-1].share:.1%}"
    start, end = (high, low) if first is high else (low, high)
    return f"{start.parameters:,} to {end.parameters:,}", f"{start.share:.1%} to {end.share:.1%}"


def show_scores(scores: Mapping[str, float], splits: Sequence[str]) -> None:
    """Print a small table of the splits' scores, side by side."""
    metrics = dict.fromkeys(name.partition("/")[2] for name in scores if name.partition("/")[0] in splits)
    rows = [[metric, *[_cell(metric, scores.get(f"{split}/{metric}")) for split in splits]] for metric in metrics]
    print_table(["", *splits], rows)


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if metric == "count" else f"{value:.4f}"
