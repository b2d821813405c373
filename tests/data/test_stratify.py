from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from frostline.data.splits import ImageSplit, Keys, Labels
from frostline.data.stratify import canonical_order, fold_numbers, split_off, subset


class Known(ImageSplit):
    """Pictures that are known by their keys."""

    def __init__(self, keys: list[str], labels: list[int], groups: list[int] | None = None) -> None:
        self._keys = np.array([key.encode() for key in keys])
        self.labels = np.array(labels, dtype=np.int64)
        self.groups = None if groups is None else np.array(groups, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        raise AssertionError("nobody looks")

    def name(self, index: int) -> str:
        return self._keys[index].decode()

    def order_keys(self) -> Keys:
        return self._keys


def patients(seed: int, *, count: int = 120, classes: int = 3) -> Known:
    """``count`` patients with one to nine pictures each, of mostly one class."""
    generator = np.random.default_rng(seed)
    keys, labels, groups = [], [], []
    for patient in range(count):
        main = int(generator.integers(classes))
        for number in range(int(generator.integers(1, 10))):
            keys.append(f"{patient}-{number}")
            labels.append(main if generator.random() < 0.8 else int(generator.integers(classes)))
            groups.append(patient)
    return Known(keys, labels, groups)


def names(split: ImageSplit) -> set[str]:
    return {split.name(index) for index in range(len(split))}


def of(split: ImageSplit) -> Labels:
    assert split.groups is not None
    return split.groups


@pytest.mark.parametrize("seed", range(5))
def test_one_patient_is_in_one_split_and_shares_are_met(seed: int) -> None:
    source = patients(seed)
    parts = split_off(source, {"test": 0.15, "val": 0.15}, seed=seed)
    seen = [set(of(part).tolist()) for part in parts.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 120
    for name, share in {"test": 0.15, "val": 0.15, "train": 0.7}.items():
        assert len(parts[name]) / len(source) == pytest.approx(share, abs=0.02)
        for label in range(3):
            whole = float((source.labels == label).mean())
            assert float((parts[name].labels == label).mean()) == pytest.approx(whole, abs=0.06)


def test_groups_are_dealt_alike_in_any_listing_order_and_under_any_numbers() -> None:
    source = patients(1)
    order = np.random.default_rng(0).permutation(len(source))
    renumbered = [1000 - int(group) for group in of(source)[order]]
    other = Known([source.name(i) for i in order], source.labels[order].tolist(), renumbered)
    first, second, third = (
        names(split_off(split, {"val": 0.2}, seed=seed)["val"])
        for split, seed in ((source, 0), (other, 0), (source, 1))
    )
    assert first == second != third


def test_equal_pictures_stay_together_even_across_groups_and_labels() -> None:
    keys = [f"k{index % 40}" for index in range(80)]  # each picture twice, under two labels
    source = Known(keys, [int(index >= 40) for index in range(80)])
    parts = split_off(source, {"val": 0.25, "test": 0.25}, seed=0)
    found = [names(part) for part in parts.values()]
    assert sum(map(len, found)) == 40
    assert sorted(len(part) for part in parts.values()) == [20, 20, 40]
    chained = Known(["a", "b", "b", "c", "d", "e"], [0] * 6, [1, 1, 2, 2, 3, 4])
    for seed in range(10):
        part = names(split_off(chained, {"val": 0.5}, seed=seed)["val"])
        assert len(part & {"a", "b", "c"}) in (0, 3)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_folds_are_stratified_equal_in_size_and_cover_everything(folds: int) -> None:
    source = Known([f"{index}" for index in range(101 + 53 + 17)], [0] * 101 + [1] * 53 + [2] * 17)
    numbers = fold_numbers(source, folds, seed=0)
    sizes = np.bincount(numbers, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        counts = np.bincount(numbers[source.labels == label], minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(numbers, fold_numbers(source, folds, seed=1))


def test_folds_keep_groups_together() -> None:
    source = patients(3)
    numbers = fold_numbers(source, 5, seed=0)
    for patient in np.unique(of(source)):
        assert len(set(numbers[of(source) == patient].tolist())) == 1
    assert np.bincount(numbers).min() > 0.15 * len(source)


def test_subsets_take_a_second_copy_last() -> None:
    keys = ["same"] * 30 + [f"{index}" for index in range(10)]
    source = Known(keys, [0] * 40)
    eleven = [subset(source, lambda _: 11, seed=seed) for seed in range(5)]
    assert all(len(names(part)) == len(part) == 11 for part in eleven)
    assert len(names(subset(source, lambda _: 10, seed=0)) | names(eleven[0])) == 11


def test_the_canonical_order_forgets_how_pictures_lie() -> None:
    source = Known([f"{index:03d}" for index in range(50)], [index % 3 for index in range(50)])
    order = np.random.default_rng(0).permutation(50)
    other = Known([source.name(i) for i in order], source.labels[order].tolist())
    first, second = ([split.name(int(i)) for i in canonical_order(split)] for split in (source, other))
    assert first == second == sorted(first)
