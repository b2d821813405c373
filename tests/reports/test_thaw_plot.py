from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from frostline.reports import ThawPlot, thaw_plot
from frostline.reports.figures import figure_style
from frostline.reports.thaw_plot import _figure

GROUPS = ("stem", "blocks.0", "blocks.1", "head")
RATES = (
    (0.0, 0.0, 1e-5),
    (0.0, 0.0, 1e-4),
    (0.0, 1e-3, 1e-3),
    (1e-2, 1e-3, 1e-3),
)
PLOT = ThawPlot(
    title="a run <of> $two$ & three",
    groups=GROUPS,
    edges=(0, 10, 15, 40),
    rates=RATES,
    marks=((0, "probe"), (10, "walk & on"), (15, "")),
    steps_per_epoch=5,
    note="plan",
)


def written(folder: Path, plot: ThawPlot, name: str = "thaw") -> tuple[Path, Path]:
    png, svg = folder / "deep" / f"{name}.png", folder / "deep" / f"{name}.svg"
    thaw_plot(png, svg, plot)
    return png, svg


def pixel_of(plot: ThawPlot, row: int, column: int) -> tuple[int, int]:
    """The middle of a cell in the picture."""
    with figure_style():
        figure = _figure(plot)
        axes = figure.axes[0]
        middle = (plot.edges[column] + plot.edges[column + 1]) / 2
        x, y = axes.transData.transform((middle, row + 0.3))
    return int(x), int(figure.bbox.height - y)


def colors(png: Path, plot: ThawPlot) -> list[list[tuple[int, ...]]]:
    with Image.open(png) as picture:
        pixels = picture.convert("RGB")
        return [
            [pixels.getpixel(pixel_of(plot, row, column)) for column in range(len(plot.edges) - 1)]
            for row in range(len(plot.groups))
        ]


@pytest.fixture
def styled() -> Iterator[None]:
    with figure_style():
        yield


def test_white_is_frozen_and_dark_is_fast_with_the_head_on_top(tmp_path):
    png, _ = written(tmp_path, PLOT)
    found = colors(png, PLOT)
    for cells, rates in zip(found, RATES, strict=True):
        assert [cell == (255, 255, 255) for cell in cells] == [rate == 0.0 for rate in rates]
    light = {
        rate: sum(cell) for cells, row in zip(found, RATES, strict=True) for cell, rate in zip(cells, row, strict=True)
    }
    assert light[1e-5] > light[1e-4] > light[1e-3] > light[1e-2]
    assert pixel_of(PLOT, 3, 0)[1] < pixel_of(PLOT, 0, 0)[1]


def test_the_files_are_a_picture_and_a_drawing_with_its_names(tmp_path):
    png, svg = written(tmp_path, PLOT)
    with Image.open(png) as picture:
        assert (picture.format, picture.width) == ("PNG", 1440)
        assert 300 < picture.height < 600
    texts = " ".join(ElementTree.parse(svg).getroot().itertext())
    for name in (
        *GROUPS,
        "probe",
        "walk & on",
        PLOT.title,
        "plan",
        "learning rate",
        "optimizer step",
        "epoch",
        "frozen",
    ):
        assert name in texts
    assert sorted(path.name for path in png.parent.iterdir()) == ["thaw.png", "thaw.svg"]


def test_the_same_plot_gives_the_same_bytes_whatever_the_style_around_it(tmp_path):
    first = [path.read_bytes() for path in written(tmp_path, PLOT)]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x", "lines.linewidth": 9}):
        second = [path.read_bytes() for path in written(tmp_path, PLOT, "again")]
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second
    assert written(tmp_path, replace(PLOT, note="fact"), "other")[1].read_bytes() != first[1]


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("groups", [1, 2, 18, 60, 200])
@pytest.mark.parametrize("edges", [(0, 1), (0, 3, 100_000)])
def test_any_number_of_groups_and_steps_fits(groups, edges):
    names = tuple(f"blocks.{i}.with_a_name_that_is_rather_long" for i in range(groups))
    plot = ThawPlot("t", names, edges, [[1e-3] * (len(edges) - 1)] * groups, ((0, "all"),), 7)
    figure = _figure(plot)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
    assert len(boxes) >= min(groups, 18)
    assert figure.get_size_inches()[1] < 8


@pytest.mark.usefixtures("styled")
def test_names_of_phases_overlap_neither_each_other_nor_a_line():
    steps = (0, 10, 14, 15, 50, 51, 52, 53, 54, 90, 99)
    marks = tuple((step, f"a_rather_long_phase_{step}") for step in steps) + tuple((step, "") for step in range(20))
    plot = ThawPlot("t", GROUPS, tuple(range(101)), [[1e-3] * 100] * 4, marks, 10)
    figure = _figure(plot)
    axes = figure.axes[0]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 6 <= len(boxes) < len(steps)
    for i, box in enumerate(boxes):
        assert box.x1 < figure.bbox.width
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        for line in axes.lines:
            x, y = line.get_transform().transform(line.get_xydata()).T
            assert not (box.x0 < x[0] == x[1] < box.x1 and y.max() > box.y0), (i, x, y, box)
    assert not any(box.overlaps(text.get_window_extent()) for box in boxes for text in figure.texts)


def test_no_phase_line_has_white_beside_it(tmp_path):
    plot = replace(PLOT, edges=(0, 20, 40), rates=[[1e-3, 1e-3]] * 4, marks=((20, "full"),))
    png, _ = written(tmp_path, plot)
    with figure_style():
        figure = _figure(plot)
        x, y = figure.axes[0].transData.transform((20, 1.5))
    with Image.open(png) as picture:
        line = [picture.convert("L").getpixel((int(x) + off, int(figure.bbox.height - y))) for off in range(-8, 9)]
    assert min(line) < 80
    assert max(line) < 235


@pytest.mark.usefixtures("styled")
def test_a_long_title_is_cut_and_a_note_stands_below_it():
    figure = _figure(replace(PLOT, title="a long name " * 20, note="spread evenly here"))
    title, note = (text.get_window_extent() for text in figure.texts)
    assert title.x1 < figure.bbox.width
    assert title.y0 > note.y1 - 2
    assert not any(note.overlaps(text.get_window_extent()) for text in figure.axes[0].texts)


@pytest.mark.parametrize(
    ("rates", "kind", "low", "high"),
    [
        (((1e-3,), (1e-3,)), "Normalize", 0.0, 1e-3),
        (((1e-3, 1e-9), (0.0, 0.0)), "Normalize", 0.0, 1e-3),
        (((1e-3,), (2e-5,)), "LogNorm", 2e-5, 1e-3),
        (((1e-3, 1e-9), (2e-4, 1e-9)), "LogNorm", 2e-5, 1e-3),
        (((0.0,), (0.0,)), "Normalize", 0.0, 1.0),
    ],
)
def test_the_scale_is_logarithmic_where_groups_differ_much(rates, kind, low, high):
    plot = ThawPlot("t", ("stem", "head"), range(len(rates[0]) + 1), rates)
    norm = _figure(plot).axes[0].collections[0].norm
    assert type(norm).__name__ == kind
    assert (norm.vmin, norm.vmax) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"groups": ("stem",)}, "1 depth groups and 4 rows"),
        ({"edges": (0, 10, 15)}, "3 edges do not bound"),
        ({"edges": (0, 10, 10, 40)}, "do not rise"),
        ({"groups": (), "rates": ()}, "0 depth groups"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(PLOT, **change)
