"""Intervals and tests against scipy, scikit-learn and figures from the literature."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as peers

from frostline.evaluation import prediction_table, write_predictions
from frostline.evaluation.picture_scores import Predictions, has_picture_score, picture_score, read_predictions
from frostline.evaluation.statistics import (
    bootstrap,
    bootstrap_p,
    deviation,
    exact_mcnemar,
    exact_proportion,
    holm,
    paired_t,
    percentile_interval,
    t_interval,
    welch,
)

ONE, OTHER = [0.91, 0.93, 0.92, 0.95, 0.90], [0.90, 0.91, 0.92, 0.92, 0.89]
DIFFERENCES = [a - b for a, b in zip(ONE, OTHER, strict=True)]
CLASSES = ["a", "b, c", "d)", "never"]


def test_independent_runs_are_scipys_t() -> None:
    assert t_interval(ONE) == pytest.approx(
        stats.t.interval(0.95, 4, loc=np.mean(ONE), scale=stats.sem(ONE)), abs=1e-12
    )
    assert paired_t(DIFFERENCES) == pytest.approx(stats.ttest_rel(ONE, OTHER).pvalue)
    assert welch(ONE, OTHER) == pytest.approx(stats.ttest_ind(ONE, OTHER, equal_var=False).pvalue)


def test_folds_are_corrected_as_nadeau_and_bengio_do() -> None:
    """Five folds: a test set is a quarter of what is trained on."""
    spread = math.sqrt((1 / 5 + 1 / 4) * np.var(DIFFERENCES, ddof=1))
    statistic = np.mean(DIFFERENCES) / spread
    assert paired_t(DIFFERENCES, overlap=0.25) == pytest.approx(2 * stats.t.sf(statistic, 4))
    plain, corrected = t_interval(ONE), t_interval(ONE, overlap=0.25)
    assert (corrected[1] - corrected[0]) / (plain[1] - plain[0]) == pytest.approx(1.5)


def test_without_a_spread_there_is_no_t() -> None:
    assert deviation([0.5]) is None
    assert paired_t([0.1, 0.1, 0.1]) is None
    assert paired_t([0.9405 - 0.8476, 0.9628 - 0.8699]) is None, "the same but for rounding"
    assert paired_t([0.0, 0.0]) == 1.0
    assert welch([0.5, 0.5], [0.6, 0.6]) is None
    with pytest.raises(ValueError, match="single"):
        t_interval([0.5])


@pytest.mark.parametrize(("alone", "other"), [(8, 1), (0, 0), (3, 3), (0, 6)])
def test_mcnemar_is_the_binomial_of_those_that_one_alone_has_right(alone: int, other: int) -> None:
    first = np.array([True] * alone + [False] * other + [True] * 5 + [False] * 3)
    second = np.array([False] * alone + [True] * other + [True] * 5 + [False] * 3)
    low, total = min(alone, other), alone + other
    exact = min(1.0, 2 * sum(math.comb(total, count) for count in range(low + 1)) / 2**total) if total else 1.0
    assert exact_mcnemar(first, second) == pytest.approx(exact)


def test_all_right_is_no_certainty() -> None:
    """The rule of three, as Clopper and Pearson have it: 1 - 0.025 ** (1 / n) below one."""
    low, high = exact_proportion(50, 50)
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 50))


def test_holms_own_steps() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, one in zip(p_values, adjusted, strict=True):
        assert p <= one <= min(1.0, p * len(p_values)) + 1e-12
    for i, p in enumerate(p_values):
        assert all(adjusted[i] <= adjusted[j] for j, q in enumerate(p_values) if p < q)


def test_a_bootstrap_of_a_mean_has_its_standard_error() -> None:
    right = (np.arange(400) % 10 < 8).astype(float)
    found = bootstrap({"one": lambda counts: float(right @ counts / counts.sum())}, 400, resamples=3000, seed=(1, 2))
    assert np.std(found["one"]) == pytest.approx(math.sqrt(0.8 * 0.2 / 400), rel=0.05)
    low, high = percentile_interval(found["one"])
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.02, 0.8 + 1.96 * 0.02), abs=0.004)


def test_pairing_takes_out_what_pictures_have_in_common() -> None:
    """Models that are right on nearly the same pictures are told apart where independent ones would not be."""
    first = np.arange(400) % 4 > 0
    second = first.copy()
    second[np.flatnonzero(first)[:12]] = False
    scores = {
        name: (lambda values: lambda counts: float(values @ counts / counts.sum()))(own.astype(float))
        for name, own in (("first", first), ("second", second))
    }
    found = bootstrap(scores, 400, resamples=2000, seed=(0, 0))
    difference = float(first.mean() - second.mean())
    paired = bootstrap_p(difference, found["first"] - found["second"])
    alone = bootstrap({"second": scores["second"]}, 400, resamples=2000, seed=(9, 9))
    assert paired < 0.005
    assert paired == pytest.approx(stats.norm.sf(math.sqrt(12)) * 2, abs=2e-3)
    assert bootstrap_p(difference, found["first"] - alone["second"]) > 0.2
    assert bootstrap_p(0.0, found["first"] - found["second"]) == 1.0


def predictions(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    logits = generator.normal(size=(count, 4))
    logits[np.arange(count), labels] += 1.5
    logits[:, 3] -= 20
    return torch.tensor(logits).float().softmax(dim=1), labels.tolist()


def read(tmp_path: Path, order: list[int] | None = None) -> Predictions:
    rows, labels = predictions()
    order = list(range(60)) if order is None else order
    names = [f"p{number:02d}" for number in order]
    write_predictions(
        prediction_table(names, rows[order], CLASSES, [labels[number] for number in order]), tmp_path / "p.parquet"
    )
    found = read_predictions(tmp_path / "p.parquet")
    assert found is not None
    return found


def mean_likelihood(labels: Any, _: Any, rows: Any) -> float:
    return -float(np.mean(np.log(rows[np.arange(len(labels)), labels])))


PEERS: dict[str, Callable[[Any, Any, Any], float]] = {
    "accuracy": lambda labels, predicted, _: peers.accuracy_score(labels, predicted),
    "top2_accuracy": lambda labels, _, rows: peers.top_k_accuracy_score(labels, rows, k=2, labels=range(4)),
    "balanced_accuracy": lambda labels, predicted, _: peers.recall_score(
        labels, predicted, average="macro", labels=np.unique(labels)
    ),
    "macro_f1": lambda labels, predicted, _: peers.f1_score(labels, predicted, average="macro"),
    "brier": lambda labels, _, rows: float(np.mean(((rows - np.eye(4)[labels]) ** 2).sum(axis=1))),
    "loss": mean_likelihood,
    "nll": mean_likelihood,
}


@pytest.mark.parametrize("metric", PEERS)
def test_each_score_is_scikit_learns_on_any_resample(metric: str, tmp_path: Path) -> None:
    found = read(tmp_path)
    score = picture_score(metric, found)
    generator = np.random.default_rng(zlib.crc32(metric.encode()))
    for drawn in (np.arange(60), *(generator.integers(0, 60, 60) for _ in range(5))):
        peer = PEERS[metric](found.labels[drawn], found.predicted[drawn], found.probabilities[drawn])
        assert score(np.bincount(drawn, minlength=60)) == pytest.approx(peer)


def test_pictures_are_known_by_name_and_label_in_any_order(tmp_path: Path) -> None:
    straight, turned = read(tmp_path), read(tmp_path, list(range(59, -1, -1)))
    assert straight.pictures == turned.pictures
    assert straight.names == turned.names
    assert np.array_equal(straight.probabilities, turned.probabilities)
    assert straight.classes == tuple(CLASSES)


def test_predictions_that_cannot_be_paired_are_none(tmp_path: Path) -> None:
    rows, labels = predictions(3)
    path = tmp_path / "p.parquet"
    assert read_predictions(path) is None
    write_predictions(prediction_table(["a", "a", "b"], rows, CLASSES, labels), path)
    assert read_predictions(path) is None, "a name twice"
    write_predictions(prediction_table(["a", "b", "c"], rows, CLASSES), path)
    assert read_predictions(path) is None, "no labels"
    path.write_bytes(b"PAR1 and no more")
    assert read_predictions(path) is None
    assert [has_picture_score(name) for name in ("accuracy", "top5_accuracy", "auroc")] == [True, True, False]
