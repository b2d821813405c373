"""Losses that torch lacks, over class indices or, after mixup, over class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def as_probabilities(targets: Tensor, num_classes: int) -> Tensor:
    """``[B]`` int64 class indices as ``[B, K]`` float32; probabilities are passed on unchanged."""
    if targets.is_floating_point():
        return targets
    return functional.one_hot(targets, num_classes).float()


class BinaryCrossEntropy(nn.Module):
    """One sigmoid per class instead of a softmax, averaged over classes and pictures.

    After Wightman et al. 2021, "ResNet strikes back", arXiv:2110.00476. Label smoothing moves a share of the target
    to the uniform distribution, as for a softmax.

    Args:
        weight: ``[K]`` factor of each class, or None.
        label_smoothing: the share, 0..1.
    """

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of ``[B, K]`` logits against ``[B]`` indices or ``[B, K]`` probabilities."""
        soft = as_probabilities(targets, logits.shape[1])
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        return functional.binary_cross_entropy_with_logits(logits.float(), soft, weight=self.weight)


class FocalLoss(nn.Module):
    """Cross entropy that dwells on what is still wrong: ``-(1 - p)^gamma log p``.

    Lin et al. 2017, "Focal loss for dense object detection", arXiv:1708.02002, over the softmax.

    Args:
        gamma: 0 gives the cross entropy.
        weight: ``[K]`` factor of each class, or None; as in torch's cross entropy the mean is weighted.
    """

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)
        self.weight: Tensor | None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of ``[B, K]`` logits against ``[B]`` indices or ``[B, K]`` probabilities."""
        soft = as_probabilities(targets, logits.shape[1])
        if self.weight is not None:
            soft = soft * self.weight
        log_p = functional.log_softmax(logits.float(), dim=1)
        focused = -soft * (1 - log_p.exp()) ** self.gamma * log_p
        return focused.sum() / soft.sum().clamp_min(torch.finfo(torch.float32).tiny)


def balanced_weights(counts: list[int]) -> Tensor:
    """``[K]`` float32 weights ``n / (K n_k)``: the inverse of each class's share, 1 where all are equal.

    King and Zeng 2001, "Logistic regression in rare events data"; scikit-learn's ``balanced``.
    """
    share = torch.tensor(counts, dtype=torch.float32)
    return share.sum() / (len(counts) * share)


def effective_weights(counts: list[int], beta: float) -> Tensor:
    """``[K]`` float32 weights ``(1 - beta) / (1 - beta^n_k)``, scaled by one factor such that they sum to K.

    The inverse of the effective number of pictures. Cui et al. 2019, "Class-Balanced Loss Based on Effective Number
    of Samples", arXiv:1901.05555. They go from 1 for each class at beta = 0 towards the inverse of its count.

    A weighted mean, as of ``CrossEntropyLoss`` and `FocalLoss`, divides by the weights of the batch, so that the factor
    changes nothing there; in `BinaryCrossEntropy`, which divides by the number of pictures, it sets the size of the
    loss. (`balanced_weights` average to 1 over the pictures, these over the classes.)

    Args:
        counts: pictures per class, each at least 1.
        beta: 0 up to, but not including, 1.
    """
    # float64 and expm1, for 1 - beta^n where beta is close to 1
    counted = torch.tensor(counts, dtype=torch.float64)
    effective = -torch.expm1(counted * torch.tensor(beta, dtype=torch.float64).log())
    weights = 1 / effective
    return (weights * len(counts) / weights.sum()).float()
