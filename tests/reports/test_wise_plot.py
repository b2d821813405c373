from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from frostline.reports import WisePlot, wise_plot

RED = np.array([192, 57, 43])


def stars(path: Path, selected: int) -> np.ndarray:
    """The columns in which the star of the selected share is drawn, left of the legend or in it."""
    plot = WisePlot([0.0, 0.5, 1.0], [0.5, 0.9, 0.8], selected, "accuracy", "From <b> $x$", "a note " * 60)
    wise_plot(path.with_suffix(".png"), path.with_suffix(".svg"), plot)
    with Image.open(path.with_suffix(".png")) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    found: np.ndarray = (np.abs(pixels - RED).sum(axis=2) < 6).any(axis=0).nonzero()[0]
    return found


def test_the_star_is_on_the_selected_share(tmp_path: Path) -> None:
    first, last = stars(tmp_path / "a", 0), stars(tmp_path / "b", 2)
    assert first.min() < last.min()
    assert first.max() < last.max()
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "selected: 0" in text
    assert "accuracy on validation" in text


def test_the_same_plot_is_the_same_file(tmp_path: Path) -> None:
    stars(tmp_path / "a", 1)
    stars(tmp_path / "b", 1)
    for kind in (".png", ".svg"):
        assert (tmp_path / "a").with_suffix(kind).read_bytes() == (tmp_path / "b").with_suffix(kind).read_bytes()
    assert not list(tmp_path.glob(".*"))
