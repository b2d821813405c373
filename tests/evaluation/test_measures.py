from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as reference
from scipy.special import softmax

from frostline.evaluation.measures import BINS, Calibration, Decisions, Floats, Labels, Measure, Ranking, bin_numbers
from frostline.metrics import Auroc, BalancedAccuracy

Predicted = tuple[Labels, Floats]


def predicted(
    pictures: int = 300, classes: int = 7, *, seed: int = 0, decimals: int | None = None, absent: int | None = None
) -> Predicted:
    """Labels and probabilities that know something of each other; rounded ones have ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=pictures)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    logits = generator.normal(size=(pictures, classes)) + 1.5 * np.eye(classes)[labels]
    if decimals is not None:
        logits = np.round(logits, decimals)
    return labels, softmax(logits, axis=1).astype(np.float32)


def measures_of(labels: Labels, probabilities: Floats) -> list[Measure]:
    classes = probabilities.shape[1]
    return [
        Decisions(labels, probabilities.argmax(axis=1), classes),
        Ranking(labels, probabilities),
        Calibration(labels, probabilities),
    ]


def scores_of(labels: Labels, probabilities: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    weights = np.ones((1, len(labels))) if weights is None else weights
    return {
        name: values[0]
        for measure in measures_of(labels, probabilities)
        for name, values in measure.of(weights).items()
    }


@pytest.mark.parametrize("case", [predicted(), predicted(40, 3, seed=1), predicted(200, 6, seed=2, decimals=0)])
def test_scores_are_those_of_scikit_learn(case: Predicted) -> None:
    labels, probabilities = case
    found, said = scores_of(labels, probabilities), probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, said))
    assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, said))
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, said, average="macro", zero_division=0))
    each = sklearn.metrics.precision_recall_fscore_support(labels, said, labels=classes, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1"), each[:3], strict=True):
        assert found[name] == pytest.approx(values, nan_ok=True)
    shares = probabilities.astype(float) / probabilities.astype(float).sum(axis=1, keepdims=True)
    areas = [sklearn.metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in classes]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, shares, labels=classes), rel=1e-5)
    brier = sklearn.metrics.brier_score_loss(labels, shares, labels=classes, scale_by_half=False)
    assert found["brier"] == pytest.approx(brier, rel=1e-5)


@pytest.mark.parametrize(
    "case", [predicted(), predicted(50, 4, seed=3, absent=2), predicted(200, 6, seed=2, decimals=0)]
)
def test_scores_are_those_that_training_logs(case: Predicted) -> None:
    labels, probabilities = case
    found, classes = scores_of(labels, probabilities), probabilities.shape[1]
    said, truth = torch.from_numpy(probabilities), torch.from_numpy(labels)
    settings = {"num_classes": classes}
    for name, k in (("top3_accuracy", 3), ("top5_accuracy", 5)):
        if k < classes:
            expected = reference.multiclass_accuracy(said, truth, top_k=k, average="micro", **settings)
            assert found[name] == pytest.approx(float(expected))
        else:
            assert name not in found
    assert found["macro_f1"] == pytest.approx(float(reference.multiclass_f1_score(said, truth, **settings)))
    for name, metric in (("balanced_accuracy", BalancedAccuracy(classes)), ("auroc", Auroc(classes))):
        metric.update(said, truth)
        assert found[name] == pytest.approx(float(metric.compute()), abs=1e-6)
    assert probabilities.max() < 1
    error = reference.multiclass_calibration_error(said, truth, n_bins=BINS, norm="l1", **settings)
    assert found["ece"] == pytest.approx(float(error), abs=1e-6)


def test_weights_are_pictures_that_come_several_times() -> None:
    labels, probabilities = predicted(120, 4, seed=4)
    drawn = np.random.default_rng(0).integers(120, size=120)
    weights = np.bincount(drawn, minlength=120)[None].astype(np.float32)
    found, expected = scores_of(labels, probabilities, weights), scores_of(labels[drawn], probabilities[drawn])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=0.01 if name == "auroc" else 1e-6), name


def test_the_approximate_areas_spread_as_the_exact_ones() -> None:
    labels, probabilities = predicted(150, 3, seed=5)
    draws = np.random.default_rng(1).integers(150, size=(100, 150))
    weights = np.stack([np.bincount(row, minlength=150) for row in draws]).astype(np.float32)
    approximate = Ranking(labels, probabilities).of(weights)["auroc"]
    exact = np.array(
        [
            np.mean([sklearn.metrics.roc_auc_score(labels[row] == k, probabilities[row, k]) for k in range(3)])
            for row in draws
        ]
    )
    assert np.corrcoef(approximate, exact)[0, 1] > 0.99
    assert np.std(approximate) == pytest.approx(np.std(exact), rel=0.1)
    assert np.quantile(approximate, [0.025, 0.975]) == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.003)


def test_a_confidence_of_one_is_in_the_last_bin_and_zero_in_the_first() -> None:
    assert bin_numbers(np.array([0.0, 0.01, 1 / 15, 0.5, 1.0])).tolist() == [0, 0, 0, 7, 14]


def test_what_is_not_defined_is_nan_and_no_warning() -> None:
    labels, probabilities = np.array([1]), np.array([[0.2, 0.5, 0.3]], np.float32)
    found = scores_of(labels, probabilities)
    assert found["accuracy"] == found["balanced_accuracy"] == found["macro_f1"] == 1
    assert np.isnan(found["auroc"])
    assert np.isnan(found["recall"]).tolist() == [True, False, True]
    assert found["nll"] == pytest.approx(np.log(2))


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    found = scores_of(np.array([1, 0]), np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    assert np.isfinite(found["nll"])
    assert found["brier"] == pytest.approx(1.0)
