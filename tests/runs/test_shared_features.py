"""Jobs that differ in what the head learns with share one pass through the body, in any order and side by side."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from frostline.config import absolute_paths, compose, load_config
from frostline.runs.folder import RunFolder
from frostline.runs.probe import probe
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
        return self.fc(self.last(self.stem(images).relu().mean(dim=(2, 3))))

    def last(self, maps):
        return maps


class Dropping(Net):
    def last(self, maps):
        return nn.functional.dropout(maps, 0.5, self.training)
"""
PICTURES = 3 * (10 + 5)  # of training and validation


@pytest.fixture
def forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a backbone of its own writes down what comes through it, in whatever process."""
    (tmp_path / "counting_body.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "forwards"


def own(root: Path, forwards: Path) -> list[str]:
    return [
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
    ]


def job(root: Path, forwards: Path, *overrides: str) -> RunFolder:
    wanted = [*own(root, forwards), *overrides]
    return prepare(compose("train", wanted), wanted)


def run(folder: RunFolder) -> int:
    return run_job("train", load_config(folder.config), folder)


def probe_of(root: Path, forwards: Path, *overrides: str) -> RunFolder:
    kept = [one for one in own(root, forwards) if not one.startswith(("freeze", "trainer", "logger", "report"))]
    config = compose("probe", [*kept, "device=cpu", "probe.epochs=1", "probe.references=[]", *overrides])
    absolute_paths(config)
    probe(config)
    return RunFolder(Path(config.folder))


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


@pytest.mark.slow
def test_folds_and_subsets_share_the_features_of_each_picture(forwards: Path, pictures: Path) -> None:
    """Each picture comes through the body once, in whatever split of whatever run it is."""
    pool = forwards.parent / "pool"
    for number, path in enumerate(sorted(pictures.glob("*/*/*.*"))):
        copied = pool / path.parent.name / f"{number}{path.suffix}"
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    everything = 3 * (10 + 5 + 7)
    assert len(list(pool.glob("*/*"))) == everything
    assert run(job(pool, forwards, "data.folds=3", "data.fold=0", "test=true")) == 0
    counts = seen(forwards)
    assert sum(count == 1 for count in counts.values()) == everything
    assert len(counts) - everything <= 3
    forwards.unlink()
    for others in (["data.folds=3", "data.fold=1", "test=true"], ["data.labels_per_class=3", "data.split_seed=5"]):
        assert run(job(pool, forwards, *others)) == 0
    assert seen(forwards) == Counter()


@pytest.mark.slow
@pytest.mark.parametrize("order", [("train", "probe"), ("probe", "train")], ids=" then ".join)
def test_a_probe_and_a_run_share_their_features(order: tuple[str, str], forwards: Path, pictures: Path) -> None:
    for number, command in enumerate(order):
        if command == "probe":
            probe_of(pictures, forwards, "probe.lr=[0.1]", "probe.seeds=[1]")
        else:
            assert run(job(pictures, forwards, "optimizer.lr=0.1")) == 0
        assert bool(seen(forwards)) == (number == 0)
        forwards.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_run_takes_nothing_of_a_probe_that_it_would_not_compute(
    forwards: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where training gives the classifier something else: there is dropout by the mode of the network."""
    dropping = "backbone.module._target_=counting_body.Dropping"
    for _ in range(2):
        probe_of(pictures, forwards, dropping, "probe.lr=[0.1]", "probe.seeds=[1]")
    assert "train pictures (last 8): found" in capsys.readouterr().out
    folder = job(pictures, forwards, dropping, "freeze.phases.probe.cache.mode=require")
    assert run(folder) == 2
    assert run(job(pictures, forwards, dropping)) == 0
