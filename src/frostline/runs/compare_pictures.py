"""The noise of the pictures: what runs would have scored on other pictures of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frostline.evaluation.picture_scores import Predictions, has_picture_score, picture_score, read_predictions
from frostline.evaluation.statistics import Floats, bootstrap
from frostline.runs.compare_runs import FinishedRun

# metrics.json holds float32, and a device sums in another order
_SAME = 2e-4


class Pictures:
    """The scores of runs on resampled pictures, as far as their predictions give the scores that they have.

    Args:
        runs: all that are compared; runs of the same pictures see the same resamples, so that they can be paired.
        metric: with its split.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    def __init__(self, runs: Sequence[FinishedRun], metric: str, *, resamples: int, seed: int) -> None:
        name = metric.partition("/")[2]
        self.accuracy = name == "accuracy"
        self.predictions: dict[FinishedRun, Predictions] = {}
        self.resampled: dict[FinishedRun, Floats] = {}
        sets: dict[str, dict[FinishedRun, Predictions]] = {}
        for run in runs:
            predictions = read_predictions(run.folder.predictions(run.split)) if run.split else None
            if predictions is not None and has_picture_score(name) and _gives(predictions, name, run.value):
                sets.setdefault(predictions.pictures, {})[run] = predictions
        for pictures, some in sets.items():
            count = len(next(iter(some.values())).names)
            scores = {run: picture_score(name, own) for run, own in some.items()}
            self.predictions |= some
            self.resampled |= bootstrap(scores, count, resamples=resamples, seed=(seed, int(pictures[:8], 16)))

    def of(self, runs: Sequence[FinishedRun]) -> Floats | None:
        """The mean score of runs on resampled pictures, ``[resamples]``; None where one of them has none."""
        if not all(run in self.resampled for run in runs):
            return None
        return np.asarray(np.mean([self.resampled[run] for run in runs], axis=0))

    def paired(self, first: Sequence[FinishedRun], second: Sequence[FinishedRun]) -> bool:
        """Whether the two have labelled the same pictures, run by run where there are as many, else all of them."""
        known = [[self._pictures(run) for run in runs] for runs in (first, second)]
        if any(pictures is None for pictures in (*known[0], *known[1])):
            return False
        return known[0] == known[1] or len({*known[0], *known[1]}) == 1

    def _pictures(self, run: FinishedRun) -> str | None:
        return self.predictions[run].pictures if run in self.predictions else None


def _gives(predictions: Predictions, name: str, value: float) -> bool:
    """Whether predictions give the score that the run has: they may have been written again, for other pictures."""
    score = picture_score(name, predictions)(np.ones(len(predictions.names), np.int64))
    return abs(score - value) <= _SAME * max(1.0, abs(value))
