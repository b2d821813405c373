"""Which checkpoints a run keeps: the best by the monitor, of all or of a span too, and the latest."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from frostline.errors import StorageError

_NAME = re.compile(r"step-\d+(?:\.unvalidated)?\.ckpt")


@dataclass(frozen=True)
class Record:
    """A checkpoint that was kept.

    Attributes:
        file: its name.
        step: optimizer steps before it.
        score: the monitor's value of its weights; None where they were not validated.
    """

    file: str
    step: int
    score: float | None = None


class Keeping:
    """The best ``keep_best`` by score, the first of equals, and the ``keep_latest`` latest.

    Args:
        keep_best: how many of the best.
        keep_latest: how many of the latest.
        larger_is_better: the direction of the score.

    Attributes:
        since: the best of those after this step is kept as well: a phase may start from it; None keeps none for that.
    """

    def __init__(self, *, keep_best: int, keep_latest: int, larger_is_better: bool) -> None:
        self._keep_best = keep_best
        self._keep_latest = keep_latest
        self._sign = -1.0 if larger_is_better else 1.0
        self.records: list[Record] = []
        self.since: int | None = None
        self._held: Record | None = None
        self._held_until = 0

    @property
    def ranked(self) -> list[Record]:
        """The best, best first."""
        return self._ranked(self.records)

    def _ranked(self, records: list[Record]) -> list[Record]:
        return self._sorted(records)[: self._keep_best]

    def _sorted(self, records: list[Record]) -> list[Record]:
        scored = [record for record in records if _is_finite(record.score)]
        return sorted(scored, key=lambda record: (self._sign * (record.score or 0.0), record.step))

    def _best_since(self, records: list[Record]) -> list[Record]:
        """The best of those after ``since``, in a list that is empty where there is none."""
        return self._sorted([record for record in records if self.since is not None and record.step > self.since])[:1]

    @property
    def best(self) -> Record | None:
        """The best of all, if any has a finite score."""
        return next(iter(self.ranked), None)

    def begin_span(self, since: int | None, now: int) -> None:
        """Keep the best of those after the step ``since`` from step ``now`` on, in place of the one of the span before.

        That one stays while a checkpoint from before ``now`` is among the latest: a run that falls back to it needs the
        best once more.
        """
        if self.since is not None and since != self.since:
            self._held, self._held_until = self.best_since, now
        self.since = since

    @property
    def best_since(self) -> Record | None:
        """The best after the step ``since``, if any has a finite score."""
        return next(iter(self._best_since(self.records)), None)

    def wants(self, score: float | None) -> bool:
        """Whether weights of this score would be among the best, of all or since the step ``since``."""
        if not _is_finite(score) or self._keep_best == 0:
            return False
        if self.since is not None:
            best = self.best_since
            if best is None or self._sign * (score or 0.0) < self._sign * (best.score or 0.0):
                return True
        ranked = self.ranked
        worst = ranked[-1].score if ranked else None
        return len(ranked) < self._keep_best or self._sign * (score or 0.0) < self._sign * (worst or 0.0)

    def add(self, record: Record) -> list[str]:
        """Keep ``record``; the names of the files that may go once it is safely written."""
        before = [kept for kept in self.records if kept.file != record.file]
        self.records = [*before, record]
        # the best so far stay until a later one than their successor is written: if that one turns out to be damaged,
        # the run goes on from before it, and they are the best again
        if all(one.step > self._held_until for one in self.records[-self._keep_latest :]):
            self._held = None
        best = [*self._ranked(before), *self.ranked, *self._best_since(before), *self._best_since(self.records)]
        best += [self._held] if self._held else []
        kept = {one.file for one in [*best, *self.records[-self._keep_latest :]]}
        gone = [one.file for one in self.records if one.file not in kept]
        self.records = [one for one in self.records if one.file in kept]
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        held = asdict(self._held) if self._held else None
        return {"records": [asdict(record) for record in self.records], "held": held, "held_until": self._held_until}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what ``state_dict`` gave.

        Raises:
            StorageError: it names what is no checkpoint of this folder; what it names is deleted one day.
        """
        records = [Record(**record) for record in state["records"]]
        held = [Record(**state["held"])] if state.get("held") else []
        foreign = [record.file for record in [*records, *held] if not _NAME.fullmatch(str(record.file))]
        if foreign:
            raise StorageError(f"The checkpoint names {foreign[0]!r:.100}, which is no checkpoint of its folder.")
        self.records = records
        self._held, self._held_until = next(iter(held), None), int(state.get("held_until", 0))


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)
