"""Pictures without labels, to pre-train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frostline.data.files import FileData, FileSplit
from frostline.data.folder import skipped_note
from frostline.data.listing import find_pictures
from frostline.data.splits import LabelledSet
from frostline.errors import DataError


@dataclass(kw_only=True, eq=False, repr=False)
class PicturesData(FileData):
    """Every picture below a folder, at any depth, as ``train``; for pre-training, which reads no label."""

    labelled: ClassVar[bool] = False

    val_fraction: float = 0.0

    def read(self) -> LabelledSet:
        """Lists the pictures; opens none.

        Raises:
            DataError: there is no such folder, or no picture in it.
        """
        root = self.folder()
        names, skipped = find_pictures(root)
        if not names:
            raise DataError(f"{root} has no pictures.", mend="Name a folder with .jpg, .png or other pictures.")
        split = FileSplit(root, names, [0] * len(names), self.pixel_limit, self.file_limit)
        return LabelledSet(("unlabelled",), {"train": split}, [skipped_note(skipped)] if skipped else [])
