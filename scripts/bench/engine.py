"""How fast a frozen body runs plainly, in each other way, and as the forward engine chooses.

Prints a Markdown table of pictures a second, of medians over rounds in which all take turns; random weights. What an
engine would choose depends on how many pictures are to come, which `--pictures` says; it measures with an empty folder.

    python scripts/bench/engine.py --pictures 20000
    python scripts/bench/engine.py --device cuda --precision bf16 --batch 128
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from frostline.features import ForwardEngine, FrozenBody, find_boundary
from frostline.features.engine_ways import COMPILED, HALF_COMPILED, Way, ways
from frostline.specs import Engine

MODELS = ["mobilenetv2_100", "resnet18", "vit_tiny_patch16_224"]


class Half:
    """bfloat16 autocast, as ``trainer.precision=bf16-mixed`` has it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, torch.bfloat16)


def body_of(name: str, device: str, precision: Half | None) -> FrozenBody:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(device).eval()

    def forward(images: Tensor) -> Any:
        with contextlib.nullcontext() if precision is None else precision.forward_context():
            return model(images)

    return FrozenBody(model, find_boundary(model), forward)


def engines_of(body: FrozenBody, arguments: argparse.Namespace, folder: Path) -> dict[str, ForwardEngine]:
    """The plain one, one for each way, and the two that choose."""
    precision = Half(arguments.device) if arguments.precision == "bf16" else None
    part = body.boundary.part(body.model)
    rest = {"pictures": arguments.pictures, "folder": folder, "say": lambda line: print(f"  {line}", flush=True)}
    rest["clock"] = Clock.now
    if precision is not None:
        rest["precision"] = precision
    has_half = precision is not None
    offered: dict[str, Way] = {
        way.name: way
        for wanted in (Engine.auto, Engine.bf16)
        for way in ways(wanted, torch.device(arguments.device), autocast=has_half)
    }
    if not arguments.compile:
        offered = {name: way for name, way in offered.items() if way not in (COMPILED, HALF_COMPILED)}
    engines = {"plain": ForwardEngine(body.plain, part, Engine.plain, **rest)}
    for name, way in offered.items():
        # a way that is named is taken unmeasured
        engines[name] = ForwardEngine(body.plain, part, Engine.channels_last, choices=[way], **rest)
    for wanted in (Engine.auto,) if has_half else (Engine.auto, Engine.bf16):
        allowed = ways(wanted, torch.device(arguments.device), autocast=has_half)
        choices = [way for way in allowed if way.name in offered]
        engines[f"engine={wanted.value}"] = ForwardEngine(body.plain, part, wanted, choices=choices, **rest)
    return engines


def rates(name: str, arguments: argparse.Namespace) -> dict[str, str]:
    device, batch = arguments.device, arguments.batch
    body = body_of(name, device, Half(device) if arguments.precision == "bf16" else None)
    images = torch.randn(batch, 3, arguments.size, arguments.size).to(device)
    print(name, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        engines = engines_of(body, arguments, Path(folder))
        first: dict[str, float] = {}
        for title, engine in engines.items():
            first[title] = seconds(engine, images)
        taken: dict[str, list[float]] = {title: [] for title in engines}
        for _ in range(arguments.rounds):
            for title, engine in engines.items():
                taken[title].append(seconds(engine, images))
    found = {}
    for title, engine in engines.items():
        if engine.chosen == "plain" and title not in ("plain", "engine=auto", "engine=bf16"):
            found[title] = "-"
            continue
        found[title] = f"{batch / statistics.median(taken[title]):.0f}"
        if title.startswith("engine="):
            found[title] += f" ({engine.chosen})"
        elif first[title] > 2:
            found[title] += f" after {first[title]:.0f} s"
    return found


class Clock:
    """Wall-clock seconds, or the processor's of this process, which others on a busy machine change less."""

    now = staticmethod(time.perf_counter)


def seconds(engine: ForwardEngine, images: Tensor) -> float:
    started = Clock.now()
    engine(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return Clock.now() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pictures", type=int, default=20_000, help="of the pass that the engine chooses for")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for one thread when others work")
    parser.add_argument("--threads", type=int, help="of the CPU; as torch has it where nothing is said")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.clock == "cpu":
        Clock.now = staticmethod(time.process_time)
    table = {name: rates(name, arguments) for name in arguments.models}
    titles = list(dict.fromkeys(title for row in table.values() for title in row))
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    how = f"batch {arguments.batch}, precision {arguments.precision}, {where}, {arguments.clock} time"
    print(f"\nPictures a second at {arguments.size}, {how}\n")
    print(f"| model | {' | '.join(titles)} |")
    print("|---" * (len(titles) + 1) + "|")
    for name, row in table.items():
        print(f"| {name} | {' | '.join(row.get(title, '-') for title in titles)} |")


if __name__ == "__main__":
    main()
