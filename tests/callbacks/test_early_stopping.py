from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import MODELS, SmallRun, small_run

from frostline.callbacks import EarlyStopping
from frostline.specs import EachSpec, PhaseSpec, PlateauSpec, UntilSpec, WalkSpec

NAME = next(iter(MODELS))
EPOCHS = 9


def run_of(record: Path, scores: list[float], patience: int = 2, **phases: PhaseSpec) -> tuple[SmallRun, EarlyStopping]:
    """A run of one step an epoch that stops early."""
    stop = EarlyStopping("val/score", mode="max", patience=patience, check_on_train_epoch_end=False)
    run = small_run(NAME, record, stop, epochs=EPOCHS, steps_per_epoch=1, scores=scores, **phases)
    return run, stop


@pytest.mark.parametrize(
    ("phases", "arrived"),
    [
        ({"all": PhaseSpec("all")}, 0),
        ({"head": PhaseSpec("head", until=UntilSpec(epochs=4)), "all": PhaseSpec("all")}, 4),
        # seven groups, of which the last joins after five stages of an epoch
        ({"walk": PhaseSpec("all", walk=WalkSpec(each=EachSpec(epochs=1)))}, 5),
    ],
    ids=["one phase", "two phases", "a walk"],
)
def test_it_counts_from_the_last_transition_on(phases: dict[str, PhaseSpec], arrived: int, tmp_path: Path) -> None:
    # never better than the first: two more validations after the first that counts
    run, stop = run_of(tmp_path, [0.9, 0.5], **phases)
    epochs = arrived + 3
    assert run.fit().global_step == epochs
    # what was scored before the last transition is not what later scores are compared with
    assert float(stop.best_score) == pytest.approx(0.9 if arrived == 0 else 0.5)
    assert stop.stopped_epoch == epochs - 1


def test_it_waits_for_a_transition_that_a_metric_brings(tmp_path: Path) -> None:
    until = UntilSpec(epochs=6, plateau=PlateauSpec(patience=3))
    run, stop = run_of(tmp_path, [0.9, 0.5], patience=1, head=PhaseSpec("head", until=until), all=PhaseSpec("all"))
    # the plateau is found after epoch 4, and the next phase has its first score after epoch 5
    assert run.fit().global_step == 6
    assert stop.wait_count == 1


def test_a_run_that_gets_better_is_not_stopped(tmp_path: Path) -> None:
    run, stop = run_of(tmp_path, [number / 10 for number in range(EPOCHS)], patience=1, all=PhaseSpec("all"))
    assert run.fit().global_step == EPOCHS
    assert stop.stopped_epoch == 0


def test_it_counts_where_nothing_is_scheduled() -> None:
    class Bare:
        callbacks: tuple[Any, ...] = ()

    trainer: Any = Bare()
    assert EarlyStopping._may_stop(trainer)
