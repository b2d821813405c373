"""PyTorch without a framework: the loop that one writes oneself, and what bounds all others.

As PyTorch's tuning guide has it: channels_last, a fused optimizer, gradients set to None, persistent workers, no value
read back in a step; in the first phase the body runs in eval and without a graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from job import Job, Outcome, features_of, head_of, main, make_loader, make_model
from torch import Tensor, nn
from torch.nn import functional

Batches = Iterable[tuple[Tensor, Tensor]]
STEPS = 20


def train(job: Job) -> Outcome:
    """Both phases on pictures."""
    model = make_model(job)
    loaders = {split: make_loader(job, split) for split in ("train", "val", "test")}
    whole = torch.compile(model) if job.compiled else model
    seconds: list[float] = []

    def logits_on_frozen(images: Tensor) -> Tensor:
        with torch.no_grad():
            features = features_of(model, images)
        logits: Tensor = head_of(model)(features)
        return logits

    phases = ((job.head_epochs, job.head_lr, logits_on_frozen), (job.full_epochs, job.full_lr, whole))
    for epochs, lr, logits in phases:
        frozen = logits is logits_on_frozen
        learning = head_of(model) if frozen else model
        optimizer = torch.optim.AdamW(learning.parameters(), lr, weight_decay=0, fused=True)
        best = Best(model)
        for _ in range(epochs):
            model.train(not frozen)
            started = time.perf_counter()
            for images, targets in loaders["train"]:
                step(job, logits, optimizer, images, targets)
            seconds.append(time.perf_counter() - started)
            best.see(accuracy(job, model, loaders["val"]))
        best.restore()
    return Outcome(accuracy(job, model, loaders["test"]), seconds, job.pictures)


def train_on_kept_features(job: Job) -> Outcome:
    """The first phase alone, on features that are computed once and lie in memory."""
    model = make_model(job)
    kept = {split: computed(job, model, make_loader(job, split)) for split in ("train", "val", "test")}
    head, seconds = head_of(model), []
    optimizer = torch.optim.AdamW(head.parameters(), job.head_lr, weight_decay=0, fused=True)
    best = Best(head)
    for _ in range(job.head_epochs):
        started = time.perf_counter()
        features, targets = kept["train"]
        for chosen in torch.randperm(len(targets)).split(job.batch_size):
            step(job, head, optimizer, features[chosen], targets[chosen])
        seconds.append(time.perf_counter() - started)
        best.see(accuracy(job, head, [kept["val"]]))
    best.restore()
    return Outcome(accuracy(job, head, [kept["test"]]), seconds, job.pictures)


def one_pass(job: Job) -> Outcome:
    """The body once over every picture of all splits, in eval and without a graph; nothing is trained."""
    model = make_model(job)
    for split in ("train", "val", "test"):
        computed(job, model, make_loader(job, split))
    return Outcome()


def one_batch(job: Job) -> Outcome:
    """Steps of everything on one batch of noise that lies on the device: what pictures that cost nothing would give.

    A step stands for an epoch here.
    """
    model = make_model(job).train()
    images = torch.randn(job.batch_size, 3, job.size, job.size, device=job.device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(job.batch_size, device=job.device) % job.classes
    logits = torch.compile(model) if job.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), job.full_lr, weight_decay=0, fused=True)
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step(job, logits, optimizer, images, targets)
        if job.on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Outcome(epochs=seconds, pictures=job.batch_size)


class Best:
    """The weights of the epoch that was best on validation, in memory."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._score = model, -1.0
        self._state: dict[str, Tensor] = {}

    def see(self, score: float) -> None:
        """Keep the weights if ``score`` is above all before."""
        if score > self._score:
            self._score = score
            self._state = {name: value.clone() for name, value in self._model.state_dict().items()}

    def restore(self) -> None:
        """Put them back, if there are any."""
        if self._state:
            self._model.load_state_dict(self._state)


def step(
    job: Job, logits: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> None:
    """Forward, backward, and what the optimizer makes of it."""
    with job.autocast():
        loss = functional.cross_entropy(logits(moved(job, images)), moved(job, targets))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def moved(job: Job, values: Tensor) -> Tensor:
    """On the device; pictures channels_last."""
    format_: Any = torch.channels_last if values.ndim == 4 else torch.preserve_format
    return values.to(job.device, non_blocking=True, memory_format=format_)


@torch.no_grad()
def accuracy(job: Job, model: nn.Module, batches: Batches) -> float:
    """Share of the pictures, in eval."""
    model.eval()
    right = torch.zeros((), device=job.device)
    pictures = 0
    for images, targets in batches:
        with job.autocast():
            right += (model(moved(job, images)).argmax(1) == moved(job, targets)).sum()
        pictures += len(targets)
    return right.item() / pictures


@torch.no_grad()
def computed(job: Job, model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """What comes into the classifier for each picture, and the labels, on the device."""
    model.eval()
    found, labels = [], []
    for images, targets in batches:
        with job.autocast():
            found.append(features_of(model, moved(job, images)).float())
        labels.append(moved(job, targets))
    return torch.cat(found), torch.cat(labels)


if __name__ == "__main__":
    main({"train": train, "kept": train_on_kept_features, "pass": one_pass, "batch": one_batch})
