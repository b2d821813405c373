from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from frostline.reports import ComparisonPlot, PlottedRow, comparison_plot
from frostline.reports.comparison_plot import _figure
from frostline.reports.figures import figure_style

PLOT = ComparisonPlot(
    "test/accuracy",
    (
        PlottedRow("freeze=$full$ & <co>", 0.9, (0.88, 0.92), (0.89, 0.9, 0.91), best=True, paper=0.85),
        PlottedRow("lp_ft", 0.89, (0.86, 0.92), (0.88, 0.9), tied=True),
        PlottedRow("a name that is far too long to stand beside a plot, " * 4, 0.7, None, (0.7,)),
    ),
    note="bars: 95 % interval",
)


def test_each_row_has_its_mean_its_bar_and_its_runs() -> None:
    with figure_style():
        (axes,) = _figure(PLOT).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in axes.lines]
    assert ([0.88, 0.92], [0, 0], "None") in drawn
    assert ([0.86, 0.92], [1, 1], "None") in drawn
    for place, row in enumerate(PLOT.rows):
        assert ([row.mean], [place], "o") in drawn
        (dots,) = [ys for xs, ys, marker in drawn if xs == list(row.values) and marker == "o" and ys != [place]]
        assert all(0 < abs(y - place) < 0.5 for y in dots)
    assert ([0.85], [0], "D") in drawn
    assert sum(marker == "D" for _, _, marker in drawn) == 1
    top, bottom = axes.transData.transform([(0.9, 0), (0.9, 2)])[:, 1]
    assert top > bottom, "the first row is above"


def test_names_are_text_cut_to_the_figure_and_the_best_is_bold(tmp_path: Path) -> None:
    with figure_style():
        (axes,) = _figure(PLOT).axes
        labels = axes.get_yticklabels()
        assert [label.get_fontweight() for label in labels] == ["bold", "normal", "normal"]
        assert [label.get_text() for label in labels][:2] == ["freeze=$full$ & <co>", "lp_ft †"]
        assert labels[2].get_text().endswith("…")
        assert min(label.get_window_extent().x0 for label in labels) >= 0


def test_the_files_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        comparison_plot(tmp_path / f"{name}.png", tmp_path / f"{name}.svg", PLOT)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())
    assert "freeze=$full$ & <co>" in text
    assert "test/accuracy" in text
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (1440, pytest.approx(350, abs=40))
