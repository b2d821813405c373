"""``frostline inspect``: what ``train`` would do with this config."""

from __future__ import annotations

import csv
import io
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from frostline.config import save_config
from frostline.features import default_store
from frostline.freezing import (
    Cost,
    DepthRow,
    Estimator,
    FreezeSchedule,
    PhaseRow,
    describe,
    dragging,
    relative,
)
from frostline.optim import undecayed
from frostline.runs.announcing import announce
from frostline.runs.caching import plan_cache
from frostline.runs.class_table import ClassFigures, class_figures, class_records, class_table, imbalance
from frostline.runs.folder import make_folder
from frostline.runs.parts import Parts, build_parts, rank_count, require_monitor
from frostline.runs.sheet import draw_sheet
from frostline.runs.sizes import readable_size
from frostline.runs.tables import print_table
from frostline.runs.thaw import draw_plan, planned_rates, plot_name
from frostline.writing import write_text


def inspect(config: DictConfig) -> None:
    """Print data, depth groups, phases, learning rates and costs, write and draw them; train nothing.

    The folder is ``output/inspect/<date_time>-<name>``: ``config.yaml``, ``classes.csv``, ``depth.csv``,
    ``phases.csv``, ``thaw_plan.png`` and ``.svg``, and ``pictures.png``: what the net sees of a picture of each class.
    The CSV files have the tables' numbers as they are, with fixed names of columns.
    """
    parts = build_parts(config)
    require_monitor(config, len(parts.data.classes), list(parts.data.splits))
    announce(
        parts.data,
        parts.backbone,
        parts.schedule,
        config.backbone.name,
        adapted=parts.adapter.sentence(),
        notes=parts.notes,
        phases=False,
    )
    classes = class_figures(parts, rank_count(config.trainer))
    _print_classes(classes)
    found, weight_decay = describe(parts.schedule), parts.task.weight_decay
    depth, phases = depth_figures(parts, found.groups), phase_figures(parts, found.phases)
    _print("Depth", depth_table(depth, weight_decay))
    _print("Phases", phase_table(phases))
    cached = plan_cache(config, parts, default_store()).sentences(len(parts.data.splits["train"]))
    for name, sentence in cached.items():
        print(f"cached    {name}: {sentence}")
    for note in notes(parts.schedule):
        print(f"note: {note}")
    folder = make_folder(Path(config.output) / "inspect", str(config.name))
    config.folder = str(folder)
    save_config(config, folder / "config.yaml")
    write_text(folder / "classes.csv", _csv(class_records(classes)))
    write_text(folder / "depth.csv", _csv(depth_records(depth, weight_decay)))
    write_text(folder / "phases.csv", _csv(phase_records(phases, cached)))
    draw_plan(folder, parts.schedule, parts.task.base_lr, plot_name(config))
    draw_sheet(folder / "pictures.png", parts, config, plot_name(config))
    print(f"written: {folder}", flush=True)


def _print_classes(figures: Sequence[ClassFigures]) -> None:
    _print("Classes", class_table(figures))
    print(imbalance(figures))


def _print(title: str, table: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}")
    print_table(table[0], table[1:])


@dataclass(frozen=True)
class DepthFigures:
    """A depth group with what no schedule knows alone.

    Attributes:
        row: of the depth table.
        peak_lr: its largest learning rate in the run; 0 where it never learns.
        decayed: the share of what learns in some phase whose weights decay; None where nothing does.
    """

    row: DepthRow
    peak_lr: float
    decayed: float | None


@dataclass(frozen=True)
class PhaseFigures:
    """A phase, or a stage of a walk, with what no schedule knows alone.

    Attributes:
        row: of the phase table.
        peak_lr: the largest learning rate of any depth group in it.
        cost: of a picture; None where it is unknown.
        relative_cost: operations of an epoch as a share of those of full fine-tuning; None where it is unknown.
    """

    row: PhaseRow
    peak_lr: float
    cost: Cost | None
    relative_cost: float | None

    @property
    def estimated(self) -> bool:
        """Whether the cost was not measured for this row, or the row is no more than a plan."""
        return self.row.planned or (self.cost is not None and self.cost.estimated)


def depth_figures(parts: Parts, rows: Sequence[DepthRow]) -> list[DepthFigures]:
    """The depth groups, from the stem to the head."""
    found = planned_rates(parts.schedule, parts.task.base_lr)[1]
    exempt, sizes = undecayed(parts.task.model), parts.schedule.sizes
    return [
        DepthFigures(row, max(rates), _decayed(row.learning, exempt, sizes))
        for row, rates in zip(rows, found, strict=True)
    ]


def _decayed(learning: frozenset[str], exempt: frozenset[str], sizes: Mapping[str, int]) -> float | None:
    if not learning:
        return None
    return sum(sizes[name] for name in learning - exempt) / sum(sizes[name] for name in learning)


def depth_table(figures: Sequence[DepthFigures], weight_decay: float) -> list[list[str]]:
    """The depth groups as a person reads them, below a header."""
    header = ["depth", "group", "first parameter", "parameters", "x lr", "peak lr", "learns in", "decay (share)"]
    return [header, *(_depth_cells(found, weight_decay) for found in figures)]


def _depth_cells(found: DepthFigures, weight_decay: float) -> list[str]:
    row = found.row
    peak = f"{found.peak_lr:.3g}" if found.peak_lr else "frozen"
    decay = "-" if found.decayed is None else f"{weight_decay:g} ({found.decayed:.1%})" if weight_decay else "0"
    name, size = row.first_parameter, f"{row.parameters:,}"
    return [str(row.depth), row.name, name, size, f"{row.lr_factor:.3g}", peak, ", ".join(row.learns_in), decay]


def depth_records(figures: Sequence[DepthFigures], weight_decay: float) -> list[dict[str, Any]]:
    """The depth groups for a program: numbers as they are, None where there is none."""
    return [
        {
            "depth": found.row.depth,
            "group": found.row.name,
            "first_parameter": found.row.first_parameter,
            "parameters": found.row.parameters,
            "lr_factor": found.row.lr_factor,
            "peak_lr": found.peak_lr,
            "phases": "; ".join(found.row.phases),
            "partly": "; ".join(found.row.partly),
            "weight_decay": weight_decay,
            "decayed_share": found.decayed,
        }
        for found in figures
    ]


def phase_figures(parts: Parts, rows: Sequence[PhaseRow]) -> list[PhaseFigures]:
    """The phases and the stages of walks, in order."""
    peaks = phase_peaks(parts, rows)
    estimator = Estimator(parts.task.model, parts.backbone.preprocessing.size)
    full = estimator.of(frozenset(parts.schedule.sizes))
    costs: list[Cost | None] = []
    for _, stages in groupby(rows, key=lambda row: row.phase_name):
        sets = [row.trainable for row in stages]
        costs += estimator.along(sets) or [None] * len(sets)
    return [
        PhaseFigures(row, peak, cost, relative(cost, full) if cost and full else None)
        for row, peak, cost in zip(rows, peaks, costs, strict=True)
    ]


def phase_peaks(parts: Parts, rows: Sequence[PhaseRow]) -> list[float]:
    """The largest learning rate of any depth group in each row; 0 for a row without a step."""
    edges, found = planned_rates(parts.schedule, parts.task.base_lr)
    fastest = [max(column) for column in zip(*found, strict=True)]
    steps = edges[:-1]
    return [max(fastest[bisect_left(steps, row.start) : bisect_left(steps, row.end)], default=0.0) for row in rows]


def phase_table(figures: Sequence[PhaseFigures]) -> list[list[str]]:
    """The phases as a person reads them, below a header; ``~`` is no measurement, or an even spread."""
    header = ["phase", "steps", "or until", "learns", "share", "frost line", "peak lr", "curve", "warm-up"]
    return [[*header, "activations a picture", "cost of a full epoch"], *map(_phase_cells, figures)]


def _phase_cells(found: PhaseFigures) -> list[str]:
    row = found.row
    line, learns = f"{row.frost_line} ({row.frost_line_name})", f"{row.parameters:,}"
    cells = [row.name, _steps(row), row.until, learns, f"{row.share:.1%}", line, f"{found.peak_lr:.3g}", row.curve]
    return [*cells, str(row.warmup), *_cost_cells(found)]


def _steps(row: PhaseRow) -> str:
    """The span of a row; a walk that no clock moves has its first step and its last for certain, and none between."""
    start = "~" if row.planned and row.stage > 1 else ""
    end = "~" if row.planned and row.stage < row.stages else ""
    return f"{start}{row.start} to {end}{row.end}"


def _cost_cells(found: PhaseFigures) -> list[str]:
    if found.cost is None or found.relative_cost is None:
        return ["unknown", "unknown"]
    sign = "~" if found.estimated else ""
    return [f"{sign}{readable_size(found.cost.activation_bytes)}", f"{sign}{found.relative_cost:.0%}"]


def phase_records(figures: Sequence[PhaseFigures], cached: Mapping[str, str]) -> list[dict[str, Any]]:
    """The phases for a program: numbers as they are, None where there is none; ``cached`` as `CachePlan.sentences`."""
    return [
        {
            "phase": found.row.phase_name,
            "stage": found.row.stage,
            "start": found.row.start,
            "end": found.row.end,
            "until": found.row.until,
            "trainable": found.row.parameters,
            "share": found.row.share,
            "frost_line": found.row.frost_line,
            "frost_group": found.row.frost_line_name,
            "peak_lr": found.peak_lr,
            "curve": found.row.curve,
            "warmup": found.row.warmup,
            "activation_bytes": None if found.cost is None else found.cost.activation_bytes,
            "relative_cost": found.relative_cost,
            "estimated": found.estimated,
            "cached": cached[found.row.phase_name],
        }
        for found in figures
    ]


def notes(schedule: FreezeSchedule) -> list[str]:
    """What a person might not expect: stray early tensors for which the backward pass goes to the stem."""
    found = []
    for phase in schedule.phases:
        for stage in phase.stages:
            stray = dragging(schedule.groups, stage.trainable, schedule.sizes, schedule.allowed)
            if stray:
                found.append(
                    f"phase {phase.name}: the backward pass goes down to depth {stage.frost_line} for "
                    f"{', '.join(stray[:3])}{', ...' if len(stray) > 3 else ''} alone; without "
                    f"{'it' if len(stray) == 1 else 'them'} in freeze.phases.{phase.name}.train it would end earlier."
                )
    return list(dict.fromkeys(found))


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
