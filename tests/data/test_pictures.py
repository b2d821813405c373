from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from frostline.data import Augmentation, PicturesData
from frostline.errors import DataError
from frostline.types import Preprocessing


def test_every_picture_below_is_taken_without_a_label(tmp_path: Path) -> None:
    for name in ("a.png", "deep/er/b.png", "deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    data = PicturesData(str(tmp_path), batch_size=2)
    data.load()
    assert [data.splits["train"].name(index) for index in range(3)] == ["a.png", "deep/c.jpg", "deep/er/b.png"]
    assert list(data.splits) == ["train"]
    assert data.notes == ["Skipped 1 hidden or foreign file, such as notes.txt."]
    data.prepare(Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3), Augmentation(), seed=0)
    assert [tuple(batch.images.shape) for batch in data.loader("train", train=True)] == [(2, 3, 8, 8)]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        PicturesData(str(tmp_path)).load()
