"""What the sources have in common whose pictures are files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from frostline.data.archives import extracted
from frostline.data.base import ImageData
from frostline.data.decoding import FILE_LIMIT
from frostline.data.listing import existing_folder, is_archive


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
