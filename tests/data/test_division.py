from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frostline.data import FolderData, write_division
from frostline.data.splits import ImageSplit
from frostline.errors import ConfigError, DataError

MakeTree = Callable[..., Path]


@pytest.fixture
def root(make_tree: MakeTree) -> Path:
    return make_tree({"a": 20, "b": 15})


@pytest.fixture
def divided(make_tree: MakeTree) -> Path:
    return make_tree({"train/a": 12, "train/b": 9, "val/a": 3, "val/b": 3, "test/a": 4, "test/b": 4}, "divided")


def loaded(root: Path, **settings: Any) -> FolderData:
    data = FolderData(str(root), **settings)
    data.load()
    return data


def names(split: ImageSplit) -> set[str]:
    return {split.name(index) for index in range(len(split))}


def all_names(data: FolderData) -> dict[str, set[str]]:
    return {name: names(split) for name, split in data.splits.items()}


def test_splits_are_a_function_of_content_whatever_the_files_are_called(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for number, file in enumerate(sorted(root.glob("*/*.jpg"), key=lambda path: path.stat().st_size)):
        target = other / file.parent.name / f"{number % 7}" / f"{99 - number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    first, second = (loaded(folder, test_fraction=0.2) for folder in (root, other))
    assert first.fingerprint() == second.fingerprint()
    for name, split in first.splits.items():
        assert set(split.digests().tolist()) == set(second.splits[name].digests().tolist())


def test_folds_hold_out_each_picture_once(root: Path) -> None:
    parts = [loaded(root, folds=4, fold=fold) for fold in range(4)]
    held = [names(part.splits["test"]) for part in parts]
    assert sum(map(len, held)) == len(set.union(*held)) == 35
    for part in parts:
        found = all_names(part)
        assert found["train"] | found["val"] | found["test"] == set.union(*held)
        assert len(found["val"]) == round(0.15 * 15) + round(0.15 * 11)
    assert "Fold 2 of 4 (from 0) is the test split." in parts[2].notes


def test_with_a_test_split_the_fold_is_val_and_official_val_is_dealt_out_as_well(divided: Path) -> None:
    parts = [all_names(loaded(divided, folds=3, fold=fold)) for fold in range(3)]
    held = [part["val"] for part in parts]
    assert sum(map(len, held)) == len(set.union(*held)) == 27
    assert all(part["test"] == parts[0]["test"] and len(part["test"]) == 8 for part in parts)
    assert any(name.startswith("val/") for name in parts[0]["train"])


def test_folds_that_cannot_be(root: Path) -> None:
    with pytest.raises(DataError, match=r"data\.folds=16.*'b' has 15") as caught:
        loaded(root, folds=16)
    assert "or less" in str(caught.value.mend)
    for wrong, said in (
        ({"fold": 1}, "of how many"),
        ({"folds": 3, "fold": 3}, "from 0 to 2"),
        ({"folds": 1}, "folds"),
    ):
        with pytest.raises(ConfigError, match=said):
            FolderData(str(root), **wrong)
    with pytest.raises(ConfigError, match="split_file"):
        FolderData(str(root), folds=3, split_file="x.csv")


def test_a_written_division_divides_the_same_pictures_elsewhere(root: Path, tmp_path: Path) -> None:
    data = loaded(root, test_fraction=0.2, split_seed=7)
    table = tmp_path / "splits.csv"
    write_division(table, data.classes, data.splits)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 35
    assert {row["label"] for row in rows} == {"a", "b"}
    moved = tmp_path / "moved"
    for number, file in enumerate(sorted(root.glob("*/*.jpg"))):
        target = moved / "train" / file.parent.name / f"new {number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (moved / "train" / "a" / "more.jpg").write_bytes(b"one that nobody listed")
    again = loaded(moved, split_file=str(table))
    assert again.fingerprint() == data.fingerprint()
    assert any("1 picture left out that" in note for note in again.notes)
    (moved / "train/a/new 0.jpg").unlink()
    with pytest.raises(DataError, match="lists 1 picture that the data does not have, such as what was called a/"):
        loaded(moved, split_file=str(table))


def test_equal_pictures_under_two_labels_keep_their_splits(divided: Path, tmp_path: Path) -> None:
    shutil.copy(divided / "train/b/00.jpg", divided / "test/a/copy.jpg")
    data = loaded(divided)
    table = tmp_path / "splits.csv"
    write_division(table, data.classes, data.splits)
    flat = tmp_path / "flat"
    for file in divided.glob("*/*/*.jpg"):
        target = flat / file.parent.name / f"{file.parent.parent.name}-{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert loaded(flat, split_file=str(table)).fingerprint() == data.fingerprint()


def test_a_division_and_a_list_of_what_to_leave_out_go_together(root: Path, tmp_path: Path) -> None:
    data = loaded(root)
    table, listed = tmp_path / "splits.csv", tmp_path / "exclude.txt"
    write_division(table, data.classes, data.splits)
    gone = data.splits["train"].name(0)
    listed.write_bytes(b"\xef\xbb\xbf# from Windows\r\n\r\n" + gone.encode() + b"\r\n")
    again = loaded(root, split_file=str(table), exclude=str(listed))
    assert all_names(again) == {"train": all_names(data)["train"] - {gone}, "val": all_names(data)["val"]}


def test_what_cannot_be_divided_stays_in_train_or_is_named(tmp_path: Path, make_tree: MakeTree) -> None:
    twins = make_tree({"a": 10, "b": 1}, "twins")
    shutil.copy(twins / "b/00.jpg", twins / "b/01.jpg")
    assert loaded(twins).class_counts("train")[1] == 2
    only = make_tree({"c": 1, "d": 1}, "only")
    for label in "cd":
        for number in range(1, 9):
            shutil.copy(only / label / "00.jpg", only / label / f"0{number}.jpg")
    with pytest.raises(DataError, match="The val split gets no pictures by splitting off"):
        loaded(only)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has the columns a, b"),
        ("split,key\ntrane,00\n", "line 2: there is no split 'trane'"),
        ("split,key\n", "no picture for train"),
        ("", "columns \\(none\\)"),
        (None, "does not exist"),
    ],
)
def test_a_division_that_is_none(root: Path, tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "division.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=said):
        loaded(root, split_file=str(path))


def test_excluded_pictures_are_nowhere(divided: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.txt"
    gone = {"train/a/00.jpg", "val/b/01.jpg"}
    listed.write_text("# damaged\ntrain/a/00.jpg\n\n# blank\nval/b/01.jpg\r\n", encoding="utf-8")
    data = loaded(divided, exclude=str(listed))
    assert not gone & set.union(*all_names(data).values())
    assert [data.class_counts(split) for split in data.splits] == [[11, 9], [3, 2], [4, 4]]
    assert any("2 pictures left out as" in note for note in data.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train/a/00.png\n", "names 1 picture that the data does not have: train/a/00.png"),
        (None, "does not exist"),
        ("a\\q\n", r"line 1: '\\q' is no escape"),
        ("\n".join(f"test/{label}/0{index}.jpg" for label in "ab" for index in range(4)), "nothing of the test split"),
    ],
)
def test_a_list_that_does_not_fit(divided: Path, tmp_path: Path, text: str | None, said: str) -> None:
    listed = tmp_path / "exclude.txt"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(DataError, match=said):
        loaded(divided, exclude=str(listed))


def test_the_training_order_is_a_function_of_content(root: Path, tmp_path: Path, preprocessing: Any) -> None:
    from frostline.data import Augmentation

    other = tmp_path / "renamed"
    files = sorted(root.glob("*/*.jpg"))
    order = np.random.default_rng(0).permutation(len(files))
    for number, file in zip(order, files, strict=True):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, other / file.parent.name / f"{number:02d}.jpg")
    batches = []
    for folder in (root, other):
        data = FolderData(str(folder), batch_size=8, workers=0)
        data.prepare(preprocessing, Augmentation(hflip=0.5, scale=[0.5, 1.0]), seed=3)
        batches.append([batch.images for batch in data.train_dataloader()])
    assert all(bool((one == two).all()) for one, two in zip(*batches, strict=True))
