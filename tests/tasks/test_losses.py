from __future__ import annotations

import torch
from torch.nn import functional

from frostline.tasks import BinaryCrossEntropy, FocalLoss, balanced_weights
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
