from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from frostline.runs import step_loop
from frostline.runs.step_loop import HOOKS_OF_A_STEP, StepLoop, use_step_loop

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The number of training batches", "ignore:You are using"
)


class Task(LightningModule):
    """Logs at each place where it can, and keeps what it is told."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, end_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.make, self.end_at = optimizer, end_at
        self.told: list[Any] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.model.parameters(), lr=0.02)  # type: ignore[call-arg]  # all of these have it

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "labels": labels} if batch_idx % 2 else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.log("began", float(batch_idx))
        return -1 if batch_idx == self.end_at else None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.told.append(("norm", [float(parameter.grad.norm()) for parameter in self.parameters()]))  # type: ignore[union-attr]  # all have one


class Data(LightningDataModule):
    """Shifts what it gives before and after it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[Any] = []

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(3)
        images, labels = torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
        return DataLoader(TensorDataset(images, labels), batch_size=4)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def on_before_batch_transfer(self, batch: Any, _: int) -> Any:  # Lightning gives it by position
        return batch[0] * 2, batch[1]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.moves.append((str(device), dataloader_idx))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]


class Told(Callback):
    """Keeps which hook came when, under which name, with the counts of the loops and what it was given."""

    def __init__(self) -> None:
        self.hooks: list[Any] = []

    def keep(self, hook: str, trainer: Any, task: Any, *args: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.state_dict()
        cleared = [parameter.grad is None for parameter in task.parameters()]
        given = [arg for arg in args if not isinstance(arg, torch.optim.Optimizer)]
        seen = repr([arg.detach() if isinstance(arg, Tensor) else arg for arg in given])
        # the gradients of the step before are dropped earlier than Lightning does
        about = (hook, task._current_fx_name, trainer.global_step, cleared if "zero" not in hook else None, seen)
        self.hooks.append((*about, copy.deepcopy(progress)))


def keeps(hook: str) -> Any:
    return lambda self, *args: self.keep(hook, *args)


for name in HOOKS_OF_A_STEP:
    setattr(Told, name, keeps(name))


class Averages(Callback):
    """Logs from a callback's hook, with the batch size that Lightning finds in the batch."""

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert set(outputs) == ({"loss", "labels"} if batch_idx % 2 else {"loss"})
        assert not outputs["loss"].requires_grad
        task.log("of the callback", outputs["loss"] * 2, on_step=True, on_epoch=True)


def trainer_of(callbacks: list[Callback], **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **settings,
    )


def trained(task: Task, *, own: bool, **settings: Any) -> tuple[Trainer, Told, Data]:
    told, data = Told(), Data()
    trainer = trainer_of([told, Averages()], max_epochs=2, **settings)
    if own:
        use_step_loop(trainer)
    trainer.fit(task, datamodule=data)
    return trainer, told, data


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each epoch went straight."""
    found: list[bool] = []
    ask = step_loop._is_simple

    def asked(*args: Any) -> bool:
        found.append(ask(*args))
        return found[-1]

    monkeypatch.setattr(step_loop, "_is_simple", asked)
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped by norm": {"gradient_clip_val": 0.01},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bfloat16": {"precision": "bf16-mixed"},
    "validated inside an epoch": {"val_check_interval": 2},
    "few steps": {"max_steps": 7},
}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_is_what_lightning_makes_of_it(name: str, optimizer: Any, straight: list[bool]) -> None:
    settings = SETTINGS[name]
    task = Task(optimizer)
    other = copy.deepcopy(task)
    ours, told, data = trained(task, own=True, **settings)
    theirs, expected, same_data = trained(other, own=False, **settings)
    assert straight == [True, True]
    assert told.hooks
    assert len({hook for hook, *_ in told.hooks}) == len(HOOKS_OF_A_STEP)
    assert told.hooks == expected.hooks
    assert task.told == other.told
    assert data.moves == same_data.moves != []
    assert ours.fit_loop.state_dict() == theirs.fit_loop.state_dict()
    assert {key: float(value) for key, value in ours.callback_metrics.items()} == {
        key: float(value) for key, value in theirs.callback_metrics.items()
    }
    assert ours.logged_metrics == theirs.logged_metrics
    for value, same in zip(task.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize(
    "settings",
    [{"accumulate_grad_batches": 2}, {"profiler": SimpleProfiler(filename=None)}],
    ids=["windows", "profiler"],
)
def test_elsewhere_a_step_is_lightnings(settings: Any, straight: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimpleProfiler, "describe", lambda self: None)
    task = Task()
    other = copy.deepcopy(task)
    trained(task, own=True, **settings)
    trained(other, own=False, **settings)
    assert straight == [False, False]
    assert task.told == other.told
    for value, same in zip(task.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(value, same)


def test_a_task_may_end_the_epoch(straight: list[bool]) -> None:
    task = Task(end_at=2)
    other = copy.deepcopy(task)
    ours, _, _ = trained(task, own=True)
    theirs, _, _ = trained(other, own=False)
    assert straight == [True, True]
    assert ours.global_step == theirs.global_step == 4
    assert ours.fit_loop.state_dict() == theirs.fit_loop.state_dict()


@pytest.mark.parametrize("windows", [1, 2])
def test_the_forward_pass_finds_no_gradients_of_the_step_before(windows: int) -> None:
    found: list[bool] = []

    class Looks(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found.append(all(parameter.grad is None for parameter in self.parameters()))
            return super().training_step(batch, batch_idx)

    trained(Looks(), own=True, accumulate_grad_batches=windows)
    # the last batch of five is a window of its own
    assert found == ([True] * 10 if windows == 1 else [True, False, True, False, True] * 2)


def test_lightnings_own_step_is_given_what_it_would_give() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    theirs = trainer.fit_loop.epoch_loop
    trainer.strategy._lightning_module = Task()
    use_step_loop(trainer)
    ours: Any = trainer.fit_loop.epoch_loop
    assert isinstance(ours, StepLoop)
    assert isinstance(theirs, _TrainingEpochLoop)
    assert (ours.min_steps, ours.max_steps) == (theirs.min_steps, theirs.max_steps)
    for batch_idx in (0, 3):
        given = ours._build_kwargs(OrderedDict(), "a batch", batch_idx)
        assert given == theirs._build_kwargs(OrderedDict(), "a batch", batch_idx)


def test_a_hook_may_be_any_callable_or_none() -> None:
    seen: list[int] = []

    class Called:
        def __call__(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)

    callback = LambdaCallback(on_train_batch_end=Called(), on_before_zero_grad=print)
    callback.on_before_zero_grad = None  # type: ignore[assignment,method-assign]  # as Lightning passes over
    trainer = trainer_of([callback], max_epochs=1)
    use_step_loop(trainer)
    trainer.fit(Task(), datamodule=Data())
    assert seen == [0, 1, 2, 3, 4]


def test_the_loss_of_a_step_is_a_tensor_or_lightning_says_so(straight: list[bool]) -> None:
    class Wrong(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return "a loss"  # type: ignore[return-value]  # what is to be refused

    with pytest.raises(Exception, match="`training_step` must return a Tensor"):
        trained(Wrong(), own=True)
    assert straight == [True]
