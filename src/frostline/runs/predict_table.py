"""The table of a prediction: labelled and kept part by part, then put together."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
from torch import Tensor

from frostline import signals
from frostline.data.loading import Unreadable, worker_count
from frostline.data.progress import Progress
from frostline.errors import DataError, Interrupted
from frostline.evaluation import Labeller, PredictionParts, prediction_table, write_predictions
from frostline.evaluation.parts import Fault
from frostline.evaluation.tables import shown_names, write_in_pieces
from frostline.runs.predict_inputs import NamedPictures
from frostline.runs.predict_rows import Asked, PartRows
from frostline.signals import STOP

PART = 512
"""Rows of a part at least; so many are lost at most when a prediction is killed."""

_MOST_CLASSES = 20  # that the screen shows


class PredictedTable:
    """Pictures on their way into a table, part by part.

    Args:
        labeller: what labels them.
        pictures: the rows.
        parts: what is kept of the table until it is whole.
        top_k: see `prediction_table`.
        skips: a picture that cannot be read is listed; else the first one raises.
        workers: processes that decode, or ``auto``.
    """

    def __init__(
        self,
        labeller: Labeller,
        pictures: NamedPictures,
        parts: PredictionParts,
        *,
        top_k: int | None = None,
        skips: bool = False,
        workers: int | Literal["auto"] = "auto",
    ) -> None:
        self._labeller, self._pictures, self._parts = labeller, pictures, parts
        self._top_k, self._skips, self._workers = top_k, skips, workers
        # a batch is never of two parts: its numbers then do not depend on where a prediction was stopped
        self._rows = PartRows(pictures, -(-PART // labeller.batch_size) * labeller.batch_size)

    def write(self, output: Path) -> None:
        """Label what is missing, and write the table and the list of what could not be read.

        Raises:
            DataError: a picture cannot be read, or none of them.
            Interrupted: a signal came; what is in whole parts is kept.
            StorageError: something cannot be written.
        """
        started = time.perf_counter()
        waiting = [
            number
            for number in range(len(self._rows))
            if not self._parts.holds(number, self._rows.now(number), faultless=not self._skips)
        ]
        asked = Asked(self._rows, waiting)
        total, new = len(self._pictures.split), len(asked)
        if new < total:
            print(f"{total - new:,} were labelled before")
        with _counted(asked, total) as progress:
            self._label(asked, waiting, progress)
        seconds = time.perf_counter() - started
        self._put_together(output)
        if new:
            print(f"{new:,} pictures in {seconds:.1f} s ({new / seconds:,.0f} a second)")
        print(f"predictions: {output}")

    def _label(self, asked: Asked, waiting: Sequence[int], progress: _Counter) -> None:
        # what is decoded sooner than a process is started is decoded here
        workers = worker_count(self._workers, in_memory=len(asked) <= self._labeller.batch_size)
        found = self._labeller.label(self._pictures.split, asked, workers=workers)
        for number in waiting:
            tables, faults = [], []
            for first in self._rows.of_part(number)[:: self._labeller.batch_size]:
                progress.stop_if_told()
                labelled = next(found)
                faults += [self._fault(one) for one in labelled.unreadable]
                tables.append(self._table(labelled.positions, labelled.probabilities))
                progress.at(min(self._labeller.batch_size, self._rows.of_part(number).stop - first))
            self._parts.write(number, asked.hashes.pop(number), pa.concat_tables(tables), faults)

    def _table(self, positions: list[int], probabilities: Tensor) -> pa.Table:
        pictures = self._pictures
        names = [pictures.split.name(position) for position in positions]
        carried = None if pictures.columns is None else pictures.columns.take(pa.array(positions, pa.int64()))
        return prediction_table(names, probabilities, self._labeller.labels, carried=carried, top_k=self._top_k)

    def _fault(self, picture: Unreadable) -> Fault:
        # where the machine fails, the picture may be read the next time
        if not self._skips or not isinstance(picture.fault, DataError):
            mend = "Mend or remove it; the same command goes on. Or list such files and go on: on_error=skip."
            raise type(picture.fault)(picture.fault.problem, mend=mend)
        (name,) = shown_names([picture.name])
        return name, picture.fault.problem

    def _put_together(self, output: Path) -> None:
        count, listed = len(self._rows), output.with_suffix(".errors.csv")
        faults = self._parts.faults(count)
        if faults:
            columns = {"image": [name for name, _ in faults], "reason": [why for _, why in faults]}
            write_predictions(pa.table(columns), listed)
            print(f"note: {len(faults):,} pictures could not be read and have no row; listed in {listed}")
        else:
            listed.unlink(missing_ok=True)
        if len(faults) == len(self._pictures.split):
            raise DataError(f"None of the {len(faults):,} pictures can be read. The first: {faults[0][1]}")
        labels: Counter[str] = Counter()
        write_in_pieces(_noting(self._parts.tables(count), labels), self._parts.schema(), output)
        _show_counts(labels, self._labeller.labels)


class _Counter:
    """Tells a line of progress how many more are done, and ends the work where a signal came."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self.line = Progress("labelling pictures", total, before=done)

    def at(self, more: int) -> None:
        self._done += more
        self.line.at(self._done)

    def stop_if_told(self) -> None:
        if told := STOP.agreed():
            raise Interrupted(
                f"{signals.name(told)}: stopped after {self._done:,} of {self._total:,} pictures.",
                mend="The same command goes on from the last whole part.",
                code=signals.exit_code(told),
            )


@contextlib.contextmanager
def _counted(asked: Asked, total: int) -> Iterator[_Counter]:
    counter = _Counter(total - len(asked), total)
    try:
        # a worker that is left in the middle of a batch would say so with a traceback
        with STOP.deferred("what is labelled is kept"):
            yield counter
    finally:
        counter.line.end()


def _noting(tables: Iterator[pa.Table], labels: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        labels.update(table["prediction"].to_pylist())
        yield table


def _show_counts(labels: Counter[str], classes: Sequence[str]) -> None:
    """How often each class was predicted; of many classes the most frequent."""
    shown = classes if len(classes) <= _MOST_CLASSES else [name for name, _ in labels.most_common(_MOST_CLASSES)]
    for name in shown:
        print(f"  {name if name.isprintable() else repr(name)}: {labels[name]:,}")
    if len(shown) < len(labels):
        print(f"  and {len(labels) - len(shown):,} other classes")
