from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from frostline.tasks import BinaryCrossEntropy, FocalLoss, balanced_weights, effective_weights
from frostline.tasks.losses import as_probabilities

LOGITS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def test_focal_loss_without_focus_is_the_cross_entropy() -> None:
    torch.testing.assert_close(FocalLoss(gamma=0.0)(LOGITS, LABELS), functional.cross_entropy(LOGITS, LABELS))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = functional.cross_entropy(LOGITS, LABELS, weight=weight)
    torch.testing.assert_close(FocalLoss(gamma=0.0, weight=weight)(LOGITS, LABELS), expected)


def test_focal_loss_is_its_formula() -> None:
    p = LOGITS.softmax(1)[torch.arange(7), LABELS]
    torch.testing.assert_close(FocalLoss(gamma=2.0)(LOGITS, LABELS), (-((1 - p) ** 2) * p.log()).mean())


def test_indices_and_one_hot_probabilities_are_the_same_target() -> None:
    soft = as_probabilities(LABELS, 4)
    for loss in (BinaryCrossEntropy(), BinaryCrossEntropy(label_smoothing=0.2), FocalLoss()):
        torch.testing.assert_close(loss(LOGITS, LABELS), loss(LOGITS, soft))


def test_binary_cross_entropy_smooths_towards_uniform() -> None:
    target = torch.full((7, 4), 0.05)
    target[torch.arange(7), LABELS] = 0.85
    expected = functional.binary_cross_entropy_with_logits(LOGITS, target)
    torch.testing.assert_close(BinaryCrossEntropy(label_smoothing=0.2)(LOGITS, LABELS), expected)


def test_balanced_weights_even_out_the_classes() -> None:
    weights = balanced_weights([10, 30])
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 3]))
    torch.testing.assert_close(weights * torch.tensor([10.0, 30.0]), torch.tensor([20.0, 20.0]))


def test_effective_weights_are_their_formula_and_sum_to_the_number_of_classes() -> None:
    counts, beta = [10, 100, 1000], 0.99
    expected = torch.tensor([(1 - beta) / (1 - beta**count) for count in counts], dtype=torch.float64)
    expected *= 3 / expected.sum()
    found = effective_weights(counts, beta)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float())
    assert float(found.sum()) == pytest.approx(3)
    assert found[0] > found[1] > found[2]


def test_effective_weights_go_from_one_to_the_inverse_of_the_counts() -> None:
    assert effective_weights([1, 50, 10_000_000], 0.0).tolist() == [1.0, 1.0, 1.0]
    near_one = effective_weights([10, 40], 1 - 1e-12)
    torch.testing.assert_close(near_one, torch.tensor([1.6, 0.4]))
    torch.testing.assert_close(near_one / near_one[0], balanced_weights([10, 40]) / balanced_weights([10, 40])[0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 0.9999999, 1 - 2**-53])
def test_effective_weights_of_many_pictures_are_finite(beta: float) -> None:
    found = effective_weights([1, 2, 1000, 10_000_000], beta)
    assert bool(torch.isfinite(found).all())
    assert bool((found > 0).all())
    assert found.tolist() == sorted(found.tolist(), reverse=True)


def test_a_common_factor_of_the_weights_matters_only_where_the_mean_is_not_weighted() -> None:
    weight = effective_weights([5, 10, 20, 40], 0.9)
    one, ten = functional.cross_entropy(LOGITS, LABELS, weight), functional.cross_entropy(LOGITS, LABELS, 10 * weight)
    torch.testing.assert_close(one, ten)
    one, ten = BinaryCrossEntropy(weight)(LOGITS, LABELS), BinaryCrossEntropy(10 * weight)(LOGITS, LABELS)
    torch.testing.assert_close(10 * one, ten)
