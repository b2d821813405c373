from __future__ import annotations

import csv
from pathlib import Path

from frostline.loggers import MetricsFile


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_second_process_goes_on_in_the_file_with_its_own_columns(tmp_path: Path) -> None:
    first = MetricsFile(str(tmp_path))
    first.log_metrics({"lr": 0.5}, step=0)
    first.save()
    second = MetricsFile(str(tmp_path))
    second.log_metrics({"val/loss": 2.0}, step=0)
    second.log_metrics({"lr": 0.25}, step=1)
    second.save()
    assert rows(tmp_path / "metrics.csv") == [
        {"lr": "0.5", "step": "0"},
        {"val/loss": "2.0", "step": "0"},
        {"lr": "0.25", "step": "1"},
    ]
    assert second.rows == 3


def test_rows_that_come_again_are_taken_back(tmp_path: Path) -> None:
    first = MetricsFile(str(tmp_path))
    for step in range(5):
        first.log_metrics({"lr": float(step)}, step=step)
    first.save()
    with first.path.open("a") as file:
        file.write("9")  # a kill in the midst of a row
    second = MetricsFile(str(tmp_path))
    assert second.rows == 5
    second.keep(2)
    second.log_metrics({"lr": 2.0}, step=2)
    second.save()
    assert [row["step"] for row in rows(second.path)] == ["0", "1", "2"]


def test_keeping_more_than_there_is_changes_nothing(tmp_path: Path) -> None:
    logger = MetricsFile(str(tmp_path))
    logger.keep(3)
    assert not logger.path.exists()
