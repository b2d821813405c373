from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import MODELS, SmallRun, small_run

from frostline.callbacks.schedule_record import COLUMNS, ScheduleRecord
from frostline.freezing import Position, Transition
from frostline.specs import EachSpec, OptimizerState, PhaseSpec, UntilSpec, WalkMode, WalkSpec

NAME = next(iter(MODELS))
FIRST: Any = SimpleNamespace(is_global_zero=True, current_epoch=3)
OTHER: Any = SimpleNamespace(is_global_zero=False, current_epoch=3)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    """A probe of an epoch, a walk of two stages of three steps, and all: two steps an epoch."""
    walk = WalkSpec(by=2, mode=WalkMode.solo, each=EachSpec(steps=3))
    phases = {
        "head": PhaseSpec("head", until=UntilSpec(epochs=1)),
        "walk": PhaseSpec("top:3", walk=walk, until=UntilSpec(steps=6)),
        "all": PhaseSpec("all", optimizer=OptimizerState.reset),
    }
    return small_run(NAME, tmp_path, epochs=5, steps_per_epoch=2, bins=4, **phases)


def test_a_row_says_what_a_transition_has_changed(run: SmallRun, tmp_path: Path) -> None:
    run.fit()
    groups, sizes = run.backbone.groups, run.schedule.sizes
    names = [group.name for group in groups]
    count = [sum(sizes[name] for name in group.parameters) for group in groups]
    found = rows(tmp_path / "schedule.csv")
    assert tuple(found[0]) == COLUMNS
    stages = [
        # step, epoch, phase, stage, reason, what learns, what thaws, what freezes
        (0, 0, "head", 0, "start of the run", [4], [4], []),
        (2, 1, "walk", 0, "after 2 steps", [2, 3], [2, 3], [4]),
        (5, 2, "walk", 1, "after 3 steps", [1], [1], [2, 3]),
        (8, 4, "all", 0, "after 6 steps", [0, 1, 2, 3, 4], [0, 2, 3, 4], []),
    ]
    for row, (step, epoch, phase, stage, reason, learning, thawed, frozen) in zip(found, stages, strict=True):
        assert row == {
            "step": str(step),
            "epoch": str(epoch),
            "phase": phase,
            "stage": str(stage),
            "reason": reason,
            "trainable_parameters": str(sum(count[i] for i in learning)),
            "frost_line": str(learning[0]),
            "thawed": " ".join(names[i] for i in thawed),
            "frozen": " ".join(names[i] for i in frozen),
            "weights": "last",
            "optimizer": "reset" if phase == "all" else "keep",
        }


def transition(record: ScheduleRecord, phase: int, stage: int, step: int) -> Transition:
    return Transition(step, Position(phase, step, stage, step), stage == 0, ("head",), (), "told so")


def test_a_resumed_run_takes_back_the_rows_that_it_will_write_again(run: SmallRun, tmp_path: Path) -> None:
    path = tmp_path / "resumed.csv"
    record = ScheduleRecord(path, run.schedule)
    assert record.begin(FIRST, Position())
    for phase, stage, step in ((0, 0, 0), (1, 0, 2), (1, 1, 5), (2, 0, 8)):
        record.add(FIRST, transition(record, phase, stage, step))
    assert [row["step"] for row in rows(path)] == ["0", "2", "5", "8"]
    # stopped inside the first stage of the walk
    again = ScheduleRecord(path, run.schedule)
    assert not again.begin(FIRST, Position(1, 2, 0, 2))
    again.add(FIRST, transition(again, 1, 1, 4))
    assert [(row["phase"], row["stage"], row["step"]) for row in rows(path)] == [
        ("head", "0", "0"),
        ("walk", "0", "2"),
        ("walk", "1", "4"),
    ]


def test_other_ranks_write_nothing(run: SmallRun, tmp_path: Path) -> None:
    record = ScheduleRecord(tmp_path / "none.csv", run.schedule)
    assert record.begin(OTHER, Position())
    record.add(OTHER, transition(record, 0, 0, 0))
    assert not record.path.exists()


def test_a_file_of_another_make_is_begun_anew(run: SmallRun, tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("step,epoch,phase\r\n0,0,head\r\n", encoding="utf-8")
    record = ScheduleRecord(path, run.schedule)
    assert record.begin(FIRST, Position())
    record.add(FIRST, transition(record, 0, 0, 0))
    assert [row["reason"] for row in rows(path)] == ["told so"]
