from __future__ import annotations

from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from frostline.errors import ConfigError, StorageError
from frostline.evaluation import prediction_table, write_predictions

CLASSES = ["1", "a, b", "c=d", "日本"]
ROWS = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])


def test_a_table_has_a_row_a_picture_and_a_column_a_class() -> None:
    table = prediction_table(["x.jpg", "ü.jpg"], ROWS, CLASSES, [3, 1])
    assert table.column_names[:4] == ["image", "label", "prediction", "confidence"]
    assert table.column_names[4:] == [f"p({name})" for name in CLASSES]
    assert table["prediction"].to_pylist() == ["日本", "1"]
    assert table["label"].to_pylist() == ["日本", "a, b"]
    assert table["p(c=d)"].to_pylist() == pytest.approx([0.3, 0.1])


def test_file_names_that_are_not_text_do_not_break_a_table() -> None:
    table = prediction_table(["a\udcff.jpg", "y.jpg"], ROWS, CLASSES)
    assert table["image"].to_pylist() == ["a\ufffd.jpg", "y.jpg"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    table = prediction_table(["x.jpg", "y.jpg"], ROWS, CLASSES)
    path = tmp_path / "deep" / f"p{suffix}"
    write_predictions(table, path)
    back = pyarrow.csv.read_csv(path) if suffix == ".csv" else pyarrow.parquet.read_table(path)
    assert back["image"].to_pylist() == ["x.jpg", "y.jpg"]
    assert [str(value) for value in back["prediction"].to_pylist()] == ["日本", "1"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_suffixes_and_places_are_refused(tmp_path: Path) -> None:
    table = prediction_table(["x.jpg", "y.jpg"], ROWS, CLASSES)
    with pytest.raises(ConfigError, match="parquet"):
        write_predictions(table, tmp_path / "p.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_predictions(table, tmp_path / "file" / "p.csv")
