"""Fine-tuning a classifier under a freeze schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from frostline.freezing import FreezeSchedule, Position, apply_phase, assert_modes
from frostline.metrics import TrainingScores
from frostline.optim import parameter_groups, step_in_few_groups
from frostline.specs import ClipBy, FreezeSpec
from frostline.tasks.gathering import of_all_ranks
from frostline.tasks.randomness import seed_generators, stateless_seed
from frostline.tasks.regularization import Regularizer
from frostline.tasks.scoring import ScoringTask
from frostline.types import Batch, DepthGroup

Mixer = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class ClassificationTask(ScoringTask):
    """Trains what the freeze schedule lets learn; the schedule's callback says when.

    Args:
        model, loss, metrics, channels_last: see ``ScoringTask``.
        groups: the depth groups of ``model``.
        freeze: the schedule's scales and batch-norm policy.
        regularizer: what is added to the loss for the weights; the logged loss is without it.
        optimizer: takes parameter groups, gives an optimizer.
        base_lr: the one base learning rate.
        weight_decay: of the parameters that decay.
        seed: of dropout, drop path and mixing, which depend on (seed, epoch, batch, rank) alone.
        mixer: mixup or cutmix, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        metrics: Mapping[str, Metric],
        *,
        groups: Sequence[DepthGroup],
        freeze: FreezeSpec,
        regularizer: Regularizer,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        base_lr: float,
        weight_decay: float,
        seed: int,
        mixer: Mixer | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(model, loss, metrics, channels_last=channels_last)
        self.groups = tuple(groups)
        self.freeze_spec = freeze
        self.regularizer = regularizer
        self.make_optimizer = optimizer
        self.base_lr = base_lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.mixer = mixer
        self.trainable: frozenset[str] | None = None
        self.bn = freeze.bn
        self.train_scores = TrainingScores()

    def train(self, mode: bool = True) -> ClassificationTask:
        """As torch's, and what is frozen stays in eval."""
        super().train(mode)
        if mode and self.trainable is not None:
            assert_modes(self.model, self.groups, self.trainable, self.bn, self.freeze_spec.frozen)
        return self

    def enter(self, schedule: FreezeSchedule, position: Position) -> None:
        """Let what a position of the schedule names learn, and freeze the rest: gradients, then module modes."""
        self.trainable = schedule.stage_of(position).trainable
        self.bn = schedule.phase_of(position).bn
        apply_phase(self.model, self.trainable)
        self.train()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, or with ``freeze.clip=group`` for the parameters of each depth group by themselves."""
        if not gradient_clip_val:
            return
        if ClipBy(self.freeze_spec.clip) is ClipBy.run:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = dict(self.model.named_parameters())
        for group in self.groups:
            torch.nn.utils.clip_grad_norm_([parameters[name] for name in group.parameters], gradient_clip_val)

    def configure_optimizers(self) -> Optimizer:
        """All parameter groups from step 0; the schedule's callback sets their learning rates."""
        groups = parameter_groups(self.model, self.groups, self.freeze_spec, weight_decay=self.weight_decay)
        for group in groups:
            group["lr"] = self.base_lr * group["lr_factor"]
        return step_in_few_groups(self.make_optimizer(groups))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        seed = stateless_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        seed_generators(seed, self.device)
        targets = batch.targets
        if self.mixer is not None:
            images, targets = self.mixer(batch.images, targets, seed)
            logits = self.logits(batch._replace(images=images))
        else:
            logits = self.logits(batch)
        loss: Tensor = self.loss(logits, targets)
        self.train_scores.update(logits.detach(), batch.targets, loss.detach())
        penalty = self.regularizer.penalty(self.model, self.trainable or frozenset())
        return loss if penalty is None else loss + penalty

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss and accuracy; with mixing, against the unmixed labels."""
        self.log_dict(self.train_scores.compute(), sync_dist=True)
        self.train_scores.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the epoch's scores so far, of each rank, and the base learning rate, which ``lr_find`` may have set."""
        checkpoint["train_scores"] = of_all_ranks(self.train_scores.sums())
        checkpoint["base_lr"] = self.base_lr

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up."""
        self.train_scores.load_sums(checkpoint["train_scores"][self.global_rank])
