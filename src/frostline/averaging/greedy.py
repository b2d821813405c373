"""The greedy soup (Wortsman et al. 2022, "Model soups", arXiv:2203.05482, recipe 1): decisions alone, no models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GreedyStep:
    """What was decided on one ingredient.

    Attributes:
        ingredient: its place in the order.
        kept: whether the soup has it.
        tried: the score of the soup with it.
        score: of the soup after the decision.
    """

    ingredient: int
    kept: bool
    tried: float
    score: float


def greedy(own: Sequence[float], score_of: Callable[[tuple[int, ...]], float], *, larger: bool) -> Iterator[GreedyStep]:
    """Go through ingredients, the best first; one is kept where the soup with it is at least as good as without.

    The soup is therefore never worse than the best ingredient on the pictures that ``score_of`` scores. The first
    ingredient is kept unasked.

    Args:
        own: the score of each ingredient alone, the best first; see ``best_first``.
        score_of: the score of the mean of some ingredients, by their places in ascending order. Asked right before the
            step that it decides is given.
        larger: whether a larger score is better.
    """
    kept: tuple[int, ...] = (0,)
    score = own[0]
    yield GreedyStep(0, kept=True, tried=score, score=score)
    for place in range(1, len(own)):
        tried = score_of((*kept, place))
        better = tried >= score if larger else tried <= score
        if better:
            kept, score = (*kept, place), tried
        yield GreedyStep(place, kept=better, tried=tried, score=score)


def best_first(scores: Sequence[float], names: Sequence[str], *, larger: bool) -> list[int]:
    """The places of ``scores``, the best first; equal ones by their names, those that are no numbers last."""

    def key(place: int) -> tuple[bool, float, str]:
        score = scores[place]
        broken = math.isnan(score)
        return broken, 0.0 if broken else -score if larger else score, names[place]

    return sorted(range(len(scores)), key=key)
