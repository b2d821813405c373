"""The thaw plot: depth groups by optimizer steps, colored by learning rate and white where frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from frostline.reports.figures import DPI, INK, figure_style, write_png, write_svg
from frostline.reports.labels import LABEL_ROWS, fitted, placed_labels, text_width

# light is slow, dark is fast, and white, lighter than all, is frozen
_COLORS = "viridis_r"
_LOG_FROM = 30.0
# inches
_WIDTH = 7.2
_ROW = 0.17
_RIGHT = 0.95
_BOTTOM = 0.72
_ABOVE = 0.32
_NOTE = 0.16
_LABEL_ROW = 0.14


@dataclass(frozen=True)
class ThawPlot:
    """What a thaw plot shows.

    Attributes:
        title: above the figure, such as the run's name; cut where it is wider than the figure.
        groups: G names of depth groups, the stem first; they are drawn from the bottom up.
        edges: S + 1 optimizer steps, rising, which bound S columns; they need not be even.
        rates: ``[G][S]`` learning rates; 0 is frozen.
        marks: the transitions: an optimizer step and the name of the phase that begins there, or an empty name for a
            stage of a walk, which gets a thinner line and no label.
        steps_per_epoch: optimizer steps of an epoch.
        note: below the title, what else a person must know to read the figure; empty for nothing.
    """

    title: str
    groups: Sequence[str]
    edges: Sequence[int]
    rates: Sequence[Sequence[float]]
    marks: Sequence[tuple[int, str]] = field(default_factory=tuple)
    steps_per_epoch: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError where the shapes do not fit."""
        if not self.groups or len(self.rates) != len(self.groups):
            raise ValueError(f"{len(self.groups)} depth groups and {len(self.rates)} rows of learning rates")
        if len(self.edges) < 2 or any(len(row) != len(self.edges) - 1 for row in self.rates):
            raise ValueError(f"{len(self.edges)} edges do not bound the columns of the learning rates")
        if any(left >= right for left, right in pairwise(self.edges)):
            raise ValueError("the edges do not rise")


def thaw_plot(path_png: Path, path_svg: Path, plot: ThawPlot) -> None:
    """Write a thaw plot as PNG (200 dots per inch) and as SVG, each whole or absent; the same plot, the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    with figure_style():
        figure = _figure(plot)
        write_png(path_png, figure)
        write_svg(path_svg, figure)


def _figure(plot: ThawPlot) -> Figure:
    body = min(max(_ROW * len(plot.groups), 1.0), 5.6)
    names = [_shortened(name) for name in plot.groups]
    figure = Figure(figsize=(_WIDTH, _BOTTOM + body + _ABOVE + LABEL_ROWS * _LABEL_ROW), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.2 + max(text_width(figure, name, 7.0) for name in names)
    axes = _axes(figure, left, _BOTTOM, _WIDTH - left - _RIGHT, body)
    mesh = _draw_rates(axes, plot)
    _draw_groups(axes, names, body)
    _draw_steps(axes, plot)
    rows = _draw_marks(axes, plot, _WIDTH - left - _RIGHT, body)
    _draw_scale(figure, mesh, body)
    top = _BOTTOM + body + rows * _LABEL_ROW + _ABOVE + (_NOTE if plot.note else 0)
    _resize(figure, top)
    _draw_title(figure, plot, left, top)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes placed in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _resize(figure: Figure, height: float) -> None:
    """Cut the figure to ``height`` inches from its top; what is drawn keeps its size."""
    before = figure.get_size_inches()[1]
    boxes = [axes.get_position() for axes in figure.axes]
    figure.set_size_inches(_WIDTH, height)
    for axes, box in zip(figure.axes, boxes, strict=True):
        axes.set_position((box.x0, box.y0 * before / height, box.width, box.height * before / height))


def _draw_rates(axes: Axes, plot: ThawPlot) -> QuadMesh:
    rates = np.ma.masked_less_equal(np.asarray(plot.rates, dtype=np.float64), 0.0)
    rows = np.arange(len(plot.groups) + 1)
    # an image within the SVG: cells as paths would be large, with seams between them
    mesh = axes.pcolormesh(
        np.asarray(plot.edges), rows, rates, cmap=_COLORS, norm=_norm(rates), rasterized=True, shading="flat"
    )
    axes.set_facecolor("white")
    axes.set_xlim(plot.edges[0], plot.edges[-1])
    axes.set_ylim(0, len(plot.groups))
    return mesh


def _norm(rates: NDArray[np.float64]) -> Normalize:
    """Linear from 0, or logarithmic where rates differ much; the tail of a curve that goes to 0 makes no decades."""
    peaks = [float(row.max()) for row in np.ma.asarray(rates) if row.count()]
    if not peaks:
        return Normalize(0.0, 1.0)
    low = max(float(rates.min()), min(peaks) / 10)
    return LogNorm(low, max(peaks)) if max(peaks) / low > _LOG_FROM else Normalize(0.0, max(peaks))


def _draw_groups(axes: Axes, names: Sequence[str], height: float) -> None:
    """Names down the side: all where there is room, else every second, third ..., and always stem and head."""
    stride = math.ceil(0.115 * len(names) / height)
    shown = [*range(0, len(names) - stride, stride), len(names) - 1]
    axes.set_yticks([place + 0.5 for place in shown], [names[place] for place in shown], parse_math=False)
    axes.tick_params(axis="y", length=0 if stride == 1 else 2)
    for row in range(1, len(names)):
        axes.axhline(row, color="0.85", linewidth=0.3)


def _draw_steps(axes: Axes, plot: ThawPlot) -> None:
    """Optimizer steps at the bottom, and epochs below them."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.tick_params(axis="x", length=2.5, pad=2)
    axes.set_xlabel("optimizer step", labelpad=2)
    each: Any = plot.steps_per_epoch
    epochs = axes.secondary_xaxis("bottom", functions=(lambda step: step / each, lambda epoch: epoch * each))
    epochs.spines["bottom"].set_position(("outward", 25))
    several = plot.edges[-1] - plot.edges[0] >= 2 * plot.steps_per_epoch
    epochs.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=several))
    epochs.xaxis.set_major_formatter(FuncFormatter(lambda epoch, _: f"{epoch:g}"))
    epochs.tick_params(axis="x", length=2.5, pad=2)
    epochs.set_xlabel("epoch", labelpad=2)


def _draw_marks(axes: Axes, plot: ThawPlot, width: float, height: float) -> int:
    """Lines at the transitions and names of phases above; the number of rows that the names take."""
    first, last = plot.edges[0], plot.edges[-1]
    marks = [(step, label) for step, label in sorted(plot.marks) if first <= step <= last]
    labels = placed_labels(
        axes, [((step - first) / (last - first) * width, label) for step, label in marks], width, _RIGHT
    )
    placing = blended_transform_factory(axes.transData, axes.transAxes)
    for (step, name), label in zip(marks, labels, strict=True):
        top = 1.0
        if label is not None:
            top += (label.row * _LABEL_ROW + 0.15) / height
            place = (label.start / width, 1 + (label.row * _LABEL_ROW + 0.08) / height)
            axes.text(*place, label.text, transform=axes.transAxes, fontsize=7.0, color=INK, parse_math=False)
        if (
            name and first < step < last
        ):  # a light seam, so that the line shows between dark fields; white would be frozen
            axes.axvline(step, color="0.8", linewidth=1.6)
        color, line = (INK, 0.8) if name else ("0.45", 0.4)
        axes.plot([step, step], [0, top], transform=placing, color=color, linewidth=line, clip_on=False)
    return max((label.row + 1 for label in labels if label is not None), default=0)


def _draw_scale(figure: Figure, mesh: QuadMesh, height: float) -> None:
    """The color bar with its unit, and a white field below for what is frozen."""
    left = _WIDTH - _RIGHT + 0.12
    field_height = 0.12
    bar = _axes(figure, left, _BOTTOM + field_height + 0.1, 0.11, height - field_height - 0.1)
    scale = figure.colorbar(mesh, cax=bar, extend="min" if _reaches_below(mesh) else "neither")
    scale.set_label("learning rate", labelpad=3)
    scale.outline.set_linewidth(0.6)
    bar.tick_params(length=2, pad=2)
    bar.yaxis.set_minor_locator(NullLocator())
    if isinstance(mesh.norm, LogNorm):
        bar.yaxis.set_major_locator(FixedLocator(_log_ticks(mesh.norm)))
        bar.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
    else:
        bar.yaxis.set_major_locator(MaxNLocator(4))
        bar.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    frozen = _axes(figure, left, _BOTTOM, 0.11, field_height)
    frozen.set_xticks([])
    frozen.set_yticks([0.5], ["frozen"])
    frozen.yaxis.tick_right()
    frozen.tick_params(length=0, pad=3)
    frozen.set_ylim(0, 1)


def _reaches_below(mesh: QuadMesh) -> bool:
    """Whether some learning rate is below the scale, such as the end of a cosine."""
    rates: Any = mesh.get_array()
    return bool((rates.compressed() < (mesh.norm.vmin or 0.0)).any())


def _log_ticks(norm: LogNorm) -> list[float]:
    """Powers of ten within the scale: every second, third ... where there are many, threefold ones where few."""
    low, high = math.log10(norm.vmin or 1.0), math.log10(norm.vmax or 1.0)
    stride = math.ceil((high - low) / 8)
    powers = range(math.floor(high + 1e-9), math.floor(low) - 1, -stride)
    ticks = [multiple * 10.0**power for power in powers for multiple in ((1, 3) if high - low < 2.5 else (1,))]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _draw_title(figure: Figure, plot: ThawPlot, left: float, top: float) -> None:
    across, room = left / _WIDTH, _WIDTH - left - 0.1
    title = fitted(figure, plot.title, room, size=9.0)
    figure.text(across, 1 - 0.2 / top, title, fontsize=9.0, color=INK, parse_math=False)
    note = fitted(figure, plot.note, room, size=8.0)
    at = 1 - (0.2 + _NOTE) / top
    figure.text(across, at, note, fontsize=8.0, color="0.4", style="italic", parse_math=False)


def _shortened(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
