"""What ``images=`` of ``predict`` names: pictures, a folder, a list, a table, or shards."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from frostline.data import FILE_LIMIT, PIXEL_LIMIT, FileSplit, ImageSplit, find_pictures
from frostline.data.arrays import text_bytes
from frostline.data.columns import FORMATS, TableFile
from frostline.data.named_files import Names, absent_files
from frostline.data.progress import Progress
from frostline.data.shard_columns import NamedShard, choose_pictures
from frostline.data.shard_files import Shard
from frostline.data.shard_index import read_index
from frostline.data.shard_patterns import expand_braces
from frostline.data.shards import ShardSplit
from frostline.data.splits import NameTable
from frostline.errors import ConfigError, DataError, StorageError

_SHOWN = 3


@dataclass(frozen=True)
class InputSpec:
    """How pictures are named.

    Attributes:
        images: a picture, a folder that is searched in depth, a ``.txt`` list with a path a line, a table, a ``.tar``
            shard; or a pattern such as ``new/*.jpg`` or ``shard-{000..127}.tar``. Paths of a list or a table are
            relative to its folder.
        image_column: of a table: the paths.
        keep_columns: of a table: columns that go into the output.
        image_key: of shards: the extension of the pictures, ``jpg;png`` where a sample has one of them; None takes
            those that name a picture.
        all_there: a list or table that names absent files is refused at once.
        pixel_limit, file_limit: see `frostline.data.open_picture`.
    """

    images: str
    image_column: str = "path"
    keep_columns: tuple[str, ...] = ()
    image_key: str | None = None
    all_there: bool = True
    pixel_limit: int = PIXEL_LIMIT
    file_limit: int = FILE_LIMIT


@dataclass(frozen=True)
class NamedPictures:
    """Pictures in the order of the input, under the names that it has for them; some may occur again.

    Attributes:
        split: the pictures; their labels say nothing.
        columns: N rows of what is carried into the output; None where there is nothing.
    """

    split: ImageSplit
    columns: pa.Table | None = None


def named_pictures(spec: InputSpec) -> NamedPictures:
    """The pictures that ``images=`` names; opens none of them.

    Raises:
        ConfigError: ``keep_columns`` is not for a table, or ``image_key`` not for shards.
        DataError: there is none, a list or a table cannot be used, or names files that are not there, or a shard is
            damaged.
        StorageError: a list, a table or a shard cannot be read.
    """
    source = Path(spec.images).expanduser()
    kind = source.suffix.lower() if source.is_file() else ""
    if spec.keep_columns and kind not in FORMATS:
        raise ConfigError("keep_columns is for a table", mend=f"Give images= a file of {', '.join(FORMATS)}.")
    if kind in FORMATS:
        return _of_table(source, spec)
    found = [source] if source.is_file() else [] if source.is_dir() else _matching(spec.images)
    if shards := [path for path in found if path.suffix.lower() == ".tar"]:
        if len(shards) < len(found):
            raise DataError(f"images={spec.images} names shards and other files.", mend="Name one kind at a time.")
        return NamedPictures(_of_shards(shards, spec))
    if spec.image_key is not None:
        raise ConfigError("image_key is for shards", mend="Give images= a .tar file, or a pattern of such files.")
    if kind == ".txt":
        return NamedPictures(_of_list(source, spec))
    if source.is_dir():
        found = [source / name for name in find_pictures(source)[0]]
    if not found:
        mend = f"Name a folder with .jpg, .png or other pictures; shards are named by images='{spec.images}/*.tar'."
        raise DataError(f"images={spec.images} holds no picture", mend=mend)
    # messages say where a picture is, also to someone in another folder
    return NamedPictures(_files(Path.cwd(), NameTable([str(path) for path in found]), spec))


def _files(root: Path, names: NameTable, spec: InputSpec) -> FileSplit:
    return FileSplit(root, names, np.zeros(len(names), np.int64), spec.pixel_limit, spec.file_limit)


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern, in the order of its braces and then of their names."""
    found: list[Path] = []
    missing: list[str] = []
    for one in expand_braces(str(Path(pattern).expanduser())):
        matched = [Path(one)] if Path(one).is_file() else map(Path, sorted(glob.glob(one, recursive=True)))
        files = [path for path in matched if path.is_file()]
        found += files
        missing += [] if files else [one]
    if not found:
        mend = "Name a picture, a folder, a .txt list, a table, .tar shards, or a pattern of pictures or shards."
        raise DataError(f"images={pattern}: there is no such file or folder", mend=mend)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise DataError(f"images={pattern} names {len(missing)} that are not there: {shown}.", mend="Name fewer.")
    return found


def _of_list(path: Path, spec: InputSpec) -> FileSplit:
    try:
        # a name need not be UTF-8; other line ends than these may be part of one
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise StorageError(f"The list {path} cannot be read: {error.strerror}.") from error
    lines = [line.strip() for line in text.split("\n")]
    named = [str(Path(line).expanduser()) if line.startswith("~") else line for line in lines if line]
    if not named:
        raise DataError(f"The list {path} is empty.", mend="Write the path of a picture on each line.")
    if spec.all_there:
        # a name that is no text is looked for when its turn comes
        with contextlib.suppress(UnicodeEncodeError):
            _require_there(pa.array(named, pa.large_string()), path)
    return _files(path.absolute().parent, NameTable(named), spec)


def _of_table(path: Path, spec: InputSpec) -> NamedPictures:
    required = dict.fromkeys(spec.keep_columns, "keep_columns") | {spec.image_column: "image_column"}
    table = FORMATS[path.suffix.lower()](path, required)
    if not table.length:
        raise DataError(f"The table {path} has no rows.", mend="Name a picture in each row.")
    paths = table.text(spec.image_column)
    if spec.all_there:
        _require_there(paths, path)
    split = _files(path.absolute().parent, NameTable.of_text(*text_bytes(paths)), spec)
    return NamedPictures(split, _carried(table, spec.keep_columns) if spec.keep_columns else None)


def _carried(table: TableFile, names: Sequence[str]) -> pa.Table:
    try:
        return pa.table({name: table[name] for name in names})
    except pa.ArrowException as error:
        problem = f"keep_columns={list(names)}: {table.path} has values of several kinds in a column: {error}"
        raise DataError(problem, mend="Leave that column out.") from error


def _require_there(paths: pa.LargeStringArray, source: Path) -> None:
    """Raise where some files are absent: better now than after hours."""
    root = source.absolute().parent
    names = Names(paths, root)
    rows = np.flatnonzero(np.isin(names.codes, absent_files(names.distinct, root)))
    if not len(rows):
        return
    shown = ", ".join(f"'{names.written(int(row))}'" for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
    what = "1 picture" if len(rows) == 1 else f"{len(rows):,} pictures"
    raise DataError(
        f"{source} names {what} that cannot be found: {shown}.",
        mend=f"Relative paths start from {root}. Or list them and go on with the others: on_error=skip.",
    )


def _of_shards(paths: Sequence[Path], spec: InputSpec) -> ShardSplit:
    progress = Progress("reading headers of shards", len(paths))
    shards = []
    for done, path in enumerate(paths, start=1):
        shard = Shard.at(path.absolute())
        shards.append(NamedShard(str(path), shard, read_index(shard)))
        progress.at(done)
    progress.end()
    kinds = choose_pictures(shards, spec.image_key)
    count = sum(len(shard.index) for shard in shards)
    return ShardSplit(
        shards, kinds, np.zeros(count, np.int64), pixel_limit=spec.pixel_limit, file_limit=spec.file_limit
    )
