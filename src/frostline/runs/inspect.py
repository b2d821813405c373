"""``frostline inspect``: what ``train`` would do with this config."""

from __future__ import annotations

from omegaconf import DictConfig

from frostline.freezing import DepthRow, PhaseRow, describe
from frostline.runs.announcing import announce
from frostline.runs.parts import build_parts, require_monitor
from frostline.runs.tables import print_table


def inspect(config: DictConfig) -> None:
    """Print data, depth groups, phases and learning rates; nothing is trained and nothing written."""
    parts = build_parts(config)
    require_monitor(config, len(parts.data.classes), list(parts.data.splits))
    announce(parts.data, parts.backbone, parts.schedule, config.backbone.name)
    counts = {split: parts.data.class_counts(split) for split in parts.data.splits}
    rows = [[name, *[str(counts[split][index]) for split in counts]] for index, name in enumerate(parts.data.classes)]
    print("\nClasses")
    print_table(["class", *counts], rows)
    found = describe(parts.schedule)
    base = float(config.optimizer.lr)
    print("\nDepth")
    header = ["depth", "group", "first parameter", "parameters", "peak lr", "learns in"]
    print_table(header, [_depth_row(row, found.phases, base) for row in found.groups])
    print("\nPhases")
    header = ["phase", "steps", "learns", "share", "frost line", "peak lr", "curve", "warm-up steps"]
    print_table(header, [_phase_row(row, base) for row in found.phases])


def _depth_row(row: DepthRow, phases: tuple[PhaseRow, ...], base: float) -> list[str]:
    scales = [phase.lr_scale for phase in phases if phase.name in (*row.phases, *row.partly)]
    peak = f"{base * row.lr_factor * max(scales):.3g}" if scales else "frozen"
    learns = ", ".join([*row.phases, *(f"{name} (partly)" for name in row.partly)])
    return [str(row.depth), row.name, row.first_parameter, f"{row.parameters:,}", peak, learns]


def _phase_row(row: PhaseRow, base: float) -> list[str]:
    line = f"{row.frost_line} ({row.frost_line_name})"
    steps = f"{row.start} to {row.end}"
    rate = f"{base * row.lr_scale:.3g}"
    return [row.name, steps, f"{row.parameters:,}", f"{row.share:.1%}", line, rate, row.curve, str(row.warmup)]
