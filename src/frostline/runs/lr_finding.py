"""A learning-rate range test before training."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from frostline.errors import NumericsError
from frostline.runs.folder import RunFolder
from frostline.runs.parts import Parts
from frostline.types import Batch

LOWEST, HIGHEST, STEPS, SMOOTHING, DIVERGED = 1e-6, 1.0, 100, 0.9, 4.0


def find_learning_rate(parts: Parts, folder: RunFolder, device: torch.device) -> float:
    """Raise the learning rate exponentially for 100 steps, take the rate of steepest descent of the loss.

    Smith 2017, "Cyclical learning rates for training neural networks", arXiv:1506.01186, with the smoothing and the
    stop at divergence that are common since. Weights are put back; ``lr_find.csv`` holds the curve. The rates of the
    groups keep the proportions that the schedule gives them. The result becomes the base learning rate of
    ``parts.task``.

    Raises:
        NumericsError: the loss never fell.
    """
    task = parts.task
    before = copy.deepcopy(task.state_dict())
    curve = _range_test(parts, device)
    task.to("cpu").load_state_dict(before)
    with (folder.path / "lr_find.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("lr", "smoothed_loss"), *curve])
    rate = steepest(curve)
    print(f"lr_find   {rate:.3g} in place of optimizer.lr={task.base_lr:.3g}", flush=True)
    task.base_lr = rate
    return rate


def _range_test(parts: Parts, device: torch.device) -> list[tuple[float, float]]:
    task = parts.task.to(device)
    task.train()
    optimizer = task.configure_optimizers()
    curve: list[tuple[float, float]] = []
    average, best = 0.0, math.inf
    for step, batch in zip(range(STEPS), _endless(parts.data.loader("train", train=True)), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        logits = task.logits(batch._replace(images=batch.images.to(device)))
        loss: Tensor = task.loss(logits, batch.targets.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        average = SMOOTHING * average + (1 - SMOOTHING) * float(loss.detach())
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        best = min(best, smoothed)
        if not math.isfinite(smoothed) or smoothed > DIVERGED * best:
            break
        curve.append((rate, smoothed))
    return curve


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def steepest(curve: list[tuple[float, float]]) -> float:
    """The rate at which the smoothed loss falls fastest per factor of the rate."""
    slopes = [(after[1] - before[1], before[0]) for before, after in pairwise(curve)]
    if not slopes or min(slopes)[0] >= 0:
        raise NumericsError("lr_find: the loss never fell", mend="Set optimizer.lr yourself.")
    return min(slopes)[1]
