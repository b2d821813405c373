from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cosine_similarity

from frostline.errors import NumericsError
from frostline.probing.heads import Linear, Scale, Scores
from frostline.probing.references import Neighbors, logistic_regressions
from frostline.probing.selecting import Candidate, ranked
from frostline.probing.training import LabelledFeatures
from frostline.specs import FeatureChoice


def known(count: int, classes: int, seed: int = 0) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(classes, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(count) % classes
    return LabelledFeatures(centers[labels] + torch.randn(count, 6, generator=generator), labels)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_is_scikit_learn_s_for_each_c(classes: int, weighted: bool) -> None:
    train, new = known(60, classes), known(20, classes, 1).features
    weights = torch.linspace(0.5, 2.0, classes) if weighted else None
    found = list(logistic_regressions(train, [1.0, 0.01], iterations=2000, class_weights=weights))
    assert [one.c for one in found] == [0.01, 1.0]
    for one in found:
        model = LogisticRegression(
            C=one.c,
            max_iter=2000,
            tol=1e-8,
            class_weight=dict(enumerate(weights.tolist())) if weights is not None else None,
        ).fit(train.features.double().numpy(), train.labels.numpy())
        expected = torch.from_numpy(model.predict_proba(new.double().numpy())).float()
        torch.testing.assert_close(one.linear.logits(new).softmax(1), expected, rtol=0, atol=2e-3)
        assert one.converged


def test_a_regression_that_was_cut_short_says_so() -> None:
    (one,) = logistic_regressions(known(60, 4), [100.0], iterations=2)
    assert not one.converged
    assert one.iterations == 2


def neighbors_by_hand(train: LabelledFeatures, row: Tensor, k: int, classes: int, temperature: float | None) -> Tensor:
    similarity = torch.stack([cosine_similarity(row, other, dim=0) for other in train.features])
    shares = torch.zeros(classes, dtype=torch.float64)
    for at in np.argsort(-similarity.numpy())[:k]:
        shares[train.labels[at]] += 1.0 if temperature is None else math.exp(float(similarity[at]) / temperature)
    return (shares / shares.sum()).float()


@pytest.mark.parametrize("temperature", [None, 0.07])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbors_vote_by_their_similarity(k: int, temperature: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # in several parts
    monkeypatch.setattr("frostline.probing.references._SIMILARITIES", 100)
    train, new = known(40, 3), known(12, 3, 1).features
    found = Neighbors(train, 3, k, temperature).logits(new).softmax(1)
    for row, shares in zip(new, found, strict=True):
        torch.testing.assert_close(shares, neighbors_by_hand(train, row, k, 3, temperature), rtol=1e-4, atol=1e-6)


def test_a_head_of_standardized_features_takes_them_as_they_are() -> None:
    features = (
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.01, 0.0]) + 3
    )
    scale = Scale.of(features)
    scaled = scale(features)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(0, correction=0)[:3], torch.ones(3), rtol=1e-3, atol=0)
    assert bool((scaled[:, 3] == 0).all())
    linear = Linear(torch.randn(5, 4), torch.randn(5))
    torch.testing.assert_close(linear.after(scale).logits(features), linear.logits(scaled), rtol=1e-3, atol=1e-3)


def test_a_feature_that_differs_by_rounding_alone_is_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 4, generator=generator)
    features[:, 3] = 0.37
    features[-5:, 3] = features[0, 3].nextafter(torch.tensor(1.0))  # as a last, smaller batch gives
    scale = Scale.of(features)
    assert scale.deviation[3] == 1
    linear = Linear(torch.randn(5, 4, generator=generator), torch.zeros(5))
    torch.testing.assert_close(linear.after(scale).logits(features), linear.logits(scale(features)), rtol=0, atol=1e-5)


def candidate(accuracy: float, loss: float, kind: str = "head") -> Candidate:
    linear = Linear(torch.zeros(2, 1), torch.zeros(2))
    return Candidate(kind, FeatureChoice.last, {}, Scores(accuracy, loss), linear)


def test_the_best_is_chosen_by_the_monitor_then_by_loss_then_by_its_place() -> None:
    first, second, third = candidate(0.8, 0.5), candidate(0.9, 0.7), candidate(0.9, 0.6)
    twin, broken = candidate(0.9, 0.6, "logistic"), candidate(1.0, math.nan)
    everything = [broken, first, second, third, twin]
    assert ranked(everything, by_loss=False) == [third, twin, second, first]
    assert ranked(everything, by_loss=True)[0] is first
    with pytest.raises(NumericsError, match="no head"):
        ranked([broken], by_loss=False)
