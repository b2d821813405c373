"""What is about to be trained, on the screen before the first step, and the scores after the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from frostline.backbones import Backbone
from frostline.data import ImageData
from frostline.freezing import FreezeSchedule, describe
from frostline.runs.tables import print_table


def announce(data: ImageData, backbone: Backbone, schedule: FreezeSchedule, name: str) -> None:
    """Print data, backbone and phases, a line each."""
    counts = ", ".join(f"{split} {len(pictures)}" for split, pictures in data.splits.items())
    print(f"data      {f'{len(data.classes)} classes' if data.labelled else 'no labels'}; {counts}")
    for note in data.notes:
        print(f"          note: {note}")
    channels, height, width = backbone.preprocessing.size
    print(f"backbone  {name} at {height}x{width}x{channels}; {backbone.report.sentence()}")
    total = sum(schedule.sizes.values())
    for phase in describe(schedule).phases:
        learns = f"{phase.parameters:,} of {total:,} parameters learn ({phase.share:.1%})"
        print(f"phase     {phase.name}: {learns}, steps {phase.start} to {phase.end}", flush=True)


def show_scores(scores: Mapping[str, float], splits: Sequence[str]) -> None:
    """Print a small table of the splits' scores, side by side."""
    metrics = dict.fromkeys(name.partition("/")[2] for name in scores if name.partition("/")[0] in splits)
    rows = [[metric, *[_cell(metric, scores.get(f"{split}/{metric}")) for split in splits]] for metric in metrics]
    print_table(["", *splits], rows)


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if metric == "count" else f"{value:.4f}"
