"""95 % intervals of scores, by resampling the pictures that were scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from frostline.evaluation.measures import Floats, Measure

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
_AT_ONCE = 2_000_000  # weights in memory, 4 bytes each


@dataclass(frozen=True)
class Estimate:
    """A score and how far it can be trusted.

    Attributes:
        value: of the pictures that were scored.
        low, high: the ends of its 95 % interval; None where there is none to give.
        method: ``bootstrap`` (its percentiles), ``basic bootstrap`` (they, mirrored at the score), ``exact`` (Clopper
            and Pearson's, for a share of which no resample differs), or None.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str | None = None

    def record(self) -> dict[str, Any]:
        """As plain types."""
        return {"value": self.value, "low": self.low, "high": self.high, "method": self.method}

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def resampled(
    measures: Sequence[Measure], pictures: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Floats]:
    """Name to the scores of each resample, ``[R]`` or ``[R, K]`` float64.

    A resample draws as many pictures as there are, with replacement and without regard to their class, as another test
    set would have come about. One seed gives the same resamples, and the same draws to all measures.

    Args:
        measures: of one split.
        pictures: N.
        resamples: R.
        seed: of the draws.
    """
    parts = [
        {name: values for measure in measures for name, values in measure.of(weights).items()}
        for weights in _weights(pictures, resamples, seed)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weights(pictures: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each picture was drawn, ``[r, N]`` float32 at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // pictures)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = generator.integers(pictures, size=(count, pictures))
        yield np.stack([np.bincount(row, minlength=pictures) for row in drawn]).astype(np.float32)


def estimate(value: float, samples: Floats, *, share_of: int | None = None, biased: bool = False) -> Estimate:
    """A score with the interval that its resamples give.

    Where no resample differs, as when not one picture is wrong, resampling knows nothing of the errors that another
    set would show: a share then gets the exact interval, and any other score none.

    Args:
        value: the score.
        samples: ``[R]``; NaN where it was not defined.
        share_of: how many pictures the score is a share of, where it is one.
        biased: whether noise alone raises the score, as it does a sum of distances. Resamples have the noise twice, so
            that their percentiles would lie above the truth; mirrored at the score (Davison and Hinkley 1997, 5.2) they
            lie about it.
    """
    defined = samples[~np.isnan(samples)]
    if len(defined) and np.ptp(defined) > 1e-9:
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if biased:
            low, high = max(min(2 * value - high, value), 0.0), max(2 * value - low, value)
            return Estimate(value, float(low), float(high), "basic bootstrap")
        return Estimate(value, float(low), float(high), "bootstrap")
    if share_of:
        exact = binomtest(round(value * share_of), share_of).proportion_ci(LEVEL, method="exact")
        return Estimate(value, float(exact.low), float(exact.high), "exact")
    return Estimate(value)
