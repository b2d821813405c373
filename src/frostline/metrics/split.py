"""All scores of one split: accumulated on the device, synced over ranks once, when they are computed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from frostline.errors import ConfigError


def makes_sense(top_k: int, num_classes: int) -> bool:
    """Whether a top-k score can be wrong: among ``num_classes <= top_k`` the label is always found."""
    return top_k < num_classes


class MeanLoss(Metric):
    """The mean loss of the pictures, and how many there were."""

    loss: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, pictures: int) -> None:
        """Add the mean loss of a batch; nothing of it waits for the device."""
        self.loss += loss * pictures
        self.count += pictures

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean, NaN where there are no pictures, and their number as a float."""
        count = self.count.float()
        return self.loss / count, count


class TrainingScores(Metric):
    """The mean loss, the accuracy and the number of pictures of an epoch of training, at the least that a step can pay.

    The accuracy is torchmetrics' micro accuracy, which would bring predictions into a common form first; and one
    metric with three sums takes a third of the time of two.
    """

    loss: Tensor
    right: Tensor
    pictures: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("pictures", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: ``[B, K]``, ``[B]`` int64 and its mean loss; nothing of it waits for the device."""
        # in place: to set an attribute of a module takes as long as the sum
        self.loss.add_(loss, alpha=len(labels))
        self.right.add_((logits.argmax(dim=1) == labels).sum())
        self.pictures.add_(len(labels))

    def compute(self) -> dict[str, Tensor]:
        """The scores over all ranks since the last reset; NaN where there are no pictures."""
        count = self.pictures.float()
        return {"train/accuracy": self.right / count, "train/loss": self.loss / count, "train/count": count}

    def sums(self) -> dict[str, Tensor]:
        """What was added so far, on this rank, as copies."""
        return {"loss": self.loss.clone(), "right": self.right.clone(), "pictures": self.pictures.clone()}

    def load_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Goes on from what ``sums`` gave.

        Raises:
            ConfigError: they are of a version that counted otherwise.
        """
        if sums.keys() != self.sums().keys():
            raise ConfigError(
                "The checkpoint is of an older Frostline, which counted the scores of training otherwise",
                mend="Go on with that version, or start a new run from its weights: backbone.weights=RUN.",
            )
        self.loss, self.right, self.pictures = (sums[name].to(self.device) for name in ("loss", "right", "pictures"))
        self._update_count = 1


class SplitScores(nn.Module):
    """The scores, the mean loss and the number of pictures of one split.

    Args:
        metrics: name to metric; each takes probabilities ``[B, K]`` float32 and labels ``[B]`` int64.
        split: ``val`` or ``test``; the scores are named ``split/name``.
    """

    def __init__(self, metrics: Mapping[str, Metric], split: str) -> None:
        super().__init__()
        self.split = split
        # torchmetrics shares one state between metrics whose states are equal after the first batch, so that a top-5
        # accuracy became the top-1 accuracy where the first batch was all right
        own: dict[str, Metric | MetricCollection] = {name: metric.clone() for name, metric in metrics.items()}
        self.metrics = MetricCollection(own, compute_groups=False)
        self.loss = MeanLoss()

    def update(self, probabilities: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: ``[B, K]`` float32, ``[B]`` int64 and its mean loss."""
        for metric in self.metrics.values():
            metric.update(probabilities, labels)
        self.loss.update(loss, len(labels))

    def compute(self) -> dict[str, Tensor]:
        """The scores over all ranks since the last call; starts anew."""
        scores = {f"{self.split}/{name}": value for name, value in self.metrics.compute().items()}
        scores[f"{self.split}/loss"], scores[f"{self.split}/count"] = self.loss.compute()
        self.metrics.reset()
        self.loss.reset()
        return scores
