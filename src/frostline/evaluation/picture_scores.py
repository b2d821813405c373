"""Scores as functions of how often each picture counts, from the predictions that a run has written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from frostline.evaluation.statistics import Score

_TOP = re.compile(r"top(\d+)_accuracy")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of N pictures, in the order of their names.

    Attributes:
        names: of the pictures, each once.
        labels: ``[N]`` int64, the true classes.
        predicted: ``[N]`` int64, the most probable classes.
        probabilities: ``[N, K]`` float64.
        classes: K names.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]

    @cached_property
    def pictures(self) -> str:
        """A hash of which pictures these are and how they are labelled: models with the same one can be paired."""
        lines = (f"{name}\0{self.classes[label]}\n" for name, label in zip(self.names, self.labels, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def right(self) -> NDArray[np.bool_]:
        """``[N]``, whether each picture is labelled as it should be."""
        return np.equal(self.labels, self.predicted)


def read_predictions(path: Path) -> Predictions | None:
    """Read ``predictions/SPLIT.parquet``; None where it is absent, has no labels, or names a picture twice."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    if not {"image", "label", "prediction"} <= set(table.column_names) or not table.num_rows:
        return None
    classes = [name[2:-1] for name in table.column_names if name.startswith("p(") and name.endswith(")")]
    names = table["image"].to_pylist()
    number = {name: index for index, name in enumerate(classes)}
    labels, predicted = ([number.get(name, -1) for name in table[key].to_pylist()] for key in ("label", "prediction"))
    if len(set(names)) < len(names) or -1 in labels or -1 in predicted:
        return None
    order = sorted(range(len(names)), key=names.__getitem__)
    columns = [table[f"p({name})"].to_numpy() for name in classes]
    return Predictions(
        tuple(names[index] for index in order),
        np.array(labels, np.int64)[order],
        np.array(predicted, np.int64)[order],
        np.stack(columns, axis=1).astype(np.float64)[order],
        tuple(classes),
    )


def has_picture_score(metric: str) -> bool:
    """Whether ``picture_score`` knows a metric, given without its split."""
    return metric in _SCORES or _TOP.fullmatch(metric) is not None


def picture_score(metric: str, predictions: Predictions) -> Score:
    """A metric of ``metrics.json`` as a function of how often each picture counts.

    Args:
        metric: without its split: ``accuracy``, ``topK_accuracy``, ``balanced_accuracy``, ``macro_f1``, ``loss`` or
            ``nll``, ``brier``. A ``loss`` other than cross-entropy is not what this gives: hold it against the run's.
        predictions: of the run.

    Raises:
        KeyError: the metric is none of these.
    """
    top = _TOP.fullmatch(metric)
    return _mean(_within(predictions, int(top[1]))) if top else _SCORES[metric](predictions)


def _mean(of_each: NDArray[np.float64] | NDArray[np.bool_]) -> Score:
    values = of_each.astype(np.float64)
    return lambda counts: float(values @ counts / counts.sum())


def _of_label(predictions: Predictions) -> NDArray[np.float64]:
    return predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]


def _within(predictions: Predictions, most: int) -> NDArray[np.bool_]:
    higher = predictions.probabilities > _of_label(predictions)[:, None]
    return np.asarray(higher.sum(axis=1) < most)


def _likelihood(predictions: Predictions) -> Score:
    return _mean(-np.log(np.maximum(_of_label(predictions), np.finfo(np.float32).tiny)))


def _brier(predictions: Predictions) -> Score:
    truth = np.eye(len(predictions.classes))[predictions.labels]
    return _mean(((predictions.probabilities - truth) ** 2).sum(axis=1))


def _balanced_accuracy(predictions: Predictions) -> Score:
    labels, right, count = predictions.labels, predictions.right, len(predictions.classes)

    def score(counts: NDArray[np.int64]) -> float:
        support = np.bincount(labels, weights=counts, minlength=count)
        found = np.bincount(labels, weights=counts * right, minlength=count)
        there = support > 0
        return float(np.mean(found[there] / support[there]))

    return score


def _macro_f1(predictions: Predictions) -> Score:
    labels, predicted, right = predictions.labels, predictions.predicted, predictions.right
    count = len(predictions.classes)

    def score(counts: NDArray[np.int64]) -> float:
        both = np.bincount(labels, weights=counts, minlength=count)
        both += np.bincount(predicted, weights=counts, minlength=count)
        found = np.bincount(labels, weights=counts * right, minlength=count)
        there = both > 0
        return float(np.mean(2 * found[there] / both[there]))

    return score


_SCORES: dict[str, Callable[[Predictions], Score]] = {
    "accuracy": lambda predictions: _mean(predictions.right),
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "loss": _likelihood,
    "nll": _likelihood,
    "brier": _brier,
}
