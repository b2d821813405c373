"""What the training loop costs beyond the step itself: `train`'s loop and a bare Lightning Trainer against one by hand.

All three take the same batches, which lie in memory, through a copy of the same model with the same optimizer, and take
turns in one process, forty steps at a time: the first after another's turn finds nothing of its own in the caches. The
loop by hand has the two parameter groups of the usual recipe, ``zero_grad``, ``backward``, ``step`` and a running loss
that stays on the device. `train`'s has everything that a run has: the schedule with its learning rate for each depth
group, the watch over the numbers, scores, the logger and the callback that saves. The first turn is left out;
validation and saving come after the last and are not counted. Prints a Markdown table: the median step, and the median
over the turns of the ratio to the loop by hand, in seconds of the processor and on the wall.

    python scripts/bench/loop.py --case mobilenetv2_050:64:4 --case mobilenetv2_050:128:24 --override freeze=llrd
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from frostline.callbacks import EpochLines, FollowSchedule, WatchNumbers
from frostline.config import compose, load_config
from frostline.optim import undecayed
from frostline.runs.folder import RunFolder
from frostline.runs.memory import keep_freed_memory
from frostline.runs.parts import Parts, build_parts
from frostline.runs.starting import prepare
from frostline.runs.trainers import make_trainer
from frostline.runs.worker import look_for_gpus_once, quiet_frameworks
from frostline.types import Batch

# about 20 ms with 47 tensors, 20 ms with 158, 200 ms
CASES = ("test_resnet:48:12", "mobilenetv2_050:64:4", "mobilenetv2_050:128:24")
STEPS = 40
LOOPS = ("by hand", "Lightning, bare", "frostline train")
# seconds a step, of the processor and on the wall
Seconds = tuple[float, float]


class Turns:
    """Lets one loop at a time go on, forty steps each, and reads both clocks at either end."""

    def __init__(self, names: Sequence[str], synchronize: Callable[[], object]) -> None:
        self.found: dict[str, list[Seconds]] = {name: [] for name in names}
        self._names, self._synchronize = list(names), synchronize
        self._waiting = threading.Condition()
        self._steps = dict.fromkeys(names, 0)
        self._began: Seconds = (0.0, 0.0)

    def run(self, loops: Mapping[str, Callable[[Callable[[], None]], object]]) -> None:
        """Run the loops to their ends; each is given what it calls before each of its steps."""
        with ThreadPoolExecutor(len(loops)) as threads:
            held = [threads.submit(self._whole, name, loop) for name, loop in loops.items()]
        for one in held:
            one.result()

    def _whole(self, name: str, loop: Callable[[Callable[[], None]], object]) -> None:
        self._wait(name)
        try:
            loop(lambda: self._mark(name))
        finally:
            with self._waiting:
                self._names.remove(name)
                self._waiting.notify_all()

    def _mark(self, name: str) -> None:
        steps = self._steps[name]
        self._steps[name] += 1
        if steps % STEPS:
            return
        self._synchronize()
        if steps:
            ended = self._now()
            self.found[name].append(((ended[0] - self._began[0]) / STEPS, (ended[1] - self._began[1]) / STEPS))
        with self._waiting:
            self._names.append(self._names.pop(self._names.index(name)))
            self._waiting.notify_all()
        self._wait(name)
        self._began = self._now()

    def _wait(self, name: str) -> None:
        with self._waiting:
            self._waiting.wait_for(lambda: self._names[0] == name)

    @staticmethod
    def _now() -> Seconds:
        return time.process_time(), time.perf_counter()


class MarkSteps(Callback):
    """Marks the beginning of each step; comes before all other callbacks."""

    def __init__(self, mark: Callable[[], None]) -> None:
        self.mark = mark

    def on_train_batch_start(self, *_: Any) -> None:
        self.mark()


class Repeated:
    """A loader of batches that lie in memory; a list would be one of several loaders to Lightning."""

    def __init__(self, batches: Sequence[Batch], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return (self.batches[step % len(self.batches)] for step in range(self.length))


class InMemory(LightningDataModule):
    """The same batches for each loop; a single one for validation, which is not timed."""

    def __init__(self, loader: Repeated) -> None:
        super().__init__()
        self.loader = loader
        self.skipped: dict[str, str] = {}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As the data of a run."""
        if batch.images.device == device:
            return batch
        moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def train_dataloader(self) -> Repeated:
        return self.loader

    def val_dataloader(self) -> Repeated:
        return Repeated(self.loader.batches, 1)


class Minimal(LightningModule):
    """What Lightning needs at the least."""

    def __init__(self, model: nn.Module, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model, self.make_optimizer = model, make_optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.model(batch.images), batch.targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.model)


MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def by_hand(
    mark: Callable[[], None], model: nn.Module, make_optimizer: MakeOptimizer, batches: Repeated, device: torch.device
) -> None:
    model = model.to(device).train()
    optimizer, running = make_optimizer(model), torch.zeros((), device=device)
    for batch in batches:
        mark()
        images = batch.images.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), batch.targets.to(device, non_blocking=True))
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives no types
        optimizer.step()
        running += loss.detach()


def bare_lightning(
    mark: Callable[[], None],
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    batches: Repeated,
    device: torch.device,
    folder: Path,
) -> None:
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[MarkSteps(mark)],
    )
    trainer.fit(Minimal(model, make_optimizer), train_dataloaders=batches)


def of_frostline(mark: Callable[[], None], config: Any, parts: Parts, batches: Repeated, folder: RunFolder) -> None:
    """As ``frostline.runs.train`` puts its parts together, with batches that need no reading."""
    monitor = config.monitor
    trainer = make_trainer(
        config,
        folder,
        before=[
            MarkSteps(mark),
            FollowSchedule(parts.schedule, folder.schedule),
            WatchNumbers(config.on_nan.action, config.on_nan.at_most),
        ],
        after=EpochLines(monitor.metric, str(getattr(monitor.mode, "name", monitor.mode))),
    )
    trainer.fit(parts.task, datamodule=InMemory(batches))


def usual_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What learns, in two groups: with and without weight decay."""
    exempt = undecayed(model)
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in learning if name not in exempt], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in learning if name in exempt], "weight_decay": 0.0},
    ]


def made(size: int, count: int) -> Batch:
    return Batch(
        images=torch.randn(count, 3, size, size),
        targets=torch.randint(0, 10, (count,)),
        indices=torch.arange(count),
        valid=torch.ones(count, dtype=torch.bool),
    )


def measured(case: str, turns: int, overrides: Sequence[str], device: torch.device) -> dict[str, list[Seconds]]:
    """Loop to its turns."""
    name, size, count = case.split(":")
    batches = Repeated([made(int(size), int(count)) for _ in range(8)], STEPS * (turns + 1) + 1)
    given = [
        *("backbone=timm", f"backbone.name={name}", "backbone.weights=none"),
        *(f"data.size={size}", f"data.batch_size={count}", "trainer.max_epochs=1"),
        f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare(compose("train", [*given, f"output={scratch}", *overrides]), [])
        config = load_config(folder.config)
        parts = build_parts(config)
        task, model = parts.task, parts.task.model
        hand, bare = copy.deepcopy(model), copy.deepcopy(model)

        def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
            return task.make_optimizer(usual_groups(model, task.weight_decay))

        order = Turns(LOOPS, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        loops: list[Callable[[Callable[[], None]], object]] = [
            lambda mark: by_hand(mark, hand, make_optimizer, batches, device),
            lambda mark: bare_lightning(mark, bare, make_optimizer, batches, device, Path(scratch)),
            lambda mark: of_frostline(mark, config, parts, batches, folder),
        ]
        order.run(dict(zip(LOOPS, loops, strict=True)))
    return {loop: turns[1:] for loop, turns in order.found.items()}


def row(case: str, loop: str, found: Mapping[str, list[Seconds]]) -> str:
    cells = []
    for clock in (0, 1):
        step = statistics.median(turn[clock] for turn in found[loop])
        ratios = [turn[clock] / hand[clock] for turn, hand in zip(found[loop], found[LOOPS[0]], strict=True)]
        cells.append(f"{step * 1000:.1f} ms | {statistics.median(ratios):.3f}")
    return f"| {case} | {loop} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="MODEL:SIZE:BATCH, a timm name, pixels and pictures")
    parser.add_argument("--turns", type=int, default=8, help=f"of {STEPS} steps, of each loop, that are counted")
    parser.add_argument("--override", action="append", default=[], help="of frostline train, such as freeze=llrd")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of torch: each loop has threads of its own, which are in each other's way",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # as the process of a run does; by hand and for Lightning alike
    quiet_frameworks()
    look_for_gpus_once()
    keep_freed_memory()
    rows = []
    for case in options.case or CASES:
        found = measured(case, options.turns, options.override, torch.device(options.device))
        rows += [row(case, loop, found) for loop in LOOPS]
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{name}; {options.turns} turns of {STEPS} steps\n")
    print("| model:size:batch | loop | processor, a step | ratio | wall, a step | ratio |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
