"""What inspect shows of the classes: their shares, their weights in the loss, and how often they are seen."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frostline.config import compose
from frostline.runs.class_table import SHOWN, ClassFigures, class_figures, class_table, imbalance
from frostline.runs.inspect import inspect
from frostline.runs.parts import Parts, build_parts

TINY = ["backbone.name=test_resnet", "backbone.weights=none", "trainer=cpu", "data.size=32", "data.workers=0"]
COUNTS = {"few": 3, "more": 24, "most": 36}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of very different sizes, with as many for val, and a test split."""
    from PIL import Image

    root = tmp_path_factory.mktemp("uneven")
    generator = np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("val", dict.fromkeys(COUNTS, 2)), ("test", dict.fromkeys(COUNTS, 1))):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def parts(root: Path, tmp_path: Path) -> Callable[..., Parts]:
    def build(*overrides: str) -> Parts:
        config = compose("train", [*TINY, "data=folder", f'data.root="{root}"', *overrides])
        config.folder = str(tmp_path)
        return build_parts(config)

    return build


def test_shares_counts_and_views_without_any_balancing(parts: Callable[..., Parts]) -> None:
    found = class_figures(parts())
    assert [dict(row.counts) for row in found] == [{"train": n, "val": 2, "test": 1} for n in COUNTS.values()]
    assert [row.shares["train"] for row in found] == pytest.approx([3 / 63, 24 / 63, 36 / 63])
    assert [row.weight for row in found] == [None] * 3
    assert [row.views for row in found] == pytest.approx([1, 1, 1])
    assert class_table(found)[0] == ["class", "train", "val", "test"]
    assert class_table(found)[1] == ["few", "3 (4.8%)", "2 (33.3%)", "1 (33.3%)"]


def test_the_weights_are_those_of_the_loss_and_the_views_those_of_the_sampler(parts: Callable[..., Parts]) -> None:
    found = class_figures(parts("class_weights=balanced", "data.sampler=balanced"))
    assert [row.weight for row in found] == pytest.approx([7, 63 / 72, 63 / 108])
    assert [row.an_epoch for row in found] == pytest.approx([21] * 3)
    assert [row.views for row in found] == pytest.approx([7, 21 / 24, 21 / 36])
    assert class_table(found)[0][4:] == ["weight in the loss", "an epoch", "views of each"]
    assert class_table(found)[1][4:] == ["7", "21", "7.00"]


def test_an_epoch_is_that_of_all_processes(parts: Callable[..., Parts]) -> None:
    own = ["data.sampler=balanced", "data.batch_size=10", "data.drop_last=true"]
    # 31 for each of two processes, of which 30 make full batches
    assert [row.an_epoch for row in class_figures(parts(*own), ranks=2)] == pytest.approx([20] * 3)


def figures(*counts: int) -> list[ClassFigures]:
    return [ClassFigures(f"c{index}", {"train": n}, {"train": 0.5}, None, float(n)) for index, n in enumerate(counts)]


def test_the_imbalance_in_a_sentence() -> None:
    assert imbalance(figures(10, 124, 50)) == (
        "imbalance: largest class is 12.4 times the smallest ('c1' has 124 training pictures, 'c0' 10)"
    )
    assert imbalance(figures(7, 7)) == "imbalance: none, 7 training pictures of each class"
    # a class without pictures is told elsewhere, and divides nothing
    assert "2.0 times the smallest" in imbalance(figures(0, 10, 20))


def test_the_middle_of_many_classes_is_left_out_and_said_to_be() -> None:
    assert len(class_table(figures(*range(1, SHOWN + 1)))) == 1 + SHOWN
    header, *rows = class_table(figures(*range(1, 101)))
    assert len(rows) == SHOWN + 1
    assert {len(row) for row in rows} == {len(header)}
    assert [rows[0][0], rows[14][0], rows[16][0], rows[-1][0]] == ["c0", "c14", "c85", "c99"]
    assert rows[15][0] == "... 70 more, in classes.csv ..."


def test_inspect_shows_and_writes_them(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["data=folder", f'data.root="{root}"', "data.sampler=balanced", "class_weights=effective"]
    inspect(compose("inspect", [*TINY, *own, f"output={tmp_path}"]))
    shown = capsys.readouterr().out
    assert "imbalance: largest class is 12.0 times the smallest" in shown
    assert "weight in the loss" in shown
    assert "both even out the classes" in shown
    (folder,) = (tmp_path / "inspect").iterdir()
    with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(COUNTS)
    assert [int(row["train"]) for row in rows] == list(COUNTS.values())
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(3)
    assert [float(row["an_epoch"]) for row in rows] == pytest.approx([21] * 3)
