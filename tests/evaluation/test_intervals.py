from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats

from frostline.evaluation.intervals import Estimate, estimate, resampled
from frostline.evaluation.measures import Calibration, Decisions, Floats, Labels, Ranking


def drawn_from(probabilities: Floats, generator: np.random.Generator) -> Labels:
    return (probabilities.cumsum(axis=1) > generator.random((len(probabilities), 1))).argmax(axis=1)


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "macro_f1"])
def test_intervals_are_those_of_scipy(name: str) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(4, 0.4), 200).astype(np.float32)
    labels = drawn_from(probabilities, generator)
    measures = [Decisions(labels, probabilities.argmax(axis=1), 4), Calibration(labels, probabilities)]
    samples = resampled(measures, 200, resamples=4000)[name]
    assert samples.shape == (4000,)

    def statistic(rows: Labels) -> float:
        # scipy draws rows; the score of the rows is computed anew
        own = [
            Decisions(labels[rows], probabilities[rows].argmax(axis=1), 4),
            Calibration(labels[rows], probabilities[rows]),
        ]
        return next(m.of(np.ones((1, len(rows))))[name][0] for m in own if name in m.of(np.ones((1, len(rows)))))

    expected = scipy.stats.bootstrap(
        (np.arange(200),), statistic, n_resamples=500, method="percentile", vectorized=False, rng=1
    )
    found = estimate(statistic(np.arange(200)), samples)
    spread = expected.standard_error
    assert found.method == "bootstrap"
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.3 * spread)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.3 * spread)


def test_one_seed_gives_one_interval() -> None:
    labels = np.arange(50) % 2
    measure = Decisions(labels, np.arange(50) % 3 % 2, 2)
    one, again, other = (resampled([measure], 50, seed=seed)["accuracy"] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_share_without_errors_has_the_exact_interval_and_others_have_none() -> None:
    samples = np.ones(100)
    found = estimate(1.0, samples, share_of=269)
    assert found.method == "exact"
    # Clopper and Pearson by the beta distribution
    assert found.low == pytest.approx(scipy.stats.beta.ppf(0.025, 269, 1))
    assert found.high == 1
    assert estimate(0.0, np.zeros(100), share_of=10).high == pytest.approx(scipy.stats.beta.ppf(0.975, 1, 10))
    assert estimate(1.0, samples) == Estimate(1.0)
    assert str(Estimate(1.0)) == "1.000"
    assert str(Estimate(0.9926, 0.98141, 1.0, "bootstrap")) == "0.993 [0.981, 1.000]"


def test_resamples_without_a_score_are_left_out() -> None:
    samples = np.array([np.nan, 0.2, 0.4, np.nan])
    assert estimate(0.3, samples).low == pytest.approx(0.205)
    assert estimate(0.3, np.full(4, np.nan)) == Estimate(0.3)


def test_ninety_five_percent_are_about_that_many() -> None:
    """Of accuracy, in 200 repetitions with 100 pictures; the normal error of that is 1.5 %."""
    generator, held = np.random.default_rng(2), 0
    for _ in range(200):
        right = generator.random(100) < 0.85
        measure = Decisions(np.zeros(100, np.int64), (~right).astype(np.int64), 2)
        found = estimate(right.mean(), resampled([measure], 100, resamples=400)["accuracy"], share_of=100)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.85 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_the_calibration_error_of_few_pictures_is_not_held_for_real() -> None:
    """A calibrated model has no error, and shows some; percentiles would say that it has at least that."""
    generator, held, by_percentiles = np.random.default_rng(3), 0, 0
    for _ in range(100):
        probabilities = generator.dirichlet(np.full(5, 0.5), 100).astype(np.float32)
        measure = Calibration(drawn_from(probabilities, generator), probabilities)
        value = float(measure.of(np.ones((1, 100)))["ece"][0])
        samples = resampled([measure], 100, resamples=200)["ece"]
        found = estimate(value, samples, biased=True)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= value <= found.high
        held += found.low < 0.005
        by_percentiles += np.quantile(samples, 0.025) < 0.005
    assert by_percentiles == 0
    assert held > 40


def test_ten_thousand_pictures_of_a_hundred_classes_take_seconds() -> None:
    generator = np.random.default_rng(4)
    probabilities = generator.dirichlet(np.full(100, 0.1), 10_000).astype(np.float32)
    labels = drawn_from(probabilities, generator)
    start = time.process_time()
    measures = [
        Decisions(labels, probabilities.argmax(axis=1), 100),
        Ranking(labels, probabilities),
        Calibration(labels, probabilities),
    ]
    assert resampled(measures, 10_000)["recall"].shape == (1000, 100)
    assert time.process_time() - start < 10  # measured: 0.6 s
