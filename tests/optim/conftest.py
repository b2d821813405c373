"""Networks with their depth groups, and a run through a schedule without a Trainer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from frostline.freezing import FreezeSchedule, Progress, Validation, apply_phase
from frostline.optim import LearningRates, parameter_groups
from frostline.specs import FreezeSpec, LrScaleSpec, LrSpec, PhaseSpec
from frostline.types import DepthGroup

Grouped = tuple[nn.Module, tuple[DepthGroup, ...]]
BASE = 3e-3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def timm_model() -> Callable[..., Grouped]:
    """Groups come from timm's own matcher, with the classifier in one of its own."""

    def create(name: str, **kwargs: object) -> Grouped:
        model = timm.create_model(name, num_classes=3, **kwargs)
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        held: dict[int, list[str]] = {}
        for parameter, value in model.named_parameters():
            held.setdefault(10**6 if id(value) in head else layers[parameter], []).append(parameter)
        return model, tuple(
            DepthGroup(i, "head" if key == 10**6 else f"layer {i}", tuple(held[key]), is_head=key == 10**6)
            for i, key in enumerate(sorted(held))
        )

    return create


@pytest.fixture
def small() -> Grouped:
    """Groups ``g0`` to ``g4``, each a linear layer and a batch norm, and ``head``."""
    body = [(f"g{i}", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))) for i in range(5)]
    model = nn.Sequential(OrderedDict([*body, ("head", nn.Linear(2, 3))]))
    return model, tuple(
        DepthGroup(i, path, tuple(f"{path}.{name}" for name, _ in child.named_parameters()), is_head=path == "head")
        for i, (path, child) in enumerate(model.named_children())
    )


@dataclass
class Gone:
    """What a run through a schedule did.

    Attributes:
        rates: for each step, the learning rate of each of the optimizer's groups by its name.
        starts: the first step of each phase, in order.
        stages: the first step of each stage, in order.
    """

    rates: list[dict[str, float]] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    stages: list[int] = field(default_factory=lambda: [0])

    def of(self, name: str) -> list[float]:
        """The rates of one group as factors on the base."""
        return [rates[name] / BASE for rates in self.rates]


@pytest.fixture
def go() -> Callable[..., Gone]:
    """Goes through a schedule with a real optimizer: transitions, learning rates, validations; nothing is trained."""

    def go(
        grouped: Grouped,
        phases: dict[str, PhaseSpec],
        lr: LrSpec | None = None,
        *,
        metrics: Sequence[float] = (),
        lr_decay: float = 1.0,
        lr_scale: LrScaleSpec | None = None,
        steps_per_epoch: int = 4,
        total_steps: int = 40,
    ) -> Gone:
        model, groups = grouped
        spec = FreezeSpec(phases=phases, lr_decay=lr_decay, lr_scale=lr_scale or LrScaleSpec())
        schedule = FreezeSchedule(
            spec,
            lr or LrSpec(),
            groups,
            model,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            validation=Validation(("val/accuracy",)),
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, groups, spec, weight_decay=0.1), lr=9.0)
        progress, found, shown = Progress(schedule), Gone(), iter(metrics)
        apply_phase(model, progress.stage.trainable)
        for step in range(total_steps):
            while (transition := progress.advance(step)) is not None:
                apply_phase(model, progress.stage.trainable)
                found.starts += [step] * transition.enters_phase
                found.stages.append(step)
            LearningRates(schedule).set(optimizer, BASE, progress.position, step)
            found.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
            if (step + 1) % steps_per_epoch == 0 and (value := next(shown, None)) is not None:
                progress.observe({"val/accuracy": value})
            if progress.is_over:
                break
        return found

    return go
