"""Lightning, with ``BackboneFinetuning`` and with the body frozen as its transfer-learning guide has it.

The fastest documented settings: no logger, no progress bar, no sanity check, the metric kept on the device, weights
alone in the checkpoint of the best epoch. ``BackboneFinetuning`` is configured as its documentation shows it, the head
alone in the optimizer until the body is added. It leaves batch norms in training mode and lets their parameters ask for
gradients, so that a backward pass goes through the whole body; the guide's ``eval`` and ``no_grad`` do not.
"""

from __future__ import annotations

from typing import Any

import torch
from epoch_clock import EpochClock
from job import Job, Outcome, features_of, head_of, main, make_loader, make_model
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy


class Task(LightningModule):
    """A body and a head, as the callback wants them."""

    def __init__(self, job: Job, *, guide: bool) -> None:
        super().__init__()
        self._job, self._guide = job, guide
        model = make_model(job)
        self.head: nn.Module = head_of(model)
        self.backbone = Body(model)
        self.score = MulticlassAccuracy(job.classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        if self._job.on_gpu:
            images = images.contiguous(memory_format=torch.channels_last)
        if not self._guide:
            logits: Tensor = self.head(self.backbone(images))
            return logits
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(images)
        logits = self.head(features)
        return logits

    def training_step(self, batch: Any, _: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.score(self(batch[0]), batch[1])
        self.log("accuracy", self.score, on_step=False, on_epoch=True)

    def test_step(self, batch: Any, index: int) -> None:
        self.validation_step(batch, index)

    def on_train_epoch_start(self) -> None:
        """The head learns at the second rate from the second phase on; the callback sets that of the body."""
        if self._job.head_epochs and self.current_epoch == self._job.head_epochs:
            optimizer: Any = self.optimizers()
            optimizer.param_groups[0]["lr"] = self._job.full_lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        job = self._job
        learning, lr = (self.head, job.head_lr) if job.head_epochs else (self, job.full_lr)
        return torch.optim.AdamW(learning.parameters(), lr, weight_decay=0, fused=True)


class Body(nn.Module):
    """A timm model without its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.reset_classifier(0)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return features_of(self.model, images)


def train(job: Job, *, guide: bool) -> Outcome:
    """Both phases; with ``guide`` the first alone."""
    seed_everything(job.seed, workers=False, verbose=False)
    task, clock = Task(job, guide=guide), EpochClock()
    best = ModelCheckpoint(job.scratch, monitor="accuracy", mode="max", save_weights_only=True)
    callbacks: list[Callback] = [clock, best]
    if job.head_epochs and not guide:
        never = job.epochs + 1
        callbacks.append(
            BackboneFinetuning(
                unfreeze_backbone_at_epoch=job.head_epochs if job.full_epochs else never,
                backbone_initial_lr=job.full_lr,
                lambda_func=constant,
                should_align=False,
                train_bn=False,
            )
        )
    trainer = Trainer(
        max_epochs=job.epochs,
        accelerator="gpu" if job.on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if job.on_gpu else "32-true",
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=job.scratch,
    )
    if job.compiled:
        task.compile()
    trainer.fit(task, make_loader(job, "train"), make_loader(job, "val"))
    [scores] = trainer.test(task, make_loader(job, "test"), ckpt_path=best.best_model_path, verbose=False)
    return Outcome(float(scores["accuracy"]), clock.seconds, job.pictures)


def constant(_: int) -> float:
    """The factor on the body's rate from epoch to epoch."""
    return 1.0


if __name__ == "__main__":
    main({"callback": lambda job: train(job, guide=False), "guide": lambda job: train(job, guide=True)})
