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


def since(step: int | None, scores: list[float | None], *, best: int = 1, latest: int = 1) -> Keeping:
    """Keeps the best after a step as well; the steps are 1, 2, 3, ..."""
    keeping = Keeping(keep_best=best, keep_latest=latest, larger_is_better=True)
    keeping.since = step
    for number, score in enumerate(scores, start=1):
        keeping.add(Record(checkpoint_name(number), number, score))
    return keeping


def test_the_best_after_a_step_is_kept_beside_the_best_of_all() -> None:
    scores = [0.9, 0.5, 0.7, 0.6, 0.1]
    keeping = since(1, scores)
    assert keeping.best == Record(checkpoint_name(1), 1, 0.9)
    assert keeping.best_since == Record(checkpoint_name(3), 3, 0.7)
    assert [record.step for record in keeping.records] == [1, 3, 5]
    # without a step it goes with the others
    assert [record.step for record in since(None, scores).records] == [1, 5]


def test_what_was_scored_at_the_step_itself_belongs_to_what_came_before() -> None:
    assert since(2, [0.1, 0.9]).best_since is None
    assert since(2, [0.1, 0.9, None, math.nan]).best_since is None
    first_after = since(2, [0.1, 0.9, 0.5, 0.5]).best_since
    assert first_after is not None
    assert first_after.step == 3


def test_a_score_is_wanted_where_it_is_the_best_after_the_step() -> None:
    keeping = since(2, [0.9, 0.8])
    assert keeping.wants(0.1)  # the first after the step
    assert not since(None, [0.9, 0.8]).wants(0.1)
    keeping.add(Record(checkpoint_name(3), 3, 0.5))
    assert keeping.wants(0.6)
    assert not any(keeping.wants(score) for score in (0.5, 0.4, None, math.nan, -math.inf))


def test_the_best_after_the_step_stays_until_a_later_one_than_its_successor_is_written() -> None:
    """A run that goes on from before a damaged successor still finds what its next phase starts from."""
    assert [record.step for record in since(1, [0.9, 0.5, 0.6]).records] == [1, 2, 3]
    assert [record.step for record in since(1, [0.9, 0.5, 0.6, 0.1]).records] == [1, 3, 4]


def test_a_new_span_has_a_best_of_its_own() -> None:
    keeping = since(0, [0.5, 0.9, 0.6])
    keeping.begin_span(3, 3)
    assert keeping.best_since is None
    keeping.add(Record(checkpoint_name(4), 4, 0.95))
    assert keeping.best_since == keeping.best == Record(checkpoint_name(4), 4, 0.95)


def test_the_best_of_the_span_before_stays_while_a_run_may_fall_back_to_it() -> None:
    keeping = Keeping(keep_best=1, keep_latest=2, larger_is_better=True)
    keeping.begin_span(0, 0)
    for number, score in enumerate([0.9, 0.5, 0.6], start=1):
        keeping.add(Record(checkpoint_name(number), number, score))
    keeping.begin_span(1, 1)
    assert keeping.best_since == Record(checkpoint_name(3), 3, 0.6)
    keeping.begin_span(4, 4)
    # number 3 is the best of the span that ended at step 4; the two latest may be from before it
    kept = Keeping(keep_best=1, keep_latest=2, larger_is_better=True)
    kept.load_state_dict(keeping.state_dict())
    kept.begin_span(4, 4)
    assert kept.add(Record(checkpoint_name(5), 5, 0.1)) == [checkpoint_name(2)]
    assert kept.add(Record(checkpoint_name(6), 6, 0.2)) == [checkpoint_name(3)]


def test_a_smaller_score_may_be_the_better() -> None:
    keeping = Keeping(keep_best=1, keep_latest=1, larger_is_better=False)
    keeping.begin_span(0, 0)
    for number, score in enumerate([0.5, 0.3, 0.4], start=1):
        keeping.add(Record(checkpoint_name(number), number, score))
    assert keeping.best_since == Record(checkpoint_name(2), 2, 0.3)
    assert keeping.wants(0.2)
    assert not keeping.wants(0.3)
