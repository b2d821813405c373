"""``metrics.csv``, without a doubled or a lost row when a run is resumed."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class _Writer(ExperimentWriter):
    """Lightning's writer, which goes on in a file that it finds instead of removing it."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys = _read(Path(self.metrics_file_path))[0]

    def _check_log_dir_exists(self) -> None:
        pass


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, writing ``metrics.csv`` into a folder.

    Args:
        folder: where the file lies.
        flush_logs_every_n_steps: rows are written at the latest after so many steps; each checkpoint writes them too.
    """

    def __init__(self, folder: str, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self.path = Path(folder) / "metrics.csv"

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of this process; does nothing on other ranks than the first."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return len(_read(self.path)[1])

    def keep(self, rows: int) -> None:
        """Go on after the first ``rows`` rows: what was logged after a checkpoint is logged again from there."""
        header, found = _read(self.path)
        if len(found) <= rows:
            return
        part = self.path.with_name(f".{self.path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *found[:rows]])
        os.replace(part, self.path)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows; a last row that a kill cut short is left out."""
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    return header, [row for row in rows if len(row) == len(header)]
