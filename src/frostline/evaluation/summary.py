"""All that is said of the predictions of a split: scores with intervals, classes, confusion, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from frostline.errors import NumericsError
from frostline.evaluation.calibration import Temperature, at_temperature, chance_error, reliability
from frostline.evaluation.intervals import LEVEL, RESAMPLES, SEED, Estimate, estimate, resampled
from frostline.evaluation.measures import BINS, Calibration, Decisions, Floats, Labels, Measure, Ranking

FEW = 100
"""Pictures of a split below which its intervals are said to be wide."""

FEW_OF_CLASS = 10
CALIBRATED = "_calibrated"
"""The end of the names of scores at the fitted temperature."""

_SHARES = ("accuracy", "top3_accuracy", "top5_accuracy")
_OF_CLASSES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class ClassScores:
    """How one class is recognized.

    Attributes:
        name: of the class.
        support: pictures of it.
        predicted: pictures that were taken for it.
        scores: ``precision``, ``recall`` and ``f1``, as far as they are defined.
    """

    name: str
    support: int
    predicted: int
    scores: dict[str, Estimate]

    def record(self) -> dict[str, Any]:
        """As plain types."""
        own = {name: self.scores[name].record() if name in self.scores else None for name in _OF_CLASSES}
        return {"class": self.name, "support": self.support, "predicted": self.predicted, **own}


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model from one split.

    Attributes:
        split: its name.
        pictures: how many were scored.
        scores: name to score; a score that is not defined is not there. Those at the fitted temperature end in
            ``_calibrated``.
        classes: in the order of the labels.
        confusion: ``[K, K]`` int64; rows are labels, columns predictions.
        calibration: the bins of the reliability diagram and more, as plain types.
        notes: sentences for whoever reads the scores.
        resamples: name to the scores of each bootstrap resample, ``[R]``; not part of the record.
    """

    split: str
    pictures: int
    scores: dict[str, Estimate]
    classes: list[ClassScores]
    confusion: Labels
    calibration: dict[str, Any]
    notes: list[str]
    resamples: Mapping[str, Floats] = field(repr=False)

    def flat(self) -> dict[str, float]:
        """The scores as ``split/name``."""
        return {f"{self.split}/{name}": score.value for name, score in self.scores.items()}

    def record(self) -> dict[str, Any]:
        """As plain types."""
        method = "of resamples of the pictures, drawn without regard to their class; see `method` of each score"
        return {
            "split": self.split,
            "pictures": self.pictures,
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "how": method},
            "scores": {name: score.record() for name, score in self.scores.items()},
            "classes": [found.record() for found in self.classes],
            "confusion": self.confusion.tolist(),
            "calibration": self.calibration,
            "notes": self.notes,
        }


def evaluate_predictions(
    split: str,
    labels: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
    temperature: Temperature | None = None,
) -> Evaluation:
    """All that the predictions of a split say.

    Args:
        split: its name.
        labels: ``[N]`` int64, N of at least 1.
        probabilities: ``[N, K]`` float32.
        classes: K names.
        temperature: fitted on validation; without one there are no ``_calibrated`` scores.

    Raises:
        NumericsError: a probability is not finite.
    """
    truth, said = labels.numpy(), probabilities.float().numpy()
    if bad := int((~np.isfinite(said)).any(axis=1).sum()):
        raise NumericsError(f"the model's output is not finite for {bad} of {len(truth)} pictures of the {split} split")
    predicted = said.argmax(axis=1)
    measures: list[Measure] = [
        Decisions(truth, predicted, len(classes)),
        Ranking(truth, said),
        Calibration(truth, said),
    ]
    if temperature is not None:
        measures.append(Calibration(truth, at_temperature(said, temperature.value), CALIBRATED))
    resamples = resampled(measures, len(truth))
    ones = np.ones((1, len(truth)))
    values = {name: found[0] for measure in measures for name, found in measure.of(ones).items()}
    scores = {
        name: estimate(
            float(value),
            resamples[name],
            share_of=len(truth) if name in _SHARES else None,
            biased=name.startswith("ece"),
        )
        for name, value in values.items()
        if name not in _OF_CLASSES and not np.isnan(value)
    }
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    of_classes = _class_scores(classes, confusion, values, resamples)
    return Evaluation(
        split,
        len(truth),
        scores,
        of_classes,
        confusion,
        _calibration(truth, said, temperature),
        _notes(split, scores, of_classes, len(truth)),
        {name: resamples[name] for name in scores},
    )


def gap(train: Evaluation, held_out: Evaluation) -> dict[str, Estimate]:
    """How much better the model does on what it was trained on: ``accuracy`` and ``nll``, of training less held out.

    The two sets of pictures are resampled independently of each other. A model that only knows its training pictures
    has a large difference in accuracy, and a negative one in NLL.
    """
    # the draws of splits of one size are the same, and would pair pictures that have nothing to do with each other
    order = np.random.default_rng(SEED).permutation(RESAMPLES)
    return {
        name: estimate(
            train.scores[name].value - held_out.scores[name].value,
            train.resamples[name] - held_out.resamples[name][order],
        )
        for name in ("accuracy", "nll")
    }


def _class_scores(
    classes: Sequence[str], confusion: Labels, values: Mapping[str, Floats], resamples: Mapping[str, Floats]
) -> list[ClassScores]:
    found = []
    for label, name in enumerate(classes):
        support, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
        shares = {"precision": predicted, "recall": support, "f1": None}
        scores = {
            kind: estimate(float(values[kind][label]), resamples[kind][:, label], share_of=of)
            for kind, of in shares.items()
            if not np.isnan(values[kind][label])
        }
        found.append(ClassScores(name, support, predicted, scores))
    return found


def _calibration(labels: Labels, probabilities: Floats, temperature: Temperature | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bins": f"{BINS} of the confidence, of equal width; empty ones are left out",
        "temperature": None if temperature is None else temperature.value,
    }
    said = {"": probabilities}
    if temperature is not None:
        said[CALIBRATED] = at_temperature(probabilities, temperature.value)
    for suffix, shares in said.items():
        found[f"ece_by_chance{suffix}"] = chance_error(labels, shares)
        found[f"reliability{suffix}"] = reliability(labels, shares)
    return found


def _notes(split: str, scores: Mapping[str, Estimate], classes: Sequence[ClassScores], pictures: int) -> list[str]:
    notes = []
    if pictures < FEW:
        notes.append(f"{split} has {pictures} pictures: a difference within these intervals says nothing.")
    absent = [found.name for found in classes if found.support == 0]
    if absent:
        shown = ", ".join(f"'{name}'" for name in absent[:5]) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{split} has no pictures of {shown}: balanced accuracy and AUROC are those of the others.")
    few = sum(0 < found.support < FEW_OF_CLASS for found in classes)
    if few and pictures >= FEW:
        notes.append(f"{few} of {len(classes)} classes have fewer than {FEW_OF_CLASS} pictures in {split}.")
    if scores["accuracy"].value == 1:
        notes.append(f"No picture of {split} is wrong: accuracy has an exact interval, means over classes have none.")
    return notes
