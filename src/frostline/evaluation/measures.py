"""Scores of a split as functions of weighted sums over its pictures.

With weight 1 for each picture they are the scores; with the weights of a bootstrap resample (how often it drew each
picture) they are the scores of that resample, so that a thousand of them cost a few matrix products. A score that is
not defined, such as the recall of a class without pictures, is NaN here and left out by whoever reads it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, vstack

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

BINS = 15
"""Bins of the confidence, of equal width (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

TOP = (3, 5)
"""The k of the top-k accuracies, where there are more than k classes."""


class Measure(Protocol):
    """Some scores of one split."""

    def of(self, weights: Floats) -> dict[str, Floats]:
        """Name to score ``[R]``, or ``[R, K]`` with one for each class, of ``[R, N]`` weights of the pictures."""
        ...


class Decisions:
    """``accuracy``, ``balanced_accuracy``, ``macro_f1``, and ``precision``, ``recall`` and ``f1`` of each class.

    Balanced accuracy is the mean recall of the classes that have pictures, macro F1 the mean of the classes that have
    pictures or were predicted; both as scikit-learn's.

    Args:
        labels: ``[N]`` int64.
        predicted: ``[N]`` int64.
        classes: K.
    """

    def __init__(self, labels: Labels, predicted: Labels, classes: int) -> None:
        right = (labels == predicted).astype(float)
        ones = np.ones(len(labels))
        self._classes = classes
        self._counts = vstack([_of_each(labels, ones, classes), _of_each(predicted, ones, classes)], format="csr")
        self._right = _of_each(labels, right, classes)

    def of(self, weights: Floats) -> dict[str, Floats]:
        """See `Measure.of`."""
        counts, right = (self._counts @ weights.T).T, (self._right @ weights.T).T
        support, predicted = counts[:, : self._classes], counts[:, self._classes :]
        recall = _share(right, support)
        f1 = _share(2 * right, support + predicted)
        return {
            "accuracy": right.sum(axis=1) / weights.sum(axis=1),
            "balanced_accuracy": _mean_of_defined(recall),
            "macro_f1": _mean_of_defined(f1),
            "precision": _share(right, predicted),
            "recall": recall,
            "f1": f1,
        }


class Ranking:
    """``top3_accuracy`` and ``top5_accuracy``, where there are more classes than that, and ``auroc``.

    The AUROC is the mean over the classes that have pictures of the area under the curve of one class against the
    rest. Of resamples it is the first-order approximation by placement values (DeLong et al. 1988,
    https://doi.org/10.2307/2531595), since ranking each resample anew would take minutes.

    Args:
        labels: ``[N]`` int64.
        probabilities: ``[N, K]`` float32.
    """

    def __init__(self, labels: Labels, probabilities: Floats) -> None:
        classes = probabilities.shape[1]
        self._hits = {f"top{k}_accuracy": _among_top(labels, probabilities, k) for k in TOP if k < classes}
        self._support = _of_each(labels, np.ones(len(labels)), classes)
        positive = np.zeros(len(labels))
        self._negative = np.zeros(probabilities.shape, np.float32)
        for label in range(classes):
            own = labels == label
            if own.any() and not own.all():
                above, below = _placements(probabilities[own, label], probabilities[~own, label])
                positive[own] = above
                self._negative[~own, label] = below
        self._positive = _of_each(labels, positive, classes)
        counts = np.bincount(labels, minlength=classes)
        self._areas = _share(self._positive @ np.ones(len(labels)), np.where(counts < len(labels), counts, 0))

    def of(self, weights: Floats) -> dict[str, Floats]:
        """See `Measure.of`."""
        total = weights.sum(axis=1)
        found = {name: weights @ hits / total for name, hits in self._hits.items()}
        support = (self._support @ weights.T).T
        above = _share((self._positive @ weights.T).T, support)
        below = _share(weights @ self._negative, total[:, None] - support)
        found["auroc"] = np.clip(_mean_of_defined(above + below - self._areas), 0.0, 1.0)
        return found


class Calibration:
    """``ece``, ``brier`` and ``nll``: whether the probabilities mean what they say.

    ECE is the mean over pictures of the distance between confidence and accuracy in their bin, of `BINS` bins of equal
    width; torchmetrics' differs in that it puts a confidence of exactly 1 into a bin of its own. The Brier score is the
    squared distance from the label summed over classes, from 0 to 2 (Brier 1950). NLL is in nats.

    Args:
        labels: ``[N]`` int64.
        probabilities: ``[N, K]``.
        suffix: of the names.
    """

    def __init__(self, labels: Labels, probabilities: Floats, suffix: str = "") -> None:
        self._suffix = suffix
        # the class that the table of predictions names
        confidence, right = top_choice(labels, probabilities)
        bins = bin_numbers(confidence)
        self._distances = _of_each(bins, right - confidence, BINS)
        squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
        own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        self._brier = squares - 2 * own + 1
        self._nll = -np.log(np.maximum(own, np.finfo(np.float32).tiny))

    def of(self, weights: Floats) -> dict[str, Floats]:
        """See `Measure.of`."""
        total = weights.sum(axis=1)
        found = {
            "ece": np.abs((self._distances @ weights.T).T).sum(axis=1) / total,
            "brier": weights @ self._brier / total,
            "nll": weights @ self._nll / total,
        }
        return {name + self._suffix: values for name, values in found.items()}


def top_choice(labels: Labels, probabilities: Floats) -> tuple[Floats, Floats]:
    """``[N]`` float64 confidence of the most probable class, and whether it is the label, 0 or 1."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(labels)), predicted].astype(np.float64)
    return confidence, (predicted == labels).astype(np.float64)


def bin_numbers(confidence: Floats) -> Labels:
    """``[N]`` which of the `BINS` bins each confidence is in; a bin has its upper end, the first has 0 too."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _of_each(groups: Labels, values: Floats, count: int) -> csr_array:
    """``[count, N]``: the value of each picture in the row of its group."""
    return csr_array((values, (groups, np.arange(len(groups)))), shape=(count, len(groups)))


def _share(part: Floats, whole: Floats) -> Floats:
    found: Floats = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def _mean_of_defined(values: Floats) -> Floats:
    """``[R]`` means over the classes that are defined in each row of ``[R, K]``; NaN where none is."""
    defined = ~np.isnan(values)
    return _share(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def _among_top(labels: Labels, probabilities: Floats, k: int) -> Floats:
    # torch's choice among equals, as torchmetrics makes it
    top = torch.from_numpy(probabilities).topk(k, dim=1).indices.numpy()
    hits: Floats = (top == labels[:, None]).any(axis=1).astype(np.float64)
    return hits


def _placements(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative that of positives above; a tie is half."""
    ordered = np.sort(positive)
    less, most = np.searchsorted(ordered, negative, "left"), np.searchsorted(ordered, negative, "right")
    before = np.searchsorted(ordered, positive, "left")
    length = len(positive) + 1
    below = np.cumsum(np.bincount(most, minlength=length))[before]
    not_above = np.cumsum(np.bincount(less, minlength=length))[before]
    return (below + not_above) / (2 * len(negative)), 1 - (less + most) / (2 * len(positive))
