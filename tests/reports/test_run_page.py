from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from pages import Page, assert_loads_nothing, chromium, overflow_at, title_of
from PIL import Image

from frostline.reports import (
    PAGE_BYTES,
    CellPictures,
    Confusion,
    Judged,
    Line,
    PageTable,
    RunPage,
    Shown,
    heated,
    line_chart,
    reliability_chart,
    run_page,
    thumbnail,
)

EVIL = "<script>alert('x')</script>\"&\x1b\x00\udcff"
BINS = [
    {"from": 0.4, "to": 0.467, "pictures": 3, "confidence": 0.45, "accuracy": 0.33},
    {"from": 0.933, "to": 1.0, "pictures": 2000, "confidence": 0.97, "accuracy": 0.99},
]


def jpeg(side: int = 96) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return thumbnail(Image.fromarray(noise), side)


def page(classes: int = 3, pictures: int = 2) -> RunPage:
    names = [f"{EVIL}{number}" for number in range(classes)]
    counts = np.eye(classes, dtype=int) * 5
    counts[0, 1], counts[1, 0] = 4, 1
    shown = [Shown(EVIL, jpeg())] * pictures
    judged = [Judged(EVIL, names[0], names[1], "90.0%", "1.0%", jpeg(128), jpeg(128))]
    chart = line_chart("loss", [Line(EVIL, [(0, 1.0), (5, 0.5)])], label=EVIL, marks=[(0, EVIL), (3, "")])
    assert chart is not None
    return RunPage(
        title=f"Run {EVIL}",
        facts=[("test accuracy", "90.0 % [80.0, 95.0]"), (EVIL, EVIL)],
        notes=[EVIL],
        what=[("backbone", EVIL)],
        overrides=[EVIL],
        thaw=(b"<svg/>", "image/svg+xml"),
        curves=[chart],
        phases=PageTable("", ["phase", "step"], [[EVIL, "0"]]),
        scores=PageTable("Scores", ["", "test"], [["accuracy", "0.9"]]),
        gap=EVIL,
        classes=PageTable("Classes", ["class", "recall"], [[name, "0.5"] for name in names]),
        confusion=Confusion(
            names, counts.tolist(), [CellPictures(0, 1, 4, shown), CellPictures(1, 0, 1, shown[:1])], EVIL
        ),
        worst=judged * 12,
        uncertain=[Judged(EVIL, names[0], names[0], "34.0%", "34.0%")] * 12,
        pictures_note=EVIL,
        reliability=reliability_chart(BINS, BINS),
        calibration=PageTable("", ["", "as it is"], [["ECE", "0.1"]]),
        calibration_note=EVIL,
        data=[PageTable("Data", ["pictures", "train"], [[EVIL, "3"]])],
        cost=[("training", "3 s")],
        provenance=[("code", EVIL)],
        footer=EVIL,
    )


def written(tmp_path: Path, shown: RunPage) -> Page:
    run_page(tmp_path / "deep" / "report.html", shown)
    return Page(tmp_path / "deep" / "report.html")


def test_it_is_well_formed_loads_nothing_and_shows_what_is_no_markup_as_text(tmp_path: Path) -> None:
    found = written(tmp_path, page())
    assert_loads_nothing(found)
    assert found.all("script") == []
    assert found.text.count("alert('x')") >= 20
    assert "\x1b" not in found.source
    assert "\x00" not in found.source
    # each link leads to something on the page
    ids = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    assert {str(one["href"])[1:] for one in found.all("a")} <= ids


def test_it_begins_with_the_facts_and_keeps_its_order(tmp_path: Path) -> None:
    found = written(tmp_path, page())
    assert found.text.index("test accuracy") < found.text.index("What was run")
    order = [one["id"] for one in found.all("section")]
    assert order == [
        *("what", "training", "scores", "classes", "confusion", "pictures", "calibration", "data", "cost", "provenance")
    ]


def test_what_is_not_known_has_no_place(tmp_path: Path) -> None:
    found = written(tmp_path, RunPage("Run", [("test split", "not scored")]))
    assert found.all("section") == []
    assert "not scored" in found.text


def test_a_hundred_classes_get_pairs_and_no_matrix_and_the_page_stays_small(tmp_path: Path) -> None:
    large = page(classes=100)
    confusion = large.confusion
    assert confusion is not None
    cells = [CellPictures(row, row + 1, 6, [Shown(EVIL, jpeg())] * 6) for row in range(33)]
    counts = np.array(confusion.counts)
    counts[np.arange(99), np.arange(1, 100)] = 6
    found = written(
        tmp_path, RunPage(large.title, large.facts, confusion=Confusion(confusion.classes, counts.tolist(), cells))
    )
    assert "matrix" not in [one.get("class") for one in found.all("table")]
    assert len([one for one in found.all("a") if str(one["href"]).startswith("#cell-")]) == 30
    assert len(found.source.encode()) < PAGE_BYTES
    assert confusion.pairs[0][:3] == (0, 1, 4)


def test_chart_of_nothing_is_none_and_of_one_point_is_one() -> None:
    assert line_chart("loss", [Line("a", []), Line("b", [(0, float("nan"))])], label="step") is None
    single = line_chart("loss", [Line("a", [(3, 1.0)])], label="step")
    assert isinstance(single, Markup)
    assert "nan" not in single
    long = line_chart("loss", [Line("a", [(step, 1 / (step + 1)) for step in range(50_000)])], label="step")
    assert long is not None
    assert len(long) < 20_000


def test_a_small_picture_is_enlarged_and_heat_is_bright_where_it_is_one() -> None:
    tiny = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (8, 4), (9, 9, 9)), 96)))
    assert tiny.size == (96, 48)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    pixels = np.asarray(Image.open(io.BytesIO(heated(np.full((32, 32, 3), 90, np.uint8), heat, 128)))).astype(int)
    assert pixels.shape == (128, 128, 3)
    assert pixels[4:12, -12:-4].sum(axis=2).mean() > 2 * pixels[64:, :64].sum(axis=2).mean()


@pytest.mark.slow
def test_in_a_browser_it_is_quiet_narrow_and_a_cell_shows_its_pictures(tmp_path: Path) -> None:
    run_page(tmp_path / "report.html", page())
    assert "alert" in chromium(tmp_path / "report.html")
    assert overflow_at(tmp_path / "report.html", 360) == 0
    shown = "getComputedStyle(document.querySelector('#cell-0-1')).display"
    assert title_of(chromium(tmp_path / "report.html", probe=shown)) == "none"
    assert title_of(chromium(tmp_path / "report.html", fragment="#cell-0-1", probe=shown)) == "block"
