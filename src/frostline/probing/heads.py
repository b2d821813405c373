"""The heads of a grid, and what each of them came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from frostline.errors import ConfigError
from frostline.specs import FeatureChoice, ProbeNode

_ROUNDING = 1e-5  # of the mean: a smaller deviation comes of the rounding of a constant


@dataclass(frozen=True)
class Head:
    """A linear classifier of the grid.

    Attributes:
        features: what it learns on.
        lr: its peak learning rate.
        weight_decay: of its weights; its biases have none.
        seed: of its start and of the order in which it sees the pictures.
    """

    features: FeatureChoice
    lr: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Linear:
    """A linear classifier: ``features @ weight.T + bias``, on the CPU.

    Attributes:
        weight: ``[K, D]`` float32.
        bias: ``[K]`` float32.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """``[N, K]`` of ``[N, D]``."""
        return torch.addmm(self.bias, features, self.weight.T)

    def after(self, scale: Scale) -> Linear:
        """The classifier of features that have not been through ``scale``; the logits are the same."""
        weight = self.weight.double() / scale.deviation.double()
        bias = self.bias.double() - weight @ scale.mean.double()
        return Linear(weight.float(), bias.float())


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature over the training pictures: ``[D]`` float32; a constant feature has 1.

    One that differs by rounding alone is constant too: divided by that, it would be noise, and its weight so large that
    `Linear.after` lost the logits.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """That of ``[N, D]``, with the deviation of the population."""
        mean = features.mean(dim=0, dtype=torch.float64)
        deviation = (features.double() - mean).square().mean(dim=0).sqrt().float()
        varies = deviation > _ROUNDING * mean.abs()
        return cls(mean.float(), torch.where(varies, deviation, torch.ones_like(deviation)))

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, D]`` at mean 0 and deviation 1."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True)
class Scores:
    """What a classifier reaches on a split.

    Attributes:
        accuracy: the share of pictures whose label has the largest logit.
        loss: the mean over pictures.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class TrainedHead:
    """A head at its best epoch.

    Attributes:
        head: which.
        linear: its weights.
        val: its scores on validation.
        best_epoch: the epoch, from 0, after which it had them.
        epochs: how many it was trained.
        diverged: whether its loss stopped being a number.
    """

    head: Head
    linear: Linear
    val: Scores
    best_epoch: int
    epochs: int
    diverged: bool = False


def grid(node: ProbeNode) -> list[Head]:
    """A head for each combination of features, learning rate, weight decay and seed, in this order."""
    lists = [_once(node.features), _once(node.lr), _once(node.weight_decay), _once(node.seeds)]
    return [Head(*one) for one in product(*lists)]


def _once(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def check_grid(node: ProbeNode) -> None:
    """Raise where a number of ``probe`` is out of its range; all such are named.

    Raises:
        ConfigError: naming the keys.
    """
    faults = list(_faults(node))
    if faults:
        raise ConfigError.of(faults)


def _faults(node: ProbeNode) -> Iterator[ConfigError]:
    for key, values, right, mend in (
        ("lr", node.lr, lambda value: 0 < value < float("inf"), "Give numbers above 0: 'probe.lr=[1e-3,1e-2]'."),
        ("weight_decay", node.weight_decay, lambda value: 0 <= value < float("inf"), "Give numbers of at least 0."),
        ("seeds", node.seeds, lambda value: 0 <= value < 2**32, "Seeds are whole numbers from 0 to 4294967295."),
        ("features", node.features, lambda value: True, "Name some: 'probe.features=[last]'."),
    ):
        if not values or not all(right(value) for value in values):
            yield ConfigError(f"probe.{key}={values}", mend=mend)
    for key, least in (("epochs", 1), ("views", 1), ("shown", 1), ("logistic_iterations", 1)):
        if getattr(node, key) < least:
            yield ConfigError(f"probe.{key}={getattr(node, key)}", mend=f"Give a whole number of at least {least}.")
    if node.patience is not None and node.patience < 1:
        yield ConfigError(f"probe.patience={node.patience}", mend="Give at least 1, or null to stop no head early.")
    if node.clip is not None and not node.clip > 0:
        yield ConfigError(f"probe.clip={node.clip}", mend="Give a norm above 0, or null not to clip.")
    if not 0 <= node.momentum < 1:
        yield ConfigError(f"probe.momentum={node.momentum}", mend="Give a number from 0 to below 1.")
    if not node.knn_temperature > 0:
        yield ConfigError(f"probe.knn_temperature={node.knn_temperature}", mend="Give a number above 0, such as 0.07.")
    if any(k < 1 for k in node.knn_k):
        yield ConfigError(f"probe.knn_k={node.knn_k}", mend="Give whole numbers of at least 1.")
    if any(not value > 0 for value in node.logistic_c):
        yield ConfigError(f"probe.logistic_c={node.logistic_c}", mend="Give numbers above 0.")
