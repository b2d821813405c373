"""The picture of a probe: a score on validation by learning rate, a line for each weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frostline.reports.figures import DPI, INK, figure_style, write_png
from frostline.reports.labels import fitted

_COLORS = "viridis_r"
# inches
_PANEL, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP, _GAP = 2.5, 2.1, 0.62, 1.75, 0.45, 0.62, 0.15


@dataclass(frozen=True)
class ProbePanel:
    """The heads of one choice of features.

    Attributes:
        name: of the choice.
        lines: weight decay to learning rate to the score of each seed.
        references: name to the score of what has no learning rate.
        best: learning rate and score of the selected head, if it is one of these.
    """

    name: str
    lines: Mapping[float, Mapping[float, Sequence[float]]]
    references: Mapping[str, float] = field(default_factory=dict)
    best: tuple[float, float] | None = None


@dataclass(frozen=True)
class ProbePlot:
    """What is drawn.

    Attributes:
        panels: at least one, side by side.
        score: what the vertical axis shows.
        title, note: above.
    """

    panels: Sequence[ProbePanel]
    score: str
    title: str
    note: str = ""


def probe_plot(path: Path, plot: ProbePlot) -> None:
    """Write the picture as PNG, 200 dots per inch, whole or absent.

    Raises:
        OSError: the file cannot be written.
    """
    with figure_style():
        write_png(path, _figure(plot))


def _figure(plot: ProbePlot) -> Figure:
    count = len(plot.panels)
    width, height = _LEFT + count * _PANEL + (count - 1) * _GAP + _RIGHT, _BOTTOM + _HEIGHT + _TOP
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    colors = _colors(plot)
    first: Axes | None = None
    for place, panel in enumerate(plot.panels):
        left = _LEFT + place * (_PANEL + _GAP)
        box = (left / width, _BOTTOM / height, _PANEL / width, _HEIGHT / height)
        axes = figure.add_axes(box, sharey=first) if first is not None else figure.add_axes(box)
        _draw(axes, panel, colors)
        if first is None:
            first = axes
            axes.set_ylabel(f"{plot.score} on validation")
        else:
            axes.tick_params(labelleft=False)
    assert first is not None
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="upper left",
        bbox_to_anchor=(1 - (_RIGHT - 0.08) / width, (_BOTTOM + _HEIGHT) / height),
        frameon=False,
        fontsize=7.0,
        borderaxespad=0.0,
    )
    room = width - _LEFT - 0.1
    title, note = fitted(figure, plot.title, room, size=9.0), fitted(figure, plot.note, room, size=7.0)
    figure.text(_LEFT / width, 1 - 0.2 / height, title, fontsize=9.0, color=INK, parse_math=False)
    figure.text(_LEFT / width, 1 - 0.35 / height, note, fontsize=7.0, color="0.4", style="italic", parse_math=False)
    return figure


def _colors(plot: ProbePlot) -> dict[float, tuple[float, ...]]:
    decays = sorted({decay for panel in plot.panels for decay in panel.lines})
    map_ = matplotlib.colormaps[_COLORS]
    # the light end of the map does not show on white
    return {decay: map_(0.25 + 0.75 * place / max(len(decays) - 1, 1)) for place, decay in enumerate(decays)}


def _draw(axes: Axes, panel: ProbePanel, colors: Mapping[float, tuple[float, ...]]) -> None:
    for place, (decay, by_rate) in enumerate(sorted(panel.lines.items())):
        rates = sorted(by_rate)
        means = [sum(by_rate[rate]) / len(by_rate[rate]) for rate in rates]
        label = f"weight decay {decay:g}"
        # a line that lies on another one leaves its border
        width = 1.0 + 1.2 * (len(panel.lines) - 1 - place)
        axes.plot(rates, means, color=colors[decay], linewidth=width, marker="o", markersize=width + 1.5, label=label)
        if any(len(scores) > 1 for scores in by_rate.values()):
            low, high = [min(by_rate[rate]) for rate in rates], [max(by_rate[rate]) for rate in rates]
            axes.fill_between(rates, low, high, color=colors[decay], alpha=0.15, linewidth=0)
    for (name, score), style in zip(sorted(panel.references.items()), ("--", ":"), strict=False):
        axes.axhline(score, color="0.35", linewidth=0.8, linestyle=style, label=name)
    if panel.best is not None:
        axes.plot(*panel.best, marker="*", markersize=8, color="#c0392b", linestyle="none", label="selected", zorder=5)
    if panel.lines:
        axes.set_xscale("log")
    axes.set_xlabel("learning rate", labelpad=2)
    axes.set_title(panel.name, fontsize=8.0, loc="left", pad=3, parse_math=False)
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
