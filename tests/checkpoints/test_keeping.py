from __future__ import annotations

import math

import pytest

from frostline.checkpoints import Keeping, Record
from frostline.checkpoints.files import checkpoint_name
from frostline.errors import StorageError


def kept_after(scores: list[float | None], *, best: int = 1, latest: int = 2, larger: bool = True) -> list[int]:
    keeping = Keeping(keep_best=best, keep_latest=latest, larger_is_better=larger)
    files: set[str] = set()
    for step, score in enumerate(scores):
        files.add(checkpoint_name(step))
        files -= set(keeping.add(Record(checkpoint_name(step), step, score)))
    assert files == {record.file for record in keeping.records}
    return sorted(record.step for record in keeping.records)


def test_the_best_and_the_two_latest_are_kept() -> None:
    assert kept_after([0.5, 0.9, 0.6, 0.7, 0.8]) == [1, 3, 4]
    assert kept_after([0.5, 0.9, 0.6, 0.7, 0.8], larger=False) == [0, 3, 4]
    assert kept_after([0.5, 0.9, 0.6, 0.7, 0.8, 0.1], best=2, latest=1) == [1, 4, 5]


def test_the_best_so_far_stays_until_a_later_one_than_its_successor_is_written() -> None:
    """A damaged successor leaves a run to go on from before it, with its best still there."""
    assert kept_after([0.5, 0.1, 0.1, 0.9]) == [0, 2, 3]
    assert kept_after([0.5, 0.1, 0.1, 0.9, 0.2]) == [3, 4]


def test_the_first_of_equals_is_the_best() -> None:
    assert kept_after([0.5, 0.9, 0.9, 0.9, 0.9]) == [1, 3, 4]


def test_what_was_not_validated_or_is_not_a_number_is_never_the_best() -> None:
    assert kept_after([None, math.nan, math.inf, None, None], latest=1) == [4]


def test_a_score_is_wanted_where_it_would_be_among_the_best() -> None:
    keeping = Keeping(keep_best=2, keep_latest=1, larger_is_better=True)
    keeping.add(Record(checkpoint_name(1), 1, 0.5))
    assert keeping.wants(0.1)
    keeping.add(Record(checkpoint_name(2), 2, 0.7))
    assert keeping.wants(0.6)
    assert not any(keeping.wants(score) for score in (0.5, 0.4, None, math.nan))
    assert not Keeping(keep_best=0, keep_latest=1, larger_is_better=True).wants(1.0)


def test_its_state_is_taken_up() -> None:
    keeping = Keeping(keep_best=1, keep_latest=2, larger_is_better=True)
    keeping.add(Record(checkpoint_name(1), 1, 0.5))
    other = Keeping(keep_best=1, keep_latest=2, larger_is_better=True)
    other.load_state_dict(keeping.state_dict())
    assert other.best == keeping.best


def test_a_state_that_names_other_files_is_refused() -> None:
    state = {"records": [{"file": "../model.safetensors", "step": 1, "score": 1.0}]}
    with pytest.raises(StorageError, match="no checkpoint of its folder"):
        Keeping(keep_best=1, keep_latest=2, larger_is_better=True).load_state_dict(state)
