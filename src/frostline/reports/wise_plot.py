"""The picture of a path through weight space: a score on validation from the start of a run to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from frostline.reports.figures import DPI, INK, figure_style, write_png, write_svg
from frostline.reports.labels import fitted

_LINE, _STAR = "#31688e", "#c0392b"
# inches
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 3.4, 2.1, 0.62, 0.15, 0.45, 0.62


@dataclass(frozen=True)
class WisePlot:
    """What is drawn.

    Attributes:
        alphas: shares of the end, rising.
        scores: on validation, one for each.
        selected: the place of the selected one.
        score: what the vertical axis shows.
        title, note: above.
    """

    alphas: Sequence[float]
    scores: Sequence[float]
    selected: int
    score: str
    title: str
    note: str = ""


def wise_plot(png: Path, svg: Path, plot: WisePlot) -> None:
    """Write the picture as PNG, 200 dots per inch, and as SVG, each whole or absent.

    Raises:
        OSError: a file cannot be written.
    """
    with figure_style():
        figure = _figure(plot)
        write_png(png, figure)
        write_svg(svg, figure)


def _figure(plot: WisePlot) -> Figure:
    width, height = _LEFT + _WIDTH + _RIGHT, _BOTTOM + _HEIGHT + _TOP
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, _WIDTH / width, _HEIGHT / height))
    axes.plot(plot.alphas, plot.scores, color=_LINE, linewidth=1.2, marker="o", markersize=3)
    place = plot.selected
    star = axes.plot(
        plot.alphas[place], plot.scores[place], marker="*", markersize=9, color=_STAR, linestyle="none", zorder=5
    )
    axes.legend(star, [f"selected: {plot.alphas[place]:g}"], loc="best", frameon=False, fontsize=7.0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of the fine-tuned backbone (0: as pre-trained)", labelpad=2)
    axes.set_ylabel(f"{plot.score} on validation")
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    room = width - _LEFT - 0.1
    title, note = fitted(figure, plot.title, room, size=9.0), fitted(figure, plot.note, room, size=7.0)
    figure.text(_LEFT / width, 1 - 0.2 / height, title, fontsize=9.0, color=INK, parse_math=False)
    figure.text(_LEFT / width, 1 - 0.35 / height, note, fontsize=7.0, color="0.4", style="italic", parse_math=False)
    return figure
