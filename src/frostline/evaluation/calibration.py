"""Temperature scaling, and what a reliability diagram shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from frostline.evaluation.measures import BINS, Floats, Labels, bin_numbers, top_choice

_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Temperature:
    """What the logits are divided by, so that probabilities mean what they say (Guo et al. 2017).

    Attributes:
        value: 1 changes nothing.
        pictures: how many it was fitted on.
        reason: why it was not fitted; empty where it was.
    """

    value: float
    pictures: int
    reason: str = ""


def fit_temperature(labels: Labels, probabilities: Floats) -> Temperature:
    """The temperature with the least negative log-likelihood.

    Args:
        labels: ``[N]`` int64 of pictures that the model was not trained on.
        probabilities: ``[N, K]`` at temperature 1.

    Returns:
        1, with a reason, where all or none of the pictures are right: the best temperature would be 0 or infinite.
    """
    right = int((probabilities.argmax(axis=1) == labels).sum())
    if right in (0, len(labels)):
        number = "none" if right == 0 else f"all {right}"
        return Temperature(1.0, len(labels), f"{number} of the pictures are right, which every temperature agrees with")
    logits, rows = _logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    low, high = np.log(_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return Temperature(float(np.exp(found.x)), len(labels))


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """``[N, K]`` float64 probabilities of the logits divided by a temperature; the order of the classes stays.

    Args:
        probabilities: ``[N, K]`` at temperature 1.
        temperature: above 0.
    """
    scaled: Floats = np.exp(log_softmax(_logits(probabilities) / temperature, axis=1))
    return scaled


def _logits(probabilities: Floats) -> Floats:
    # up to a constant for each picture, which softmax does not see
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64))


def reliability(labels: Labels, probabilities: Floats) -> list[dict[str, Any]]:
    """The bins of the confidence that hold pictures: their ends, count, mean confidence and accuracy."""
    confidence, right = top_choice(labels, probabilities)
    bins = bin_numbers(confidence)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "pictures": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(right[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def chance_error(labels: Labels, probabilities: Floats, *, draws: int = 200, seed: int = 0) -> float:
    """The ECE that a model with these confidences shows on average where they are exactly right.

    An ECE of few pictures is above 0 for chance alone (consistency resampling, Bröcker and Smith 2007,
    https://doi.org/10.1175/WAF993.1).
    """
    confidence, _ = top_choice(labels, probabilities)
    bins = bin_numbers(confidence)
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        distances = (generator.random(len(confidence)) < confidence) - confidence
        total += np.abs(np.bincount(bins, distances, minlength=BINS)).sum() / len(confidence)
    return float(total / draws)
