"""The classification task under Lightning: how gradients are clipped, and what is added to the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from small_runs import MODELS, SmallRun, Tensors, small_run, tensors
from torch import Tensor

from frostline.specs import ClipBy, PhaseSpec, UntilSpec
from frostline.tasks.regularization import L2SP
from frostline.types import DepthGroup

NAME = next(iter(MODELS))


# --- clipping ---------------------------------------------------------------------------------------------------------


class LookingSGD(torch.optim.SGD):
    """SGD that calls ``look`` when its gradients are there and it is about to use them."""

    look: Callable[[], None]

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        self.look()
        super().step()
        return loss


class KeepGradients(Callback):
    """The gradients of each step, before they are clipped and as the optimizer uses them."""

    def __init__(self) -> None:
        self.whole: list[Tensors] = []
        self.used: list[Tensors] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].look = lambda: self.used.append(gradients(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.whole.append(gradients(pl_module))


def gradients(task: LightningModule) -> Tensors:
    """A copy of all that are there, by the names of their parameters in the model."""
    found = task.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in found if parameter.grad is not None}


def norm(found: Tensors) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in found.values()) ** 0.5


def part(found: Tensors, group: DepthGroup) -> Tensors:
    return {name: found[name] for name in group.parameters if name in found}


def assert_clipped(used: Tensors, whole: Tensors, bound: float) -> bool:
    """Scaled down to the bound as one, or left bitwise as it was; whether it was scaled."""
    assert used.keys() == whole.keys()
    size = norm(whole)
    if size <= bound:
        assert all(used[name].equal(whole[name]) for name in whole)
        return False
    assert norm(used) <= bound * (1 + 1e-5)
    for name in whole:
        torch.testing.assert_close(used[name], whole[name] * (bound / size), rtol=1e-4, atol=1e-8)
    return True


def clipped_run(clip: ClipBy, bound: float, record: Path) -> tuple[SmallRun, KeepGradients]:
    """A run of which the head alone learns at first, so that most groups have no gradients."""
    keep = KeepGradients()
    run = small_run(
        NAME,
        record,
        keep,
        optimizer=lambda groups: LookingSGD(groups, lr=0.05),
        epochs=4,
        accumulate=2,
        freeze={"clip": clip},
        trainer={"gradient_clip_val": bound},
        head=PhaseSpec("head", until=UntilSpec(steps=2)),
        all=PhaseSpec("all"),
    )
    run.fit()
    assert len(keep.whole) == len(keep.used) == 8
    return run, keep


def test_each_depth_group_is_clipped_by_itself(tmp_path: Path) -> None:
    bound = 1.0
    run, keep = clipped_run(ClipBy.group, bound, tmp_path)
    steps = [
        [
            assert_clipped(part(used, group), part(whole, group), bound)
            for group in run.backbone.groups
            if part(whole, group)
        ]
        for used, whole in zip(keep.used, keep.whole, strict=True)
    ]
    assert [len(groups) for groups in steps] == [1, 1] + [len(run.backbone.groups)] * 6
    # some groups are above the bound in a step in which others are below it, and together they may pass it
    assert any(0 < sum(groups) < len(groups) for groups in steps)
    assert any(norm(used) > 1.1 * bound for used in keep.used)


def test_all_gradients_are_clipped_together(tmp_path: Path) -> None:
    bound = 2.0
    _, keep = clipped_run(ClipBy.run, bound, tmp_path)
    clipped = [assert_clipped(used, whole, bound) for used, whole in zip(keep.used, keep.whole, strict=True)]
    assert {*clipped} == {True, False}


# --- what is added to the loss ----------------------------------------------------------------------------------------


def moved_run(record: Path, *watch: Callback, pulled: bool) -> tuple[SmallRun, Tensor]:
    """A run of one step whose weights have moved from where they are pulled to, and L2SP(1, 1) by its formula."""
    regularizer = L2SP(1.0, 1.0) if pulled else None
    phase = PhaseSpec("head + top:1")
    run = small_run(NAME, record, *watch, regularizer=regularizer, epochs=1, steps_per_epoch=1, phase=phase)
    *_, top, head = run.backbone.groups
    run.task.regularizer.begin(run.model, None, frozenset(head.parameters))
    generator, expected = torch.Generator().manual_seed(3), torch.zeros(())
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            step = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter += step
            if name in top.parameters:
                expected += step.square().sum() / 2
            elif name in head.parameters:
                expected += parameter.square().sum() / 2
    return run, expected


def test_the_penalty_of_l2_sp_is_in_the_loss_that_is_trained(tmp_path: Path) -> None:
    losses = []
    for pulled in (True, False):
        run, expected = moved_run(tmp_path, pulled=pulled)
        losses.append(run.task.training_step(run.data.train[0], 0))
    assert expected > 0.1
    torch.testing.assert_close((losses[0] - losses[1]).detach(), expected, rtol=1e-3, atol=0.0)


def test_the_penalty_of_l2_sp_reaches_the_gradients_and_not_the_log(tmp_path: Path) -> None:
    logged, learned = [], []
    for pulled in (True, False):
        keep = KeepGradients()
        run, _ = moved_run(tmp_path, keep, pulled=pulled)
        weights = tensors(run.model)
        logged.append(float(run.fit().callback_metrics["train/loss"]))
        learned += keep.whole
    assert logged[0] == logged[1]
    pull, plain = learned
    for name in run.backbone.groups[-1].parameters:
        torch.testing.assert_close(pull[name] - plain[name], weights[name], rtol=1e-3, atol=1e-5)
