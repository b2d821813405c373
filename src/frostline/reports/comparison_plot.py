"""Rows of a comparison: mean and interval of each, and every single run as a dot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frostline.reports.figures import DPI, INK, figure_style, write_png, write_svg
from frostline.reports.labels import fitted, text_width

_BEST = "#1f5fa8"
_TIE = "#5b8fc7"
_OTHER = "0.45"
# inches
_WIDTH = 7.2
_ROW = 0.3
_BOTTOM = 0.5
_ABOVE = 0.35
_RIGHT = 0.2
_NAMES = 3.0


@dataclass(frozen=True)
class PlottedRow:
    """One line of the plot.

    Attributes:
        name: what it is; cut where it is too long.
        mean: its place.
        interval: the ends of its bar; None draws none.
        values: of the single runs.
        best: whether it is the best one.
        tied: whether it is not distinguishable from the best one.
        paper: a published value, drawn as a hollow diamond; None draws none.
    """

    name: str
    mean: float
    interval: tuple[float, float] | None
    values: Sequence[float]
    best: bool = False
    tied: bool = False
    paper: float | None = None


@dataclass(frozen=True)
class ComparisonPlot:
    """What a comparison plot shows.

    Attributes:
        metric: the name below the axis.
        rows: from above.
        note: below the title of the axis, such as what the bars are.
    """

    metric: str
    rows: Sequence[PlottedRow]
    note: str = ""


def comparison_plot(path_png: Path, path_svg: Path, plot: ComparisonPlot) -> None:
    """Write a plot as PNG (200 dots per inch) and as SVG, each whole or absent; the same plot, the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    with figure_style():
        figure = _figure(plot)
        write_png(path_png, figure)
        write_svg(path_svg, figure)


def _figure(plot: ComparisonPlot) -> Figure:
    height = _BOTTOM + _ROW * len(plot.rows) + _ABOVE
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    names = [fitted(figure, _named(row), _NAMES) for row in plot.rows]
    left = 0.2 + max(text_width(figure, name, 7.0) for name in names)
    across = _WIDTH - left - _RIGHT
    axes = figure.add_axes((left / _WIDTH, _BOTTOM / height, across / _WIDTH, _ROW * len(plot.rows) / height))
    for place, row in enumerate(plot.rows):
        _draw_row(axes, place, row)
    _finish_axes(axes, plot, names)
    if plot.note:
        text = fitted(figure, plot.note, _WIDTH - 0.3)
        figure.text(0.15 / _WIDTH, 1 - 0.12 / height, text, fontsize=7, color=INK, va="top", parse_math=False)
    return figure


def _named(row: PlottedRow) -> str:
    return f"{row.name} †" if row.tied else row.name


def _draw_row(axes: Axes, place: int, row: PlottedRow) -> None:
    color = _BEST if row.best else _TIE if row.tied else _OTHER
    if row.interval is not None:
        axes.plot(row.interval, (place, place), color=color, linewidth=1.6, solid_capstyle="butt", zorder=2)
        for end in row.interval:
            axes.plot((end, end), (place - 0.12, place + 0.12), color=color, linewidth=1.0, zorder=2)
    # beside the bar in turn, so that equal values do not hide each other
    beside = [place + (0.2 if index % 2 else -0.2) for index in range(len(row.values))]
    axes.plot(row.values, beside, linestyle="", marker="o", markersize=2.4, color=color, alpha=0.55, zorder=1)
    axes.plot([row.mean], [place], linestyle="", marker="o", markersize=5.5, color=color, zorder=3)
    if row.paper is not None:
        axes.plot([row.paper], [place], linestyle="", marker="D", markersize=5, mfc="none", mec=INK, zorder=4)


def _finish_axes(axes: Axes, plot: ComparisonPlot, names: Sequence[str]) -> None:
    axes.set_ylim(len(plot.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(names)))
    for label, name, row in zip(axes.set_yticklabels(names), names, plot.rows, strict=True):
        # a name of a setting may hold a dollar sign
        label.set_parse_math(False)
        label.set_text(name)
        label.set_fontweight("bold" if row.best else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(plot.metric, parse_math=False)
    axes.grid(axis="x", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
