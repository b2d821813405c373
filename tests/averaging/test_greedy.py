from __future__ import annotations

import math

import pytest

from frostline.averaging import best_first, greedy

# the score of each mean of four ingredients that may be tried
SCORES = {(0, 1): 0.8, (0, 1, 2): 0.75, (0, 1, 3): 0.8}


def test_an_ingredient_is_kept_where_the_soup_is_at_least_as_good_with_it() -> None:
    asked = []

    def score_of(places: tuple[int, ...]) -> float:
        asked.append(places)
        return SCORES[places]

    steps = list(greedy([0.7, 0.6, 0.5, 0.4], score_of, larger=True))
    assert asked == [(0, 1), (0, 1, 2), (0, 1, 3)]
    assert [step.kept for step in steps] == [True, True, False, True]
    assert [step.score for step in steps] == [0.7, 0.8, 0.8, 0.8]
    assert [step.tried for step in steps] == [0.7, 0.8, 0.75, 0.8]


def test_a_smaller_score_may_be_better() -> None:
    kept = [step.kept for step in greedy([0.1, 0.2, 0.3], lambda places: 0.2 / len(places), larger=False)]
    assert kept == [True, True, True]
    kept = [step.kept for step in greedy([0.1, 0.2, 0.3], lambda places: 0.1 * len(places), larger=False)]
    assert kept == [True, False, False]


def test_what_is_no_number_is_never_kept() -> None:
    assert [step.kept for step in greedy([0.1, 0.2], lambda _: math.nan, larger=True)] == [True, False]


def test_a_step_is_given_right_after_its_score_was_asked_for() -> None:
    asked = []

    def score_of(places: tuple[int, ...]) -> float:
        asked.append(places)
        return 1.0

    for step in greedy([0.0, 0.0, 0.0], score_of, larger=True):
        assert len(asked) == step.ingredient


@pytest.mark.parametrize("larger", [True, False])
def test_the_best_comes_first_equal_ones_by_name_and_no_numbers_last(larger: bool) -> None:
    scores = [0.5, math.nan, 0.9, 0.5]
    order = best_first(scores, ["z", "a", "b", "c"], larger=larger)
    assert order == ([2, 3, 0, 1] if larger else [3, 0, 2, 1])
