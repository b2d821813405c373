"""Many heads trained together: one matrix product for all that see the same batch, each head as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, DataError
from frostline.probing.heads import Head, Linear, Scores, TrainedHead
from frostline.probing.optimizers import StackedAdamW, StackedOptimizer, StackedSGD
from frostline.specs import ProbeOptimizer, ProbeStart

_AT_ONCE = 1 << 24  # logits of an evaluation

Batches = Callable[[int, int], Sequence[Tensor]]
"""Seed and epoch to the batches of the epoch, as many for each seed: ``[B]`` int64 rows of the training features."""


@dataclass(frozen=True)
class LabelledFeatures:
    """The features of a split.

    Attributes:
        features: ``[N, D]`` float32; of training pictures, those of one fixed view after those of another.
        labels: ``[N]`` int64.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Settings:
    """What all heads of a probe have in common; see `frostline.specs.ProbeNode`.

    Attributes:
        by_loss: the monitor is the loss on validation, not the accuracy.
        factors: the factor on the learning rate at each step.
    """

    epochs: int
    factors: Sequence[float]
    patience: int | None = None
    optimizer: ProbeOptimizer = ProbeOptimizer.adamw
    momentum: float = 0.9
    clip: float | None = None
    start: ProbeStart = ProbeStart.random
    by_loss: bool = False

    def value(self, scores: Scores) -> float:
        """The monitor, such that larger is better."""
        return -scores.loss if self.by_loss else scores.accuracy


def train_heads(
    heads: Sequence[Head],
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    num_classes: int,
    batches: Batches,
    loss: nn.Module,
    settings: Settings,
    progress: Callable[[int], None] = lambda epoch: None,
) -> list[TrainedHead]:
    """Train heads on the same features, each to the epoch that is best on validation.

    A head equals what it would be alone: the batches follow from its seed, its gradient is clipped by its own norm,
    and once it has stopped it changes no more and costs nothing. One whose loss is no number stops; the others go on.

    Args:
        heads: whose `Head.features` are these.
        train: may lie on any device, on which the heads then are trained.
        val: on the same device.
        num_classes: K.
        batches: of each epoch, by the seed of a head.
        loss: ``(logits [B, K], labels [B]) -> scalar``, a mean over the batch.
        settings: of all heads.
        progress: called after each epoch with its number, from 1.

    Returns:
        In the order of ``heads``.

    Raises:
        ConfigError: the loss is no mean over a batch.
        DataError: a batch has no picture that can be read.
    """
    device = train.features.device
    loss = loss.to(device)
    _check_loss(loss, num_classes, device)
    stack = _Stack(heads, train.features.shape[1], num_classes, settings, device)
    done = 0
    for epoch in range(settings.epochs):
        for each in zip(*(batches(seed, epoch) for seed in stack.seeds), strict=True):
            gradient = stack.gradient(train, dict(zip(stack.seeds, each, strict=True)), loss)
            stack.step(gradient, settings.factors[done])
            done += 1
        stack.judge(epoch, stack.scores(val, loss))
        progress(epoch + 1)
        if not stack.running:
            break
    return [stack.trained[head] for head in heads]


def _check_loss(loss: nn.Module, classes: int, device: torch.device) -> None:
    """Heads share a call of the loss, which has to be a mean for that."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * classes, classes, generator=generator).to(device)
    labels = torch.arange(2 * classes, device=device) % classes
    once, twice = loss(logits, labels), loss(logits.repeat(2, 1), labels.repeat(2))
    if once.ndim or not torch.allclose(once, twice, rtol=1e-4):
        raise ConfigError(
            f"loss={type(loss).__name__} is no mean over a batch, as the heads of a probe need it",
            mend="Choose loss=cross_entropy, label_smoothing, bce or focal.",
        )


@dataclass
class _Run:
    """A head that is being trained."""

    head: Head
    linear: Linear | None = None
    val: Scores = field(default_factory=lambda: Scores(0.0, math.inf))
    best_epoch: int = -1


class _Stack:
    """The parameters of the heads that still learn, ``[D + 1, H * K]``: a head has K columns, the last row is biases.

    Heads of one seed lie beside each other, since they see the same batch.

    Attributes:
        running: the heads that still learn.
        trained: those that do no more.
    """

    def __init__(
        self, heads: Sequence[Head], width: int, num_classes: int, settings: Settings, device: torch.device
    ) -> None:
        self._classes, self._settings = num_classes, settings
        self.running = [_Run(head) for head in sorted(heads, key=lambda head: head.seed)]
        self.trained: dict[Head, TrainedHead] = {}
        starts = {seed: _start(width, num_classes, seed, settings.start) for seed in {head.seed for head in heads}}
        parameters = torch.cat([starts[run.head.seed] for run in self.running], dim=1).to(device)
        lr, decay = (
            torch.tensor(values, dtype=torch.float64, device=device).repeat_interleave(num_classes)
            for values in ([run.head.lr for run in self.running], [run.head.weight_decay for run in self.running])
        )
        self._optimizer: StackedOptimizer = (
            StackedAdamW(parameters, lr, decay)
            if settings.optimizer is ProbeOptimizer.adamw
            else StackedSGD(parameters, lr, decay, settings.momentum)
        )
        self._gradient = torch.empty_like(parameters)

    @property
    def seeds(self) -> list[int]:
        """Those of the heads that still learn, rising."""
        return sorted({run.head.seed for run in self.running})

    def gradient(self, train: LabelledFeatures, batches: dict[int, Tensor], loss: nn.Module) -> Tensor:
        """``[D + 1, H * K]``: that of the sum of the losses of all heads, each on the batch of its seed."""
        gradient, parameters = self._gradient, self._optimizer.parameters
        for seed, columns, count in self._seeds():
            features, labels = train.features[batches[seed]], train.labels[batches[seed] % len(train.labels)]
            if not len(labels):
                raise DataError("data.on_error=skip leaves no picture in a batch", mend="Set a larger data.batch_size.")
            logits = torch.addmm(parameters[-1, columns], features, parameters[:-1, columns])
            back = _gradient_of_logits(logits, labels, count, loss)
            torch.mm(features.T, back, out=gradient[:-1, columns])
            gradient[-1, columns] = back.sum(dim=0)
        return gradient

    def step(self, gradient: Tensor, factor: float) -> None:
        """Clip the gradient of each head by its own norm, as `torch.nn.utils.clip_grad_norm_` does, and update."""
        if self._settings.clip is not None:
            squares = gradient.square().sum(dim=0).view(-1, self._classes).sum(dim=1)
            shares = (self._settings.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
            gradient.mul_(shares.repeat_interleave(self._classes))
        self._optimizer.step(gradient, factor)

    def scores(self, split: LabelledFeatures, loss: nn.Module) -> list[Scores]:
        """Of each head that still learns."""
        found: list[Scores] = []
        at_once = max(1, _AT_ONCE // (len(split.labels) * self._classes))
        for first in range(0, len(self.running), at_once):
            columns = slice(first * self._classes, (first + at_once) * self._classes)
            parameters = self._optimizer.parameters[:, columns]
            logits = torch.addmm(parameters[-1], split.features, parameters[:-1])
            each = logits.view(len(split.labels), -1, self._classes).unbind(dim=1)
            found += [scores_of(one, split.labels, loss) for one in each]
        return found

    def judge(self, epoch: int, scores: Sequence[Scores]) -> None:
        """Note the best epoch of each head, and take out those that have stopped."""
        last = epoch + 1 == self._settings.epochs
        going: list[int] = []
        for place, (run, val) in enumerate(zip(self.running, scores, strict=True)):
            diverged = not math.isfinite(val.loss)
            better = self._settings.value(val) > self._settings.value(run.val) or run.linear is None
            if better and not diverged:
                run.linear, run.val, run.best_epoch = self._linear(place), val, epoch
            patience = self._settings.patience
            if diverged or last or (patience is not None and epoch - run.best_epoch >= patience):
                # one that never had a loss has no best epoch
                linear = run.linear or self._linear(place)
                self.trained[run.head] = TrainedHead(run.head, linear, run.val, run.best_epoch, epoch + 1, diverged)
            else:
                going.append(place)
        if len(going) < len(self.running):
            self.running = [self.running[place] for place in going]
            device = self._optimizer.parameters.device
            columns = torch.tensor(going, dtype=torch.int64, device=device)[:, None] * self._classes
            columns = (columns + torch.arange(self._classes, device=device)).flatten()
            self._optimizer.keep(columns)
            self._gradient = torch.empty_like(self._optimizer.parameters)

    def _linear(self, place: int) -> Linear:
        own = self._optimizer.parameters[:, place * self._classes : (place + 1) * self._classes].cpu()
        return Linear(own[:-1].T.contiguous(), own[-1].clone())

    def _seeds(self) -> Iterator[tuple[int, slice, int]]:
        """Each seed with the columns and the number of its heads."""
        first = 0
        for seed, runs in groupby(self.running, key=lambda run: run.head.seed):
            count = len(list(runs))
            yield seed, slice(first * self._classes, (first + count) * self._classes), count
            first += count


def _gradient_of_logits(logits: Tensor, labels: Tensor, heads: int, loss: nn.Module) -> Tensor:
    """``[B, H * K]``: that of the sum over heads of the mean loss over pictures, for logits of this shape."""
    each = logits.view(len(labels), heads, -1)
    # of few classes and many heads, softmax is three times as fast with the heads as the last dimension
    if type(loss) is nn.CrossEntropyLoss and each.shape[2] <= 32 and heads >= 4:
        rows, targets = each.transpose(1, 2).contiguous(), labels[:, None].expand(-1, heads)
    else:
        rows, targets = each.flatten(0, 1), labels.repeat_interleave(heads)
    rows.requires_grad_()
    with torch.enable_grad():
        # a mean over heads and pictures, times the heads
        (found,) = torch.autograd.grad(loss(rows, targets) * heads, rows)
    return found.transpose(1, 2).reshape_as(logits) if found.ndim == 3 else found.view_as(logits)


def scores_of(logits: Tensor, labels: Tensor, loss: nn.Module) -> Scores:
    """Accuracy and mean loss of ``[N, K]`` logits."""
    right = (logits.argmax(dim=1) == labels).sum()
    return Scores(accuracy=float(right) / len(labels), loss=float(loss(logits.contiguous(), labels)))


def _start(width: int, num_classes: int, seed: int, start: ProbeStart) -> Tensor:
    """``[D + 1, K]``: the weights of a new head, with its biases as the last row."""
    if start is ProbeStart.zero:
        return torch.zeros(width + 1, num_classes)
    # as nn.Linear draws them after torch.manual_seed(seed)
    generator, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(width)
    weight = torch.empty(num_classes, width).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)
    return torch.cat([weight.T, bias[None]])
