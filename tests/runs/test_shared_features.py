"""Jobs that differ in what the head learns with share one pass through the body, in any order and side by side."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from frostline.config import compose, load_config
from frostline.runs.folder import RunFolder
from frostline.runs.starting import prepare, run_job

# writes down each picture that comes through its body, noise that it is looked at with too
COUNTING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, record):
        super().__init__()
        self.record = record
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.fc = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images):
        if images.device.type != "meta":
            with open(self.record, "a") as file:
                file.write("".join(f"{float(one.double().sum()):.6f}\\n" for one in images))
        return self.fc(self.stem(images).relu().mean(dim=(2, 3)))
"""
PICTURES = 3 * (10 + 5)  # of training and validation


@pytest.fixture
def forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a backbone of its own writes down what comes through it, in whatever process."""
    (tmp_path / "counting_body.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "forwards"


def job(root: Path, forwards: Path, *overrides: str) -> RunFolder:
    own = [
        "backbone=module",
        "backbone.module._target_=counting_body.Net",
        f'+backbone.module.record="{forwards}"',
        "backbone.head=fc",
        "freeze=linear_probe",
        "augment=none",
        "data=folder",
        f'data.root="{root}"',
        "data.size=32",
        "data.batch_size=8",
        "data.workers=0",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "test=false",
        "logger=csv",
        "report=false",  # as in the jobs of a sweep: a report looks at a few pictures once more
        f'output="{forwards.parent}/outputs"',
        *overrides,
    ]
    return prepare(compose("train", own), own)


def run(folder: RunFolder) -> int:
    return run_job("train", load_config(folder.config), folder)


def seen(forwards: Path) -> Counter[str]:
    return Counter(forwards.read_text().split()) if forwards.exists() else Counter()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_once", "order"),
    [(1, slice(None)), (2, slice(None)), (1, slice(None, None, -1))],
    ids=["forth", "forth, two at once", "back"],
)
def test_a_grid_is_one_pass_and_the_next_one_is_none(
    at_once: int, order: slice, forwards: Path, pictures: Path
) -> None:
    grid = [
        [f"optimizer.lr={lr}", f"seed={seed}", f"optimizer.weight_decay={decay}"]
        for seed, lr, decay in product((1, 0), (0.1, 0.01), (0.1,))
    ]
    folders = [job(pictures, forwards, *overrides) for overrides in grid[order]]
    with ThreadPoolExecutor(at_once) as pool:
        assert list(pool.map(run, folders)) == [0] * len(folders)
    counts = seen(forwards)
    # each picture once, in whatever job came first; what comes again is noise and zeros, by which a model is looked at
    assert sum(count == 1 for count in counts.values()) == PICTURES
    assert len(counts) - PICTURES <= 3
    assert len({folder.read_metrics()["val/loss"] for folder in folders}) == len(folders)
    # the second sweep
    forwards.unlink()
    assert run(job(pictures, forwards, "optimizer.lr=0.3", "seed=5")) == 0
    assert seen(forwards) == Counter()
