"""What the sources have in common whose pictures are files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from frostline.data.archives import extracted
from frostline.data.base import ImageData
from frostline.data.decoding import FILE_LIMIT, PIXEL_LIMIT, Reduction, open_picture, picture_size
from frostline.data.listing import existing_folder, is_archive
from frostline.data.splits import ImageSplit, Labels, NameTable
from frostline.errors import DataError


class FileSplit(ImageSplit):
    """Picture files with labels.

    Args:
        root: the data set's folder.
        names: N paths, absolute or relative to ``root``, with forward slashes.
        labels: ``[N]`` class indices.
        pixel_limit, file_limit: see `open_picture`.
        groups: see `ImageSplit`.
    """

    encoded = True

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int] | Labels,
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
        *,
        groups: Labels | None = None,
    ) -> None:
        self._root = str(root)
        self._names = names if isinstance(names, NameTable) else NameTable(names)
        self._limits = pixel_limit, file_limit
        self.labels = np.asarray(labels, dtype=np.int64)
        self.groups = groups

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return open_picture(self._file(index), *self._limits)

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        return open_picture(self._file(index), *self._limits, reduction)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSplit.size`."""
        return picture_size(self.path(index), self._file(index), *self._limits)

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        return self._names[index]

    def content(self, index: int) -> bytes:
        """The file's bytes."""
        path, limit = self._file(index), self._limits[1]
        try:
            if os.path.getsize(path) > limit:
                raise DataError(f"The picture {path} has more than {limit} bytes.", mend="Remove it from the data set.")
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"The picture {path} cannot be read: {error.strerror}.") from error

    def stamp(self, index: int) -> str | None:
        """Path, size and times of the file."""
        path = self._file(index)
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # a name of a table may have a null character
            return None
        return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"

    def path(self, index: int) -> Path:
        """The file."""
        return Path(self._file(index))

    def _file(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


@dataclass(kw_only=True, eq=False, repr=False)
class FileData(ImageData):
    """Pictures in the files of a folder or an archive.

    Attributes:
        root: the folder; or a ``.tar`` (plain, ``.gz``, ``.bz2``, ``.xz``) or ``.zip``, which is extracted once into
            the user's cache, see `frostline.data.archives.extracted`.
        file_limit: bytes above which a picture file, or a file in the archive, is refused.
    """

    _at_least: ClassVar[dict[str, int]] = {**ImageData._at_least, "file_limit": 1}

    root: str = field(kw_only=False)
    file_limit: int = FILE_LIMIT

    def folder(self) -> Path:
        """The folder of the pictures.

        Raises:
            DataError: there is none, or the archive cannot be used.
            StorageError: there is no room to extract it.
        """
        root = Path(self.root).expanduser()
        return extracted(root, file_limit=self.file_limit) if is_archive(root) else existing_folder(root)
