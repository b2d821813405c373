"""What an epoch costs where the front of the network is frozen, with and without its features computed once.

The limit is what the arithmetic allows: of a forward pass the share a is frozen, and a backward pass takes two forward
ones through the rest, so that an epoch costs a + 3(1 - a) without and 3(1 - a) with features that are kept. The share
is measured here, as the time of the frozen part of a forward pass over batches that are in memory. Nothing of decoding
is in it: without features both the epoch and the limit are those of pictures in memory.

Prints Markdown, one row for each backbone: medians over the repeats, which alternate. ``ratio / limit`` is at most 1.1
where reading features costs nothing to speak of.

    python scripts/bench/half_frozen.py --pictures 128 --size 128 resnet18:5 vit_tiny_patch16_224:7
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cached_probe import make_pictures

from frostline.callbacks import FollowSchedule
from frostline.config import compose, load_config
from frostline.features.boundary import in_eval
from frostline.runs.caching import RunCache
from frostline.runs.parts import Parts, build_parts
from frostline.runs.starting import prepare
from frostline.runs.trainers import make_trainer
from frostline.types import Batch


def now(device: str) -> float:
    """Seconds of this process's processors; on a GPU those of the wall, once it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Half:
    """A backbone of which the depth groups below one are frozen.

    Args:
        arguments: of the command line.
        backbone: its name.
        line: the first depth group that learns.
        root: the pictures.
        scratch: for runs.
    """

    def __init__(self, arguments: argparse.Namespace, backbone: str, line: int, root: Path, scratch: Path) -> None:
        self.arguments = arguments
        overrides = [
            "data=folder",
            f'data.root="{root}"',
            f"data.size={arguments.size}",
            f"data.batch_size={arguments.batch_size}",
            "data.workers=0",
            f"backbone.name={backbone}",
            "backbone.weights=none",
            "augment=none",
            "freeze=linear_probe",
            "freeze.phases.probe.cache.mode=require",
            f"trainer={'cpu' if arguments.device == 'cpu' else 'gpu'}",
            "trainer.max_epochs=20",
            f'output="{scratch / "runs"}"',
        ]
        groups = build_parts(load_config(prepare(compose("train", overrides), overrides).config)).backbone.groups
        overrides.append(f"freeze.phases.probe.train='all - bottom:{line}'")
        folder = prepare(compose("train", overrides), overrides)
        config = load_config(folder.config)
        self.parts: Parts = build_parts(config)
        follow = FollowSchedule(self.parts.schedule, folder.schedule)
        self.cache = RunCache(config, self.parts, make_trainer(config, folder, before=[follow], after=_none()), follow)
        place = self.cache.plan.verdicts[0].place
        assert place is not None
        self.cut, self.groups = place.cut, len(groups)
        self.task = self.parts.task.to(arguments.device)
        self.task.enter(self.parts.schedule, self.parts.schedule.start)
        self.optimizer = torch.optim.SGD((one for one in self.task.parameters() if one.requires_grad), lr=1e-3)
        self.features = self.parts.data.loader("train", train=True)
        feeding, self.parts.data.feeding = self.parts.data.feeding, None
        self.pictures: list[Batch] = [self._there(batch) for batch in self.parts.data.loader("train", train=True)]
        self.parts.data.feeding = feeding

    def uncached(self) -> float:
        """Seconds of an epoch from pictures in memory, through the whole network."""
        return self._seconds(lambda: self._epoch(self.pictures))

    def cached(self) -> float:
        """Seconds of an epoch from features, read from where they are kept."""
        return self._seconds(lambda: self._epoch(map(self._there, self.features)))

    def frozen(self) -> float:
        """The share of the time of a forward pass that the frozen part takes."""
        whole = self._seconds(lambda: self._forward(self.task.model))
        return min(self._seconds(lambda: self._forward(self.cut.runner(self.task.model))) / whole, 0.999)

    def _forward(self, run: Callable[[Any], Any]) -> None:
        with in_eval(self.task.model), torch.no_grad():
            for batch in self.pictures:
                run(batch.images)

    def _epoch(self, batches: Any) -> None:
        for batch in batches:
            loss = self.task.loss(self.task.logits(batch), batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _there(self, batch: Batch) -> Batch:
        device = self.arguments.device
        return batch._replace(images=batch.images.to(device), targets=batch.targets.to(device))

    def _seconds(self, work: Callable[[], None]) -> float:
        started = now(self.arguments.device)
        work()
        return now(self.arguments.device) - started


def _none() -> Any:
    from lightning import Callback

    return Callback()


def row(half: Half, backbone: str, repeats: int) -> str:
    """A line of the table."""
    half.cached()  # computes
    half.uncached()
    taken: list[Sequence[float]] = [(half.uncached(), half.cached(), half.frozen()) for _ in range(repeats)]
    slow, fast, frozen = (statistics.median(column) for column in zip(*taken, strict=True))
    trained = 3 * (1 - frozen)
    limit = trained / (frozen + trained)
    cells = [backbone, half.cut.title, f"{frozen:.2f}", f"{slow:.3g}", f"{fast:.3g}", f"{fast / slow:.3f}"]
    return f"| {' | '.join([*cells, f'{limit:.3f}', f'{fast / slow / limit:.2f}'])} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=["resnet18:5", "vit_tiny_patch16_224:7"], help="NAME:GROUP")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "cache")
        root = Path(scratch) / "pictures"
        make_pictures(root, arguments.pictures, arguments.size)
        lines = []
        for given in arguments.backbones:
            backbone, _, line = given.partition(":")
            half = Half(arguments, backbone, int(line), root, Path(scratch))
            lines.append(row(half, f"{backbone}, {line} of {half.groups} groups frozen", arguments.repeats))
    clock = "processor seconds" if arguments.device == "cpu" else torch.cuda.get_device_name()
    print(f"\n{arguments.pictures} pictures at {arguments.size}, batches of {arguments.batch_size}, {clock}, ", end="")
    print(f"median of {arguments.repeats}\n")
    print("| backbone | cut | a | epoch, s | with features, s | ratio | limit | ratio / limit |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
