"""Pictures in the rows of an Arrow table, which stays a file that is mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from frostline.data.decoding import FILE_LIMIT, PIXEL_LIMIT, Reduction, decode_picture, open_picture, picture_size
from frostline.data.splits import ImageSplit, Labels
from frostline.errors import DataError


class ArrowSplit(ImageSplit):
    """Pictures in a column of encoded files, of paths, or of both (``{bytes, path}``, as Hugging Face stores them).

    Args:
        pictures: the column, ``[N]``.
        labels: ``[N]`` class indices.
        title: of the split, for the names ``title/000123``.
        named: whether pictures are called by their paths, which then have to differ.
        root: the folder that relative paths start from; a path below it is a name without it.
        origin: changes when the table does: its files with their sizes and times.
        pixel_limit, file_limit: see `open_picture`; an encoded file in the table has the same limits.
        groups: see `ImageSplit`.
    """

    encoded = True

    def __init__(
        self,
        pictures: pa.ChunkedArray,
        labels: Labels,
        title: str,
        *,
        named: bool,
        root: Path,
        origin: str | None,
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
        groups: Labels | None = None,
    ) -> None:
        self._bytes, self._paths = _Column.of(encoded_files(pictures)), _Column.of(stored_paths(pictures))
        self._title = title
        self._named = named
        self._root = str(root)
        self._origin = origin
        self._limits = pixel_limit, file_limit
        self.labels = labels
        self.groups = groups

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return self._decoded(index, None)

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        return self._decoded(index, reduction)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSplit.size`."""
        file = self._file(index)
        source = self.content(index) if file is None else Path(file)
        return picture_size(source, self.name(index), *self._limits)

    def _decoded(self, index: int, reduction: Reduction | None) -> Image.Image:
        file = self._file(index)
        if file is not None:
            return open_picture(file, *self._limits, reduction)
        return decode_picture(self.content(index), self.name(index), self._limits[0], reduction)

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        path = self._stored_path(index) if self._named else None
        return f"{self._title}/{index:06d}" if path is None else relative_to(path, self._root)

    def content(self, index: int) -> bytes:
        """The encoded file, of the table or on the disk."""
        file, limit = self._file(index), self._limits[1]
        try:
            size = self._stored_size(index) if file is None else os.path.getsize(file)
            if size > limit:
                raise DataError(
                    f"The picture {self.name(index)} has {size} bytes, more than the limit of {limit}.",
                    mend="Remove it, or raise data.file_limit if you trust the file.",
                )
            return self._stored(index) if file is None else Path(file).read_bytes()
        except OSError as error:
            raise DataError(f"The picture {file} cannot be read: {error.strerror}.") from error

    def stamp(self, index: int) -> str | None:
        """The table and the row; or path, size and times of a file."""
        try:
            file = self._file(index)
            if file is None:
                return None if self._origin is None else f"{self._origin}\0{index}"
            found = os.stat(file)
        except (OSError, DataError):
            return None
        return f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"

    def path(self, index: int) -> Path | None:
        """The file, where the table has its path alone."""
        try:
            file = self._file(index)
        except DataError:  # said when the picture is asked for
            return None
        return None if file is None else Path(file)

    def _file(self, index: int) -> str | None:
        if self._bytes is not None and self._bytes[index].is_valid:
            return None
        path = self._stored_path(index)
        if path is None:
            raise DataError(
                f"The picture {self._title}/{index:06d} (row {index + 1}) is empty.", mend="Remove the row."
            )
        if "://" in path:
            raise DataError(
                f"The picture {path} of {self._title} (row {index + 1}) is an address, which is not followed.",
                mend="Save the data set with its pictures in it.",
            )
        return os.path.join(self._root, path)

    def _stored_path(self, index: int) -> str | None:
        found = None if self._paths is None else self._paths[index].as_py()
        return found or None

    def _stored_size(self, index: int) -> int:
        assert self._bytes is not None
        return int(self._bytes[index].as_buffer().size)

    def _stored(self, index: int) -> bytes:
        assert self._bytes is not None
        content: bytes = self._bytes[index].as_py()
        return content


class _Column:
    """Rows of a column in pieces, each found in the same time however many pieces there are."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = column.chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    @classmethod
    def of(cls, column: pa.ChunkedArray | None) -> _Column | None:
        return None if column is None else cls(column)

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._chunks[number][index - int(self._starts[number])]


def is_picture_column(kind: pa.DataType) -> bool:
    """Whether `ArrowSplit` can read pictures from a column of this type."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0)
    return _is_binary(kind) or _is_text(kind)


def encoded_files(pictures: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The encoded files of a column of pictures; None where it has only paths. Copies nothing."""
    if pa.types.is_struct(pictures.type):
        return pc.struct_field(pictures, "bytes")
    return pictures if _is_binary(pictures.type) else None


def stored_paths(pictures: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The paths of a column of pictures; None where it has none. Copies nothing."""
    if pa.types.is_struct(pictures.type):
        return pc.struct_field(pictures, "path")
    return pictures if _is_text(pictures.type) else None


def paths_differ(columns: Sequence[pa.ChunkedArray]) -> bool:
    """Whether every picture of some columns has a path, which no other one has."""
    paths = [stored_paths(column) for column in columns]
    told = [path for path in paths if path is not None and not path.null_count]
    if len(told) < len(columns):
        return False
    whole = pa.chunked_array(
        [chunk for path in told for chunk in path.cast(pa.large_string()).chunks], pa.large_string()
    )
    distinct = pc.unique(whole)
    return len(distinct) == len(whole) and not pc.any(pc.equal(distinct, "")).as_py()


def relative_to(path: str, root: str) -> str:
    """A path without ``root``, if it lies below."""
    return path.removeprefix(root.rstrip("/") + "/")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
