from __future__ import annotations

import torch
from lightning import LightningModule
from torch import nn

from frostline.callbacks import ExponentialMovingAverage


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


def averaged(module: Module, decay: float) -> ExponentialMovingAverage:
    callback = ExponentialMovingAverage(decay=decay)
    callback.setup(None, module, "fit")
    return callback


class FakeTrainer:
    global_step = 0
    current_epoch = 0


def step(callback: ExponentialMovingAverage, module: Module, trainer: FakeTrainer) -> None:
    trainer.global_step += 1
    callback.on_train_batch_end(trainer, module, None, None, 0)


def test_the_average_is_its_formula_and_what_is_frozen_is_exact() -> None:
    module, trainer = Module(), FakeTrainer()
    module.norm.num_batches_tracked += 12345
    module.norm.running_mean.fill_(1 / 3)
    frozen = {name: value.clone() for name, value in module.norm.state_dict().items()}
    callback = averaged(module, 0.9)
    expected = module.layer.weight.detach().clone()
    for number in range(50):
        with torch.no_grad():
            module.layer.weight += 0.1 * number
        step(callback, module, trainer)
        current = module.layer.weight.detach()
        expected = current.clone() if number == 0 else 0.9 * expected + 0.1 * current
    assert callback._average_model is not None
    average = callback._average_model.module
    torch.testing.assert_close(average.layer.weight, expected)
    for name, value in average.norm.state_dict().items():
        assert torch.equal(value, frozen[name]), name
