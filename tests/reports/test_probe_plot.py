from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from frostline.reports import ProbePanel, ProbePlot, probe_plot

SEEDS = {0.0: {1e-3: [0.7, 0.8], 1e-2: [0.9, 0.9]}, 0.1: {1e-3: [0.6, 0.6], 1e-2: [0.8, 0.9]}}
RED = np.array([192, 57, 43])


def drawn(path: Path, *panels: ProbePanel) -> np.ndarray:
    probe_plot(path, ProbePlot(panels, "accuracy", "Probe of <b> $x$", "a note that is cut where it is too long " * 9))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def has_star(pixels: np.ndarray) -> bool:
    return bool((np.abs(pixels - RED).sum(axis=2) < 6).any())


def test_a_panel_for_each_choice_and_a_star_on_the_selected_head(tmp_path: Path) -> None:
    one = ProbePanel("last", SEEDS, {"best knn": 0.85, "best logistic": 0.95})
    narrow = drawn(tmp_path / "one.png", one)
    wide = drawn(tmp_path / "two.png", one, ProbePanel("pooled", SEEDS, best=(1e-2, 0.9)))
    assert wide.shape[1] > narrow.shape[1] + 300
    assert not has_star(narrow)
    assert has_star(wide)
    assert not list(tmp_path.glob(".*"))


def test_the_same_plot_is_the_same_file(tmp_path: Path) -> None:
    panel = ProbePanel("last", {0.0: {1e-3: [0.5]}})
    drawn(tmp_path / "a.png", panel)
    drawn(tmp_path / "b.png", panel)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_references_alone_can_be_drawn(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", ProbePanel("last", {}, {"best knn": 0.5}))
