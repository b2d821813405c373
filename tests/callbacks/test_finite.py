from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frostline.callbacks import ExponentialMovingAverage, WatchNumbers, finite
from frostline.callbacks.finite import gradient_norm
from frostline.errors import ConfigError, NumericsError
from frostline.metrics import TrainingScores

NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:GPU available but not used.*",
)


class Task(LightningModule):
    """A linear layer behind a batch norm; the first number of a picture spoils the loss or a gradient of its batch."""

    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.name = nn.BatchNorm1d(3), nn.Linear(3, 2), optimizer
        self.train_scores = TrainingScores()
        self.poison = torch.zeros(())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.layer(self.norm(batch[:, 1:])), torch.arange(len(batch)) % 2)
        spoilt = batch[0, 0]
        if spoilt == 1:
            # a gradient that is not finite under a loss that is
            self.layer.weight.register_hook(lambda gradient: gradient * NAN)
        elif not bool(spoilt.isfinite()):
            loss = loss + spoilt
        self.train_scores.update(batch, torch.zeros(len(batch), dtype=torch.int64), loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        from timm.optim import Lamb

        return {
            "adamw": lambda: torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1),
            "sgd": lambda: torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
            "lamb": lambda: Lamb(self.parameters(), lr=0.1, weight_decay=0.1),
            "fused": lambda: torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1, fused=True),
        }[self.name]()

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_scores.compute())
        self.train_scores.reset()


class Unhook(Callback):
    """Makes a spoilt gradient one batch's alone."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.layer.weight._backward_hooks = None


class Snapshots(Callback):
    """All that a step may change, before each step and after the last."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def take(self, trainer: Trainer, module: Any) -> None:
        state = {
            "module": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scores": module.train_scores.metric_state,
            "counts": module.train_scores._update_count,
        }
        state["optimizer"]["param_groups"] = [dict(group) for group in state["optimizer"]["param_groups"]]
        self.taken.append(copy.deepcopy(state))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.take(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after = len(self.taken)
        self.take(trainer, pl_module)


def batches(*spoilt: float) -> list[Tensor]:
    """One batch of 4 pictures for each of ``spoilt``, different in each."""
    made = [torch.randn(4, 4, generator=torch.Generator().manual_seed(number)) for number in range(len(spoilt))]
    for batch, first in zip(made, spoilt, strict=True):
        batch[:, 0] = first
    return made


def fit(task: Task, data: list[Tensor], folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = Trainer(
        **{"max_epochs": 1, "devices": 1, **settings},
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader(data, batch_size=None))
    return trainer


def assert_same(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    else:
        assert one == other, path


@pytest.mark.parametrize(
    ("spoilt", "said"), [(NAN, "the loss is nan"), (INF, "the loss is inf"), (1.0, "layer.weight")]
)
def test_stops_before_the_step_is_taken_and_says_where(spoilt: float, said: str, tmp_path: Path) -> None:
    class Phased(Callback):
        class phase:  # noqa: N801
            name = "warm"

    task, snapshots = Task(), Snapshots()
    with pytest.raises(NumericsError) as caught:
        fit(task, batches(0, 0, spoilt, 0), tmp_path, WatchNumbers(), Phased(), snapshots, Unhook())
    message = str(caught.value)
    assert said in message
    assert "step 2 (epoch 1, phase warm, largest learning rate 0.1)" in message
    assert "on_nan.action=skip" in message
    assert "trainer.gradient_clip_val=1.0" in message
    assert caught.value.exit_code == 4
    weights = {name: value for name, value in task.state_dict().items() if "norm" not in name}
    assert_same(weights, {name: snapshots.taken[-1]["module"][name] for name in weights})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "fused"])
@pytest.mark.parametrize("spoilt", [NAN, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_skipped_step_leaves_no_trace(
    optimizer: str, spoilt: float, clip: float | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    snapshots, watch = Snapshots(), WatchNumbers("skip")
    data = batches(0, 0, spoilt, 0)
    fit(Task(optimizer), data, tmp_path, watch, snapshots, Unhook(), gradient_clip_val=clip)
    assert watch.skipped == 1
    before, after, following = snapshots.taken[4:7]
    assert_same(before, after)
    assert_same(before, following)
    assert not torch.equal(after["module"]["layer.weight"], snapshots.taken[7]["module"]["layer.weight"])
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "step 2" in warnings[0]
    assert "1 of at most 10" in warnings[0]


@pytest.mark.parametrize("spoilt", [NAN, 1.0])
def test_a_first_step_that_is_skipped_leaves_an_optimizer_without_state(spoilt: float, tmp_path: Path) -> None:
    snapshots = Snapshots()
    fit(Task("lamb"), batches(spoilt, 0), tmp_path, WatchNumbers("skip"), snapshots, Unhook())
    assert_same(snapshots.taken[0], snapshots.taken[1])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_a_run_with_a_spoilt_batch_is_the_run_without_it(optimizer: str, tmp_path: Path) -> None:
    spoilt, clean = Task(optimizer), Task(optimizer)
    data = batches(0, 0, INF, 0, 0)
    average, expected = ExponentialMovingAverage(0.5), ExponentialMovingAverage(0.5)
    with_it = fit(spoilt, data, tmp_path, WatchNumbers("skip"), average)
    without = fit(clean, [*data[:2], *data[3:]], tmp_path, expected)
    # averaged weights among them, which are what is in the module after the end
    assert_same(clean.state_dict(), spoilt.state_dict())
    assert with_it.callback_metrics["train/loss"].isfinite()
    assert_same(without.callback_metrics, with_it.callback_metrics)
    assert with_it.callback_metrics["train/count"] == 16


def test_one_spoilt_batch_leaves_out_its_whole_window(tmp_path: Path) -> None:
    spoilt, clean = Task("sgd"), Task("sgd")
    data = batches(0, 0, NAN, 0, 0, 0, 0)
    watch = WatchNumbers("skip")
    fit(spoilt, data, tmp_path, watch, accumulate_grad_batches=2)
    fit(clean, [*data[:2], *data[4:]], tmp_path, accumulate_grad_batches=2)
    assert watch.skipped == 1
    assert_same(clean.state_dict(), spoilt.state_dict())


def test_one_more_than_allowed_stops(tmp_path: Path) -> None:
    watch = WatchNumbers("skip", at_most=2)
    with pytest.raises(NumericsError, match=r"step 5 .*after 2 skipped steps, which is on_nan.at_most"):
        fit(Task(), batches(0, NAN, 0, NAN, 0, NAN), tmp_path, watch)
    assert watch.skipped == 2


def test_the_count_goes_on_in_a_resumed_run() -> None:
    watch, later = WatchNumbers("skip"), WatchNumbers("skip")
    watch.skipped = 3
    later.load_state_dict(watch.state_dict())
    assert later.skipped == 3


@pytest.mark.parametrize("optimizer", ["adamw", "fused"])
def test_with_a_scaler_only_the_loss_is_looked_at(optimizer: str, tmp_path: Path) -> None:
    task, watch, snapshots = Task(optimizer), WatchNumbers("skip"), Snapshots()
    precision = "16-mixed"
    from lightning.pytorch.plugins.precision import MixedPrecision

    plugin = MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))
    fit(task, batches(0, 1.0, 0, NAN, INF), tmp_path, watch, snapshots, Unhook(), plugins=[plugin])
    assert watch.skipped == 2
    # the scaler left out the second step, as it does without us: batch norm saw its batch
    assert_same(snapshots.taken[2]["optimizer"], snapshots.taken[3]["optimizer"])
    for before in (6, 8):
        assert_same(snapshots.taken[before], snapshots.taken[before + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_norm_of_finite_gradients_is_finite_in_every_precision(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.zeros(2, 2, dtype=dtype)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.full((2, 2), 40000.0, dtype=dtype)
    parameters[1].grad = torch.zeros(3)
    assert gradient_norm(parameters).item() == pytest.approx(80000, rel=0.01)
    parameters[1].grad[1] = NAN
    assert not gradient_norm(parameters).isfinite()


def test_wrong_arguments_name_the_key_and_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"on_nan.action=skp\n.*'skip'"):
        WatchNumbers("skp")
    with pytest.raises(ConfigError, match="at_most=-1"):
        WatchNumbers("skip", -1)


@pytest.mark.slow
def test_ranks_skip_together_where_one_has_a_spoilt_batch(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for skipped, snapshots in ranks:
        assert skipped == 1
        assert_same(snapshots[2], snapshots[3])
        assert not torch.equal(snapshots[4]["module"]["layer.weight"], snapshots[5]["module"]["layer.weight"])
    assert_same(ranks[0][1][-1]["module"]["layer.weight"], ranks[1][1][-1]["module"]["layer.weight"])
    assert done.stderr.count("warning: ") == 1


def _as_rank() -> None:
    """What each of two processes does: only the second has a loss that is infinite, under finite gradients."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    watch, snapshots = WatchNumbers("skip"), Snapshots()
    trainer = fit(Task("sgd"), batches(0, INF if rank else 0, 0), Path(), watch, snapshots, devices=2, strategy="ddp")
    torch.save((watch.skipped, snapshots.taken), Path(os.environ["OUT"]) / f"{rank}.pt")
    trainer.strategy.barrier()


if __name__ == "__main__":
    _as_rank()


@pytest.mark.parametrize("spoilt", [NAN, INF, 1.0])
def test_a_device_that_runs_behind_is_asked_one_step_later(
    spoilt: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_runs_behind", lambda device: True)
    snapshots = Snapshots()
    with pytest.raises(NumericsError, match=r"at step 1 \(epoch 1, largest learning rate 0.1\)"):
        fit(Task(), batches(0, spoilt, 0, 0), tmp_path, WatchNumbers(), snapshots, Unhook())
    # before and after steps 0 and 1, and before the one that is not taken
    assert len(snapshots.taken) == 5


def test_nothing_is_saved_or_validated_after_a_step_that_nobody_has_looked_at() -> None:
    for ask in ("state_dict", "on_validation_start", "on_train_end"):
        watch = WatchNumbers()
        watch._later = finite._Later(torch.tensor(True), [torch.tensor(NAN)], None, "step 7")
        with pytest.raises(NumericsError, match="the loss is nan at step 7"):
            getattr(watch, ask)(*([] if ask == "state_dict" else [None, None]))
        # said once
        assert watch.state_dict() == {"skipped": 0}
