"""Charts of a page as SVG within it: they take the page's colors, light or dark, and a browser prints them sharp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

_WIDTH, _HEIGHT = 680.0, 210.0
_PAGE = 860.0  # the widest that the page shows a chart
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 26.0, 40.0
_POINTS = 400
_LETTER = 6.6  # pixels of an average letter at the size of labels
_COLORS = 6


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend.
        points: x and y, by rising x; those that are not finite are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False) -> Scale:
        """One on which all of ``values`` lie, with a little room at both ends."""
        low, high = min(values), max(values)
        if log:
            room = (high / low) ** 0.06 if high > low else 2.0
            return cls(low / room, high * room, start, end, log)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within."""
        locator = LogLocator(numticks=most) if self.log else MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
        found = [float(tick) for tick in locator.tick_values(self.low, self.high) if self.low <= tick <= self.high]
        return found if len(found) > 1 or not self.log else [self.low, self.high]


def line_chart(
    title: str, lines: Sequence[Line], *, label: str, marks: Sequence[tuple[float, str]] = (), last: float | None = None
) -> Markup | None:
    """Lines over a common x axis that begins at 0; None where no line has a point.

    Args:
        title: above, on the left.
        lines: up to six.
        label: below the x axis.
        marks: x and a name, for upright lines: where phases begin.
        last: the end of the x axis; None ends it with the last point.
    """
    kept = [Line(line.name, thinned([point for point in line.points if math.isfinite(point[1])])) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return None
    end = max([last or 0.0, *(line.points[-1][0] for line in kept)]) or 1.0
    across = Scale(0.0, end, _LEFT, _WIDTH - _RIGHT)
    up = Scale.over([value for line in kept for _, value in line.points], _HEIGHT - _BOTTOM, _TOP + 18)
    drawn = [*_grid(across, up, label), *_marked(marks, across)]
    for number, line in enumerate(kept):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        drawn.append(f'<polyline class="line c{number % _COLORS}" points="{path}"/>')
        shown = line.points if len(line.points) <= 40 else ()
        drawn += [
            f'<circle class="dot c{number % _COLORS}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6">'
            f"<title>{escape(line.name)}: {y:.4g} at {x:,g}</title></circle>"
            for x, y in shown
        ]
    return _svg(title, [*_legend(title, [line.name for line in kept]), *drawn], _WIDTH, _HEIGHT)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `_POINTS` of them, evenly, the first and the last among them."""
    if len(points) <= _POINTS:
        return list(points)
    stride = (len(points) - 1) / (_POINTS - 1)
    return [points[round(place * stride)] for place in range(_POINTS)]


def reliability_chart(bins: Sequence[dict[str, float]], calibrated: Sequence[dict[str, float]]) -> Markup:
    """Accuracy over confidence in each bin, the counts below, and the diagonal on which both are the same.

    Args:
        bins: as in ``evaluation/SPLIT.json``: ``confidence``, ``accuracy`` and ``pictures``.
        calibrated: the same at the fitted temperature; empty where there is none.
    """
    side, left, top, foot = 300.0, 50.0, 30.0, 64.0
    across, up = Scale(0, 1, left, left + side), Scale(0, 1, top + side, top)
    width, height = left + side + 16, top + side + foot + 58
    drawn = _grid(across, up, "", foot=0, top=top)
    drawn.append(f'<line class="diagonal" x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}"/>')
    named = [("as it is", bins)] + ([("at the temperature", calibrated)] if calibrated else [])
    for number, (name, some) in enumerate(named):
        path = " ".join(f"{across(one['confidence']):.1f},{up(one['accuracy']):.1f}" for one in some)
        drawn.append(f'<polyline class="line c{number}" points="{path}"/>')
        drawn += [
            f'<circle class="dot c{number}" r="3.4" cx="{across(one["confidence"]):.1f}" '
            f'cy="{up(one["accuracy"]):.1f}">'
            f"<title>{name}: {one['pictures']:,} pictures, confidence {one['confidence']:.3f}, "
            f"accuracy {one['accuracy']:.3f}</title></circle>"
            for one in some
        ]
    base = top + side + 24 + foot
    most = max(one["pictures"] for one in bins)
    for one in bins:
        tall = (foot - 14) * one["pictures"] / most
        x, wide = across(one["from"]) + 0.8, side / 15 - 1.6
        drawn.append(
            f'<rect class="amount" x="{x:.1f}" y="{base - tall:.1f}" width="{wide:.1f}" height="{max(tall, 0.8):.1f}">'
            f"<title>{one['pictures']:,} pictures</title></rect>"
        )
        # beside each other they have room for three digits
        if one["pictures"] < 1000:
            drawn.append(
                f'<text class="small" text-anchor="middle" x="{x + wide / 2:.1f}" y="{base - tall - 3:.1f}">'
                f"{one['pictures']}</text>"
            )
    drawn.append(f'<line class="axis" x1="{left}" y1="{base}" x2="{left + side}" y2="{base}"/>')
    drawn.append(
        f'<text class="label" text-anchor="middle" x="{left + side / 2}" y="{base + 18}">confidence; below, pictures'
        " as it is</text>"
    )
    turned = f'transform="rotate(-90)" x="{-(top + side / 2)}" y="13"'
    drawn.append(f'<text class="label" text-anchor="middle" {turned}>accuracy</text>')
    legend = _legend("", [name for name, _ in named])
    return _svg("reliability diagram", [*legend, *drawn], width, height, narrow=True)


@dataclass(frozen=True)
class Dot:
    """A run in a scatter chart: its place, what it is called, and whether it is the best one."""

    x: float
    y: float
    name: str
    key: str
    best: bool = False


def scatter_chart(dots: Sequence[Dot], across: str, up: str, *, log: bool) -> Markup:
    """Runs by one hyper-parameter and their score.

    Args:
        dots: of the runs; with ``log``, x is above 0.
        across: the name of the x axis.
        up: that of the y axis.
        log: whether x is on a logarithmic scale.
    """
    height = 300.0
    x_scale = Scale.over([dot.x for dot in dots], _LEFT, _WIDTH - _RIGHT, log=log)
    y_scale = Scale.over([dot.y for dot in dots], height - _BOTTOM, _TOP)
    drawn = _grid(x_scale, y_scale, across, height=height)
    drawn += [
        f'<circle class="dot run{" best" if dot.best else ""}" data-run="{escape(dot.key)}" cx="{x_scale(dot.x):.1f}" '
        f'cy="{y_scale(dot.y):.1f}" r="5"><title>{escape(dot.name)}: {dot.y:.4g}</title></circle>'
        for dot in dots
    ]
    drawn.append(f'<text class="label" x="4" y="14">{escape(up)}</text>')
    return _svg(f"{up} over {across}", drawn, _WIDTH, height)


@dataclass(frozen=True)
class Axis:
    """An upright axis of parallel coordinates.

    Attributes:
        name: above it.
        ticks: place from 0, the foot, to 1, and what stands there.
    """

    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Thread:
    """A run across the axes: its place on each, from 0 to 1; how good it is among all, from 0 to 1; what it is."""

    places: Sequence[float]
    good: float
    name: str
    key: str


def parallel_chart(axes: Sequence[Axis], threads: Sequence[Thread]) -> Markup:
    """Parallel coordinates: an axis for each hyper-parameter and one for the score, and a line for each run."""
    left, right, top, tall = 30.0, 110.0, 34.0, 250.0
    spans = max(len(axes) - 1, 1)
    # as wide as the page where there are few
    gap = max(150.0, (_PAGE - left - right) / spans)
    width, height = left + gap * spans + right, top + tall + 22
    at = [left + gap * number for number in range(len(axes))]
    drawn = []
    # the best above the others
    for thread in sorted(threads, key=lambda one: one.good):
        points = " ".join(f"{x:.1f},{top + tall * (1 - y):.1f}" for x, y in zip(at, thread.places, strict=True))
        drawn.append(
            f'<polyline class="thread run" data-run="{escape(thread.key)}" style="--rank:{thread.good:.3f}" '
            f'points="{points}"><title>{escape(thread.name)}</title></polyline>'
        )
    for x, axis in zip(at, axes, strict=True):
        drawn.append(f'<line class="axis" x1="{x}" y1="{top}" x2="{x}" y2="{top + tall}"/>')
        drawn.append(f'<text class="label strong" x="{x - 6}" y="18">{escape(_cut(axis.name, gap))}</text>')
        for place, text in axis.ticks:
            y = top + tall * (1 - place)
            drawn.append(f'<line class="axis" x1="{x - 3}" y1="{y:.1f}" x2="{x + 3}" y2="{y:.1f}"/>')
            shown = escape(_cut(text, gap - 12))
            drawn.append(f'<text class="label halo" x="{x + 7}" y="{y + 4:.1f}">{shown}</text>')
    return _svg("parallel coordinates", drawn, width, height)


def _cut(text: str, pixels: float) -> str:
    most = int(pixels / _LETTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _grid(
    across: Scale, up: Scale, label: str, *, height: float = _HEIGHT, foot: float = _BOTTOM, top: float = _TOP
) -> list[str]:
    """Lines and values of both axes."""
    drawn = []
    for tick in up.ticks(5):
        y = up(tick)
        drawn.append(f'<line class="grid" x1="{across.start}" y1="{y:.1f}" x2="{across.end}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="label" text-anchor="end" x="{across.start - 6}" y="{y + 4:.1f}">{tick:.4g}</text>')
    base = up.start
    drawn.append(f'<line class="axis" x1="{across.start}" y1="{base}" x2="{across.end}" y2="{base}"/>')
    for tick in across.ticks(8):
        x = across(tick)
        drawn.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}"/>')
        drawn.append(f'<text class="label" text-anchor="middle" x="{x:.1f}" y="{base + 17}">{tick:,.4g}</text>')
    if label:
        middle = (across.start + across.end) / 2
        drawn.append(f'<text class="label" text-anchor="middle" x="{middle}" y="{height - 6}">{escape(label)}</text>')
    return drawn


def _marked(marks: Sequence[tuple[float, str]], across: Scale) -> list[str]:
    """Upright lines where phases begin, and their names as far as there is room for them."""
    drawn, taken = [], -math.inf
    for at, name in marks:
        x = across(at)
        drawn.append(f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        room = across.end - x - 4
        if name and x > taken and room > 3 * _LETTER:
            shown = _cut(name, room)
            drawn.append(f'<text class="small halo" x="{x + 4:.1f}" y="{_TOP + 10}">{escape(shown)}</text>')
            taken = x + 10 + _LETTER * len(shown)
    return drawn


def _legend(title: str, names: Sequence[str]) -> list[str]:
    drawn, x = [], 4.0
    if title:
        drawn.append(f'<text class="label strong" x="4" y="14">{escape(title)}</text>')
        x = 18 + _LETTER * 1.1 * len(title)
    for number, name in enumerate(names):
        drawn.append(f'<rect class="key c{number % _COLORS}" x="{x:.1f}" y="5" width="16" height="10" rx="2"/>')
        drawn.append(f'<text class="label" x="{x + 21:.1f}" y="14">{escape(name)}</text>')
        x += 36 + _LETTER * len(name)
    return drawn


def _svg(title: str, drawn: Sequence[str], width: float, height: float, *, narrow: bool = False) -> Markup:
    kind = "chart narrow" if narrow else "chart"
    # what is drawn has been escaped where it is someone else's text
    return Markup(
        f'<svg class="{kind}" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">{"".join(drawn)}</svg>'
    )
