"""``data.on_error``: what becomes of a picture that cannot be read, in the main process and in workers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from frostline.data import Augmentation, FolderData
from frostline.data.loading import Delivery, PictureLoader, Unreadable
from frostline.errors import DataError, StorageError
from frostline.types import Batch, Preprocessing

# a machine with one core is warned of two workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
MakeTree = Callable[..., Path]
DAMAGED = ("train/a/03.jpg", "train/a/07.jpg", "train/b/02.jpg")


@pytest.fixture
def root(make_tree: MakeTree) -> Path:
    """24 training pictures, of which one is cut short, one is missing once it was listed and one has no content."""
    folder = make_tree({"train/a": 12, "train/b": 12, "val/a": 2, "val/b": 2})
    short, _, empty = (folder / name for name in DAMAGED)
    short.write_bytes(short.read_bytes()[:200])
    empty.write_bytes(b"")
    return folder


@pytest.fixture
def make(root: Path, preprocessing: Preprocessing) -> Callable[..., FolderData]:
    def prepared(**settings: Any) -> FolderData:
        missing = root / DAMAGED[1]
        Image.new("RGB", (9, 9)).save(missing)
        data = FolderData(str(root), **{"batch_size": 6, "on_error": "skip", **settings})
        data.load()
        missing.unlink()
        data.prepare(preprocessing, Augmentation(hflip=0.5, scale=[0.5, 1.0]), seed=0)
        return data

    return prepared


def epochs(data: FolderData, count: int) -> list[list[Batch]]:
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_left_out_and_listed(make: Callable[..., FolderData], workers: int) -> None:
    data = make(workers=workers)
    names = [data.splits["train"].name(index) for index in range(24)]
    bad = {names.index(name) for name in DAMAGED}
    first, second = epochs(data, 2)
    for batches in (first, second):
        assert len(batches) == data.batches_per_epoch() == 4
        assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == sorted(set(range(24)) - bad)
        assert sum(6 - len(batch.indices) for batch in batches) == 3
        assert all(len(batch.images) == len(batch.targets) == len(batch.valid) for batch in batches)
    assert sorted(data.skipped) == sorted(DAMAGED)
    expected = zip(DAMAGED, ("Truncated", "does not exist", "cannot identify"), strict=True)
    for name, text in expected:
        assert text in data.skipped[name]
    assert all(name in reason for name, reason in data.skipped.items())


def test_the_order_of_the_others_stays_and_nothing_takes_the_place(
    make: Callable[..., FolderData], monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping = epochs(make(), 2)
    data = make()
    bad = {index for index in range(24) if data.splits["train"].name(index) in DAMAGED}
    monkeypatch.setattr("frostline.data.files.open_picture", lambda *_: Image.new("RGB", (9, 9)))
    for some, all_of_them in zip(skipping, epochs(data, 2), strict=True):
        expected = [[index for index in batch if index not in bad] for batch in indices(all_of_them)]
        assert indices(some) == expected
    assert data.skipped == {}


def test_the_same_with_any_number_of_workers(make: Callable[..., FolderData]) -> None:
    none, two = (epochs(make(workers=workers), 3) for workers in (0, 2))
    for first, second in zip(none, two, strict=True):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.indices, b.indices)
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_inside_an_epoch_skips_the_same(make: Callable[..., FolderData], workers: int) -> None:
    _, whole = epochs(make(workers=workers), 2)
    for batch in range(4):
        loader = make(workers=workers).train_dataloader()
        loader.sampler.set_epoch(1)
        loader.sampler.resume_at(1, batch)
        assert indices(list(loader)) == indices(whole)[batch:]


def test_only_what_was_handed_out_is_listed(make: Callable[..., FolderData]) -> None:
    data = make(workers=2)
    loader = data.train_dataloader()
    for batch in loader:
        seen = len(data.skipped)
        assert seen == 6 - len(batch.indices)
        break


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_is_the_default_and_names_the_first(root: Path, preprocessing: Preprocessing, workers: int) -> None:
    data = FolderData(str(root), batch_size=6, workers=workers)
    data.prepare(preprocessing, Augmentation(), seed=0)
    with pytest.raises(DataError, match="cannot be read") as caught:
        epochs(data, 1)
    assert caught.value.exit_code == 3
    assert data.skipped == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_never_skips(make: Callable[..., FolderData], root: Path, workers: int) -> None:
    data = make(workers=workers)
    (root / "val/b/01.jpg").write_bytes(b"")
    for split, name in {"val": "val/b/01.jpg", "train": DAMAGED[0]}.items():
        with pytest.raises(DataError, match=name):
            list(data.loader(split))
    assert data.skipped == {}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("readable", "left"), [(0, "no picture"), (1, "a single picture")])
def test_a_batch_too_small_to_train_on_is_an_error(
    make_tree: MakeTree, preprocessing: Preprocessing, readable: int, left: str, workers: int
) -> None:
    root = make_tree({"train/a": 3, "train/b": 3})
    pictures = sorted(root.rglob("*.jpg"))
    for picture in pictures[readable:]:
        picture.write_bytes(b"")
    data = FolderData(str(root), batch_size=6, workers=workers, val_fraction=0.0, on_error="skip")
    data.prepare(preprocessing, Augmentation(), seed=0)
    with pytest.raises(DataError, match=f"leaves {left}.*{6 - readable} cannot be read. The first: The picture {root}"):
        epochs(data, 1)


def test_a_batch_of_one_by_configuration_may_hold_one(make: Callable[..., FolderData]) -> None:
    data = make(batch_size=1)
    data.prepare(Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3), Augmentation(), seed=0)
    with pytest.raises(DataError, match="leaves no picture"):
        epochs(data, 1)
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1).bool())
    deliveries = [Delivery(batch, [Unreadable("a.jpg", DataError("is short."))])]
    skipped: dict[str, str] = {}
    loader = PictureLoader(deliveries, batch_size=1, collate_fn=lambda items: items[0], skipped=skipped)
    assert len(list(loader)) == 1
    assert skipped == {"a.jpg": "is short."}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_machine_is_not_skipped(
    make: Callable[..., FolderData], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    data = make(workers=workers)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(StorageError, match="Too many open files"):
        epochs(data, 1)


class Recorder(LightningModule):
    """Learns nothing and writes down which pictures it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.indices.tolist())
        return (self.weight * batch.images.mean()).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("settings", [{}, {"overfit_batches": 4}], ids=["whole", "overfit"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
def test_lightning_trains_on_what_is_left(
    tmp_path: Path, make: Callable[..., FolderData], settings: dict[str, Any], workers: int
) -> None:
    data, model = make(workers=workers), Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 8
    shown = {data.splits["train"].name(index) for batch in model.seen for index in batch}
    assert data.skipped
    assert not shown & {*DAMAGED}
