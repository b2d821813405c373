"""The picture sheet: a row for each class, a picture of it as evaluation sees it, and as training does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from PIL import Image

from frostline.reports.figures import DPI, INK, figure_style, write_png
from frostline.reports.labels import fitted, text_width

Pixels = npt.NDArray[np.uint8]

# pixels; the longer side of a picture, and the narrowest column that holds its head
_SIDE, _COLUMN, _GAP = 160, 120, 8
_FRAME = 200  # of 255, gray
_PLAIN = "DejaVu Sans"
# of those that come with systems and browsers, with the letters that the font above lacks
_OTHERS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAexGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)
# longer names are cut before they are measured, and then to the room of their column in inches
_LONGEST_NAME, _NAME_ROOM = 60, 1.5


@dataclass(frozen=True)
class SheetRow:
    """The pictures of a class: ``[H, W, 3]`` uint8 each, one for each column; none where none could be read."""

    name: str
    pictures: Sequence[Pixels]


@dataclass(frozen=True)
class PictureSheet:
    """What a picture sheet shows.

    Attributes:
        title: above the sheet, cut where it is wider than that.
        notes: lines below the title.
        columns: the head of each column.
        apart: the first so many columns stand a little apart.
        rows: one for each class; all pictures are of one size.
    """

    title: str
    notes: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[SheetRow]
    apart: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError where the shapes do not fit."""
        if any(len(row.pictures) not in (0, len(self.columns)) for row in self.rows):
            raise ValueError(f"a row has other than {len(self.columns)} pictures")
        if len({picture.shape for row in self.rows for picture in row.pictures}) > 1:
            raise ValueError("the pictures are not of one size")


def picture_sheet(path: Path, sheet: PictureSheet) -> None:
    """Write a picture sheet as PNG, whole or absent.

    Pictures of up to 160 pixels are enlarged by a whole number, so that each of their pixels is a square of one color;
    larger ones are reduced to 160.

    Raises:
        OSError: the file cannot be written.
    """
    with figure_style():
        write_png(path, _figure(sheet))


def shown_side(height: int, width: int) -> int:
    """The longer side in pixels that a picture of this size has on a sheet."""
    longer = max(height, width)
    return longer * (_SIDE // longer) if longer <= _SIDE else _SIDE


def _figure(sheet: PictureSheet) -> Figure:
    canvas, lefts, tops = _canvas(sheet)
    rows, width = canvas.shape[0] / DPI, canvas.shape[1] / DPI
    top = 0.5 + 0.16 * len(sheet.notes)
    # as the figure is not yet sized, this one only measures
    names, room = _names(sheet)
    margin = 0.12
    across, up = 2 * margin + room + width, top + rows + margin
    figure = Figure(figsize=(across, up), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = margin + room
    figure.figimage(canvas, xo=round(left * DPI), yo=round(margin * DPI), origin="upper")
    for head, at in zip(sheet.columns, lefts, strict=True):
        place = (left + (at + _box(sheet)[1] / 2) / DPI) / across
        _text(figure, place, 1 - (top - 0.06) / up, drawable(head), 7.0, ha="center", va="bottom")
    for name, at in zip(names, tops, strict=True):
        _text(figure, (left - 0.06) / across, 1 - (top + at / DPI) / up, name, 7.0, ha="right", va="center")
    texts = [(sheet.title, 9.0, INK), *((note, 7.0, "0.4") for note in sheet.notes)]
    for line, (text, size, color) in enumerate(texts):
        shown = fitted(figure, drawable(text[:300]), across - 2 * margin, size=size)
        _text(figure, margin / across, 1 - (0.2 + 0.16 * line) / up, shown, size, color=color)
    return figure


def _text(figure: Figure, x: float, y: float, text: str, size: float, **how: Any) -> None:
    how = {"color": INK, **how}
    figure.text(x, y, text, fontsize=size, family=[_PLAIN, *_other_fonts()], parse_math=False, **how)


def _names(sheet: PictureSheet) -> tuple[list[str], float]:
    """The names of the rows as they are drawn, and the room that they take in inches."""
    figure = Figure(dpi=DPI)
    FigureCanvasAgg(figure)
    cut = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in _row_names(sheet)]
    names = [fitted(figure, drawable(name), _NAME_ROOM) for name in cut]
    return names, 0.06 + max((text_width(figure, name, 7.0) for name in names), default=0.0)


def _row_names(sheet: PictureSheet) -> list[str]:
    return [row.name if row.pictures else f"{row.name} (none readable)" for row in sheet.rows]


def _canvas(sheet: PictureSheet) -> tuple[Pixels, list[int], list[int]]:
    """All pictures on white, the left of each column and the middle of each row in pixels."""
    height, width = _box(sheet)
    lefts = [
        1 + column * (width + _GAP) + (2 * _GAP if column >= sheet.apart else 0) for column in range(len(sheet.columns))
    ]
    tops = [1 + row * (height + _GAP) for row in range(len(sheet.rows))]
    canvas = np.full((tops[-1] + height + 1, lefts[-1] + width + 1, 3), 255, dtype=np.uint8)
    for row, top in zip(sheet.rows, tops, strict=True):
        for picture, left in zip(row.pictures, lefts, strict=False):
            shown = _shown(picture)
            x = left + (width - shown.shape[1]) // 2
            # a line around it, in the gap: a picture may be white
            canvas[top - 1 : top + shown.shape[0] + 1, x - 1 : x + shown.shape[1] + 1] = _FRAME
            canvas[top : top + shown.shape[0], x : x + shown.shape[1]] = shown
    return canvas, lefts, [top + height // 2 for top in tops]


def _box(sheet: PictureSheet) -> tuple[int, int]:
    """Height and width in pixels of the place of a picture."""
    some = next((row.pictures[0] for row in sheet.rows if row.pictures), np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8))
    height, width, _ = _shown(some).shape
    return height, max(width, _COLUMN)


def _shown(picture: Pixels) -> Pixels:
    height, width, _ = picture.shape
    longer = max(height, width)
    if longer <= _SIDE:
        return picture.repeat(_SIDE // longer, axis=0).repeat(_SIDE // longer, axis=1)
    size = max(1, round(width * _SIDE / longer)), max(1, round(height * _SIDE / longer))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def drawable(text: str) -> str:
    """``text`` with the characters that no font here has as escapes: matplotlib would warn and draw boxes."""
    known = _characters()
    escaped = (char.encode("unicode_escape").decode("ascii") for char in text)
    return "".join(
        char if char.isprintable() and ord(char) in known else escape
        for char, escape in zip(text, escaped, strict=True)
    )


@functools.cache
def _other_fonts() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _OTHERS if name in installed)


@functools.cache
def _characters() -> frozenset[int]:
    fonts = [get_font(findfont(name)) for name in (_PLAIN, *_other_fonts())]
    return frozenset(code for font in fonts for code in font.get_charmap())
