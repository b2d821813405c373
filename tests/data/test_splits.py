from __future__ import annotations

import importlib
import pkgutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import frostline.data
from frostline.data.decoding import Reduction
from frostline.data.files import FileSplit
from frostline.data.splits import ImageSplit, Joined, Keys, NameTable, SplitView
from frostline.data.stratify import share_of, split_off, subset


class Named(ImageSplit):
    """A split whose pictures are known by their names, and of which there is nothing to see."""

    def __init__(self, names: list[str], labels: list[int]) -> None:
        self._names = names
        self.labels = np.array(labels, dtype=np.int64)

    def order_keys(self) -> Keys:
        return np.array([name.encode() for name in self._names])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (1, 1), (index, 0, 0))

    def name(self, index: int) -> str:
        return self._names[index]


def names_of(split: ImageSplit) -> list[str]:
    return [split.name(index) for index in range(len(split))]


def classes_of(*counts: int) -> Named:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Named([f"{label}/{index}.jpg" for index, label in enumerate(labels)], labels)


def test_split_off_is_stratified_and_loses_nothing() -> None:
    source = classes_of(100, 40, 20)
    parts = split_off(source, {"test": 0.1, "val": 0.15}, seed=0)
    assert {name: np.bincount(part.labels).tolist() for name, part in parts.items()} == {
        "test": [10, 4, 2],
        "val": [15, 6, 3],
        "train": [75, 30, 15],
    }
    assert sorted(name for part in parts.values() for name in names_of(part)) == sorted(names_of(source))


@pytest.mark.parametrize(("count", "expected"), [(1, (0, 0, 1)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 1, 2))])
def test_tiny_classes_keep_a_training_picture(count: int, expected: tuple[int, int, int]) -> None:
    parts = split_off(classes_of(count, 10), {"test": 0.1, "val": 0.1}, seed=0)
    found = tuple(int((parts[name].labels == 0).sum()) for name in ("test", "val", "train"))
    assert found == expected


def test_splits_depend_on_names_and_seed_not_on_listing_order() -> None:
    source = classes_of(30, 30)
    order = np.random.default_rng(0).permutation(60)
    shuffled = Named([source.name(i) for i in order], source.labels[order].tolist())
    first, same, other = (
        set(names_of(split_off(split, {"val": 0.2}, seed=seed)["val"]))
        for split, seed in ((source, 0), (shuffled, 0), (source, 1))
    )
    assert first == same != other


def test_the_split_is_pinned() -> None:
    """A change here moves pictures between the splits of everybody's data sets."""
    assert names_of(split_off(classes_of(10, 10), {"val": 0.2}, seed=0)["val"]) == [
        "0/0.jpg",
        "0/6.jpg",
        "1/17.jpg",
        "1/18.jpg",
    ]


def test_composed_and_decomposed_letters_are_one_name() -> None:
    names = [f"é/{index}.jpg" for index in range(20)]
    composed, decomposed = (
        Named([unicodedata.normalize(form, name) for name in names], [0] * 20) for form in ("NFC", "NFD")
    )
    first, second = (split_off(split, {"val": 0.3}, seed=0)["val"] for split in (composed, decomposed))
    assert names_of(first) == [unicodedata.normalize("NFC", name) for name in names_of(second)]


def test_subsets_are_nested_and_differ_by_seed() -> None:
    source = classes_of(50, 50, 50)
    five, ten, twenty = (set(names_of(subset(source, lambda _, n=n: n, seed=3))) for n in (5, 10, 20))
    assert five < ten < twenty
    assert len(ten) == 30
    assert ten != set(names_of(subset(source, lambda _: 10, seed=4)))


@pytest.mark.parametrize(("share", "total", "expected"), [(0.1, 50, 5), (0.01, 50, 1), (1.0, 50, 50), (0.5, 1, 1)])
def test_share_of_a_class(share: float, total: int, expected: int) -> None:
    assert share_of(share)(total) == expected


def test_a_view_passes_on_what_it_shows() -> None:
    view = SplitView(classes_of(3, 3), np.array([4, 1]))
    assert (len(view), view.labels.tolist(), names_of(view)) == (2, [1, 0], ["1/4.jpg", "0/1.jpg"])
    assert view.image(0).getpixel((0, 0)) == (4, 0, 0)


def test_name_table_gives_back_any_name() -> None:
    names = ["a/b.jpg", "", "löß, = x/1 2.png", "\udcff.jpg", "狐.jpg"]
    table = NameTable(names)
    assert list(table) == names
    with pytest.raises(IndexError):
        table[5]


def test_pictures_are_known_by_content_where_content_is_the_picture(tmp_path: Path) -> None:
    class Crop(FileSplit):
        """Two parts of each file."""

        def image(self, index: int) -> Image.Image:
            return super().image(index // 2)

    class Stored(Crop):
        def content(self, index: int) -> bytes:
            return bytes([index])

    class Half(FileSplit):
        def reduced(self, index: int, reduction: Reduction) -> Image.Image:
            return super().reduced(index // 2, reduction)

    class Part(Named):
        def reduced(self, index: int, reduction: Reduction) -> Image.Image:
            return super().reduced(index // 2, reduction)

    assert not Part([], []).is_known_by_content()

    def made(kind: type[FileSplit]) -> FileSplit:
        return kind(tmp_path, ["a.png", "b.png"], [0, 1])

    known = {kind: made(kind).is_known_by_content() for kind in (FileSplit, Crop, Stored, Half)}
    assert known == {FileSplit: True, Crop: False, Stored: True, Half: False}
    view = SplitView(made(Crop), np.array([0]))
    assert not view.is_known_by_content()
    assert not Joined([made(FileSplit), made(Crop)]).is_known_by_content()
    assert Joined([made(FileSplit), SplitView(made(Stored), np.array([1]))]).is_known_by_content()
    assert classes_of(2).is_known_by_content()


def test_all_of_frostlines_own_are() -> None:
    for module in pkgutil.walk_packages(frostline.data.__path__, "frostline.data."):
        importlib.import_module(module.name)
    kinds = [ImageSplit]
    for kind in kinds:
        kinds += [one for one in kind.__subclasses__() if one.__module__.startswith("frostline.data.")]
    assert {"ArraySplit", "ArrowSplit", "FileSplit", "ItemSplit", "ShardSplit"} <= {kind.__name__ for kind in kinds}
    delegating = {"SplitView", "Joined"}
    for kind in kinds:
        if kind.__name__ not in delegating:
            assert kind.is_known_by_content(object.__new__(kind) if kind is not ImageSplit else Named([], []))
