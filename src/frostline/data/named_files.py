"""Paths as a table has them: brought to one form, a million at once, and looked for in the folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.arrays import binary_array, codes_of, is_empty, taken, text_bytes, true_positions
from frostline.data.splits import Labels, NameTable

_ODD = r"(^|/)\.{1,2}(/|$)|//|/$"
_FEW = 16  # files of one folder that are asked for one by one


class Names:
    """Paths in one form: with forward slashes, relative to the root where they lie below it, else absolute.

    Args:
        paths: N paths as written, absolute or relative to ``root``.
        root: the folder.

    Attributes:
        distinct: the M different ones.
        codes: ``[N]`` positions in ``distinct``.
    """

    def __init__(self, paths: pa.LargeStringArray, root: Path) -> None:
        self._written = paths
        self._texts = _in_one_form(paths, root)
        encoded = self._texts.dictionary_encode()
        self.distinct: pa.LargeStringArray = encoded.dictionary
        self.codes: Labels = codes_of(encoded)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str:
        name: str = self._texts[row].as_py()
        return name

    def written(self, row: int) -> str:
        """A path as it was given."""
        path: str = self._written[row].as_py()
        return path

    def empty(self) -> Labels:
        """The rows without a path."""
        return np.flatnonzero(is_empty(self._texts))

    def table(self, rows: Labels) -> NameTable:
        """The names of some rows, in one block of memory."""
        return NameTable.of_text(*text_bytes(taken(self._texts, rows)))


def absent_files(names: pa.LargeStringArray, root: Path) -> Labels:
    """The positions of the names that are those of no file.

    Each folder is listed once instead of asking for a million files; what a listing lacks is asked for by name, since
    file systems may take one name for another.

    Args:
        names: M different paths, absolute or relative to ``root``, in one form.
        root: the folder.
    """
    folders, tails = _parted(names)
    codes = codes_of(folders)
    ends = np.cumsum(np.bincount(codes, minlength=len(folders.dictionary)))
    of_folder = np.split(np.argsort(codes, kind="stable"), ends[:-1])
    unsure = []
    for folder, positions in zip(folders.dictionary.to_pylist(), of_folder, strict=True):
        listed = _files_in(root / folder) if len(positions) > _FEW else None
        if listed is not None:
            found = pc.is_in(taken(tails, positions), value_set=listed)
            positions = positions[true_positions(pc.invert(found))]
        unsure.append(positions)
    asked: Labels = np.sort(np.concatenate(unsure)) if unsure else np.zeros(0, dtype=np.int64)
    absent = [not _is_file(os.path.join(root, name)) for name in taken(names, asked).to_pylist()]
    missing: Labels = asked[np.array(absent, dtype=bool)]
    return missing


def _parted(names: pa.LargeStringArray) -> tuple[pa.DictionaryArray, pa.LargeBinaryArray]:
    """The folder of each name, with a slash at its end and empty for the root, and what comes after it."""
    ends, text = text_bytes(names)
    slashes = np.append(np.flatnonzero(text[ends[0] : ends[-1]] == ord("/")) + ends[0], -1)
    last = slashes[np.searchsorted(slashes[:-1], ends[1:]) - 1] + 1  # after the last slash before the end
    cuts = np.maximum(last, ends[:-1])
    bounds = np.append(np.stack([ends[:-1], cuts], axis=1).ravel(), ends[-1])
    buffers = [None, pa.py_buffer(bounds), names.buffers()[2]]
    parts = pa.Array.from_buffers(pa.large_string(), 2 * len(names), buffers)
    heads, tails = (taken(parts, np.arange(first, 2 * len(names), 2)) for first in (0, 1))
    return heads.dictionary_encode(), tails.cast(pa.large_binary())


def _files_in(folder: Path) -> pa.LargeBinaryArray | None:
    """The names of the files of a folder; None where it cannot be listed."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            return binary_array([entry.name for entry in entries if entry.is_file()])
    except (OSError, ValueError):
        return None


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a null character
        return False


def _in_one_form(paths: pa.LargeStringArray, root: Path) -> pa.LargeStringArray:
    prefixes = [os.path.join(path, "") for path in dict.fromkeys((os.path.abspath(root), os.path.realpath(root)))]
    for prefix in prefixes:
        below = pc.starts_with(paths, prefix)
        if below.true_count:
            paths = pc.if_else(below, pc.utf8_slice_codeunits(paths, len(prefix)), paths)
    if pc.starts_with(paths, "./").true_count:  # as `find .` prints them
        paths = pc.replace_substring_regex(paths, r"^(\./+)+", "")
    odd = pc.match_substring_regex(paths, _ODD)
    if not odd.true_count:
        return paths
    mended = [_normal(path, prefixes) for path in paths.filter(odd).to_pylist()]
    return pc.replace_with_mask(paths, odd, pa.array(mended, pa.large_string()))


def _normal(path: str, prefixes: list[str]) -> str:
    normal = os.path.normpath(path)
    if normal.startswith("//"):  # POSIX lets it mean something else
        normal = normal[1:]
    return next((normal[len(prefix) :] for prefix in prefixes if normal.startswith(prefix)), normal)
