"""fastai's ``Learner`` on the same model: ``freeze``, ``fit``, ``unfreeze``, ``fit``, of which ``fine_tune`` is made.

As its documentation recommends for speed: ``ChannelsLast``, bfloat16 on a GPU, no progress bar; ``train_bn=False`` with
``BnFreeze``, so that nothing below the head learns or counts and no backward pass goes there; a fused PyTorch
optimizer in ``OptimWrapper``, PyTorch's own loaders in ``DataLoaders``, the best epoch kept by ``SaveModelCallback``.
``fit`` at a constant rate stands for ``fine_tune``'s one-cycle rates, so that all peers take the same steps.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from job import Job, Outcome, head_of, main, make_loader, make_model
from torch import nn


class EpochClock(Callback):
    """Wall-clock seconds of the training part of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def before_train(self) -> None:
        self._started = time.perf_counter()

    def after_train(self) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def split(model: nn.Module) -> list[list[nn.Parameter]]:
    """The body and the head."""
    head = list(head_of(model).parameters())
    known = {id(parameter) for parameter in head}
    return [[parameter for parameter in model.parameters() if id(parameter) not in known], head]


def train(job: Job) -> Outcome:
    """Both phases."""
    loaders = {split: make_loader(job, split) for split in ("train", "val", "test")}
    model, clock = make_model(job), EpochClock()
    learner = Learner(
        DataLoaders(loaders["train"], loaders["val"], device=torch.device(job.device)),
        model,
        nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, fused=True),
        splitter=split,
        cbs=[clock, BnFreeze(), ChannelsLast(), *([MixedPrecision(AMPMode.BF16)] if job.on_gpu else [])],
        metrics=accuracy,
        path=job.scratch,
        wd=0.0,
        train_bn=False,
    )
    if job.compiled:
        model.compile()
    with learner.no_bar(), learner.no_logging():
        if job.head_epochs:
            learner.freeze()
            learner.fit(job.head_epochs, job.head_lr, cbs=best())
        if job.full_epochs:
            learner.unfreeze()
            learner.fit(job.full_epochs, job.full_lr, cbs=best(), reset_opt=True)
        _, score = learner.validate(dl=loaders["test"])
    for loader in loaders.values():
        # ends its workers now: where the garbage collector finds them with the learner, it waits five seconds for each
        loader._iterator = None
    return Outcome(float(score), clock.seconds, job.pictures)


def best() -> Any:
    """Keeps the epoch that is best on validation, and loads it at the end."""
    return SaveModelCallback(monitor="accuracy")


if __name__ == "__main__":
    main({"train": train})
