"""Which weights a soup has: every recipe tries means or mixtures on validation and keeps the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from frostline.averaging import best_first, between, greedy, mean_of
from frostline.data.progress import Progress
from frostline.errors import NumericsError
from frostline.runs.soup_parts import SoupParts, Start
from frostline.runs.soup_runs import Chooser, Ingredient
from frostline.specs import SoupKind

Scores = dict[str, float]


@dataclass
class Tried:
    """A run of a mean, or a share of the end of a run.

    Attributes:
        run: whose weights it is about.
        scores: on validation: of the run alone; of the mixture at ``alpha``.
        kept: whether the result has it.
        alpha: the share of the end; None in a mean.
        soup: the score of the mean after the decision on this run; None where there is none yet.
    """

    run: Ingredient
    scores: Scores
    kept: bool
    alpha: float | None = None
    soup: float | None = None


@dataclass
class Selected:
    """The weights that were selected, and what was tried on the way.

    Attributes:
        weights: all tensors of the model, on the CPU.
        tried: in order: runs with the best first, or shares in ascending order.
        notes: what a person should know of the choice.
    """

    weights: dict[str, Tensor]
    tried: list[Tried]
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> list[Tried]:
        """What the result is made of."""
        return [one for one in self.tried if one.kept]


def mean_of_runs(parts: SoupParts, runs: Sequence[Ingredient], chooser: Chooser, kind: SoupKind) -> Selected:
    """The uniform or the greedy mean of runs.

    Raises:
        NumericsError: no run has a score that is a number.
    """
    progress = Progress("scoring runs and their means", 2 * len(runs) - 1 if kind is SoupKind.greedy else len(runs) + 1)
    scores = []
    for count, run in enumerate(runs, start=1):
        scores.append(parts.score(mean_of([run.weights]), mixed=False))
        progress.at(count)
    own = [one[chooser.metric] for one in scores]
    order = best_first(own, [run.model for run in runs], larger=chooser.larger)
    _require_number(own[order[0]], chooser)
    tried = [Tried(runs[place], scores[place], kept=kind is SoupKind.uniform) for place in order]
    make = _uniform if kind is SoupKind.uniform else _greedy
    selected = make(parts, tried, chooser, progress)
    progress.end()
    return selected


def _uniform(parts: SoupParts, tried: list[Tried], chooser: Chooser, progress: Progress) -> Selected:
    soup = parts.score(mean_of([one.run.weights for one in tried]), mixed=True)[chooser.metric]
    tried[-1].soup = soup
    best = tried[0].scores[chooser.metric]
    worse = soup < best if chooser.larger else soup > best
    notes = ["the mean of all is worse on validation than the best run alone; try soup.kind=greedy"] if worse else []
    return Selected(parts.weights(), tried, notes)


def _greedy(parts: SoupParts, tried: list[Tried], chooser: Chooser, progress: Progress) -> Selected:
    done = len(tried)

    def score_of(places: tuple[int, ...]) -> float:
        nonlocal done
        done += 1
        found = parts.score(mean_of([tried[place].run.weights for place in places]), mixed=True)[chooser.metric]
        progress.at(done)
        return found

    parts.score(mean_of([tried[0].run.weights]), mixed=False)
    weights = parts.weights()
    for step in greedy([one.scores[chooser.metric] for one in tried], score_of, larger=chooser.larger):
        one = tried[step.ingredient]
        one.kept, one.soup = step.kept, step.score
        if step.kept and step.ingredient:
            weights = parts.weights()
    alone = sum(one.kept for one in tried) == 1
    notes = ["no other run makes the best one better on validation: the result is that run"] if alone else []
    return Selected(weights, tried, notes)


def along_the_way(
    parts: SoupParts, run: Ingredient, start: Start, alphas: Sequence[float], chooser: Chooser
) -> Selected:
    """The best mixture of the start and the end of a run; of equal ones that with the smaller share of the end.

    Raises:
        NumericsError: no mixture has a score that is a number.
    """
    shares = sorted(set(alphas))
    progress = Progress("scoring mixtures of start and end", len(shares))
    tried: list[Tried] = []
    weights: dict[str, Tensor] = {}
    best = 0
    for place, alpha in enumerate(shares):
        scores = parts.score(between(start.tensors, run.weights, alpha), mixed=0 < alpha < 1)
        tried.append(Tried(run, scores, kept=False, alpha=alpha))
        best = best_first(
            [one.scores[chooser.metric] for one in tried],
            [f"{index:09d}" for index in range(place + 1)],
            larger=chooser.larger,
        )[0]
        if best == place:
            weights = parts.weights()
        progress.at(place + 1)
    progress.end()
    _require_number(tried[best].scores[chooser.metric], chooser)
    tried[best].kept = True
    return Selected(weights, tried, list(_notes_on(tried[best], shares, start)))


def _notes_on(chosen: Tried, shares: Sequence[float], start: Start) -> list[str]:
    notes = []
    if chosen.alpha == 1 and len(shares) > 1:
        notes.append("nothing of the pre-trained backbone makes the run better on validation: the result is that run")
    if start.fresh:
        names = ", ".join(start.fresh[:3]) + (", ..." if len(start.fresh) > 3 else "")
        notes.append(f"the pre-trained weights have none of {names}: those are as fine-tuned everywhere")
    return notes


def _require_number(score: float, chooser: Chooser) -> None:
    if math.isnan(score):
        raise NumericsError(f"{chooser.metric} is no number for any of the weights", mend="Look at the runs.")
