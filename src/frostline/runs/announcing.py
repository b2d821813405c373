"""What is about to be trained, on the screen before the first step, and the scores after the last."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from frostline.backbones import Backbone
from frostline.data import ImageData
from frostline.data.geometry import resized_sides
from frostline.data.typical import typical_loss
from frostline.evaluation import Evaluation, Speed, Temperature
from frostline.freezing import FreezeSchedule, PhaseRow, describe
from frostline.runs.scoring import SAMPLE, Findings
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
    if lost.reduced and data.decode == "fast":
        line += f"; {lost.reduced:.0%} decoded at a half or less where they are scored (data.decode=exact: whole)"
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


_FIRST = ("accuracy", "balanced_accuracy", "macro_f1", "top3_accuracy", "top5_accuracy", "auroc")
_LAST = ("ece", "ece_calibrated", "brier", "brier_calibrated", "nll", "nll_calibrated", "loss", "count")
_LARGE_GAP = 0.05
_WORST = 3


def show_findings(found: Findings) -> None:
    """Print what is known of a finished model: the splits' scores side by side, then a line each on the rest."""
    shown = {split: item for split, item in found.evaluations.items() if split != SAMPLE}
    names = {name.partition("/")[2] for name in found.flat() if name.partition("/")[0] in shown}
    middle = sorted(names.difference(_FIRST, _LAST))
    ordered = [name for name in (*_FIRST, *middle, *_LAST) if name in names]
    rows = [[name, *[_cell(found, split, name) for split in shown]] for name in ordered]
    print_table(["", *shown], rows)
    for line in finding_lines(found):
        print(line)


def finding_lines(found: Findings) -> list[str]:
    """The sentences below the table of scores."""
    last = [*found.evaluations.values()][-1]
    lines = [f"worst       {line}" for line in _worst_classes(last)]
    if found.temperature is not None:
        lines.append(f"calibrated  {_temperature_line(found.temperature, last)}")
    if found.gap:
        lines.append(f"overfitting {_gap_line(found)}")
    if found.speed is not None:
        lines.append(f"speed       {_speed_line(found.speed)}")
    if found.looks is not None:
        lines.append(f"test        {found.looks.sentence}")
    notes = [note for split, item in found.evaluations.items() if split != SAMPLE for note in item.notes]
    return lines + [f"note        {note}" for note in notes]


def _cell(found: Findings, split: str, name: str) -> str:
    value = found.flat().get(f"{split}/{name}")
    if value is None:
        return ""
    if name == "count":
        return f"{value:.0f}"
    known = found.evaluations[split].scores.get(name)
    # a metric of the config may have a name of ours and be another one
    return f"{value:.4f}" if known is None or abs(known.value - value) > 1e-4 else str(known)


def _worst_classes(found: Evaluation) -> list[str]:
    missed = [item for item in found.classes if "recall" in item.scores and item.scores["recall"].value < 1]
    worst = sorted(missed, key=lambda item: item.scores["recall"].value)[:_WORST]
    return [
        f"'{_shown(item.name)}': recall {item.scores['recall']} on {item.support} pictures of {found.split}"
        for item in worst
    ]


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def _temperature_line(temperature: Temperature, last: Evaluation) -> str:
    if temperature.reason:
        return f"no temperature fitted on val: {temperature.reason}"
    line = f"temperature {temperature.value:.2f}, fitted on {temperature.pictures} pictures of val"
    if last.split == "val" or "ece_calibrated" not in last.scores:
        return line
    before, after = last.scores["ece"].value, last.scores["ece_calibrated"].value
    chance = last.calibration["ece_by_chance_calibrated"]
    return f"{line}; ECE of {last.split} {before:.3f} before, {after:.3f} after ({chance:.3f} by chance alone)"


def _gap_line(found: Findings) -> str:
    train, held_out = found.evaluations[SAMPLE], found.evaluations["val"]
    accuracy = found.gap["accuracy"]
    line = (
        f"accuracy {train.scores['accuracy'].value:.3f} on {train.pictures} training pictures without augmentation, "
        f"{held_out.scores['accuracy'].value:.3f} on val: {accuracy.value:+.3f}"
    )
    if accuracy.low is None or accuracy.high is None:
        return line
    large = accuracy.value >= _LARGE_GAP and accuracy.low > 0
    return f"{line} [{accuracy.low:+.3f}, {accuracy.high:+.3f}]{', large' if large else ''}"


def _speed_line(speed: Speed) -> str:
    where = f"{speed.device}, {speed.threads} threads" if speed.device == "cpu" and speed.threads > 1 else speed.device
    return (
        f"{speed.images_per_second:,.0f} pictures a second at batch {speed.batch_size}; one takes "
        f"{speed.latency_ms:.1f} ms, 95 % of them at most {speed.latency_p95_ms:.1f} ms ({where}, the model alone)"
    )
