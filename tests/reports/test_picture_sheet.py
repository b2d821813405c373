from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline.reports import PictureSheet, SheetRow, picture_sheet
from frostline.reports.picture_sheet import _canvas, drawable, shown_side

COLUMNS = ("evaluation", "epoch 0", "epoch 1")
NAMES = ("plain", "Straße é ñ", "日本 狐", "a" * 500, "a=1, $b^2$ {c}", "line\nend\t", "\udcff\x07", "", "🦊")


def pictures(height: int, width: int, count: int = len(COLUMNS)) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8) for seed in range(count)]


def sheet(height: int = 32, width: int = 32, names: tuple[str, ...] = ("a", "b")) -> PictureSheet:
    rows = [SheetRow(name, pictures(height, width)) for name in names]
    return PictureSheet("a title", ["a note"], COLUMNS, rows)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (160, 100), (100, 160)])
def test_each_pixel_is_a_square_of_its_color(tmp_path: Path, height: int, width: int) -> None:
    shown = sheet(height, width)
    picture_sheet(tmp_path / "sheet.png", shown)
    with Image.open(tmp_path / "sheet.png") as file:
        pixels = np.asarray(file.convert("RGB"))
    times = 160 // max(height, width)
    for one in shown.rows[1].pictures:
        large = one.repeat(times, axis=0).repeat(times, axis=1)
        corners = np.argwhere((pixels[: -len(large), : -large.shape[1]] == large[0, 0]).all(axis=2))
        assert any(
            np.array_equal(pixels[y : y + large.shape[0], x : x + large.shape[1]], large) for y, x in corners.tolist()
        )


@pytest.mark.parametrize(("height", "width"), [(224, 224), (600, 300), (1, 1), (2, 900)])
def test_any_size_of_input_fits(tmp_path: Path, height: int, width: int) -> None:
    picture_sheet(tmp_path / "sheet.png", sheet(height, width))
    with Image.open(tmp_path / "sheet.png") as file:
        assert 300 < file.width < 1000
    assert shown_side(height, width) <= 160
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_names_in_any_letters_are_drawn_and_long_ones_cut(tmp_path: Path) -> None:
    # warnings, such as that of a glyph that is missing, are errors here
    picture_sheet(tmp_path / "all.png", sheet(names=NAMES))
    with Image.open(tmp_path / "all.png") as file:
        assert file.width < 1200
    assert drawable("Straße $b$") == "Straße $b$"
    assert drawable("a\nb\udcff\U000f0000") == "a\\nb\\udcff\\U000f0000"


def test_a_class_without_a_picture_has_an_empty_row(tmp_path: Path) -> None:
    rows = [SheetRow("a", []), SheetRow("b", pictures(32, 32))]
    canvas, lefts, middles = _canvas(PictureSheet("t", [], COLUMNS, rows))
    assert (canvas[: middles[0] + 70] == 255).all()
    assert not (canvas[middles[1] - 70 :, : lefts[1] - 20] == 255).all()
    picture_sheet(tmp_path / "sheet.png", PictureSheet("t", [], COLUMNS, rows))
    picture_sheet(tmp_path / "none.png", PictureSheet("t", [], COLUMNS, rows[:1]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="other than 3 pictures"):
        PictureSheet("t", [], COLUMNS, [SheetRow("a", pictures(8, 8, 2))])
    with pytest.raises(ValueError, match="not of one size"):
        PictureSheet("t", [], COLUMNS, [SheetRow("a", [*pictures(8, 8, 2), *pictures(8, 9, 1)])])
