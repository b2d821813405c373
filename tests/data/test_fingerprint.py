from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from frostline.data import FolderData


def of(root: Path) -> str:
    return FolderData(str(root)).fingerprint()


def test_equal_for_a_copy_elsewhere_and_different_for_any_change(make_tree: Callable[..., Path]) -> None:
    counts = {"train/a": 4, "train/b": 4}
    first, second = make_tree(counts, "one"), make_tree(counts, "two")
    os.utime(second / "train/a/00.jpg", (0, 0))
    assert of(first) == of(second)
    assert len(of(first)) == 64
    seen = {of(first)}
    Image.new("RGB", (50, 50)).save(second / "train/a/00.jpg")
    seen.add(of(second))
    (second / "train/a/01.jpg").rename(second / "train/b/01b.jpg")
    seen.add(of(second))
    (second / "train/b").rename(second / "train/c")
    seen.add(of(second))
    assert len(seen) == 4


def test_depends_on_the_part_that_is_used(make_tree: Callable[..., Path]) -> None:
    root = str(make_tree({"train/a": 6, "train/b": 6}))
    settings = [{}, {"split_seed": 1}, {"labels_per_class": 2}, {"fraction": 0.5}]
    assert len({FolderData(root, **setting).fingerprint() for setting in settings}) == 4
