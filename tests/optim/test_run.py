"""Schedule, parameter groups and learning rate together, as a run uses them, without a Trainer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frostline.freezing import FreezeSchedule, apply_phase, assert_modes
from frostline.optim import LearningRates, parameter_groups
from frostline.specs import (
    Curve,
    FreezeSpec,
    LrScaleSpec,
    LrSpec,
    PhaseLrSpec,
    PhaseSpec,
    UntilSpec,
    WarmupSpec,
)

BASE, DECAY, STEPS = 1e-2, 0.8, 12


def make_spec():
    return FreezeSpec(
        phases={
            "probe": PhaseSpec("head", until=UntilSpec(epochs=2)),
            "full": PhaseSpec("all", until=UntilSpec(steps=5), lr=PhaseLrSpec(0.1, Curve.linear, WarmupSpec(steps=2))),
            "refrozen": PhaseSpec("head + top:1"),
        },
        lr_decay=DECAY,
        lr_scale=LrScaleSpec(head=2.0, body=0.5),
    )


class Run:
    """The smallest training loop: one batch a step, four pictures a batch, three steps an epoch."""

    def __init__(self, model, groups):
        spec = make_spec()
        lr = LrSpec(curve=Curve.cosine, warmup=WarmupSpec(fraction=0.2))
        self.model, self.groups, self.bn = model, groups, spec.bn
        self.schedule = FreezeSchedule(spec, lr, groups, model, steps_per_epoch=3, total_steps=STEPS)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, groups, spec, weight_decay=0.1), lr=BASE, weight_decay=0.1
        )
        self.step = 0
        self.rates = []

    def train(self, until):
        for step in range(self.step, until):
            position = self.schedule.position_at(step)
            trainable = self.schedule.stage_of(position).trainable
            apply_phase(self.model, trainable)
            self.model.train()
            assert_modes(self.model, self.groups, trainable, self.bn)
            LearningRates(self.schedule).set(self.optimizer, BASE, position, step)
            self.rates.append({group["name"]: group["lr"] for group in self.optimizer.param_groups})
            generator = torch.Generator().manual_seed(step)
            torch.manual_seed(step)
            images = torch.randn(4, 3, 32, 32, generator=generator)
            targets = torch.randint(3, (4,), generator=generator)
            nn.functional.cross_entropy(self.model(images), targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step = until


@pytest.fixture
def make_run(timm_model):
    def make():
        torch.manual_seed(0)
        return Run(*timm_model("test_resnet", drop_rate=0.1, drop_path_rate=0.1))

    return make


def test_the_rate_of_each_group_at_each_step_is_the_closed_form(make_run):
    run = make_run()
    run.train(STEPS)
    depth = {group["name"]: group["depth"] for group in run.optimizer.param_groups}
    deepest = max(depth.values())
    for t, rates in enumerate(run.rates):
        if t < 6:  # probe: 6 steps, warm-up round(0.2 * 6) = 1
            shared = 0.5 if t < 1 else 0.5 * (1 + math.cos(math.pi * (t - 1) / 5))
        elif t < 11:  # full: 5 steps, warm-up 2
            shared = 0.1 * ((t - 6 + 1) / 3 if t - 6 < 2 else 1 - (t - 6 - 2) / 3)
        else:  # refrozen: 1 step, warm-up round(0.2) = 0
            shared = 1.0
        lowest = deepest if t < 6 else 0 if t < 11 else deepest - 1
        for name, rate in rates.items():
            group = 2.0 if name.startswith("head") else 0.5 * DECAY ** (deepest - depth[name])
            expected = BASE * shared * group if depth[name] >= lowest else 0.0
            assert rate == pytest.approx(expected, rel=1e-12, abs=0.0), (t, name)


@pytest.mark.parametrize("stop", [1, 5, 6, 8, 10, 11])
def test_a_resumed_run_equals_one_that_did_not_stop(make_run, stop):
    straight, first, second = make_run(), make_run(), make_run()
    straight.train(STEPS)
    first.train(stop)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.step = stop
    second.train(STEPS)
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.model.state_dict().items())
    assert second.rates == straight.rates[stop:]
