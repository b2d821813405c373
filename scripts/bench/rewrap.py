"""What a head-only phase costs on two processes: wrapped anew at the transition, or frozen after the wrap.

DistributedDataParallel learns which parameters have gradients when it is made. Where phases differ in them, there are
two ways: (a) freeze, and wrap anew at each transition; (b) wrap the model while all of it learns, with
``find_unused_parameters=True``, and freeze after that. Both train the head of a network of resnet18's size, side by
side: the same two processes, which talk over gloo, take turns at it, and each run of a few steps is one repeat. Prints
a Markdown table with the median step time of the repeats and the bytes that a process gives to be reduced in a step;
beside it, without a wrapper at all, a step that reduces nothing, what a wrap costs, and (c), all of it learning.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.freezing import apply_phase

RANKS = 2
Measured = dict[str, list[float]]


class Reduced:
    """Counts what the wrapper reduces: a communication hook that adds up the bytes of each bucket."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, state: object, bucket: Any) -> torch.futures.Future[Tensor]:
        held: Tensor = bucket.buffer()
        self.bytes += held.numel() * held.element_size()
        work = torch.distributed.all_reduce(held.div_(RANKS), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])


def head_of(model: nn.Module) -> frozenset[str]:
    """The parameters of the classifier."""
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in head)


def wrapped_anew(model: nn.Module) -> nn.Module:
    apply_phase(model, head_of(model))
    return DistributedDataParallel(model)


def frozen_after(model: nn.Module) -> nn.Module:
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    apply_phase(model, head_of(model))
    return wrapped


def not_wrapped(model: nn.Module) -> nn.Module:
    apply_phase(model, head_of(model))
    return model


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "no wrapper": not_wrapped,
    "(a) wrapped anew": wrapped_anew,
    "(b) frozen after the wrap, unused found": frozen_after,
    "(c) all of it learns": DistributedDataParallel,
}


class Way:
    """One way to be wrapped, with a model of its own.

    Args:
        model: copied.
        wrap: see ``WAYS``.
        reduced: counts; the hook takes time, so that nothing is measured where there is one.
    """

    def __init__(
        self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module], reduced: Reduced | None = None
    ) -> None:
        own = copy.deepcopy(model).eval()  # as a frozen body is
        begun = time.perf_counter()
        self.model = wrap(own)
        self.wrapping = time.perf_counter() - begun
        if reduced is not None and isinstance(self.model, DistributedDataParallel):
            # torch looks at the annotations of a hook
            self.model.register_comm_hook(None, lambda state, bucket: reduced(state, bucket))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def steps(self, count: int, images: Tensor, targets: Tensor) -> float:
        """Seconds of a step, as the mean of ``count``."""
        torch.distributed.barrier()
        begun = time.perf_counter()
        for _ in range(count):
            nn.functional.cross_entropy(self.model(images), targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (time.perf_counter() - begun) / count


def bytes_of_step(model: nn.Module, wrap: Callable[[nn.Module], nn.Module], images: Tensor, targets: Tensor) -> int:
    """The bytes that a process gives to be reduced in one step, of the second, when the buckets have settled."""
    reduced = Reduced()
    way = Way(model, wrap, reduced)
    way.steps(1, images, targets)
    reduced.bytes = 0
    way.steps(1, images, targets)
    return reduced.bytes


def on_rank(rank: int, folder: str, options: argparse.Namespace) -> None:
    """One of the two processes; the first writes what it has measured."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=10)
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    targets = torch.arange(options.batch) % 10
    ways = {name: Way(model, wrap) for name, wrap in WAYS.items()}
    found: dict[str, Measured] = {
        name: {
            "seconds": [],
            "bytes": [float(bytes_of_step(model, WAYS[name], images, targets))],
            "wrap": [way.wrapping],
        }
        for name, way in ways.items()
    }
    for repeat in range(options.repeats + 1):
        for name, way in ways.items():
            seconds = way.steps(options.steps, images, targets)
            if repeat:  # the first warms up
                found[name]["seconds"].append(seconds)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    torch.distributed.destroy_process_group()


def measure(options: argparse.Namespace) -> dict[str, Measured]:
    """All repeats of each way."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(on_rank, (folder, options), nprocs=RANKS, start_method="spawn")
        found: dict[str, Measured] = torch.load(Path(folder) / "found.pt")
    return found


def row(name: str, measured: Measured, base: float) -> str:
    """A line of the table; ``base`` is the median step of (a), in seconds."""
    seconds = sorted(measured["seconds"])
    middle, low, high = statistics.median(seconds), seconds[len(seconds) // 4], seconds[-1 - len(seconds) // 4]
    spread = f"{1e3 * middle:.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
    (reduced,), (wrap,) = measured["bytes"], measured["wrap"]
    return f"| {name} | {spread} | {middle / base:.2f} | {reduced / 1e3:,.1f} kB | {1e3 * wrap:.0f} ms |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="a timm model")
    parser.add_argument("--batch", type=int, default=4, help="pictures a process and step")
    parser.add_argument("--size", type=int, default=64, help="height and width of the pictures")
    parser.add_argument("--steps", type=int, default=5, help="steps of a repeat")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    found = measure(options)
    print("| head-only phase | step: median (quartiles) | to (a) | reduced a step | to wrap |")
    print("|---|---|---|---|---|")
    base = statistics.median(found["(a) wrapped anew"]["seconds"])
    for name, measured in found.items():
        print(row(name, measured, base))


if __name__ == "__main__":
    main()
