"""A hand-made network, timm's test models, and their depth groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from frostline.freezing import FreezeSchedule, Progress, Transition, Validation
from frostline.specs import BatchNormSpec, FreezeSpec, LrScaleSpec, LrSpec, PhaseSpec
from frostline.types import DepthGroup

Grouped = tuple[nn.Module, tuple[DepthGroup, ...]]


class Block(nn.Module):
    """Convolution, batch norm and dropout, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.bn(self.conv(x)))


class SmallNet(nn.Module):
    """A stem, three blocks and a head; depth groups: stem, blocks.0, blocks.1, blocks.2, head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.head_drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pos_drop(self.stem(x) * self.scale))
        return self.head(self.head_drop(self.global_pool(x).flatten(1)))


def small_groups(model: nn.Module) -> tuple[DepthGroup, ...]:
    names = [name for name, _ in model.named_parameters()]

    def key(name: str) -> str:
        parts = name.split(".")
        return {"scale": "stem", "blocks": ".".join(parts[:2])}.get(parts[0], parts[0])

    groups = [(name, tuple(members)) for name, members in groupby(names, key)]
    return tuple(DepthGroup(i, name, held, is_head=name == "head") for i, (name, held) in enumerate(groups))


def timm_groups(model: nn.Module) -> tuple[DepthGroup, ...]:
    """Depth groups from timm's own matcher, with the classifier in one of its own."""
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    body: dict[int, list[str]] = {}
    classifier = []
    for name, parameter in model.named_parameters():
        if id(parameter) in head:
            classifier.append(name)
        else:
            body.setdefault(layers[name], []).append(name)
    groups = [DepthGroup(i, f"layer {i}", tuple(body[key])) for i, key in enumerate(sorted(body))]
    return (*groups, DepthGroup(len(groups), "head", tuple(classifier), is_head=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small() -> Grouped:
    model = SmallNet()
    return model, small_groups(model)


@pytest.fixture
def timm_model() -> Callable[..., Grouped]:
    def create(name: str, **kwargs: object) -> Grouped:
        model = timm.create_model(name, num_classes=3, **kwargs)
        return model, timm_groups(model)

    return create


@pytest.fixture
def make_schedule(small: Grouped) -> Callable[..., FreezeSchedule]:
    """A schedule over the hand-made network, 10 steps an epoch and 100 in all unless told otherwise."""

    def make(
        lr: LrSpec | None = None,
        *,
        lr_decay: float = 1.0,
        lr_scale: LrScaleSpec | None = None,
        bn: BatchNormSpec | None = None,
        steps_per_epoch: int = 10,
        total_steps: int = 100,
        validation: Validation | None = None,
        new: frozenset[str] | None = None,
        allowed: frozenset[str] | None = None,
        **phases: PhaseSpec,
    ) -> FreezeSchedule:
        model, groups = small
        spec = FreezeSpec(
            phases=dict(phases), lr_decay=lr_decay, lr_scale=lr_scale or LrScaleSpec(), bn=bn or BatchNormSpec()
        )
        return FreezeSchedule(
            spec,
            lr or LrSpec(),
            groups,
            model,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            validation=validation,
            new=new,
            allowed=allowed,
        )

    return make


@pytest.fixture
def drive() -> Callable[..., list[Transition]]:
    """Goes through a run as the callback does: ask before a step, show gradients at it, validate after an epoch."""

    def drive(
        progress: Progress,
        metrics: Sequence[dict[str, float]] = (),
        norms: Callable[[int], dict[str, float]] | None = None,
        *,
        start: int = 0,
        every: int = 1,
    ) -> list[Transition]:
        schedule, interval, shown, found = (
            progress.schedule,
            progress.schedule.steps_per_epoch * every,
            iter(metrics),
            [],
        )
        for step in range(start, schedule.total_steps):
            while (transition := progress.advance(step)) is not None:
                found.append(transition)
            if norms is not None and progress.watches_gradients:
                learning = progress.stage.groups  # what is frozen has no gradient
                progress.observe_gradients({name: norm for name, norm in norms(step).items() if name in learning})
            if (step + 1) % interval == 0 and (values := next(shown, None)) is not None:
                progress.observe(values)
            if progress.is_over:
                break
        return found

    return drive
