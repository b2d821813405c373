"""Columns of a table file, ``.csv``, ``.tsv``, ``.parquet`` or JSON lines, and where in the file each row stands."""

from __future__ import annotations

import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from frostline.errors import DataError, StorageError, near_misses

Column = Any
"""N values as a file has them: a pyarrow chunked array, or a list of JSON values."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class TableFile(ABC):
    """The rows of a file. A subclass reads one format.

    Text of CSV is taken as it stands: nothing is a number, a date or a missing value.

    Args:
        path: the file.
        required: columns that must be there, each with the key that names it, for messages.
        optional: columns that are read where they are there.

    Attributes:
        path: as given.
        length: the number of rows.

    Raises:
        DataError: the file is malformed, two columns have one name, or a required column is not there.
        StorageError: it cannot be read.
    """

    def __init__(self, path: Path, required: Mapping[str, str], optional: Sequence[str] = ()) -> None:
        self.path = path
        self._columns: dict[str, Column] = {}
        try:
            names = self._open()
            wanted = list(dict.fromkeys([*required, *optional]))
            self._check_names(names, required)
            self._columns = self._read([name for name in wanted if name in set(names)])
        except OSError as error:
            raise StorageError(f"The table {path} cannot be read: {error.strerror or error}.") from error
        self.length = len(next(iter(self._columns.values())))

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, column: str) -> Column:
        """The values of a column, N of them, as the file has them."""
        return self._columns[column]

    def text(self, column: str) -> pa.LargeStringArray:
        """The values of a column, N of them, in one piece; what is missing is empty.

        Raises:
            DataError: they are no text.
        """
        values = self._columns[column]
        if isinstance(values, list):
            for row, value in enumerate(values):
                if not isinstance(value, str | None):
                    raise self._no_text(column, f"is {json.dumps(value)[:50]} in {self.place(row)}")
                if value is not None and _SURROGATE.search(value):
                    raise self._no_text(column, f"has half a character in {self.place(row)}")
            values = pa.chunked_array([pa.array(values, pa.large_string())])
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if not (is_text or pa.types.is_null(kind)):
            raise self._no_text(column, f"of {self.path} is of type {kind}")
        whole = values.cast(pa.large_string()).combine_chunks()
        return pc.fill_null(whole, "") if whole.null_count else whole

    def place(self, row: int) -> str:
        """Where a row (from 0) stands: ``row 7 (line 8) of labels.csv``; lines count the header, rows do not.

        Reads the file again; meant for the message that ends the run.
        """
        return f"{self.short_place(row)} of {self.path}"

    def short_place(self, row: int) -> str:
        """`place` without the file."""
        line = self._lines[row] if row < len(self._lines) else None
        return f"row {row + 1}" if line is None else f"row {row + 1} (line {line})"

    @abstractmethod
    def _open(self) -> Sequence[str]:
        """The names of the columns."""

    @abstractmethod
    def _read(self, wanted: Sequence[str]) -> dict[str, Column]:
        """The values of some columns that are there."""

    @cached_property
    def _lines(self) -> Sequence[int]:
        """The line (from 1) of each row; empty for a file that has none. Slow, so that only messages ask for it."""
        return []

    def _check_names(self, names: Sequence[str], required: Mapping[str, str]) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"The table {self.path} has several columns '{twice[0]}'.", mend="Rename or remove one.")
        for name, key in required.items():
            if name not in names:
                raise self._absent(name, key, names)

    def _absent(self, name: str, key: str, names: Sequence[str]) -> DataError:
        near = near_misses(name, names)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        listed = ", ".join(f"'{found}'" for found in names[:50]) or "none"
        return DataError(
            f"The table {self.path} has no column '{name}'.",
            mend=f"{hint}Its columns are: {listed}. Set {key} to one of them.",
        )

    def _no_text(self, column: str, what: str) -> DataError:
        return DataError(
            f"The column '{column}' {what}.", mend="It must hold text; labels and groups may be integers as well."
        )

    def _malformed(self, what: str) -> DataError:
        return DataError(f"The table {self.path} is malformed: {what}.", mend="Mend it, or write it anew.")


class CsvFile(TableFile):
    """Values separated by commas, with names in the first line, in UTF-8."""

    delimiter = ","

    def _open(self) -> Sequence[str]:
        self._content = self.path.read_bytes()
        header = next((row for _, row in self._rows()), None)
        if header is None:
            raise DataError(f"The table {self.path} is empty.", mend="Its first line names the columns.")
        return header

    def _read(self, wanted: Sequence[str]) -> dict[str, Column]:
        if self._content.count(b'"') % 2:
            self._scan()  # a quotation mark that is not closed would swallow the rest of the file
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(self._content),
                parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string())
                ),
            )
        except pa.ArrowException as error:
            self._scan()
            raise self._malformed(_first_line(error)) from error
        return {name: table[name] for name in wanted}

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not empty, the header first, each with the line that it begins in."""
        text = io.TextIOWrapper(io.BytesIO(self._content), encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=self.delimiter, strict=True)
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            bad = self._line_of_bad_byte()
            raise DataError(f"The table {self.path} is no UTF-8 (line {bad}).", mend="Save it as UTF-8.") from error
        except csv.Error as error:
            reason = str(error)
            if "unexpected end" in reason or "field larger" in reason:
                reason = f"a quotation mark is not closed ({reason})"
            raise self._malformed(f"line {line}: {reason}") from error

    def _line_of_bad_byte(self) -> int:
        try:
            self._content.decode()
        except UnicodeDecodeError as error:
            return self._content.count(b"\n", 0, error.start) + 1
        return 1

    def _scan(self) -> None:
        """Raises the first fault, with its line."""
        rows = self._rows()
        _, header = next(rows)
        for line, row in rows:
            if len(row) != len(header):
                raise self._malformed(f"line {line} has {len(row)} values, and the first line {len(header)}")

    @cached_property
    def _lines(self) -> Sequence[int]:
        try:
            return [line for line, _ in self._rows()][1:]
        except DataError:  # the csv module is stricter than pyarrow: better no line than a wrong one
            return []

    def _absent(self, name: str, key: str, names: Sequence[str]) -> DataError:
        other = next((mark for mark in (";", "\t", ",", "|") if len(names) == 1 and mark in names[0]), None)
        if other is None:
            return super()._absent(name, key, names)
        return DataError(
            f"The table {self.path} has no column '{name}', but a single one, '{names[0]}'.",
            mend=f"Separate the values by {self.delimiter!r}, not by {other!r}; a .tsv file has tabs.",
        )


class TsvFile(CsvFile):
    """`CsvFile` with tabs."""

    delimiter = "\t"


class ParquetFile(TableFile):
    """Apache Parquet."""

    def _open(self) -> Sequence[str]:
        try:
            self._file = pyarrow.parquet.ParquetFile(self.path)
        except (pa.ArrowException, ValueError) as error:
            raise self._malformed(_first_line(error)) from error
        names: Sequence[str] = self._file.schema_arrow.names
        return names

    def _read(self, wanted: Sequence[str]) -> dict[str, Column]:
        kinds = self._file.schema_arrow
        for name in wanted:
            if pa.types.is_nested(kinds.field(name).type):
                raise DataError(
                    f"The column '{name}' of {self.path} is of type {kinds.field(name).type}.",
                    mend="Name the column with the paths; data=hf reads Parquet files with the pictures inside.",
                )
        try:
            with self._file as file:
                table = file.read(columns=list(wanted))
            for column in table.itercolumns():
                column.validate(full=True)  # the format does not promise that text is UTF-8
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._malformed(_first_line(error)) from error
        return {name: table[name] for name in wanted}


class JsonLinesFile(TableFile):
    """An object in each line. What an object lacks is missing."""

    def _open(self) -> Sequence[str]:
        self._content = self.path.read_bytes()
        self._table = self._read_fast()
        if self._table is not None:
            return list(self._table.column_names)
        names: dict[str, None] = {}
        for _, row in self._rows():
            names.update(dict.fromkeys(row))
        if not names:
            raise DataError(f"The table {self.path} is empty.", mend="Each line holds an object.")
        return list(names)

    def _read(self, wanted: Sequence[str]) -> dict[str, Column]:
        if self._table is not None and all(_is_plain(self._table[name].type) for name in wanted):
            return {name: self._table[name] for name in wanted}
        columns: dict[str, Column] = {name: [] for name in wanted}
        for _, row in self._rows():
            for name, values in columns.items():
                values.append(row.get(name))
        return columns

    def _read_fast(self) -> pa.Table | None:
        """What pyarrow makes of the file; None where it has faults, whose lines it cannot tell, or is unusual."""
        lines = self._content.count(b"\n") + (not self._content.endswith(b"\n"))
        try:
            self._content.decode()
            first = json.loads(self._content[: self._content.find(b"\n") + 1] or b"{}")
            # text of the first line stays text; else it might be taken for a date
            schema = pa.schema([(name, pa.string()) for name, value in first.items() if isinstance(value, str)])
            table = pyarrow.json.read_json(
                pa.BufferReader(self._content),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
            )
        except (pa.ArrowException, ValueError, AttributeError, RecursionError):
            return None
        return table if table.num_rows == lines else None

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        decode = json.JSONDecoder(object_pairs_hook=_distinct).decode
        for line, content in enumerate(io.BytesIO(self._content), start=1):
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8")
                if not text.isspace():
                    row = decode(text)
                    if not isinstance(row, dict):
                        raise ValueError("it is no object")
                    yield line, row
            except (ValueError, RecursionError) as error:
                raise self._malformed(f"line {line}: {_first_line(error)}") from error

    @cached_property
    def _lines(self) -> Sequence[int]:
        return [line for line, _ in self._rows()]


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a JSON column holds what it says, and not what pyarrow made of it, such as a date."""
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


FORMATS: dict[str, type[TableFile]] = {
    ".csv": CsvFile,
    ".tsv": TsvFile,
    ".parquet": ParquetFile,
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".json-lines": JsonLinesFile,
}
"""File name ending, in lower case, to what reads it."""


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{twice}' occurs twice")
    return row


def _first_line(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")
