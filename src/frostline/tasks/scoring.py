"""A model and its scores on labelled pictures: what every task does with a split that it does not train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric

from frostline.metrics import SplitScores
from frostline.tasks.gathering import take_buffers_of_first
from frostline.types import Batch


@dataclass(frozen=True)
class Predictions:
    """What a model said of a split, in the order of the split, on the CPU.

    Attributes:
        indices: ``[N]`` int64.
        labels: ``[N]`` int64.
        probabilities: ``[N, K]`` float32.
    """

    indices: Tensor
    labels: Tensor
    probabilities: Tensor


class ScoringTask(LightningModule):
    """Scores a classifier; each valid picture is counted once, whatever the number of ranks.

    Args:
        model: takes ``[B, C, H, W]`` float32, gives ``[B, K]`` logits.
        loss: ``(logits, targets) -> scalar``, the mean over a batch.
        metrics: name to metric over probabilities ``[B, K]`` and labels ``[B]``.
        channels_last: run the model in this memory format.
        test_as: the name of the split that ``trainer.test`` scores.

    Attributes:
        predictions: of the last test, or of the last validation that was no part of training; the same on every rank.
        rests: by the place that a batch of features comes from, what makes the logits out of them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        metrics: Mapping[str, Metric],
        *,
        channels_last: bool = False,
        test_as: str = "test",
    ) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.loss = loss
        self.val_scores = SplitScores(metrics, "val")
        self.test_scores = SplitScores(metrics, test_as)
        self.rests: dict[str, Callable[[Tensor], Tensor]] = {}
        self.predictions: Predictions | None = None
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's, without its search for a name that Lightning sets fifty times a step: the hook that it is in."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of ``[B, C, H, W]``."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(images)
        return logits

    def logits(self, batch: Batch) -> Tensor:
        """Logits ``[B, K]`` of a batch: by the whole model, or by what is above its features where it has some.

        Raises:
            RuntimeError: it has features of a place in the network that the task was not told of.
        """
        if not batch.features:
            logits: Tensor = self(batch.images)
            return logits
        if batch.features not in self.rests:
            raise RuntimeError(f"a batch of features of '{batch.features}' came to a task that does not know it")
        features = batch.images
        if self.channels_last and features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        return self.rests[batch.features](features)

    def on_validation_epoch_start(self) -> None:
        """Gives every rank the buffers of the first, which are the ones that are saved.

        Batch-norm statistics differ between ranks until the next training step, so that each would score another
        model. Comes after the callbacks' hook of this name, in which averaged weights take their place.
        """
        if self.trainer.world_size > 1:
            take_buffers_of_first(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the scores of validation, and keeps its predictions where nothing is trained."""
        probabilities = self._score(self.val_scores, batch)
        if self._validates_alone:
            self._keep(batch, probabilities)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the scores of the test, and keeps its predictions."""
        self._keep(batch, self._score(self.test_scores, batch))

    @property
    def _validates_alone(self) -> bool:
        return self.trainer.state.fn == TrainerFn.VALIDATING

    def _keep(self, batch: Batch, probabilities: Tensor) -> None:
        self._kept.append((batch.indices.where(batch.valid, -1), batch.targets, probabilities))

    def _score(self, scores: SplitScores, batch: Batch) -> Tensor:
        logits = self.logits(batch).float()
        probabilities = logits.softmax(dim=1)
        if self.trainer.world_size == 1:
            scores.update(probabilities, batch.targets, self.loss(logits, batch.targets))
        elif batch.valid.any():
            # only a distributed evaluation is padded; the mask costs a wait for the device
            valid = batch.valid
            scores.update(probabilities[valid], batch.targets[valid], self.loss(logits[valid], batch.targets[valid]))
        return probabilities

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of validation; every rank holds the same, since torchmetrics synced them."""
        self.log_dict(self.val_scores.compute(), sync_dist=True)
        if self._validates_alone:
            self.predictions = self._gathered_predictions()

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the test and gathers its predictions from all ranks."""
        self.log_dict(self.test_scores.compute(), sync_dist=True)
        self.predictions = self._gathered_predictions()

    def _gathered_predictions(self) -> Predictions:
        parts = [torch.cat(column) for column in zip(*self._kept, strict=True)]
        self._kept = []
        indices, labels, probabilities = (self._gathered(part) for part in parts)
        order = indices.argsort()[int((indices < 0).sum()) :]
        return Predictions(indices[order], labels[order], probabilities[order])

    def _gathered(self, part: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            everywhere = self.all_gather(part)
            assert isinstance(everywhere, Tensor)
            return everywhere.flatten(0, 1).cpu()
        return part.cpu()
