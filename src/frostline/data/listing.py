"""Listing of folders: what is a picture, what is skipped, and what is said when a folder is not there."""

from __future__ import annotations

import os
from pathlib import Path

from frostline.data.decoding import SUFFIXES
from frostline.errors import DataError, suggestion

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder name in lower case to split name."""

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""File name endings, in lower case, that make a file an archive."""


def find_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Searches a folder in depth, following links.

    Returns:
        The picture files and what was skipped (hidden or not a picture by its name), as sorted paths relative to
        ``folder`` with forward slashes.

    Raises:
        DataError: a folder cannot be listed.
    """
    pictures: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=_unlistable):
        seen.add(os.path.realpath(path))
        base = Path(path).relative_to(folder)
        hidden = [name for name in folders if is_hidden(name)]
        # a link to a folder above would never end
        folders[:] = [n for n in folders if not is_hidden(n) and os.path.realpath(os.path.join(path, n)) not in seen]
        taken = [name for name in files if not is_hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES]
        pictures += [(base / name).as_posix() for name in taken]
        skipped += [(base / name).as_posix() for name in hidden + sorted(set(files) - set(taken))]
    return sorted(pictures), sorted(skipped)


def _unlistable(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be listed: {error.strerror}.") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's business, by its name."""
    return name.startswith(".") or name == "__MACOSX"


def is_archive(path: Path) -> bool:
    """Whether a path is a file that is an archive by its name."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def existing_folder(root: Path) -> Path:
    """``root``, if it is a folder.

    Raises:
        DataError: it is not; the message suggests what it may have been meant to be.
    """
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(
            f"The data folder {root} is a file.",
            mend="Set data.root to a folder with one folder per class, or to a .zip or .tar archive of it.",
        )
    above = next(parent for parent in root.absolute().parents if parent.is_dir())
    missing = root.absolute().relative_to(above).parts[0]
    usable = (entry.name for entry in above.iterdir() if entry.is_dir() or is_archive(entry))
    near = suggestion(missing, usable, known_as=f"in {above}")
    raise DataError(f"The data folder {root} does not exist.", mend=f"Set data.root. {near}")


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed: {error.strerror}.") from error
