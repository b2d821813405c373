"""Class folders: ``train/cat/1.jpg``, or ``cat/1.jpg`` where nothing is split yet."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frostline.data.classes import class_order
from frostline.data.decoding import SUFFIXES
from frostline.data.files import FileData, FileSplit
from frostline.data.listing import SPLIT_FOLDERS, find_pictures, is_hidden, list_folder
from frostline.data.splits import LabelledSet
from frostline.errors import DataError, suggestion


@dataclass(kw_only=True, eq=False, repr=False)
class FolderData(FileData):
    """A folder with one folder per class in ``train/`` and, where they exist, ``val/`` and ``test/``.

    ``valid/`` and ``validation/`` are taken as ``val/``. What is missing is split off from ``train`` as
    ``val_fraction`` and ``test_fraction`` say. A root that holds the class folders directly is all ``train`` at first.
    The classes are those of ``train``, in the order of `class_order`; pictures may lie at any depth below their class
    folder.
    """

    def read(self) -> LabelledSet:
        """Lists the pictures; opens none.

        Raises:
            DataError: there is no such folder, no class folder, a class of ``train`` is empty, or another split has
                a class that ``train`` lacks.
        """
        root = self.folder()
        folders, skipped = _split_folders(root)
        found: dict[str, dict[str, list[str]]] = {}
        for split, folder in folders.items():
            found[split], foreign = _class_pictures(root, folder)
            skipped += foreign
        classes = _classes(found["train"], folders["train"])
        notes = [skipped_note(skipped)] if skipped else []
        for split in found.keys() - {"train"}:
            _check_known(split, found[split], classes, folders)
        splits = {split: self._labelled(root, classes, pictures) for split, pictures in found.items()}
        return LabelledSet(classes, {**splits}, notes)

    def _labelled(self, root: Path, classes: Sequence[str], pictures: dict[str, list[str]]) -> FileSplit:
        names = [name for label in classes for name in pictures.get(label, [])]
        labels = [index for index, label in enumerate(classes) for _ in pictures.get(label, [])]
        return FileSplit(root, names, labels, self.pixel_limit, self.file_limit)


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, and the names beside them that were skipped."""
    entries = list_folder(root)
    folders: dict[str, Path] = {}
    for entry in entries:
        split = SPLIT_FOLDERS.get(entry.name.lower())
        if split is None or not entry.is_dir():
            continue
        if split in folders:
            raise DataError(
                f"{root} has two folders for the {split} split: {folders[split].name} and {entry.name}.",
                mend="Keep one of them, or rename the other.",
            )
        folders[split] = entry
    if folders and "train" not in folders:
        raise DataError(
            f"{root} has {', '.join(path.name for path in folders.values())} but no train folder.",
            mend="Put the training pictures into train/, or rename the folder if it is a class.",
        )
    if not folders:
        return {"train": root}, []  # what is foreign here is found with the classes
    names: tuple[str, ...] = ("train", "val", "test")
    ordered = {split: folders[split] for split in names if split in folders}
    return ordered, [entry.name for entry in entries if entry not in folders.values()]


def _class_pictures(root: Path, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Class name to sorted picture paths relative to ``root``, and what was skipped."""
    classes: dict[str, list[str]] = {}
    skipped: list[str] = []
    for entry in list_folder(folder):
        base = entry.relative_to(root)
        if is_hidden(entry.name) or not entry.is_dir():
            skipped.append(base.as_posix())
            continue
        pictures, foreign = find_pictures(entry)
        # one class has one name on file systems that compose letters and on those that do not
        label = unicodedata.normalize("NFC", entry.name)
        classes.setdefault(label, []).extend((base / name).as_posix() for name in pictures)
        skipped += [(base / name).as_posix() for name in foreign]
    return classes, skipped


def _classes(train: dict[str, list[str]], folder: Path) -> tuple[str, ...]:
    if not train:
        raise DataError(f"{folder} has no class folders.", mend="Make one folder per class and put its pictures there.")
    for label in sorted(train):
        if not train[label]:
            raise DataError(
                f"The class '{label}' has no pictures in {folder}.",
                mend=f"Add pictures ({', '.join(sorted(SUFFIXES))}), or remove the folder.",
            )
    return class_order(train)


def _check_known(split: str, found: dict[str, list[str]], classes: Sequence[str], folders: dict[str, Path]) -> None:
    for label, pictures in found.items():
        if pictures and label not in classes:
            raise DataError(
                f"The class '{label}' of {folders[split]} is not in {folders['train']}.",
                mend=suggestion(label, classes, known_as="classes of train"),
            )


def skipped_note(skipped: Sequence[str]) -> str:
    """One note on all files that are no pictures."""
    what = "1 hidden or foreign file" if len(skipped) == 1 else f"{len(skipped)} hidden or foreign files"
    return f"Skipped {what}, such as {skipped[0]}."
