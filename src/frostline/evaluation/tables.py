"""Predictions as a table: one row a picture, the label, and the probability of each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from torch import Tensor

from frostline.errors import ConfigError, StorageError


def prediction_table(
    names: Sequence[str], probabilities: Tensor, classes: Sequence[str], labels: Sequence[int] | None = None
) -> pa.Table:
    """Columns ``image``, ``label`` (if known), ``prediction``, ``confidence`` and ``p(CLASS)`` for each class.

    Args:
        names: what identifies each picture.
        probabilities: ``[N, K]`` float32.
        classes: K class names.
        labels: ``[N]`` true class indices, or None.
    """
    confidence, predicted = probabilities.max(dim=1)
    # a file name need not be text; what is not shows as a replacement character
    shown = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names]
    columns: dict[str, object] = {"image": pa.array(shown, pa.string())}
    if labels is not None:
        columns["label"] = pa.array([classes[int(label)] for label in labels], pa.string())
    columns["prediction"] = pa.array([classes[int(index)] for index in predicted], pa.string())
    columns["confidence"] = pa.array(confidence.numpy())
    for index, name in enumerate(classes):
        columns[f"p({name})"] = pa.array(probabilities[:, index].numpy())
    return pa.table(columns)


def write_predictions(table: pa.Table, path: Path) -> None:
    """Write ``.csv`` or ``.parquet``, beside the final name and renamed.

    Raises:
        ConfigError: another suffix.
        StorageError: the file cannot be written.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"output={path}: predictions are written as .csv or .parquet", mend="Choose one of the two.")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, part)
        else:
            pyarrow.parquet.write_table(table, part)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}", mend="Choose another place: output=FILE.") from error
