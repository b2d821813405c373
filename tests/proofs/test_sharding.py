"""Under FSDP2 (``fully_shard``), on two CPU ranks, a phase does to sharded parameters what it does to whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import batches, changed, of_groups, small_backbone
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from frostline.freezing import apply_phase, assert_modes
from frostline.specs import BatchNormSpec
from frostline.types import DepthGroup

pytestmark = pytest.mark.slow
RANKS, STEPS = 2, 3
# layer norm alone: the statistics of a batch norm would be each rank's own
NAME = "test_vit"
Phases = dict[str, frozenset[str]]


def phases_of(groups: tuple[DepthGroup, ...]) -> Phases:
    """Probe, all, and the front frozen again."""
    sets = {"probe": groups[-1:], "full": groups, "refrozen": groups[-2:]}
    return {name: frozenset(of_groups(held)) for name, held in sets.items()}


def build() -> tuple[nn.Module, tuple[DepthGroup, ...]]:
    """The model, without dropout, whose masks would be each rank's own."""
    backbone = small_backbone(NAME)
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return backbone.model, backbone.groups


def whole(tensor: Tensor) -> Tensor:
    """A copy of all of a tensor that may be sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def train(model: nn.Module, groups: tuple[DepthGroup, ...], rank: int, ranks: int) -> dict[str, dict[str, Tensor]]:
    """All parameters at the start and at the end of each phase; each rank trains on its part of every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, eps=1e-4)
    found = {"start": {name: whole(parameter) for name, parameter in model.named_parameters()}}
    for phase, trainable in phases_of(groups).items():
        # a validation leaves the root of the model unsharded, and it is then that a phase is applied
        model.eval()
        with torch.no_grad():
            model(batches(1, 2, 32, 9)[0].images)
        apply_phase(model, trainable)
        model.train()
        assert_modes(model, groups, trainable, BatchNormSpec())
        for batch in batches(STEPS, 8, 32, 3):
            images, targets = batch.images[rank::ranks], batch.targets[rank::ranks]
            nn.functional.cross_entropy(model(images), targets).backward()
            with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
            assert with_gradient == trainable, (phase, with_gradient - trainable, trainable - with_gradient)
            optimizer.step()
            optimizer.zero_grad()
        found[phase] = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return found


def on_rank(rank: int, folder: str) -> None:
    """One process of the sharded run."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    model, groups = build()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    torch.save(train(model, groups, rank, RANKS), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has at the end of each phase."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.start_processes(on_rank, (str(folder),), nprocs=RANKS, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
def test_what_is_frozen_stays_and_what_is_declared_changes(sharded: list[dict[str, Any]]) -> None:
    _, groups = build()
    before = sharded[0]["start"]
    for phase, trainable in phases_of(groups).items():
        assert changed(before, sharded[0][phase]) == trainable, phase
        before = sharded[0][phase]


def test_the_ranks_agree_with_each_other_and_with_one_process(sharded: list[dict[str, Any]], tmp_path: Path) -> None:
    model, groups = build()
    alone = train(model, groups, 0, 1)
    first, second = sharded
    assert first.keys() == alone.keys()
    for phase, expected in alone.items():
        assert not changed(first[phase], second[phase]), phase
        for name, value in expected.items():
            torch.testing.assert_close(first[phase][name], value, rtol=0, atol=1e-6, msg=f"{phase} {name}")
