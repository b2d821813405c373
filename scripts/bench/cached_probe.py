"""What a linear probe costs with and without features that are computed once.

Prints a Markdown table, of medians over the repeats, which alternate:

- an epoch of the head alone, as a loop written by hand takes it from the project's own loaders (with the cache the best
  of 20 epochs, without it a single one), and under Lightning at the default logging interval (its median);
- a probe of some epochs under Lightning from an empty cache, with validation and checkpoints, against one forward pass
  over its training and validation pictures, decoding included.

    python scripts/bench/cached_probe.py --pictures 256 --size 224 --epochs 20
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback
from PIL import Image

from frostline.callbacks import EpochLines, FollowSchedule
from frostline.config import compose, load_config
from frostline.features.boundary import in_eval
from frostline.runs.caching import RunCache
from frostline.runs.fitting import fit
from frostline.runs.parts import Parts, build_parts
from frostline.runs.starting import prepare
from frostline.runs.trainers import make_trainer

CLASSES = 4


class Clock:
    """Wall-clock seconds, or the processor's of this process, which others on a busy machine change less."""

    now = staticmethod(time.perf_counter)


CLOCK = Clock()


class EpochTimes(Callback):
    """Seconds of the training part of each epoch, from before its first batch to its validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._started = CLOCK.now()

    def on_validation_start(self, *_: Any) -> None:
        self.seconds.append(CLOCK.now() - self._started)


def make_pictures(root: Path, count: int, side: int) -> None:
    """A folder of JPEG pictures, a sixteenth of them for validation, in classes that differ in color."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", max(count // 16, CLASSES)), ("test", CLASSES)):
        for picture in range(number):
            folder = root / split / f"class{picture % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            small = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            small[..., picture % CLASSES % 3] //= 2
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{picture}.jpg")


class Bench:
    """One way to train, as often as it is asked for.

    Args:
        arguments: of the command line.
        root: the pictures.
        scratch: a folder for runs and caches.
    """

    def __init__(self, arguments: argparse.Namespace, root: Path, scratch: Path) -> None:
        self._arguments, self._root, self._scratch = arguments, root, scratch

    def empty(self) -> None:
        """Forget all features that were computed."""
        shutil.rmtree(self._scratch / "cache" / "frostline" / "features", ignore_errors=True)

    def run(self, mode: str, epochs: int) -> tuple[float, list[float]]:
        """Seconds of a whole fit, and of the training part of each of its epochs."""
        parts, cache, trainer, times = self._made(mode, epochs)
        with cache.training():
            seconds = timed(lambda: fit(trainer, parts.task, parts.data, parts.data))
        return seconds, times.seconds

    def by_hand(self, mode: str, epochs: int) -> float:
        """Seconds of an epoch of a bare loop; with the cache, of one of ``epochs`` that have it in memory."""
        parts, _, trainer, _ = self._made(mode, 20)
        device = trainer.strategy.root_device
        task, loader = parts.task.to(device), parts.data.loader("train", train=True)
        optimizer = task.configure_optimizers()
        optimizer = optimizer[0] if isinstance(optimizer, list) else optimizer
        task.train()

        def epoch() -> None:
            for given in loader:
                batch = given._replace(images=given.images.to(device), targets=given.targets.to(device))
                with trainer.precision_plugin.forward_context():
                    loss = task.loss(task.logits(batch), batch.targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        if mode != "off":
            epoch()  # computes
        return min(timed(epoch) for _ in range(epochs))

    def one_pass(self) -> float:
        """Seconds of a forward pass over what a run trains on and is validated on."""
        parts, _, trainer, _ = self._made("off", 20)
        device = trainer.strategy.root_device
        model = parts.task.model.to(device)

        def whole() -> None:
            with in_eval(model), torch.no_grad(), trainer.precision_plugin.forward_context():
                for split in ("train", "val"):
                    for delivery in parts.data.deliveries(split, train=split == "train"):
                        assert delivery.batch is not None
                        model(delivery.batch.images.to(device))

        return timed(whole)

    def _made(self, mode: str, epochs: int) -> tuple[Parts, RunCache, Any, EpochTimes]:
        arguments = self._arguments
        overrides = [
            "data=folder",
            f'data.root="{self._root}"',
            f"data.size={arguments.size}",
            f"data.batch_size={arguments.batch_size}",
            f"data.workers={arguments.workers}",
            f"backbone.name={arguments.backbone}",
            "backbone.weights=none",
            "augment=none",
            "freeze=linear_probe",
            "callbacks=no_early_stopping",
            f"freeze.phases.probe.cache.mode={mode}",
            f"trainer={arguments.device}",
            f"trainer.max_epochs={epochs}",
            f'output="{self._scratch / "runs"}"',
        ]
        folder = prepare(compose("train", overrides), overrides)
        config = load_config(folder.config)
        parts, times = build_parts(config), EpochTimes()
        follow = FollowSchedule(parts.schedule, folder.schedule)
        after = EpochLines("val/accuracy", "max")
        trainer = make_trainer(config, folder, before=[follow, times], after=after)
        return parts, RunCache(config, parts, trainer, follow), trainer, times


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    settle()
    started = CLOCK.now()
    work()
    settle()
    return CLOCK.now() - started


def settle() -> None:
    """Wait for what a GPU has been given, where one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="class folders in train, val and test; else pictures are made")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    arguments = parser.parse_args()
    if arguments.clock == "cpu":
        CLOCK.now = time.process_time  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        root = arguments.root or Path(scratch) / "pictures"
        if arguments.root is None:
            make_pictures(root, arguments.pictures, arguments.size)
        report(arguments, measure(Bench(arguments, root, Path(scratch)), arguments))


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds by name, one for each repeat."""
    found: dict[str, list[float]] = {}

    def add(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    for _ in range(arguments.repeats):
        add("bare uncached", bench.by_hand("off", 1))
        bench.empty()
        add("bare cached", bench.by_hand("require", 20))
        add("lightning uncached", statistics.median(bench.run("off", 2)[1]))
        bench.empty()
        add("one pass", bench.one_pass())
        seconds, epochs = bench.run("require", arguments.epochs)
        add("probe", seconds)
        add("lightning cached", statistics.median(epochs[1:]))
        add("warm probe", bench.run("require", arguments.epochs)[0])
    return found


def report(arguments: argparse.Namespace, found: dict[str, list[float]]) -> None:
    """Print the medians and their ratios."""
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"\n{arguments.backbone}, {arguments.pictures} pictures at {arguments.size}, {arguments.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, batches of {arguments.batch_size}, {arguments.clock} time, ", end="")
    print(f"median of {arguments.repeats}\n")
    print("| what | uncached, s | cached, s | ratio |\n|---|---|---|---|")
    for title, name in (("head-only epoch, bare loop", "bare"), ("head-only epoch, Lightning", "lightning")):
        slow, fast = middle[f"{name} uncached"], middle[f"{name} cached"]
        print(f"| {title} | {slow:.3f} | {fast:.5f} | {slow / fast:.0f} |")
    print("\n| what | s | x one forward pass |\n|---|---|---|")
    titles = {"one pass": "one forward pass over train and val", "probe": f"probe of {arguments.epochs} epochs, cold"}
    titles["warm probe"] = f"probe of {arguments.epochs} epochs, found in the cache"
    for name, title in titles.items():
        print(f"| {title} | {middle[name]:.2f} | {middle[name] / middle['one pass']:.2f} |")


if __name__ == "__main__":
    main()
