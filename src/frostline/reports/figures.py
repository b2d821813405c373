"""What all figures have in common."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from frostline.writing import write_text

INK = "0.15"
DPI = 200
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "frostline",
    "text.usetex": False,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Our style alone: neither a matplotlibrc nor what this process drew before shows, and nothing is left behind."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=DPI, metadata={"Software": "frostline"})
    os.replace(part, path)


def write_svg(path: Path, figure: Figure) -> None:
    """Write a figure as an SVG that is whole or not there; the same figure, the same bytes."""
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=DPI, metadata={"Date": None, "Creator": "frostline"})
    write_text(path, text.getvalue())
