"""What many heads cost on one frozen backbone.

Prints two Markdown tables, of medians over the repeats, which alternate:

- a grid of heads by `frostline probe`, from pictures and an empty cache, against one head, against as many separate
  runs of one head that share nothing, and against the same grid on features that are in the cache;
- an epoch of heads alone against the number of pictures and of heads, on features made up of noise, with the peak of
  memory beyond what the process had before, and against as many heads one after the other.

    python scripts/bench/grid.py --pictures 512 --size 64 --heads 16
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from frostline.config import absolute_paths, compose
from frostline.probing import Head
from frostline.probing.training import LabelledFeatures, Settings, train_heads
from frostline.runs.probe import probe
from frostline.specs import FeatureChoice

CLASSES = 10
POINTS = ((1_000, 16), (10_000, 16), (100_000, 16), (10_000, 1), (10_000, 4), (10_000, 64), (10_000, 256))


def make_pictures(root: Path, count: int, side: int) -> None:
    """A folder of JPEG pictures in classes that differ in color, a quarter as many again for validation."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", max(count // 4, CLASSES)), ("test", CLASSES)):
        for picture in range(number):
            folder = root / split / f"class{picture % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            small = generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
            small[..., picture % 3] //= 1 + picture % CLASSES
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{picture}.jpg")


class Grids:
    """Runs of `frostline probe` on the same pictures.

    Args:
        arguments: of the command line.
        scratch: a folder for pictures, results and the cache.
    """

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self._arguments, self._scratch = arguments, scratch
        make_pictures(scratch / "pictures", arguments.pictures, arguments.size)
        self._rates = [10 ** (-4 + 3 * step / max(arguments.heads - 1, 1)) for step in range(arguments.heads)]

    def grid(self) -> None:
        """All heads at once, from an empty cache."""
        self._empty()
        self._run(self._rates)

    def one(self) -> None:
        """One of them, from an empty cache."""
        self._empty()
        self._run(self._rates[:1])

    def separate(self) -> None:
        """All of them, each in a run of its own from an empty cache."""
        for rate in self._rates:
            self._empty()
            self._run([rate])

    def warm(self) -> None:
        """All heads at once, on features that are in the cache."""
        self._run(self._rates)

    def _empty(self) -> None:
        shutil.rmtree(self._scratch / "cache" / "frostline" / "features", ignore_errors=True)

    def _run(self, rates: Sequence[float]) -> None:
        arguments = self._arguments
        overrides = [
            "data=folder",
            f'data.root="{self._scratch / "pictures"}"',
            f"data.size={arguments.size}",
            f"data.batch_size={arguments.batch_size}",
            f"data.workers={arguments.workers}",
            "backbone=timm",
            f"backbone.name={arguments.backbone}",
            "backbone.weights=none",
            f"probe.lr={list(rates)}",
            "probe.weight_decay=[0.0]",
            f"probe.epochs={arguments.epochs}",
            "probe.patience=null",
            "probe.references=[]",
            "test=false",
            f"device={arguments.device}",
            f'output="{self._scratch / "runs"}"',
        ]
        config = compose("probe", overrides)
        absolute_paths(config)
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            probe(config)


def heads_epoch(pictures: int, heads: int, arguments: argparse.Namespace, *, together: bool = True) -> dict[str, float]:
    """Seconds, seconds of the processor and MB of an epoch of heads, its validation on a tenth as many included."""
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)

    def made(count: int) -> LabelledFeatures:
        labels = torch.randint(CLASSES, (count,), generator=generator)
        return LabelledFeatures(torch.randn(count, arguments.width, generator=generator).to(device), labels.to(device))

    train, val = made(pictures), made(max(pictures // 10, CLASSES))
    steps = -(-pictures // arguments.batch_size)
    settings = Settings(epochs=1, factors=[1.0] * steps)

    def batches(seed: int, epoch: int) -> Sequence[Tensor]:
        order = torch.randperm(pictures, generator=torch.Generator().manual_seed(seed + epoch)).to(device)
        return list(order.split(arguments.batch_size))

    grid = [Head(FeatureChoice.last, 1e-3 * (1 + at), 0.01, 0) for at in range(heads)]

    def run() -> None:
        for some in [grid] if together else [[head] for head in grid]:
            train_heads(
                some,
                train,
                val,
                num_classes=CLASSES,
                batches=batches,
                loss=nn.CrossEntropyLoss(),
                settings=settings,
            )
        if device.type == "cuda":
            torch.cuda.synchronize()

    before = memory(device)
    seconds, processor = timed(run)
    return {"seconds": seconds, "processor": processor, "memory": memory(device) - before}


def memory(device: torch.device) -> float:
    """MB at the peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor that ``work`` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def in_child(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The answer of another process, so that each point has a peak of memory of its own."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, json.dumps(work()).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return dict(json.loads(text))


def points(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each number of pictures and of heads."""
    for pictures, heads in POINTS:
        together, apart = [], []
        for repeat in range(arguments.repeats):
            measure: list[tuple[list[dict[str, float]], bool]] = [(together, True)]
            # as many heads one after the other take long where they are many
            measure += [(apart, False)] if heads <= 16 and pictures <= 10_000 and repeat == 0 else []
            for kept, at_once in measure:

                def work(count: int = pictures, number: int = heads, at_once: bool = at_once) -> dict[str, float]:
                    return heads_epoch(count, number, arguments, together=at_once)

                kept.append(in_child(work) if arguments.device == "cpu" else work())
        middle = {name: statistics.median(one[name] for one in together) for name in together[0]}
        alone = f"{apart[0]['processor']:.2f}" if apart else ""
        yield [
            f"{pictures:,}",
            f"{heads}",
            f"{middle['seconds']:.2f}",
            f"{middle['processor']:.2f}",
            f"{middle['memory']:.0f}",
            alone,
        ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


def grids(arguments: argparse.Namespace, scratch: Path) -> None:
    """The first table."""
    runs = Grids(arguments, scratch)
    count = arguments.heads
    runs.one()  # imports, and what a first run pays for once
    ways: dict[str, Callable[[], Any]] = {
        "one head": runs.one,
        f"{count} heads": runs.grid,
        f"{count} heads, features in the cache": runs.warm,
    }
    if arguments.separate:
        ways[f"{count} separate runs"] = runs.separate
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            found[name].append(timed(way))
    middle = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in found.items()}
    base = middle["one head"][1]
    rows = [[name, f"{wall:.2f}", f"{cpu:.2f}", f"{cpu / base:.2f}"] for name, (wall, cpu) in middle.items()]
    table(["run", "s", "s of the processor", "x one head"], rows)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-separate", dest="separate", action="store_false", help="leave the separate runs out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=512, help="features of a picture, in the second table")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", choices=["grid", "points"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    if arguments.only != "grid":
        print(f"\nAn epoch of heads on {arguments.width} features, batches of {arguments.batch_size}, {where}\n")
        header = ["pictures", "heads", "s", "s of the processor", "MB more", "s of the processor, one after the other"]
        table(header, list(points(arguments)))
    if arguments.only != "points":
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
            print(f"\n{arguments.pictures} pictures at {arguments.size}, {arguments.backbone}, ", end="")
            print(f"{arguments.epochs} epochs, {where}\n")
            grids(arguments, Path(scratch))


if __name__ == "__main__":
    main()
