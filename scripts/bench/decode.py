"""What it costs to read pictures: torchvision's ImageFolder with Pillow against Frostline's loaders.

Prints a Markdown table for small and for large JPEGs: pictures per second of one core (processor time of this process,
which reads without workers), medians of passes that alternate, and how far the inputs are from ImageFolder's, in steps
of 1/255 before the normalization. All end with normalized float32 batches on the CPU. The pass that fills
`data.decoded` is not counted, and named in a column of its own.

    python scripts/bench/decode.py --pictures 64 --repeats 5
    python scripts/bench/decode.py --folder DATA/val       # a folder of one folder per class, of your own pictures
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

from frostline.data import Augmentation, FolderData
from frostline.types import Preprocessing

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"512 x 384": (512, 384), "2000 x 1500": (2000, 1500)}

Batches = Callable[[], Iterator[Tensor]]


@dataclass
class Way:
    """A way of reading: its batches, and the seconds of what it does once before."""

    batches: Batches
    once: float = 0.0


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Soft shapes, hard edges and grain; its JPEG has about as many bytes as that of a photograph."""
    made = np.random.default_rng(seed)
    coarse = made.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(40):
        left, top = int(made.integers(0, width)), int(made.integers(0, height))
        red, green, blue = made.integers(0, 256, 3).tolist()
        picture.paste((red, green, blue), (left, top, left + width // 9, top + height // 7))
    grain = made.normal(0, 6, (height, width, 1))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.0))) + grain
    return Image.fromarray(soft.clip(0, 255).astype(np.uint8))


def write_pictures(root: Path, size: tuple[int, int], count: int) -> None:
    """``count`` JPEGs of quality 90 in two classes."""
    for number in range(count):
        place = root / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        photograph(*size, seed=number).save(place / f"{number:04d}.jpg", quality=90)


def image_folder(root: Path, told: Preprocessing) -> Way:
    """The recipe of torchvision's examples, with the interpolation of the backbone."""
    _, height, _ = told.size
    steps = [
        transforms.Resize(int(height / told.crop_pct), InterpolationMode(told.interpolation)),
        transforms.CenterCrop(height),
        transforms.ToTensor(),
        transforms.Normalize(told.mean, told.std),
    ]
    pictures = datasets.ImageFolder(str(root), transforms.Compose(steps))
    return Way(lambda: (images for images, _ in DataLoader(pictures, BATCH)))


def frostline(root: Path, told: Preprocessing, **settings: Any) -> Way:
    """Frostline's loader of the same pictures in the same order."""
    data = FolderData(str(root), batch_size=BATCH, workers=0, val_fraction=0.0, **settings)
    data.prepare(told, Augmentation(), seed=0)
    loader = data.loader("train")
    dataset: Any = loader.dataset
    before = time.process_time()
    if dataset.kept is not None:
        with contextlib.redirect_stderr(io.StringIO()):
            dataset.kept.fill()
    return Way(lambda: (batch.images for batch in loader), time.process_time() - before)


def ways(root: Path, told: Preprocessing) -> dict[str, Way]:
    """Every way of reading, the peer first."""
    return {
        "ImageFolder, Pillow": image_folder(root, told),
        "Frostline": frostline(root, told),
        "Frostline, data.decode=exact": frostline(root, told, decode="exact"),
        "Frostline, data.decoded=memory": frostline(root, told, decoded="memory"),
        "Frostline, data.decoded=disk": frostline(root, told, decoded="disk"),
    }


def seconds_of(way: Way) -> float:
    """Processor time of one pass."""
    started = time.process_time()
    for _ in way.batches():
        pass
    return time.process_time() - started


def distance(way: Way, peer: Way) -> tuple[float, float, float]:
    """Mean, 99th percentile and largest difference in steps of 1/255."""
    std = torch.tensor(STD).view(-1, 1, 1) * 255
    pairs = zip(way.batches(), peer.batches(), strict=True)
    levels = torch.cat([((one - other).abs() * std).flatten() for one, other in pairs]).numpy()
    return float(levels.mean()), float(np.percentile(levels, 99)), float(levels.max())


def measured(root: Path, told: Preprocessing, repeats: int) -> list[str]:
    """The rows of a table."""
    found = ways(root, told)
    count = sum(len(batch) for batch in next(iter(found.values())).batches())
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, way in found.items():
            times[name].append(seconds_of(way) / count)
    peer, *_ = found
    rows = []
    for name, way in found.items():
        typical = statistics.median(times[name])
        ratio = statistics.median(a / b for a, b in zip(times[peer], times[name], strict=True))
        mean, most, largest = distance(way, found[peer])
        once = f"{1000 * way.once / count:.2f} ms" if way.once > 0.001 else ""
        rows.append(f"| {name} | {1 / typical:,.0f} | {ratio:.2f} | {mean:.3f} / {most:.0f} / {largest:.0f} | {once} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of your own pictures, in one folder per class")
    parser.add_argument("--pictures", type=int, default=64, help="that are made of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="of the input in pixels")
    parser.add_argument("--interpolation", default="bicubic", choices=["bilinear", "bicubic"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    told = Preprocessing((3, given.size, given.size), MEAN, STD, given.interpolation, 0.875, "center")
    with tempfile.TemporaryDirectory() as made:
        os.environ["XDG_CACHE_HOME"] = f"{made}/cache"
        roots = {} if given.folder is None else {str(given.folder): given.folder}
        for name, size in () if roots else SIZES.items():
            write_pictures(Path(made) / name, size, given.pictures)
            roots[name] = Path(made) / name
        for name, root in roots.items():
            print(f"\n{name} to {given.size}, {given.interpolation}\n")
            print("| | pictures/s per core | times ImageFolder | mean / p99 / max of 255 | once, per picture |")
            print("|---|---:|---:|---:|---:|")
            print("\n".join(measured(root, told, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
