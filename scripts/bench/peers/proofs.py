"""The three proofs as they are put to a Lightning callback that freezes and thaws; one file a peer says how it is set.

A peer's file calls ``main(name, settings)``. Each measurement runs in a process of its own, so that one that ends with
an error is a result as well. All get the same task, and one that shows the schedule's faults alone: the order of the
pictures and the dropout are functions of (epoch, batch, rank), so that Lightning's own way of resuming the data in the
middle of an epoch does not matter. ``lightning_alone.py`` runs the same without a schedule, as the control.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

CLASSES, PICTURES, BATCHES, SIZE = 3, 40, 5, 32
ACCUMULATE = 2
STRATEGIES = {"find_unused_parameters=False": "ddp", "find_unused_parameters=True": "ddp_find_unused_parameters_true"}
# the two ways that Lightning and finetuning-scheduler document: the second sees the path before it sets up
RESUMING = ("fit(ckpt_path=...)", "trainer.ckpt_path = ...")
AVERAGES = ("no average", "Lightning's EMA", "an exact EMA")
PROOFS = ("ranks", "resume", "frozen")
State = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """One documented way to configure a peer.

    Attributes:
        callbacks: makes the peer's callbacks anew; given the folder that its checkpoints go to.
        phases: the first epoch of each phase to the prefixes of what it trains.
        epochs: of the run.
        optimize: ``learning``: the optimizer gets what requires a gradient when it is made; ``head``: the head alone.
    """

    callbacks: Callable[[Path], list[Callback]]
    phases: Mapping[int, tuple[str, ...]]
    epochs: int = 6
    optimize: str = "learning"

    def frozen(self, epoch: int, names: Sequence[str]) -> set[str]:
        """Of ``names``, what the schedule says is frozen in ``epoch``."""
        learning = self.phases[max(first for first in self.phases if first <= epoch)]
        return {name for name in names if not name.startswith(learning)}


class Task(LightningModule):
    """test_resnet without weights: batch norm, dropout before the head, SGD with momentum and weight decay."""

    def __init__(self, optimize: str) -> None:
        super().__init__()
        self.optimize = optimize
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(self.backbone.num_features, CLASSES))
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(PICTURES) % CLASSES
        self.pictures = torch.randn(PICTURES, 3, SIZE, SIZE, generator=generator)
        self.pictures += torch.randn(CLASSES, 3, 1, 1, generator=generator)[self.labels]

    def chosen(self, batch: int) -> list[int]:
        """The pictures of a batch: a ``DistributedSampler``'s of this epoch and rank, from any batch on."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.labels, num_replicas=world, rank=rank, seed=0)  # type: ignore[arg-type]
        sampler.set_epoch(self.trainer.current_epoch)
        size = len(sampler) // BATCHES
        return list(sampler)[batch * size : (batch + 1) * size]

    def loss(self, chosen: list[int]) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(self.pictures[chosen])), self.labels[chosen])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(1000 * self.trainer.current_epoch + 10 * batch_idx + self.trainer.global_rank)
        return self.loss(self.chosen(batch_idx))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(list(range(PICTURES))), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        of_head = self.head.parameters() if self.optimize == "head" else self.parameters()
        learning = [parameter for parameter in of_head if parameter.requires_grad]
        return torch.optim.SGD(learning, lr=0.05, momentum=0.9, weight_decay=0.01)


def tensors(module: nn.Module) -> State:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Learning(Callback):
    """The parameters that learn in each epoch, as its last batch began."""

    def __init__(self) -> None:
        self.names: dict[int, set[str]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.names[trainer.current_epoch] = {name for name, p in pl_module.named_parameters() if p.requires_grad}


class Fitted(NamedTuple):
    """A run at its end."""

    trainer: Trainer
    task: Task
    learning: dict[int, set[str]]


def fit(
    setting: Setting,
    folder: Path,
    watch: Sequence[Callback],
    ckpt: Path | None = None,
    how: str = RESUMING[0],
    **trainer: Any,
) -> Fitted:
    """A run of ``setting`` from the start, or from a checkpoint on, in one of the documented ways."""
    seed_everything(0, verbose=False)
    task, learning = Task(setting.optimize), Learning()
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": setting.epochs, **trainer}
    made = Trainer(
        **options,
        callbacks=[*setting.callbacks(folder / "best"), learning, *watch],
        accumulate_grad_batches=ACCUMULATE,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, val = DataLoader(range(BATCHES), batch_size=1), DataLoader(range(1), batch_size=1)  # type: ignore[arg-type]
    if ckpt and how == RESUMING[1]:
        made.ckpt_path = ckpt
        made.fit(task, train, val, weights_only=False)
    else:
        made.fit(task, train, val, ckpt_path=ckpt, weights_only=False if ckpt else None)
    return Fitted(made, task, learning.names)


# -- proof 1: the ranks hold the same weights ------------------------------------------------------


class CompareRanks(Callback):
    """At the end of each epoch: the largest difference of a tensor between two ranks."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.epochs: list[dict[str, float]] = []
        self.before: State = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = tensors(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = {name for name, _ in pl_module.named_parameters()}
        frozen = self.setting.frozen(trainer.current_epoch, sorted(parameters))
        now = tensors(pl_module)
        learned = sum(not torch.equal(now[name], self.before[name]) for name in parameters - frozen)
        apart = {"learning": 0.0, "frozen": 0.0, "buffers": 0.0, "learned": learned}
        for name, tensor in pl_module.state_dict().items():
            both = pl_module.all_gather(tensor.detach().double())
            assert len(both) == trainer.world_size == 2
            kind = "buffers" if name not in parameters else "frozen" if name in frozen else "learning"
            apart[kind] = max(apart[kind], float((both - both[0]).abs().max()))
        self.epochs.append(apart)


def prove_ranks(setting: Setting, folder: Path, strategy: str) -> dict[str, Any]:
    watch = CompareRanks(setting)
    fit(setting, folder, [watch], strategy=STRATEGIES[strategy], devices=2)
    return judged(watch.epochs, setting)


def judged(epochs: list[dict[str, float]], setting: Setting) -> dict[str, Any]:
    """The proof holds where no parameter differs, in epochs that were all trained."""
    worst = max(max(epoch["learning"], epoch["frozen"]) for epoch in epochs)
    trained = len(epochs) == setting.epochs and all(epoch["learned"] for epoch in epochs)
    return {"holds": trained and worst == 0, "apart": worst, "epochs": epochs}


# -- proof 2: a resumed run is the straight run ----------------------------------------------------


class SaveAtEachStop(Callback):
    """A checkpoint after each optimizer step and at the end of each epoch, with the peer's own as they were then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stops: list[str] = []
        self.step = 0

    def _save(self, trainer: Trainer, name: str) -> None:
        stop = self.folder / "stops" / name
        trainer.save_checkpoint(stop / "stop.ckpt")
        if (self.folder / "best").exists():
            shutil.copytree(self.folder / "best", stop / "best")
        self.stops.append(name)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self._save(trainer, f"step {self.step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, f"end of epoch {trainer.current_epoch}")


def outcome(straight: Fitted, setting: Setting, folder: Path, stop: str, how: str) -> str:
    """What becomes of a run that goes on from ``stop``: ``equal``, or what is wrong."""
    shutil.rmtree(folder / "best", ignore_errors=True)
    if (folder / "stops" / stop / "best").exists():
        shutil.copytree(folder / "stops" / stop / "best", folder / "best")
    try:
        resumed = fit(setting, folder, [], ckpt=folder / "stops" / stop / "stop.ckpt", how=how)
    except Exception as error:
        # without what differs from run to run, such as a parameter's id
        return re.sub(r"\d{6,}", "...", f"{type(error).__name__}: {str(error).splitlines()[0][:110]}")
    return compared(straight, resumed)


def compared(straight: Fitted, resumed: Fitted) -> str:
    epochs = {epoch for epoch, names in resumed.learning.items() if names != straight.learning[epoch]}
    if any(resumed.learning[epoch] - straight.learning[epoch] for epoch in epochs):
        return "what is frozen learns"
    if epochs:
        rest = "until the next epoch" if epochs == {min(resumed.learning)} != {max(resumed.learning)} else "to the end"
        return f"what should learn is frozen {rest}"
    if straight.trainer.global_step != resumed.trainer.global_step:
        return "another number of steps"
    if not same(tensors(straight.task), tensors(resumed.task)):
        return "other weights"
    optimizers = [one.trainer.optimizers[0].state_dict() for one in (straight, resumed)]
    return "equal" if same(*optimizers) else "another optimizer"


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def prove_resume(setting: Setting, folder: Path, how: str) -> dict[str, Any]:
    saving = SaveAtEachStop(folder)
    straight = fit(setting, folder, [saving])
    outcomes: dict[str, list[str]] = {}
    for stop in saving.stops[:-2]:  # the last two are after the last step
        outcomes.setdefault(outcome(straight, setting, folder, stop, how), []).append(stop)
    stops, equal = len(saving.stops) - 2, len(outcomes.get("equal", []))
    return {"holds": equal == stops, "stops": stops, "equal": equal, "outcomes": outcomes}


# -- proof 3: what is frozen does not move ---------------------------------------------------------


class WatchFrozen(Callback):
    """Per phase: which frozen tensors moved, in what learns and in what is scored (the average, where there is one)."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.start: State = {}
        self.first: State = {}
        self.moved: dict[str, set[str]] = {"learning": set(), "scored": set()}
        self.frozen: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and trainer.current_epoch in self.setting.phases:
            self.start = tensors(pl_module)
            self.first = self.first or self.start

    def _compare(self, kind: str, now: State, before: State, epoch: int) -> None:
        frozen = self.setting.frozen(epoch, list(now))
        if kind == "scored":  # the average still follows what learned before
            frozen = set.intersection(*(self.setting.frozen(first, list(now)) for first in range(epoch + 1)))
        self.frozen |= frozen
        self.moved[kind] |= {name for name in frozen if not torch.equal(now[name], before[name])}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare("learning", tensors(pl_module), self.start, trainer.current_epoch)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._compare("scored", tensors(pl_module), self.first, trainer.current_epoch)


def sorts(names: set[str], module: nn.Module) -> dict[str, int]:
    """How many tensors of each sort."""
    norms = tuple(name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    parameters = {name for name, _ in module.named_parameters()}
    of_norms = {name for name in names if name.rpartition(".")[0] in norms}
    return {
        "weights": len(names - of_norms),
        "batch-norm scales and shifts": len(of_norms & parameters),
        "batch-norm statistics": len(of_norms - parameters),
    }


def lerp(average: Tensor, now: Tensor, updates: Any) -> Tensor:
    """0.8 of the average; what does not change stays as it is, to the bit, and counters are copied."""
    return average.lerp(now, 0.2) if average.is_floating_point() else now


def averaging(which: str) -> list[Callback]:
    if which == AVERAGES[1]:
        return [EMAWeightAveraging(decay=0.8)]
    # rounds nothing, as Lightning's does, so that what is left are the schedule's faults
    return [WeightAveraging(avg_fn=lerp)] if which == AVERAGES[2] else []


def prove_frozen(setting: Setting, folder: Path, which: str) -> dict[str, Any]:
    watch = WatchFrozen(setting)
    task = fit(setting, folder, [*averaging(which), watch]).task
    moved = {kind: sorts(names, task) for kind, names in watch.moved.items()}
    return {"holds": not any(watch.moved.values()), "frozen": sorts(watch.frozen, task), "moved": moved}


# -- running ---------------------------------------------------------------------------------------


def measurements(proof: str) -> list[str]:
    """The ways in which a proof is put to a setting."""
    return {"ranks": [*STRATEGIES], "resume": [*RESUMING], "frozen": [*AVERAGES]}[proof]


def measure(setting: Setting, proof: str, how: str, folder: Path) -> dict[str, Any]:
    if proof == "ranks":
        return prove_ranks(setting, folder, how)
    if proof == "resume":
        return prove_resume(setting, folder, how)
    return prove_frozen(setting, folder, how)


def in_own_process(arguments: Sequence[str], result: Path) -> dict[str, Any]:
    """The result of this program with ``arguments``, or the last line of its error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    line = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=900)
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    errors = [line for line in done.stderr.splitlines() if "Error" in line or "Exception" in line]
    return {"holds": False, "error": (errors or done.stderr.splitlines() or ["ended without a word"])[-1][:300]}


def main(name: str, settings: Mapping[str, Setting], packages: Sequence[str] = ()) -> None:
    """Print the results of all settings as JSON, or write one measurement's."""
    parser = argparse.ArgumentParser(description=f"Proofs 1 to 3 on {name}, as JSON.")
    parser.add_argument("--only", choices=PROOFS, nargs="+", default=list(PROOFS))
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        setting, proof, how, folder = options.measure
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        found = measure(settings[setting], proof, how, Path(folder))
        if os.environ.get("LOCAL_RANK", "0") == "0":
            (Path(folder) / "result.json").write_text(json.dumps(found))
        return
    rows = []
    for setting in settings:
        for proof in options.only:
            for how in measurements(proof):
                with tempfile.TemporaryDirectory() as folder:
                    arguments = ["--measure", setting, proof, how, folder]
                    found = in_own_process(arguments, Path(folder) / "result.json")
                rows.append({"setting": setting, "proof": proof, "how": how, **found})
                print(f"{name}, {setting}: {proof}, {how}: {rows[-1]['holds']}", file=sys.stderr, flush=True)
    versions = {package: version(package) for package in ("torch", "timm", "lightning", *packages)}
    print(json.dumps({"name": name, "versions": versions, "rows": rows}, indent=1))
