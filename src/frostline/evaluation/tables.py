"""Predictions as a table: one row a picture, the label, and the probability of each class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from frostline.errors import ConfigError, StorageError

# of a table that is written in pieces: so much of it is in memory, and a row group of a Parquet file has so much
_MOST_ROWS, _MOST_VALUES = 2**16, 2**22


def prediction_table(
    names: Sequence[str],
    probabilities: Tensor,
    classes: Sequence[str],
    labels: Sequence[int] | None = None,
    *,
    carried: pa.Table | None = None,
    top_k: int | None = None,
) -> pa.Table:
    """Columns ``image``, ``label`` (if known), ``prediction``, ``confidence`` and ``p(CLASS)`` for each class.

    Args:
        names: what identifies each picture.
        probabilities: ``[N, K]`` float32.
        classes: K class names.
        labels: ``[N]`` true class indices, or None.
        carried: N rows of other columns, which come after ``image``.
        top_k: in place of the columns of the classes, ``prediction_2``, ``confidence_2`` and so on up to this place.
    """
    columns: dict[str, object] = {"image": pa.array(shown_names(names), pa.string())}
    if carried is not None:
        columns |= dict(zip(carried.column_names, carried.columns, strict=True))
    if labels is not None:
        columns["label"] = pa.array([classes[int(label)] for label in labels], pa.string())
    columns |= _best(probabilities, classes, top_k or 1)
    if top_k is None:
        for index, name in enumerate(classes):
            columns[f"p({name})"] = pa.array(probabilities[:, index].numpy())
    return pa.table(columns)


def prediction_columns(classes: Sequence[str], *, top_k: int | None = None) -> list[str]:
    """The names of the columns of a `prediction_table` without labels."""
    nothing = torch.zeros(0, len(classes))
    names: list[str] = prediction_table([], nothing, classes, top_k=top_k).column_names
    return names


def shown_names(names: Iterable[str]) -> list[str]:
    """Names as text; a file name need not be, and what is not shows as a replacement character."""
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]


def _best(probabilities: Tensor, classes: Sequence[str], places: int) -> dict[str, object]:
    """The most probable classes, of equal ones the first."""
    if places == 1:
        found, order = (column[:, None] for column in probabilities.max(dim=1))
    else:
        found, order = (part[:, :places] for part in probabilities.sort(dim=1, descending=True, stable=True))
    columns: dict[str, object] = {}
    for place in range(places):
        ending = "" if place == 0 else f"_{place + 1}"
        columns[f"prediction{ending}"] = pa.array([classes[at] for at in order[:, place].tolist()], pa.string())
        columns[f"confidence{ending}"] = pa.array(found[:, place].numpy())
    return columns


def require_known_suffix(path: Path) -> None:
    """Raise where predictions cannot be written to such a file.

    Raises:
        ConfigError: it ends neither in ``.csv`` nor in ``.parquet``.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"output={path}: predictions are written as .csv or .parquet", mend="Choose one of the two.")


def write_predictions(table: pa.Table, path: Path) -> None:
    """Write ``.csv`` or ``.parquet``, beside the final name and renamed.

    Raises:
        ConfigError: another suffix.
        StorageError: the file cannot be written.
    """
    write_in_pieces([table], table.schema, path)


def write_in_pieces(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """As `write_predictions`, of a table that need not fit into memory.

    Args:
        tables: its rows, in order; read as they are written.
        schema: of each of them.
        path: of the file.
    """
    require_known_suffix(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            kind = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
            with kind(file, schema) as writer:
                for table in _in_pieces(tables, schema):
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}", mend="Choose another place: output=FILE.") from error


def _in_pieces(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    most = max(1, min(_MOST_ROWS, _MOST_VALUES // len(schema)))
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= most:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
