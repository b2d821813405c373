"""What a table of a million rows costs: seconds to load it, and memory that a worker process takes for itself.

    python scripts/bench/million_rows.py [--rows 1000000] [--files 1000] [--links] [--workers 2] > table.md

Makes small pictures, which the rows name again and again (with --links, each row has a file of its own, a hard link),
in one training split and an official validation split, as CSV, Parquet and JSON lines. Each table is loaded by a
process of its own, which then starts the workers of a DataLoader; they read every name and every label, and say what
memory they hold alone (unique set size) and in fair shares (proportional set size). A table of a thousand rows shows
what a worker takes in any case, and Python lists of the same names and labels show what copying looks like. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from frostline.data.table import TableData

MEGABYTE = 2**20
CLASSES = 100
TABLES = {"CSV": "rows.csv", "Parquet": "rows.parquet", "JSON lines": "rows.jsonl"}
SMALL = "few.csv"
LISTS = "Python lists"
COLUMNS = (
    "table",
    "rows",
    "load, s",
    "CPU, s",
    "main RSS grows, MB",
    "worker USS, MB",
    "against few rows, MB",
    "worker PSS, MB",
)


def memory() -> dict[str, float]:
    """Of this process in MB: what it alone holds, and its fair share of all that it holds."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, flags=re.MULTILINE)}
    return {"uss": sizes["Private_Clean"] + sizes["Private_Dirty"], "pss": sizes["Pss"], "rss": sizes["Rss"]}


class Lists:
    """The names and labels of a split as Python lists."""

    def __init__(self, names: list[str], labels: list[int]) -> None:
        self.names, self.labels = names, labels

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]


class Touched(Dataset[dict[str, float]]):
    """One sample for each worker: it reads all names and labels of its share, and measures itself."""

    def __init__(self, split: Lists | object, workers: int) -> None:
        self.split, self.workers = split, workers

    def __len__(self) -> int:
        return self.workers

    def __getitem__(self, worker: int) -> dict[str, float]:
        split = self.split
        # all rows by each worker, as it would be after some epochs
        length = sum(len(split.name(index)) + int(split.labels[index]) for index in range(len(split)))  # type: ignore
        return {**memory(), "length": float(length)}


def make(folder: Path, rows: int, files: int, *, links: bool) -> None:
    """Writes the pictures and the tables."""
    held = rows // 20  # validation, of files that training does not have
    files = min(files, rows - held)
    pictures = [folder / f"picture_{number:06d}.png" for number in range(files + 100)]
    for number, path in enumerate(pictures):
        Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 0)).save(path)
    numbers = np.concatenate([np.arange(rows - held) % files, files + np.arange(held) % 100])
    if links:
        names = [f"set/{row % 1000:03d}/picture_{row:07d}.png" for row in range(rows)]
        for part in range(1000):
            (folder / f"set/{part:03d}").mkdir(parents=True)
        for name, number in zip(names, numbers, strict=True):
            os.link(pictures[number], folder / name)
    else:
        names = [pictures[number].name for number in numbers]
    table = pa.table(
        {
            "path": names,
            "label": [f"class {number % CLASSES}" for number in numbers],
            "split": ["train"] * (rows - held) + ["val"] * held,
        }
    )
    pyarrow.csv.write_csv(table, folder / TABLES["CSV"])
    pyarrow.csv.write_csv(pa.concat_tables([table[:950], table[-50:]]), folder / SMALL)
    pyarrow.parquet.write_table(table, folder / TABLES["Parquet"])
    with (folder / TABLES["JSON lines"]).open("w") as file:
        file.writelines(json.dumps(row) + "\n" for batch in table.to_batches(10_000) for row in batch.to_pylist())


def measure(table: Path, workers: int, *, as_lists: bool) -> dict[str, float]:
    """Loads a table in this process, and lets workers read it."""
    before = memory()["rss"]
    data = TableData(str(table))
    wall, cpu = time.perf_counter(), time.process_time()
    data.load()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    split: object = data.splits["train"]
    if as_lists:
        train = data.splits["train"]
        split = Lists([train.name(index) for index in range(len(train))], train.labels.tolist())
    loader = DataLoader(
        Touched(split, workers), batch_size=None, num_workers=workers, multiprocessing_context="fork", shuffle=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        found = list(loader)
    return {
        "rows": sum(len(part) for part in data.splits.values()),
        "wall": wall,
        "cpu": cpu,
        "grown": memory()["rss"] - before,
        **{key: sum(one[key] for one in found) / len(found) for key in ("uss", "pss")},
    }


def measured(table: Path, workers: int, *, as_lists: bool = False) -> dict[str, float]:
    """`measure` in a process of its own."""
    line = [sys.executable, __file__, "--measure", str(table), "--workers", str(workers)]
    done = subprocess.run([*line, *(["--lists"] if as_lists else [])], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(name: str, found: dict[str, float], least: float) -> None:
    cells: Sequence[str] = (
        name,
        f"{found['rows']:,.0f}",
        f"{found['wall']:.2f}",
        f"{found['cpu']:.2f}",
        f"{found['grown']:.0f}",
        f"{found['uss']:.1f}",
        f"{found['uss'] - least:+.1f}",
        f"{found['pss']:.0f}",
    )
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1_000, help="pictures that the training rows name")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--links", action="store_true", help="a file for each row")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lists", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.workers, as_lists=options.lists)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(folder, options.rows, options.files, links=options.links)
        print("| " + " | ".join(COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|", flush=True)
        few = measured(folder / SMALL, options.workers)
        show("few rows", few, few["uss"])
        for name, file in TABLES.items():
            show(name, measured(folder / file, options.workers), few["uss"])
        show(LISTS, measured(folder / TABLES["CSV"], options.workers, as_lists=True), few["uss"])


if __name__ == "__main__":
    main()
