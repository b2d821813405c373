"""Pre-training a backbone without labels, as a denoising or a masked auto-encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torchmetrics import SumMetric

from frostline.freezing import FreezeSchedule
from frostline.optim import LearningRates, learning_rate, parameter_groups, step_in_few_groups
from frostline.tasks.corruption import Corruption
from frostline.tasks.decoding import AutoEncoder, PooledDecoder
from frostline.tasks.gathering import of_all_ranks
from frostline.tasks.randomness import seed_generators, stateless_seed
from frostline.types import Batch, Preprocessing


class PretrainingTask(LightningModule):
    """Spoils pictures and learns to restore them; labels are not looked at.

    With ``decode=pooled`` the clean picture has to come out of the pooled features of a distorted one, so that these
    hold what is in the picture, and not how it lies there: a denoising auto-encoder (Vincent et al. 2008). With
    ``decode=map`` each hidden patch has to come out of the feature map above it: a masked auto-encoder whose mask is in
    the input (Xie et al. 2022, arXiv:2111.09886), so that any family of backbones will do.

    Args:
        model: a timm model without a classifier; ``[B, C, H, W]`` float32 to pooled features ``[B, F]``.
        preprocessing: of its input.
        schedule: the one phase of the run, for its learning rate.
        optimizer: takes parameter groups, gives an optimizer.
        base_lr: the one base learning rate.
        weight_decay: of the parameters that decay.
        seed: of the damage and of dropout, which depend on (seed, epoch, batch, rank) alone.
        corruption: the damage.
        decode: ``pooled`` or ``map``.
        channels_last: run the model in this memory format.

    Raises:
        ConfigError: an unknown ``decode``, or a model without a feature map for ``decode=map``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocessing: Preprocessing,
        schedule: FreezeSchedule,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        base_lr: float,
        weight_decay: float,
        seed: int,
        corruption: Corruption,
        decode: Literal["pooled", "map"] = "pooled",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.autoencoder = AutoEncoder(model, preprocessing.size, decode)
        if channels_last:
            self.autoencoder.to(memory_format=torch.channels_last)
        self.schedule = schedule
        self._start, self._rates = schedule.start, LearningRates(schedule)
        self.make_optimizer = optimizer
        self.base_lr = base_lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.corruption = corruption
        black = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
        self.register_buffer("black", torch.tensor(black), persistent=False)
        self.black: Tensor
        self.train_loss = SumMetric(nan_strategy="disable")
        self.pictures = SumMetric(nan_strategy="disable")

    @property
    def model(self) -> nn.Module:
        """The backbone, without the decoder."""
        return self.autoencoder.model

    def configure_optimizers(self) -> Optimizer:
        """The parameter groups of the model, and the decoder as one more."""
        spec = self.schedule.spec
        groups = parameter_groups(self.model, self.schedule.groups, spec, weight_decay=self.weight_decay)
        groups.append(
            {
                "params": list(self.autoencoder.decoder.parameters()),
                "name": "decoder",
                "group": self.schedule.groups[-1].name,
                "depth": len(self.schedule.groups),
                "is_head": False,
                "lr_factor": 1.0,
                "weight_decay": self.weight_decay,
            }
        )
        for group in groups:
            group["lr"] = self.base_lr * group["lr_factor"]
        return step_in_few_groups(self.make_optimizer(groups))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate of this step."""
        step = self.trainer.global_step
        self._rates.set(self.trainer.optimizers[0], self.base_lr, self._start, step)
        last = self.schedule.groups[-1].name
        self.log("lr", learning_rate(self.schedule, self._start, self.base_lr, step, last))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        seed = stateless_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        seed_generators(seed, self.device)
        loss = self.restoration_loss(batch.images, torch.Generator().manual_seed(seed))
        self.train_loss.update(loss.detach() * len(batch.images))
        self.pictures.update(len(batch.images))
        return loss

    def restoration_loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the pictures restored from ``images`` ``[B, C, H, W]``, spoilt as ``generator`` says.

        In units of the normalized input; over the reduced picture, or over the hidden pixels of the map.
        """
        distorted = self.corruption.distort(images, generator, border=self.black)
        hidden = self.corruption.hidden(images, generator)
        spoilt = self.corruption.spoil(distorted, hidden, generator)
        restored = self.autoencoder(spoilt.contiguous(memory_format=self.memory_format)).float()
        decoder = self.autoencoder.decoder
        if isinstance(decoder, PooledDecoder):
            return functional.mse_loss(restored, decoder.reduced(images))
        error: Tensor = ((restored - distorted) ** 2).mean(dim=1, keepdim=True)
        return error[hidden].mean()

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss, over all ranks."""
        self.log("train/loss", self.train_loss.compute() / self.pictures.compute(), sync_dist=True)
        self.train_loss.reset()
        self.pictures.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the epoch's loss so far, of each rank."""
        sums = {"loss": self.train_loss.sum_value, "pictures": self.pictures.sum_value}
        checkpoint["train_scores"] = of_all_ranks(sums)
        checkpoint["base_lr"] = self.base_lr

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up."""
        sums = checkpoint["train_scores"][self.global_rank]
        self.train_loss.update(sums["loss"])
        self.pictures.update(sums["pictures"])
