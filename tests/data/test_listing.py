from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.data import find_pictures
from frostline.data.listing import existing_folder, list_folder
from frostline.errors import DataError


def test_finds_pictures_in_depth_and_names_the_rest(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"b/deep": 1, "a": 2})
    for name in ("a/.hidden.jpg", "a/Thumbs.db", "notes.txt"):
        (root / name).write_bytes(b"")
    (root / "a/00.jpg").rename(root / "a/UPPER.JPEG")
    for folder in (".git", "__MACOSX"):
        (root / folder).mkdir()
        (root / folder / "x.jpg").write_bytes(b"")
    pictures, skipped = find_pictures(root)
    assert pictures == ["a/01.jpg", "a/UPPER.JPEG", "b/deep/00.jpg"]
    assert skipped == [".git", "__MACOSX", "a/.hidden.jpg", "a/Thumbs.db", "notes.txt"]


def test_links_are_followed_but_not_in_circles(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"a": 1})
    other = make_tree({"x": 1}, "other")
    (root / "a/circle").symlink_to(root)
    (root / "linked").symlink_to(other)
    assert find_pictures(root)[0] == ["a/00.jpg", "linked/x/00.jpg"]


def test_a_missing_folder_suggests_what_was_meant(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"a": 1}, "flowers")
    with pytest.raises(DataError, match="flower/train does not exist") as caught:
        existing_folder(root.parent / "flower" / "train")
    assert "Did you mean 'flowers'?" in str(caught.value.mend)


def test_a_missing_archive_suggests_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "flowers.zip").touch()
    with pytest.raises(DataError, match=r"flower\.zip does not exist") as caught:
        existing_folder(tmp_path / "flower.zip")
    assert "Did you mean 'flowers.zip'?" in str(caught.value.mend)


def test_a_file_is_no_folder(make_tree: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is a file"):
        existing_folder(make_tree({"a": 1}) / "a/00.jpg")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_listed_is_named(make_tree: Callable[..., Path]) -> None:
    root = make_tree({"a": 1})
    (root / "a").chmod(0)
    with pytest.raises(DataError, match="cannot be listed"):
        find_pictures(root)
    (root / "a").chmod(0o700)


def test_unlistable_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be listed"):
        list_folder(tmp_path / "gone")
    with pytest.raises(DataError, match="gone cannot be listed"):
        find_pictures(tmp_path / "gone")
