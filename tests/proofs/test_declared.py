"""Proof 4: what changed in a phase, by value and not by flag, is what was declared to learn in it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from small_runs import MODELS, Tensors, changed, following, of_groups, small_run, tensors

from frostline.config import compose
from frostline.specs import EachSpec, PhaseSpec, UntilSpec, WalkMode, WalkOrder, WalkSpec
from frostline.types import DepthGroup

EPOCH = UntilSpec(epochs=1)
PHASES = {
    "probe": PhaseSpec("head", until=EPOCH),
    "full": PhaseSpec("all", until=EPOCH),
    "refrozen": PhaseSpec("head + top:1", until=EPOCH),
    "front": PhaseSpec("bottom:1 + param:bias"),
}


class Photograph(Callback):
    """The tensors of the model as each phase and stage begins, and at the end."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []
        self.taken: list[Tensors] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        follow = following(trainer)
        place = follow.phase.name, follow.progress.position.stage
        if place not in self.places:
            self.places.append(place)
            self.taken.append(tensors(pl_module.model))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.taken.append(tensors(pl_module.model))

    def changed(self, parameters: set[str]) -> dict[tuple[str, int], set[str]]:
        """Which of ``parameters`` have another value at the end of each phase and stage than at its start."""
        found = [changed(before, after) & parameters for before, after in pairwise(self.taken)]
        return dict(zip(self.places, found, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_what_changed_in_a_phase_is_what_was_declared(name: str, optimizer: str, tmp_path: Path) -> None:
    photograph = Photograph()
    run = small_run(name, tmp_path, photograph, optimizer=optimizer, epochs=4, **PHASES)
    run.fit()
    groups = run.backbone.groups
    everything = of_groups(groups)
    assert photograph.changed(everything) == {
        ("probe", 0): of_groups(groups[-1:]),
        ("full", 0): everything,
        ("refrozen", 0): of_groups(groups[-2:]),
        ("front", 0): of_groups(groups[:1]) | {name for name in everything if name.endswith("bias")},
    }


def walked(groups: tuple[DepthGroup, ...], mode: WalkMode) -> list[set[str]]:
    """What the stages of a walk over four groups train: from the head down, or for ``drop`` from the stem up."""
    if mode is WalkMode.drop:
        return [of_groups(groups[stage:]) for stage in range(4)]
    if mode is WalkMode.solo:
        return [of_groups(groups[3 - stage : 4 - stage]) for stage in range(4)]
    return [of_groups(groups[3 - stage :]) for stage in range(4)]


@pytest.mark.parametrize("mode", list(WalkMode))
@pytest.mark.parametrize("name", MODELS)
def test_what_changed_in_each_stage_of_a_walk_is_what_was_declared(name: str, mode: WalkMode, tmp_path: Path) -> None:
    order = WalkOrder.bottom_up if mode is WalkMode.drop else WalkOrder.top_down
    walk = WalkSpec(order=order, mode=mode, each=EachSpec(steps=3))
    photograph = Photograph()
    run = small_run(name, tmp_path, photograph, epochs=6, bins=3, walk=PhaseSpec("all", walk=walk))
    run.fit()
    groups = run.backbone.groups
    assert len(groups) == 4
    found = photograph.changed(of_groups(groups))
    assert list(found) == [("walk", stage) for stage in range(4)]
    assert list(found.values()) == walked(groups, mode)


def test_a_walk_goes_through_all_where_no_selector_is_stated(tmp_path: Path) -> None:
    walk = WalkSpec(each=EachSpec(steps=1))
    stated, unstated = (
        small_run("test_resnet", tmp_path, epochs=4, walk=PhaseSpec(train, walk=walk)).schedule.phases
        for train in ("all", None)
    )
    assert stated == unstated
    # as DESIGN writes it; what composition knows is what the engine knows
    config = compose("train", ["freeze=linear_probe", "freeze.phases.probe={walk: {each: {epochs: 1}}, train: null}"])
    assert config.freeze.phases.probe.train is None
    config = compose("train", ["freeze=linear_probe", "~freeze.phases.probe", "+freeze.phases.thaw={walk: {by: 2}}"])
    assert "train" not in config.freeze.phases.thaw
