from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frostline.data.samplers import TrainingSampler
from frostline.errors import ConfigError
from frostline.probing.heads import Head, TrainedHead
from frostline.probing.training import LabelledFeatures, Settings, train_heads
from frostline.specs import FeatureChoice, ProbeOptimizer, ProbeStart
from frostline.tasks import BinaryCrossEntropy, FocalLoss

CLASSES, BATCH, EPOCHS = 4, 16, 12
STEPS = math.ceil(90 / BATCH) * EPOCHS
FACTORS = [0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]


def split(count: int, width: int, seed: int) -> LabelledFeatures:
    """Classes that overlap, so that heads go on improving for some epochs, and not for ever."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return LabelledFeatures(centers[labels] + 2.0 * torch.randn(count, width, generator=generator), labels)


def batches(seed: int, epoch: int) -> Sequence[Tensor]:
    order, _ = TrainingSampler(90, BATCH, seed=seed).order(epoch)
    return torch.from_numpy(np.ascontiguousarray(order)).split(BATCH)


def grid(lrs: Sequence[float], decays: Sequence[float] = (0.0, 0.1), seeds: Sequence[int] = (0, 3)) -> list[Head]:
    return [Head(FeatureChoice.last, *one) for one in product(lrs, decays, seeds)]


def trained(
    heads: Sequence[Head], loss: nn.Module | None = None, width: int = 12, **changed: object
) -> list[TrainedHead]:
    settings = Settings(**{"epochs": EPOCHS, "factors": FACTORS, "patience": 3} | changed)  # type: ignore[arg-type]
    return train_heads(
        heads,
        split(90, width, 1),
        split(60, width, 2),
        num_classes=CLASSES,
        batches=batches,
        loss=loss or nn.CrossEntropyLoss(),
        settings=settings,
    )


def by_hand(
    head: Head, *, width: int = 12, optimizer: str = "adamw", clip: float | None = None, patience: int = 3
) -> tuple[nn.Linear, int, int, float, float]:
    """A head alone, as written with torch: its weights at its best epoch, that epoch, how many, and its scores."""
    train, val = split(90, width, 1), split(60, width, 2)
    torch.manual_seed(head.seed)
    layer = nn.Linear(width, CLASSES)
    groups = [
        {"params": [layer.weight], "weight_decay": head.weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    update: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=head.lr)
    if optimizer == "sgd":
        update = torch.optim.SGD(groups, lr=head.lr, momentum=0.9)
    best, kept, step = (-1.0, -1, 0.0), {}, 0
    for epoch in range(EPOCHS):
        order = torch.from_numpy(np.ascontiguousarray(TrainingSampler(90, BATCH, seed=head.seed).order(epoch)[0]))
        for rows in order.split(BATCH):
            for group in update.param_groups:
                group["lr"] = head.lr * FACTORS[step]
            loss = nn.functional.cross_entropy(layer(train.features[rows]), train.labels[rows])
            update.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(layer.parameters(), clip)
            update.step()
            step += 1
        with torch.no_grad():
            logits = layer(val.features)
        accuracy = float((logits.argmax(1) == val.labels).float().mean())
        if accuracy > best[0] + 1e-9:
            best = (accuracy, epoch, float(nn.functional.cross_entropy(logits, val.labels)))
            kept = {name: value.clone() for name, value in layer.state_dict().items()}
        elif epoch - best[1] >= patience:
            break
    layer.load_state_dict(kept)
    return layer, best[1], epoch + 1, best[0], best[2]


@pytest.mark.parametrize(("optimizer", "lrs"), [("adamw", (0.001, 0.01, 0.1)), ("sgd", (0.01, 0.1))])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_each_head_is_the_one_that_a_loop_of_torch_trains(
    optimizer: str, lrs: tuple[float, ...], clip: float | None
) -> None:
    heads = grid(lrs)
    found = trained(heads, optimizer=ProbeOptimizer[optimizer], clip=clip)
    assert [one.head for one in found] == heads
    stops = set()
    for one in found:
        layer, best, epochs, accuracy, loss = by_hand(one.head, optimizer=optimizer, clip=clip)
        assert (one.best_epoch, one.epochs) == (best, epochs)
        torch.testing.assert_close(one.linear.weight, layer.weight.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.linear.bias, layer.bias.detach(), rtol=1e-5, atol=1e-6)
        assert one.val.accuracy == pytest.approx(accuracy)
        assert one.val.loss == pytest.approx(loss, rel=1e-5)
        stops.add(epochs)
    # some have stopped, at different epochs, while others went on
    assert len(stops) > 2
    assert min(stops) < EPOCHS


@pytest.mark.parametrize(
    ("changed", "loss"),
    [
        ({}, nn.CrossEntropyLoss(label_smoothing=0.1)),
        ({"clip": 0.2}, nn.CrossEntropyLoss(weight=torch.tensor([0.1, 3.0, 1.0, 1.0]))),
        ({"optimizer": ProbeOptimizer.sgd, "patience": None}, FocalLoss()),
        ({"by_loss": True, "start": ProbeStart.zero}, BinaryCrossEntropy()),
    ],
)
def test_each_head_equals_a_run_of_its_own(changed: dict[str, object], loss: nn.Module) -> None:
    heads = grid((0.003, 0.01, 0.03))
    together = trained(heads, loss, **changed)
    for one in together:
        (alone,) = trained([one.head], loss, **changed)
        assert (one.best_epoch, one.epochs, one.val.accuracy) == (alone.best_epoch, alone.epochs, alone.val.accuracy)
        assert one.val.loss == pytest.approx(alone.val.loss, rel=1e-5)
        torch.testing.assert_close(one.linear.weight, alone.linear.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.linear.bias, alone.linear.bias, rtol=1e-5, atol=1e-6)


def test_a_head_is_no_other_for_the_order_of_the_grid() -> None:
    heads = grid((0.003, 0.03))
    found = {one.head: one for one in trained(heads)}
    for one in trained(heads[::-1]):
        torch.testing.assert_close(one.linear.weight, found[one.head].linear.weight, rtol=1e-5, atol=1e-6)


def test_one_that_diverges_stops_alone_and_keeps_what_was_good() -> None:
    good = Head(FeatureChoice.last, 0.01, 0.0, 0)
    wild = Head(FeatureChoice.last, 1e38, 0.0, 0)
    found = {one.head: one for one in trained([wild, good], optimizer=ProbeOptimizer.sgd, patience=None)}
    assert found[wild].diverged
    assert found[wild].epochs < EPOCHS
    assert not found[good].diverged
    (alone,) = trained([good], optimizer=ProbeOptimizer.sgd, patience=None)
    torch.testing.assert_close(found[good].linear.weight, alone.linear.weight, rtol=1e-5, atol=1e-6)


def test_views_are_rows_behind_those_of_the_first() -> None:
    train, val = split(30, 5, 1), split(20, 5, 2)
    doubled = LabelledFeatures(torch.cat([train.features, train.features + 100.0]), train.labels)
    first: Callable[[int, int], Sequence[Tensor]] = lambda seed, epoch: torch.arange(30).split(10)  # noqa: E731
    second: Callable[[int, int], Sequence[Tensor]] = lambda seed, epoch: (torch.arange(30) + 30).split(10)  # noqa: E731
    head = Head(FeatureChoice.last, 0.01, 0.0, 0)
    shifted = LabelledFeatures(train.features + 100.0, train.labels)
    settings = Settings(epochs=2, factors=[1.0] * 6)
    common = {"num_classes": CLASSES, "loss": nn.CrossEntropyLoss(), "settings": settings}
    (one,) = train_heads([head], doubled, val, batches=second, **common)  # type: ignore[arg-type]
    (other,) = train_heads([head], shifted, val, batches=first, **common)  # type: ignore[arg-type]
    assert torch.equal(one.linear.weight, other.linear.weight)


def test_a_loss_that_is_a_sum_is_refused() -> None:
    with pytest.raises(ConfigError, match="no mean over a batch"):
        trained(grid((0.01,)), nn.CrossEntropyLoss(reduction="sum"))
