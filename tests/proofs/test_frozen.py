"""Proof 3: what is frozen, parameters and buffers, is bitwise unchanged through each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from small_runs import MODELS, SmallRun, Tensors, buffers_of, changed, following, named, of_groups, small_run, tensors

from frostline.callbacks import ExponentialMovingAverage
from frostline.specs import BatchNormMode, BatchNormSpec, PhaseSpec, UntilSpec

PROBE = {"probe": PhaseSpec("head", until=UntilSpec(epochs=1))}
PHASES = {
    **PROBE,
    "full": PhaseSpec("all", until=UntilSpec(epochs=1)),
    "refrozen": PhaseSpec("head + top:1", until=UntilSpec(epochs=1)),
    # in groups that learn, whose rate is not 0, the frozen parameters are held by their flags alone
    "biases": PhaseSpec("param:bias"),
}


class WatchTensors(Callback):
    """What of the model, and of its average, has changed since the phase began: after each step and validation.

    Attributes:
        moved: phase to the names of all tensors that were seen changed in it.
        average_moved: the same of the averaged model, since the start of the run.
    """

    def __init__(self) -> None:
        self.start: Tensors = {}
        self.first: Tensors = {}
        self.average: ExponentialMovingAverage | None = None
        self.moved: dict[str, set[str]] = {}
        self.average_moved: dict[str, set[str]] = {}
        self._phase = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        follow = following(trainer)
        if follow.phase.name != self._phase:
            self._phase, self.start = follow.phase.name, tensors(pl_module.model)
            self.first = self.first or self.start

    def _look(self, pl_module: LightningModule) -> None:
        self.moved.setdefault(self._phase, set()).update(changed(self.start, dict(named(pl_module.model))))
        if self.average is not None:
            average = dict(named(self.average._average_model.module.model))
            self.average_moved.setdefault(self._phase, set()).update(changed(self.first, average))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._look(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(pl_module)


def watched(name: str, optimizer: str, record: Path, **more: Any) -> tuple[SmallRun, WatchTensors]:
    """A probe, a full phase and a frozen one again, with momentum, weight decay and averaged weights, watched."""
    watch = WatchTensors()
    # the average is taken before the look at it
    watch.average = ExponentialMovingAverage(decay=0.7)
    run = small_run(name, record, watch.average, watch, optimizer=optimizer, epochs=4, **{**PHASES, **more})
    run.fit()
    return run, watch


def frozen_in(run: SmallRun, learning: set[str]) -> set[str]:
    """The parameters beside ``learning``, and the buffers of modules whose own parameters are all among them."""
    names = {name for name, _ in run.model.named_parameters()}
    holding = {name for name, _ in run.model.named_buffers()}
    return (names - learning) | (holding - buffers_of(run.model, learning))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_frozen_is_bitwise_unchanged_through_each_phase(name: str, optimizer: str, tmp_path: Path) -> None:
    run, watch = watched(name, optimizer, tmp_path)
    groups = run.backbone.groups
    learning = {"probe": of_groups(groups[-1:]), "full": of_groups(groups), "refrozen": of_groups(groups[-2:])}
    learning["biases"] = {name for name in of_groups(groups) if name.endswith("bias")}
    assert list(watch.moved) == list(learning)
    for phase, parameters in learning.items():
        assert not watch.moved[phase] & frozen_in(run, parameters), phase
        # the look itself sees what does move
        assert watch.moved[phase] & parameters, phase
    # averaging with what stays the same gives exactly the same, from the first step on
    assert not watch.average_moved["probe"] & frozen_in(run, learning["probe"])
    assert watch.average_moved["full"] > watch.average_moved["probe"]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_statistics_of_batch_norms_follow_their_policy(name: str, tmp_path: Path) -> None:
    run, still = watched(name, "sgd", tmp_path)
    statistics = {name for name, _ in run.model.named_buffers() if "running" in name or "tracked" in name}
    head = of_groups(run.backbone.groups[-1:])
    assert statistics
    assert not still.moved["probe"] & statistics
    assert still.moved["full"] >= statistics
    assert still.moved["refrozen"] & statistics == buffers_of(run.model, of_groups(run.backbone.groups[-2:]))
    counting = {"probe": PhaseSpec("head", until=UntilSpec(epochs=1), bn=BatchNormSpec(frozen=BatchNormMode.batch))}
    _, counted = watched(name, "sgd", tmp_path, **counting)
    assert counted.moved["probe"] == statistics | head
    kept = {"full": PhaseSpec("all", until=UntilSpec(epochs=1), bn=BatchNormSpec(trainable=BatchNormMode.eval))}
    _, kept_on = watched(name, "sgd", tmp_path, **kept)
    assert not kept_on.moved["full"] & statistics
