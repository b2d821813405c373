"""A table that names pictures: a row each, with its path, its label and, where wanted, its split and its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.arrays import codes_of, is_empty, true_positions
from frostline.data.classes import encode_labels
from frostline.data.columns import FORMATS, TableFile
from frostline.data.files import FileData, FileSplit
from frostline.data.listing import SPLIT_FOLDERS
from frostline.data.named_files import Names, absent_files
from frostline.data.splits import ImageSplit, LabelledSet, Labels
from frostline.errors import DataError, suggestion

SPLITS = ("train", "val", "test")
_SHOWN = 3


@dataclass(kw_only=True, eq=False, repr=False)
class TableData(FileData):
    """Pictures that a table names.

    Attributes:
        table: a ``.csv``, ``.tsv``, ``.parquet`` or ``.jsonl`` file. Text in it is taken as it stands: ``007``,
            ``True`` and ``NA`` are class names. Where it is not there, one of its name in ``root`` is taken.
        root: the folder, or the archive, that relative paths start from; None takes the folder of the table.
        image_column: holds the paths. The content of a file decides what it is, not its name.
        label_column: holds class names, or integers; see `frostline.data.classes.encode_labels`.
        split_column: holds ``train``, ``val`` (``valid``, ``validation``) or ``test``, in any case. None takes a column
            called ``split`` if there is one, an empty name takes none; without one, all rows are ``train`` at first.
        group_column: what pictures have in common that belong in one split, such as a patient. None takes a column
            called ``group`` if there is one, an empty name takes none.
        classes: the class names in order; None takes the labels that occur.
    """

    root: str | None = field(default=None, kw_only=True)  # type: ignore[assignment]  # a folder has to be named
    table: str = field(kw_only=False)
    image_column: str = "path"
    label_column: str = "label"
    split_column: str | None = None
    group_column: str | None = None
    classes: InitVar[Sequence[str] | None] = None

    def __post_init__(self, classes: Sequence[str] | None) -> None:
        super().__post_init__()
        self._known = classes

    def read(self) -> LabelledSet:
        """Reads the columns, and looks whether the files are there; opens none of them.

        Raises:
            ConfigError: ``classes`` is no list of distinct names.
            DataError: the table is absent, malformed or empty, or lacks a column; a path, split or group is empty, a
                file is not there, or is in two splits or under two labels; a label is none of the classes, or occurs
                in other splits than ``train`` only.
            StorageError: the table cannot be read.
        """
        path = self._table_path()
        root = path.parent if self.root is None else self.folder()
        table = self._open(path)
        classes, labels = encode_labels(table[self.label_column], place=table.place, known=self._known)
        names = Names(table.text(self.image_column), root)
        _check_files(table, names, root)
        column = self._column(table, self.split_column, "split")
        split_of = np.zeros(table.length, dtype=np.int64) if column is None else _split_numbers(table, column)
        _check_once(table, names, split_of, labels, classes)
        if self._known is None:
            _check_trained(table, split_of, labels, classes)
        column = self._column(table, self.group_column, "group")
        groups = None if column is None else _group_numbers(table, column)
        splits: dict[str, ImageSplit] = {}
        for number, split in enumerate(SPLITS):
            rows = np.flatnonzero(split_of == number)
            if len(rows):
                limits = self.pixel_limit, self.file_limit
                own = None if groups is None else groups[rows]
                splits[split] = FileSplit(root, names.table(rows), labels[rows], *limits, groups=own)
        return LabelledSet(classes, splits, [*_repeats(table, names), *_shared(groups, split_of)])

    def _table_path(self) -> Path:
        path = Path(self.table).expanduser()
        moved = None if self.root is None else Path(self.root).expanduser() / path.name
        if not path.is_file() and moved is not None and moved.is_file():
            path = moved
        if not path.is_file():
            raise _no_table(path)
        return path

    def _open(self, path: Path) -> TableFile:
        kind = FORMATS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"The table {path} is of no known format.", mend=f"Known: {', '.join(FORMATS)}.")
        required = {self.image_column: "data.image_column", self.label_column: "data.label_column"}
        for key in ("split_column", "group_column"):
            if name := getattr(self, key):
                required[name] = f"data.{key}"
        table = kind(path, required, ["split", "group"])
        if not table.length:
            raise DataError(f"The table {path} has no rows.", mend="Name a picture and its label in each row.")
        return table

    def _column(self, table: TableFile, wanted: str | None, usual: str) -> str | None:
        """The column to take for a purpose, if there is one."""
        if wanted is None:
            return usual if usual in table and usual not in (self.image_column, self.label_column) else None
        return wanted or None


def _check_files(table: TableFile, names: Names, root: Path) -> None:
    empty = names.empty()
    if len(empty):
        raise DataError(f"The path of {table.place(int(empty[0]))} is empty{_and_more(empty)}.", mend="Fill it in.")
    absent = absent_files(names.distinct, root)
    if not len(absent):
        return
    rows = np.flatnonzero(np.isin(names.codes, absent))
    some = ", ".join(f"'{names.written(int(row))}' of {table.short_place(int(row))}" for row in rows[:_SHOWN])
    what = "1 picture" if len(rows) == 1 else f"{len(rows):,} pictures"
    first = names.written(int(rows[0]))
    if "://" in first:
        mend = "Only files are read: download them, and name the files."
    elif "\\" in first:
        mend = "Write the paths with forward slashes."
    else:
        mend = f"Relative paths start from {root}; set data.root to another folder, or mend the table."
    raise DataError(
        f"The table {table.path} names {what} that cannot be found: {some}{', ...' if len(rows) > _SHOWN else ''}.",
        mend=mend,
    )


def _split_numbers(table: TableFile, column: str) -> Labels:
    """``[N]`` positions in ``SPLITS``."""
    encoded = table.text(column).dictionary_encode()
    codes = codes_of(encoded)
    numbers = []
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        split = SPLIT_FOLDERS.get(value.strip().lower())
        if split is None:
            rows = np.flatnonzero(codes == code)
            place = f"{table.place(int(rows[0]))}{_and_more(rows)}"
            if not value.strip():
                mend = f"Fill in the column '{column}', or set data.split_column='' to derive the splits."
                raise DataError(f"There is no split for {place}.", mend=mend)
            known = suggestion(value, SPLIT_FOLDERS, known_as="splits")
            raise DataError(f"'{value}' is no split: {place}.", mend=known)
        numbers.append(SPLITS.index(split))
    if 0 not in numbers:
        raise DataError(
            f"The table {table.path} has no row for train in the column '{column}'.",
            mend="Mark the training pictures as train, or set data.split_column='' to derive the splits.",
        )
    found: Labels = np.array(numbers, dtype=np.int64)[codes]
    return found


def _group_numbers(table: TableFile, column: str) -> Labels:
    """``[N]`` numbers of the groups in the order of their names, so that they do not depend on the order of rows."""
    whole = _group_values(table, column)
    is_text = pa.types.is_large_string(whole.type)
    missing = true_positions(whole.is_null())
    missing = np.flatnonzero(is_empty(whole)) if is_text and not len(missing) else missing
    if len(missing):
        raise DataError(
            f"There is no group for {table.place(int(missing[0]))}{_and_more(missing)}.",
            mend=f"Fill in the column '{column}', or set data.group_column='' to ignore it.",
        )
    encoded = whole.dictionary_encode()
    order = np.from_dlpack(pc.sort_indices(encoded.dictionary))
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[order] = np.arange(len(order))
    numbers: Labels = number_of[codes_of(encoded)]
    return numbers


def _group_values(table: TableFile, column: str) -> pa.Array:
    """Integers as they are, or text."""
    values = table[column]
    if isinstance(values, list):
        if not all(isinstance(value, int | None) and not isinstance(value, bool) for value in values):
            return table.text(column)
        try:
            return pa.array(values, pa.int64())
        except (pa.ArrowException, OverflowError):  # more than 64 bits
            return pa.array([None if value is None else str(value) for value in values], pa.large_string())
    return values.combine_chunks() if pa.types.is_integer(values.type) else table.text(column)


def _check_once(table: TableFile, names: Names, split_of: Labels, labels: Labels, classes: Sequence[str]) -> None:
    """Raises where one file is in two splits, or in one split under two labels."""
    if len(names.distinct) == len(names):
        return
    if (rows := _first_differing(names.codes, split_of)) is not None:
        first, second = rows
        raise DataError(
            f"'{names[first]}' is in two splits of {table.path}: {SPLITS[split_of[first]]} in "
            f"{table.short_place(first)} and {SPLITS[split_of[second]]} in {table.short_place(second)}.",
            mend="Remove one of the rows: a picture that was trained on says nothing in a test.",
        )
    if (rows := _first_differing(names.codes, labels)) is not None:
        first, second = rows
        raise DataError(
            f"'{names[first]}' has two labels in {table.path}: '{classes[labels[first]]}' in "
            f"{table.short_place(first)} and '{classes[labels[second]]}' in {table.short_place(second)}.",
            mend="Remove the wrong row.",
        )


def _first_differing(codes: Labels, values: Labels) -> tuple[int, int] | None:
    """The first two rows of equal code and different value."""
    _, first = np.unique(codes, return_index=True)
    differing = np.flatnonzero(values[first][codes] != values)
    return (int(first[codes[differing[0]]]), int(differing[0])) if len(differing) else None


def _check_trained(table: TableFile, split_of: Labels, labels: Labels, classes: Sequence[str]) -> None:
    """Raises where a label occurs, but not in ``train``."""
    trained = np.bincount(labels[split_of == 0], minlength=len(classes)) > 0
    rows = np.flatnonzero(~trained[labels])
    if len(rows):
        row = int(rows[0])
        known = [name for name, has in zip(classes, trained, strict=True) if has]
        raise DataError(
            f"The label '{classes[labels[row]]}' of {table.place(row)} ({SPLITS[split_of[row]]}) is not among those of "
            f"train{_and_more(rows)}.",
            mend=suggestion(classes[labels[row]], known, known_as="classes of train"),
        )


def _repeats(table: TableFile, names: Names) -> list[str]:
    """A note on rows that name a picture again, and are kept."""
    count = len(names) - len(names.distinct)
    if not count:
        return []
    _, first = np.unique(names.codes, return_index=True)
    again = int(np.flatnonzero(first[names.codes] != np.arange(len(names)))[0])
    earlier = int(first[names.codes[again]])
    what = "1 row names a picture" if count == 1 else f"{count:,} rows name pictures"
    return [
        f"{what} that an earlier row names, and {'is' if count == 1 else 'are'} kept: such as row {again + 1} of "
        f"{table.path.name}, which repeats row {earlier + 1}."
    ]


def _shared(groups: Labels | None, split_of: Labels) -> list[str]:
    """A note on groups that the table itself divides."""
    if groups is None:
        return []
    pairs = np.unique(groups * len(SPLITS) + split_of)
    count = int((np.bincount(pairs // len(SPLITS)) > 1).sum())
    what = "1 group has" if count == 1 else f"{count:,} groups have"
    return [f"{what} pictures in more than one split, as the table says."] if count else []


def _no_table(path: Path) -> DataError:
    what = "is no file" if path.exists() else "does not exist"
    if path.parent.is_dir():
        tables = (entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in FORMATS)
        near = suggestion(path.name, tables, known_as=f"tables in {path.parent}")
    else:
        near = f"There is no folder {path.parent}."
    return DataError(f"The table {path} {what}.", mend=f"Set data.table. {near}")


def _and_more(rows: Labels) -> str:
    return f", and {len(rows) - 1:,} more" if len(rows) > 1 else ""
