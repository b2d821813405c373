from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from frostline.data import FolderData
from frostline.errors import ConfigError, DataError

MakeTree = Callable[..., Path]


def loaded(root: Path, **settings: Any) -> FolderData:
    data = FolderData(str(root), **settings)
    data.load()
    return data


def names(data: FolderData, split: str) -> list[str]:
    pictures = data.splits[split]
    return [pictures.name(index) for index in range(len(pictures))]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_three_splits(make_tree: MakeTree, val: str) -> None:
    root = make_tree({"train/a": 3, "train/b": 2, f"{val}/a": 1, f"{val}/b": 1, "test/a": 2, "test/b": 1})
    data = loaded(root)
    assert data.classes == ("a", "b")
    assert list(data.splits) == ["train", "val", "test"]
    assert [data.class_counts(split) for split in data.splits] == [[3, 2], [1, 1], [2, 1]]
    assert names(data, "train") == [f"train/{name}.jpg" for name in ("a/00", "a/01", "a/02", "b/00", "b/01")]
    assert data.splits["val"].image(1).size == (12, 10)
    assert data.notes == []


def test_absent_splits_are_derived_from_train(make_tree: MakeTree) -> None:
    data = loaded(make_tree({"train/a": 20, "train/b": 20}), test_fraction=0.2)
    assert {name: data.class_counts(name) for name in data.splits} == {
        "train": [13, 13],
        "val": [3, 3],
        "test": [4, 4],
    }
    everything = [name for split in data.splits for name in names(data, split)]
    assert len(set(everything)) == 40


def test_class_folders_in_the_root(make_tree: MakeTree) -> None:
    data = loaded(make_tree({"a": 10, "b": 10}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "val": 4}
    assert data.notes == ["There is no test split."]
    assert names(data, "val")[0].startswith("a/")


def test_a_set_without_val_when_none_is_wanted(make_tree: MakeTree) -> None:
    data = loaded(make_tree({"train/a": 3, "train/b": 3}), val_fraction=0.0)
    assert list(data.splits) == ["train"]
    assert data.notes == ["There is no val split.", "There is no test split."]


def test_any_class_name_will_do(make_tree: MakeTree) -> None:
    wanted = ["a=1, b", "Blüte", "my class", "狐"]
    data = loaded(make_tree({f"train/{name}": 4 for name in wanted}))
    assert data.classes == tuple(sorted(wanted))
    assert data.splits["train"].image(0).mode == "RGB"


def test_foreign_files_get_one_note(make_tree: MakeTree) -> None:
    root = make_tree({"train/a": 4, "train/b": 4, "train/.cache": 1, "test/a": 1, "test/b": 1})
    for name in ("README.md", "train/labels.csv", "train/a/notes.txt", "test/b/.DS_Store"):
        (root / name).write_text("")
    assert loaded(root).notes == ["Skipped 5 hidden or foreign files, such as README.md."]


def test_a_class_that_another_split_lacks_is_a_note(make_tree: MakeTree) -> None:
    data = loaded(make_tree({"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 0, "test/a": 1, "test/b": 1}))
    assert data.notes == ["The val split has no pictures of 'b'."]


def test_unreadable_picture_is_named(make_tree: MakeTree) -> None:
    root = make_tree({"train/a": 4, "train/b": 4})
    (root / "train/a/02.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train/a/02\.jpg cannot be read"):
        loaded(root, val_fraction=0.0).splits["train"].image(2)


def test_pixel_limit_reaches_the_decoder(make_tree: MakeTree) -> None:
    data = loaded(make_tree({"train/a": 4, "train/b": 4}), pixel_limit=100)
    with pytest.raises(DataError, match="limit of 100"):
        data.splits["train"].image(0)


def test_file_limit_reaches_the_decoder_and_is_a_number_of_bytes(make_tree: MakeTree) -> None:
    root = make_tree({"train/a": 4, "train/b": 4})
    with pytest.raises(DataError, match="limit of 50"):
        loaded(root, file_limit=50).splits["train"].image(0)
    with pytest.raises(ConfigError, match=r"data\.file_limit is 0"):
        FolderData(str(root), file_limit=0)


@pytest.mark.parametrize(
    ("counts", "problem", "mend"),
    [
        ({"train/a": 3, "train/b": 0}, "class 'b' has no pictures", "remove the folder"),
        ({"train/a": 3}, "a single class, 'a'", "at least two classes"),
        ({"train/cat": 3, "train/dog": 3, "val/cats": 1}, "class 'cats' of .*val is not in", "Did you mean 'cat'?"),
        ({"train/a": 3, "train/b": 3, "test/c": 1}, "class 'c' of .*test is not in", "Classes of train: a, b."),
        ({"train/a": 3, "train/b": 3, "val/a": 0}, "val split has no pictures", "remove the split's folder"),
        ({"val/a": 3, "val/b": 3}, "has val but no train folder", "into train/"),
        ({"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1}, "two folders for the val split", "Keep one"),
        ({}, "has no class folders", "one folder per class"),
        ({"train": 3}, "has no class folders", "one folder per class"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(make_tree: MakeTree, counts: dict[str, int], problem: str, mend: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        loaded(make_tree(counts))
    assert mend in str(caught.value.mend)
    assert caught.value.exit_code == 3


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        loaded(tmp_path / "nothing")


def test_root_may_be_given_by_name_too(make_tree: MakeTree) -> None:
    root = make_tree({"train/a": 2, "train/b": 2})
    Image.new("RGB", (4, 4)).save(root / "train/a/deep.png")
    assert FolderData(root=str(root)).class_counts("train") == [2, 1]
