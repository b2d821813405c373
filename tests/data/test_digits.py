from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from frostline.data import DigitsData


def test_the_split_is_the_documented_one() -> None:
    data = DigitsData()
    data.load()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1259, "val": 269, "test": 269}
    assert data.class_counts("test") == data.class_counts("val")
    assert set(data.class_counts("test")) == {26, 27}
    assert data.notes == []
    names = {split.name(index) for split in data.splits.values() for index in range(len(split))}
    assert len(names) == 1797
    first = [data.splits[name].name(0) for name in ("train", "val", "test")]
    assert first == ["digits/0000", "digits/0002", "digits/0001"]


def test_pictures_and_labels_are_those_of_scikit_learn() -> None:
    data = DigitsData()
    found = load_digits()
    data.load()
    for index in range(20):
        number = int(data.splits["val"].name(index).removeprefix("digits/"))
        image = data.splits["val"].image(index)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert np.array_equal(np.asarray(image)[:, :, 1], np.rint(found.images[number] * 255 / 16))
        assert data.splits["val"].labels[index] == found.target[number]


def test_few_labels_leave_evaluation_as_it_is() -> None:
    few, other = DigitsData(labels_per_class=10), DigitsData(labels_per_class=10, subset_seed=1)
    assert few.class_counts("train") == [10] * 10
    assert few.class_counts("val") == DigitsData().class_counts("val")
    few.load(), other.load()
    kept = [{data.splits["train"].name(index) for index in range(100)} for data in (few, other)]
    assert kept[0] != kept[1]
    test = [[data.splits["test"].name(index) for index in range(269)] for data in (few, other)]
    assert test[0] == test[1]


def test_fingerprint_sees_the_pixels() -> None:
    data = DigitsData()
    before = data.fingerprint()
    assert before == DigitsData().fingerprint()
    data = DigitsData()
    data.load()
    pixels = data.splits["train"]._source._pixels  # type: ignore[attr-defined]
    pixels[0, 0, 0] += 1
    assert data.fingerprint() != before
