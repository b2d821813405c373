from __future__ import annotations

from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from frostline.errors import ConfigError, StorageError
from frostline.evaluation import prediction_table, tables, write_predictions

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


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_in_pieces_is_the_whole_one(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_ROWS", 3)
    whole = prediction_table([f"{number}, ü.jpg" for number in range(8)], ROWS.repeat(4, 1), CLASSES)
    pieces = [whole.slice(start, 2) for start in range(0, 8, 2)]
    tables.write_in_pieces(iter(pieces), whole.schema, tmp_path / f"pieces{suffix}")
    if suffix == ".csv":
        write_predictions(whole, tmp_path / "whole.csv")
        assert (tmp_path / "pieces.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    else:
        written = pyarrow.parquet.ParquetFile(tmp_path / "pieces.parquet")
        assert written.read().equals(whole)
        assert [written.metadata.row_group(number).num_rows for number in range(2)] == [4, 4]


def test_the_best_classes_are_the_first_of_equal_ones() -> None:
    table = prediction_table(["x.jpg", "y.jpg"], ROWS, CLASSES, top_k=3)
    assert table.column_names[1:3] == ["prediction", "confidence"]
    assert table.column_names[3:] == ["prediction_2", "confidence_2", "prediction_3", "confidence_3"]
    assert table["prediction_2"].to_pylist() == ["c=d", "a, b"]
    assert table["prediction_3"].to_pylist() == ["a, b", "c=d"]


def test_other_suffixes_and_places_are_refused(tmp_path: Path) -> None:
    table = prediction_table(["x.jpg", "y.jpg"], ROWS, CLASSES)
    with pytest.raises(ConfigError, match="parquet"):
        write_predictions(table, tmp_path / "p.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_predictions(table, tmp_path / "file" / "p.csv")
