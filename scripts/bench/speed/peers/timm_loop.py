"""timm's training script, put together from the pieces that it is made of, since the package does not carry it.

``create_dataset``, ``create_loader``, ``freeze`` (which turns batch norms into frozen ones), ``create_optimizer_v2``,
``AverageMeter``, ``accuracy`` and ``CheckpointSaver``, in the order and with the defaults of the script; its options
``--channels-last``, on a GPU ``--amp --amp-dtype bfloat16``, the prefetcher that normalizes there, and
``--torchcompile``. Its loader has no option for training pictures that are cropped as for evaluation, so that the
transform is set afterwards; it leaves a smaller last batch of an epoch out. The rate is constant, without a scheduler.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from job import Job, Outcome, head_of, main, make_model, make_transform
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, CheckpointSaver, accuracy, freeze, unfreeze
from torch import nn


def train(job: Job) -> Outcome:
    """Both phases."""
    model, seconds = make_model(job), []
    loaders = {split: make_batches(job, model, split) for split in ("train", "val", "test")}
    loss_of = nn.CrossEntropyLoss()
    phases = ((job.head_epochs, job.head_lr, True), (job.full_epochs, job.full_lr, False))
    for epochs, lr, frozen in phases:
        if not epochs:
            continue
        (freeze if frozen else unfreeze)(model, body_of(model))
        optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.0, fused=True)
        folder = Path(job.scratch) / ("head" if frozen else "full")
        folder.mkdir()
        saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=1)
        called = torch.compile(model) if job.compiled else model
        for epoch in range(epochs):
            started = time.perf_counter()
            train_one_epoch(job, called, model, loaders["train"], loss_of, optimizer)
            seconds.append(time.perf_counter() - started)
            saver.save_checkpoint(epoch, metric=validate(job, model, loaders["val"], loss_of))
        best = torch.load(folder / "model_best.pth.tar", map_location=job.device, weights_only=False)
        model.load_state_dict(best["state_dict"])
    score = validate(job, model, loaders["test"], loss_of) / 100
    return Outcome(score, seconds, pictures=len(loaders["train"]) * job.batch_size)


def body_of(model: nn.Module) -> list[str]:
    """The names of all modules directly below the model but the classifier."""
    return [name for name, module in model.named_children() if module is not head_of(model)]


def make_batches(job: Job, model: nn.Module, split: str) -> Any:
    """timm's loader over its own dataset."""
    known = resolve_model_data_config(model)
    loader = create_loader(
        create_dataset("", root=job.root, split=split),
        input_size=(3, job.size, job.size),
        batch_size=job.batch_size,
        is_training=split == "train",
        no_aug=True,
        mean=known["mean"],
        std=known["std"],
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        pin_memory=job.on_gpu,
        device=torch.device(job.device),
        use_prefetcher=job.on_gpu,
    )
    loader.dataset.transform = make_transform(job, use_prefetcher=job.on_gpu)
    return loader


def train_one_epoch(
    job: Job, called: Any, model: nn.Module, batches: Any, loss_of: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """As the script's function of that name."""
    model.train()
    losses = AverageMeter()
    for images, targets in batches:
        images, targets = moved(job, images), targets.to(job.device)
        with job.autocast():
            loss = loss_of(called(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    losses.update(loss.item(), len(images))  # the script looks at every log_interval-th step and at the last


@torch.inference_mode()
def validate(job: Job, model: nn.Module, batches: Any, loss_of: nn.Module) -> float:
    """As the script's function of that name: top-1 in percent."""
    model.eval()
    losses, top1 = AverageMeter(), AverageMeter()
    for images, targets in batches:
        images, targets = moved(job, images), targets.to(job.device)
        with job.autocast():
            logits = model(images)
            loss = loss_of(logits, targets)
        [first] = accuracy(logits, targets)
        losses.update(loss.item(), len(images))
        top1.update(first.item(), len(images))
    average: float = top1.avg
    return average


def moved(job: Job, images: torch.Tensor) -> torch.Tensor:
    return images.to(job.device).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main({"train": train})
