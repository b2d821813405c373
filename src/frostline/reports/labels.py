"""Where the names of phases go above a plot, so that they cover neither each other nor a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# rows of names above each other
LABEL_ROWS = 3


@dataclass(frozen=True)
class Label:
    """The name of a phase above the axes; ``start`` in inches from their left, ``row`` from below."""

    text: str
    start: float
    row: int


def placed_labels(axes: Axes, marks: Sequence[tuple[float, str]], width: float, beyond: float) -> list[Label | None]:
    """A place for each name, right of its line; None for no name, and where there is no room.

    A name that reaches over the next goes above it, so that no line crosses a name.

    Args:
        axes: below the names; nothing is drawn.
        marks: inches from the left of the axes, rising, and a name.
        width: of the axes, in inches.
        beyond: inches to the right of the axes.
    """
    figure = axes.figure.figure
    placed: list[Label | None] = []
    taken: list[tuple[float, int]] = []
    for at, name in reversed(marks):
        text = fitted(figure, name, width + beyond - 0.1 - at)
        end = at + 0.1 + text_width(figure, text, 7.0)
        row = max((row + 1 for start, row in taken if start < end), default=0)
        fits = bool(text) and row < LABEL_ROWS
        placed.append(Label(text, at + 0.03, row) if fits else None)
        if fits:
            taken.append((at, row))
    return placed[::-1]


def fitted(figure: Figure, text: str, room: float, *, size: float = 7.0) -> str:
    """``text``, in letters of ``size`` points, cut at its end to ``room`` inches."""
    kept = text
    while kept and text_width(figure, kept if kept == text else f"{kept}…", size) > room:
        kept = kept[:-1]
    return kept if kept in (text, "") else f"{kept}…"


def text_width(figure: Figure, text: str, size: float) -> float:
    """The width of ``text`` in inches."""
    drawn = figure.text(0, 0, text, fontsize=size, parse_math=False)
    width = drawn.get_window_extent().width / figure.dpi
    drawn.remove()
    return float(width)
