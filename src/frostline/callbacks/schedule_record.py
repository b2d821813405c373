"""``schedule.csv``: a row for each transition that a run has made."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning import Trainer

from frostline.freezing import FreezeSchedule, Position, Transition
from frostline.writing import write_text

COLUMNS = (
    "step",
    "epoch",
    "phase",
    "stage",
    "reason",
    "trainable_parameters",
    "frost_line",
    "thawed",
    "frozen",
    "weights",
    "optimizer",
)


class ScheduleRecord:
    """Writes the transitions of a run; a resumed run takes back those that it will make again.

    Args:
        path: of the CSV file.
        schedule: of the run.
    """

    def __init__(self, path: Path, schedule: FreezeSchedule) -> None:
        self.path = path
        self.schedule = schedule
        self._rows: list[list[str]] = []

    def begin(self, trainer: Trainer, position: Position) -> bool:
        """Take up the rows up to a position; whether there are none yet."""
        self._rows = [row for row in self._read() if self._is_done(row, position)]
        return not self._rows

    def _read(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        return rows if tuple(header) == COLUMNS else []

    def _is_done(self, row: list[str], position: Position) -> bool:
        names = [phase.name for phase in self.schedule.phases]
        return (names.index(row[2]), int(row[3])) <= (position.phase, position.stage)

    def add(self, trainer: Trainer, transition: Transition, weights: str = "last") -> None:
        """Write a transition; the first rank's affair.

        Args:
            trainer: of the run.
            transition: what has happened.
            weights: the checkpoint whose weights were taken, where they were not the last.
        """
        if not trainer.is_global_zero:
            return
        position = transition.position
        stage = self.schedule.stage_of(position)
        content = [
            transition.step,
            trainer.current_epoch,
            self.schedule.phase_of(position).name,
            position.stage,
            transition.reason,
            sum(self.schedule.sizes[name] for name in stage.trainable),
            stage.frost_line,
            " ".join(transition.thawed),
            " ".join(transition.frozen),
            weights,
            "reset" if transition.enters_phase and self.schedule.phase_of(position).resets_optimizer else "keep",
        ]
        self._rows.append([str(value) for value in content])
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *self._rows])
        write_text(self.path, text.getvalue())
