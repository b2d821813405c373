"""Averages over the classes that a split has pictures of; a class without any has no score."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAUROC, MulticlassRecall
from torchmetrics.utilities import dim_zero_cat


class BalancedAccuracy(MulticlassRecall):
    """The mean recall of the classes that are there (Brodersen et al. 2010; as scikit-learn's).

    Args:
        num_classes: K.
        kwargs: torchmetrics' own.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, average="none", **kwargs)

    def compute(self) -> Tensor:
        """A scalar from 0 to 1."""
        recall: Tensor = super().compute()
        support = cast(Tensor, self.tp) + cast(Tensor, self.fn)
        return recall[support > 0].mean()


class Auroc(MulticlassAUROC):
    """The mean one-against-rest area under the ROC curve of the classes that are there.

    Args:
        num_classes: K.
        kwargs: torchmetrics' own.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, average="none", **kwargs)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics' own AUROC returns a tensor too
        """A scalar from 0 to 1; NaN where all pictures are of one class, which has no others to be told from."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
            areas: Tensor = super().compute()
        labels = dim_zero_cat(self.target)
        support = torch.bincount(labels, minlength=self.num_classes)
        return areas[(support > 0) & (support < len(labels))].mean()
