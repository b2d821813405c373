from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from frostline.evaluation import at_temperature, fit_temperature
from frostline.evaluation.calibration import chance_error, reliability
from frostline.evaluation.measures import Calibration, Floats, Labels


def told(pictures: int, temperature: float, seed: int = 0) -> tuple[Labels, Floats]:
    """Labels drawn from a model's true probabilities, and what it says where its logits are too large by a factor."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(pictures, 5))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > generator.random((pictures, 1))).argmax(axis=1)
    return labels, softmax(logits * temperature, axis=1).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_there_is_found(temperature: float) -> None:
    labels, probabilities = told(20_000, temperature)
    found = fit_temperature(labels, probabilities)
    assert found.value == pytest.approx(temperature, rel=0.03)
    assert (found.pictures, found.reason) == (20_000, "")
    after = at_temperature(probabilities, found.value)
    assert after.sum(axis=1) == pytest.approx(np.ones(len(after)))
    assert (after.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert Calibration(labels, after).of(np.ones((1, len(labels))))["ece"][0] < 0.02


def test_no_other_temperature_has_less_loss() -> None:
    labels, probabilities = told(300, 2.0, seed=1)
    best = fit_temperature(labels, probabilities).value

    def loss(temperature: float) -> float:
        shares = at_temperature(probabilities, temperature)
        return float(-np.log(shares[np.arange(len(labels)), labels]).mean())

    others = np.exp(np.linspace(np.log(0.05), np.log(20), 400))
    assert loss(best) <= min(map(loss, others)) + 1e-9


def test_where_all_or_none_are_right_there_is_no_best_temperature() -> None:
    shares = np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    found = fit_temperature(np.array([0, 0]), shares)
    assert found.value == 1
    assert "all 2 of the pictures are right" in found.reason
    assert "none" in fit_temperature(np.array([1, 1]), shares).reason


def test_probabilities_of_zero_and_one_can_be_scaled() -> None:
    shares = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    found = fit_temperature(np.array([0, 2]), shares)
    assert np.isfinite(at_temperature(shares, found.value)).all()
    assert found.value > 1


def test_a_reliability_diagram_has_each_picture_once() -> None:
    labels, probabilities = told(500, 1.5)
    bins = reliability(labels, probabilities)
    assert sum(item["pictures"] for item in bins) == 500
    assert all(item["from"] <= item["confidence"] <= item["to"] for item in bins)
    accuracy = sum(item["pictures"] * item["accuracy"] for item in bins) / 500
    assert accuracy == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    distance = sum(item["pictures"] * abs(item["accuracy"] - item["confidence"]) for item in bins) / 500
    assert distance == pytest.approx(Calibration(labels, probabilities).of(np.ones((1, 500)))["ece"][0])


def test_chance_is_what_calibrated_models_show() -> None:
    shown = []
    for seed in range(60):
        labels, probabilities = told(150, 1.0, seed)
        shown.append(Calibration(labels, probabilities).of(np.ones((1, 150)))["ece"][0])
    assert chance_error(*told(150, 1.0)) == pytest.approx(np.mean(shown), rel=0.15)
    assert chance_error(*told(20_000, 1.0)) < 0.02
