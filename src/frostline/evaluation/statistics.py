"""How sure a mean is, and whether two of them differ: intervals, paired tests, and their correction for how many.

Formulas and sources:

- Student's t over independent runs; Welch's where two rows share no run.
- Over resampled splits the corrected t of Nadeau and Bengio 2003, "Inference for the Generalization Error" (Machine
  Learning 52): the variance of a mean over n splits is ``(1/n + n_test/n_train) s**2``, since the splits share
  training pictures. Bouckaert and Frank 2004 apply it to repeated cross-validation.
- McNemar's exact test of two models on the same pictures: a binomial test of those that one alone has right.
- The bootstrap over pictures (Efron and Tibshirani 1993): percentile intervals, and a two-sided p-value of a
  difference by the share of resampled differences, moved to a mean of zero, that are as far from it as the one seen.
- Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
"""Coverage of every interval."""

Floats = NDArray[np.float64]
Score = Callable[[NDArray[np.int64]], float]
"""A score as a function of how often each of N pictures counts, ``[N]`` int64."""


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, over n - 1; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float], *, overlap: float = 0.0) -> tuple[float, float]:
    """A 95 % interval of the mean by Student's t with n - 1 degrees of freedom.

    Args:
        values: two or more.
        overlap: pictures scored over pictures trained on, for splits that share training pictures; 0 for independent
            runs.

    Raises:
        ValueError: there are fewer than two values.
    """
    error = _standard_error(values, overlap)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    middle = float(np.mean(values))
    return middle - reach, middle + reach


def paired_t(differences: Sequence[float], *, overlap: float = 0.0) -> float | None:
    """The two-sided p-value of a mean difference of zero; None where all differences are the same and not zero.

    Without any spread between the pairs there is nothing to hold the difference against. Signed ranks are no way out:
    with five pairs or fewer Wilcoxon's test cannot come below 0.06.

    Args:
        differences: of two or more pairs.
        overlap: as in ``t_interval``.
    """
    error = _standard_error(differences, overlap)
    middle = float(np.mean(differences))
    if error <= 1e-12 * max(1.0, abs(middle)):
        return 1.0 if abs(middle) <= 1e-12 else None
    return float(2 * stats.t.sf(abs(middle / error), len(differences) - 1))


def _standard_error(values: Sequence[float], overlap: float) -> float:
    spread = deviation(values)
    if spread is None:
        raise ValueError("a single value has no spread")
    return math.sqrt(1 / len(values) + overlap) * spread


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p-value of equal means of two independent samples; None where neither has any spread."""
    if max(np.ptp(first), np.ptp(second)) <= 1e-12:
        return None
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def exact_mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """The two-sided p-value that two models are equally often right; 1 where they are right on the same pictures.

    Args:
        first: ``[N]``, whether one is right on each picture.
        second: ``[N]``, as much of the other, in the same order.
    """
    alone = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return 1.0 if sum(alone) == 0 else float(stats.binomtest(alone[0], sum(alone), 0.5).pvalue)


def exact_proportion(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson for a share."""
    found = stats.binomtest(right, total).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def bootstrap(scores: Mapping[Any, Score], pictures: int, *, resamples: int, seed: Sequence[int]) -> dict[Any, Floats]:
    """Scores of resampled pictures, ``[resamples]`` for each of ``scores``, which all see the same resamples.

    Args:
        scores: of models that were scored on the same pictures in the same order.
        pictures: how many there are.
        resamples: how often as many are drawn with replacement.
        seed: what is drawn is a function of it.
    """
    generator = np.random.default_rng(seed)
    found = {name: np.empty(resamples) for name in scores}
    for turn in range(resamples):
        counts = np.bincount(generator.integers(0, pictures, pictures), minlength=pictures)
        for name, score in scores.items():
            found[name][turn] = score(counts)
    return found


def percentile_interval(resampled: Floats) -> tuple[float, float]:
    """The 95 % interval between the percentiles of resampled scores."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_p(difference: float, resampled: Floats) -> float:
    """The two-sided p-value of no difference; never 0, since the difference seen counts as one resample more.

    Args:
        difference: as seen.
        resampled: differences of the resampled pictures.
    """
    as_far = np.abs(resampled - difference) >= abs(difference) - 1e-12
    return float((1 + np.sum(as_far)) / (1 + len(resampled)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number: what is below 5 % here may be called different, with 5 % for all together."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
