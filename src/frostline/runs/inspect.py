"""``frostline inspect``: what ``train`` would do with this config."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from frostline.config import save_config
from frostline.freezing import (
    Cost,
    DepthRow,
    Description,
    Estimator,
    FreezeSchedule,
    PhaseRow,
    describe,
    dragging,
    relative,
)
from frostline.optim import undecayed
from frostline.runs.announcing import announce
from frostline.runs.folder import make_folder
from frostline.runs.parts import Parts, build_parts, require_monitor
from frostline.runs.tables import print_table
from frostline.runs.thaw import draw_plan
from frostline.writing import write_text

# stages of a run whose cost is measured; what others cost lies between
MEASURED = 8


def inspect(config: DictConfig) -> None:
    """Print data, depth groups, phases, learning rates and costs, and write them and the thaw plot; train nothing.

    The folder is ``output/inspect/<date_time>``: ``depth.csv``, ``phases.csv``, ``thaw_plan.png`` and ``.svg``.
    """
    parts = build_parts(config)
    require_monitor(config, len(parts.data.classes), list(parts.data.splits))
    announce(
        parts.data, parts.backbone, parts.schedule, config.backbone.name, adapted=parts.adapter.sentence(), phases=False
    )
    _print_classes(parts)
    found = describe(parts.schedule)
    depth, phases = depth_table(parts, found), phase_table(parts, found)
    print("\nDepth")
    print_table(*depth)
    print("\nPhases")
    print_table(*phases)
    for note in notes(parts.schedule):
        print(f"note: {note}")
    folder = make_folder(Path(config.output) / "inspect", str(config.name))
    config.folder = str(folder)
    save_config(config, folder / "config.yaml")
    write_text(folder / "depth.csv", _csv(*depth))
    write_text(folder / "phases.csv", _csv(*phases))
    draw_plan(folder, parts.schedule, parts.task.base_lr, config.backbone.name)
    print(f"written: {folder}", flush=True)


def _print_classes(parts: Parts) -> None:
    counts = {split: parts.data.class_counts(split) for split in parts.data.splits}
    rows = [[name, *[str(counts[split][index]) for split in counts]] for index, name in enumerate(parts.data.classes)]
    print("\nClasses")
    print_table(["class", *counts], rows)


def depth_table(parts: Parts, found: Description) -> tuple[list[str], list[list[str]]]:
    """A row for each depth group, from the stem to the head."""
    exempt, sizes = undecayed(parts.task.model), parts.schedule.sizes
    rows = []
    for group, row in zip(parts.schedule.groups, found.groups, strict=True):
        decays = sum(sizes[name] for name in group.parameters if name not in exempt) / row.parameters
        decay = f"{parts.task.weight_decay:g}" + ("" if decays == 1 else f" of {decays:.1%}")
        rows.append([*_depth_row(row, found.phases, parts.task.base_lr), decay if parts.task.weight_decay else "0"])
    header = ["depth", "group", "first parameter", "parameters", "x lr", "peak lr", "learns in", "weight decay"]
    return header, rows


def _depth_row(row: DepthRow, phases: Sequence[PhaseRow], base: float) -> list[str]:
    learning = [*row.phases, *(f"{name} (partly)" for name in row.partly)]
    scales = [phase.lr_scale for phase in phases if phase.phase_name in {name.partition("[")[0] for name in learning}]
    peak = f"{base * row.lr_factor * max(scales):.3g}" if scales else "frozen"
    factor = f"{row.lr_factor:.3g}"
    return [str(row.depth), row.name, row.first_parameter, f"{row.parameters:,}", factor, peak, ", ".join(learning)]


def phase_table(parts: Parts, found: Description) -> tuple[list[str], list[list[str]]]:
    """A row for each phase, and for each stage of one that walks."""
    costs = phase_costs(parts, found.phases)
    rows = [[*_phase_row(row, parts.task.base_lr), *cost] for row, cost in zip(found.phases, costs, strict=True)]
    header = ["phase", "steps", "or until", "learns", "share", "frost line", "peak lr", "curve", "warm-up"]
    return [*header, "activations a picture", "cost of a full epoch"], rows


def _phase_row(row: PhaseRow, base: float) -> list[str]:
    line = f"{row.frost_line} ({row.frost_line_name})"
    steps = f"{row.start} to {row.end}"
    rate = f"{base * row.lr_scale:.3g}"
    learns = f"{row.parameters:,}"
    return [row.name, steps, row.until, learns, f"{row.share:.1%}", line, rate, row.curve, str(row.warmup)]


def phase_costs(parts: Parts, rows: Sequence[PhaseRow]) -> list[list[str]]:
    """Activation memory and share of a full epoch's operations, for each row; ``~`` where they lie between others."""
    estimator = Estimator(parts.task.model, parts.backbone.preprocessing.size)
    full = estimator.of(frozenset(parts.schedule.sizes))
    count = len(rows)
    measured = sorted({round(place * (count - 1) / (MEASURED - 1)) for place in range(MEASURED)})
    if count <= MEASURED:
        measured = list(range(count))
    costs = {place: estimator.of(rows[place].trainable) for place in measured}
    if full is None or None in costs.values():
        return [["unknown", "unknown"] for _ in rows]
    known = {place: cost for place, cost in costs.items() if cost is not None}
    return [_cost_cells(known, place, full) for place in range(count)]


def _cost_cells(known: dict[int, Cost], place: int, full: Cost) -> list[str]:
    if place in known:
        cost = known[place]
        return [f"{cost.activation_bytes / 1e6:.1f} MB", f"{relative(cost, full):.0%}"]
    below = max(other for other in known if other < place)
    above = min(other for other in known if other > place)
    share = (place - below) / (above - below)
    memory = known[below].activation_bytes * (1 - share) + known[above].activation_bytes * share
    cost_share = relative(known[below], full) * (1 - share) + relative(known[above], full) * share
    return [f"~{memory / 1e6:.1f} MB", f"~{cost_share:.0%}"]


def notes(schedule: FreezeSchedule) -> list[str]:
    """What a person might not expect: stray early tensors for which the backward pass goes to the stem."""
    found = []
    for phase in schedule.phases:
        for stage in phase.stages:
            stray = dragging(schedule.groups, stage.trainable, schedule.sizes)
            if stray:
                found.append(
                    f"phase {phase.name}: the backward pass goes down to depth {stage.frost_line} for "
                    f"{', '.join(stray[:3])}{', ...' if len(stray) > 3 else ''} alone; without "
                    f"{'it' if len(stray) == 1 else 'them'} in freeze.phases.{phase.name}.train it would end earlier."
                )
    return list(dict.fromkeys(found))


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()
