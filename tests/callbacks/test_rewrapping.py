from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

from frostline.callbacks.rewrapping import rewrap


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def network() -> nn.Sequential:
    """A frozen layer and a head."""
    made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    made[0].requires_grad_(False)
    return made


def wrapped(module: nn.Module) -> Any:
    """A trainer whose strategy has wrapped a module."""
    strategy = DDPStrategy(accelerator=CPUAccelerator(), parallel_devices=[torch.device("cpu")])
    strategy.model = strategy._setup_model(module)
    return SimpleNamespace(strategy=strategy)


def reduced(trainer: Any) -> int:
    """How many parameters the wrapper reduces."""
    count: int = trainer.strategy.model._get_ddp_logging_data()["num_parameter_tensors"]
    return count


def test_the_new_wrapper_reduces_what_learns_now_and_that_alone(alone: None) -> None:
    module = network()
    trainer = wrapped(module)
    assert reduced(trainer) == 2
    module[0].requires_grad_(True)
    assert reduced(trainer) == 2  # what a wrapper does not learn
    rewrap(trainer)
    assert reduced(trainer) == 4
    module[1].requires_grad_(False)
    rewrap(trainer)
    assert reduced(trainer) == 2
    # a reducer that waited for the frozen head would raise here, at its second pass
    for _ in range(3):
        trainer.strategy.model(torch.ones(2, 3)).sum().backward()
    assert module[0].weight.grad is not None
    assert module[1].weight.grad is None


def test_parameters_stay_the_same_objects_and_the_old_wrapper_goes(alone: None) -> None:
    module = network()
    trainer = wrapped(module)
    old = weakref.ref(trainer.strategy.model)
    values = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    held = [*module.parameters()]
    # the hooks of its reducer have been used
    trainer.strategy.model(torch.ones(2, 3)).sum().backward()
    module[0].requires_grad_(True)
    rewrap(trainer)
    assert isinstance(trainer.strategy.model, DistributedDataParallel)
    assert old() is None
    assert trainer.strategy.model.module is module
    assert all(parameter is before for parameter, before in zip(module.parameters(), held, strict=True))
    assert all(torch.equal(parameter, values[name]) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("strategy", ["one device", "not wrapped"])
def test_what_is_not_wrapped_is_left_alone(strategy: str) -> None:
    module = network()
    made: Any = SingleDeviceStrategy() if strategy == "one device" else DDPStrategy(accelerator=CPUAccelerator())
    made.model = module
    trainer: Any = SimpleNamespace(strategy=made)
    rewrap(trainer)
    assert made.model is module
