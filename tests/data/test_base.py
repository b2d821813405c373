from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from frostline.data import Augmentation, DigitsData, FolderData, ImageData, LabelledSet
from frostline.errors import ConfigError, DataError
from frostline.types import Batch, Preprocessing

# Lightning 2.6.6 still uses a class that torch is about to rename; a machine with one core is warned of two workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
Source = type[ImageData]


def ready(data: ImageData, preprocessing: Preprocessing, *, seed: int = 0) -> ImageData:
    data.prepare(preprocessing, Augmentation(), seed=seed)
    return data


class Recorder(LightningModule):
    """Learns nothing and writes down which pictures it was shown, per epoch and batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, list[int]]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch.indices.tolist()))
        return (self.weight * batch.images.mean()).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += batch.indices[batch.valid].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saver(Callback):
    """Saves a checkpoint named by the step at each call of a hook."""

    def __init__(self, folder: Path, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_: trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt"))


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **{"enable_checkpointing": False, **quiet, **settings},
    )


def test_load_reads_once(array_data: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    data = array_data()
    calls: list[int] = []
    read = data.read

    def counted() -> LabelledSet:
        calls.append(1)
        return read()

    monkeypatch.setattr(data, "read", counted)
    data.load()
    data.load()
    assert data.class_counts("train") == [6, 6]
    assert data.classes == ("a", "b")
    assert len(calls) == 1


def test_labels_per_class_and_fraction(array_data: Source) -> None:
    assert array_data((9, 5), labels_per_class=3).class_counts("train") == [3, 3]
    assert array_data((10, 4), fraction=0.5).class_counts("train") == [5, 2]
    with pytest.raises(DataError, match=r"'b' has 5 training pictures, fewer than data\.labels_per_class=6") as caught:
        array_data((9, 5), labels_per_class=6).load()
    assert "to 5 or less" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("counts", "problem"), [((5,), "a single class, 'a'"), ((5, 0), "class 'b' has no training"), ((), "no class")]
)
def test_sets_that_cannot_be_used(array_data: Source, counts: tuple[int, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        array_data(counts).load()


def test_drop_last_that_leaves_nothing(array_data: Source, preprocessing: Preprocessing) -> None:
    data = ready(array_data((3, 3), batch_size=8, drop_last=True), preprocessing)
    for attempt in (data.train_dataloader, data.batches_per_epoch):
        with pytest.raises(DataError, match="no training batch: 6 pictures") as caught:
            attempt()
        assert "data.drop_last=false" in str(caught.value.mend)
    assert len(data.loader("train")) == 1


def test_more_processes_than_pictures(array_data: Source) -> None:
    with pytest.raises(DataError, match="6 training pictures cannot be shared by 7 processes"):
        array_data((3, 3)).batches_per_epoch(7)
    assert array_data((3, 3)).batches_per_epoch(6) == 1


def test_a_single_trailing_picture_gets_a_note(array_data: Source, preprocessing: Preprocessing) -> None:
    data = ready(array_data((5, 4), batch_size=4), preprocessing)
    sizes = [len(batch.targets) for batch in data.train_dataloader()]
    data.train_dataloader()
    assert sizes == [4, 4]
    assert data.batches_per_epoch() == 2
    assert sum("single picture" in note for note in data.notes) == 1


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_per_epoch_is_what_loaders_give(
    array_data: Source,
    preprocessing: Preprocessing,
    monkeypatch: pytest.MonkeyPatch,
    world: int,
    drop_last: bool,
) -> None:
    data = ready(array_data((11, 8), batch_size=3, drop_last=drop_last), preprocessing)
    expected = data.batches_per_epoch(world)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        assert len(list(data.train_dataloader())) == len(data.train_dataloader()) == expected


def test_an_unknown_split(array_data: Source, preprocessing: Preprocessing) -> None:
    data = ready(array_data(val_fraction=0.2), preprocessing)
    with pytest.raises(DataError, match="no test split") as caught:
        data.loader("test")
    assert "train, val" in str(caught.value.mend)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"size": 0},
        {"workers": -1},
        {"workers": "many"},
        {"labels_per_class": 0},
        {"fraction": 0.0},
        {"fraction": 1.5},
        {"val_fraction": 1.0},
        {"test_fraction": -0.1},
        {"pixel_limit": 0},
        {"on_error": "ignore"},
        {"labels_per_class": True},
        {"strict": "no"},
        {"val_fraction": "half"},
        {"exclude": 5},
        {"sampler": "even"},
        {"resize": "stretch"},
        {"labels_per_class": 3, "fraction": 0.5},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_named(array_data: Source, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}") as caught:
        array_data(**wrong)
    assert caught.value.mend


def test_lightning_trains_and_evaluates(tmp_path: Path, array_data: Source, preprocessing: Preprocessing) -> None:
    data = ready(array_data((10, 10), batch_size=4, val_fraction=0.2, workers=2), preprocessing)
    recorder = Recorder()
    trainer(tmp_path, max_epochs=3).fit(recorder, datamodule=data)
    orders = [[i for e, _, indices in recorder.seen if e == epoch for i in indices] for epoch in range(3)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert recorder.evaluated == list(range(4)) * 3


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_lightning_trains_without_a_val_split(tmp_path: Path, array_data: Source, preprocessing: Preprocessing) -> None:
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=ready(array_data(), preprocessing))
    assert len(recorder.seen) == 1
    assert recorder.evaluated == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("hook", "steps"),
    [("on_train_batch_end", (2, 4, 7, 8)), ("on_validation_end", (4, 8)), ("on_train_epoch_end", (4, 8))],
)
def test_resuming_shows_what_was_not_shown_yet(
    tmp_path: Path, array_data: Source, preprocessing: Preprocessing, workers: int, hook: str, steps: tuple[int, ...]
) -> None:
    def run(folder: str, resume: str | None = None) -> list[tuple[int, int, list[int]]]:
        data = ready(array_data((10, 10), batch_size=4, val_fraction=0.2, workers=workers), preprocessing)
        recorder, saver = Recorder(), Saver(tmp_path / folder, hook)
        checkpoint = None if resume is None else tmp_path / f"{resume}.ckpt"
        trainer(tmp_path, max_epochs=3, callbacks=[saver]).fit(recorder, datamodule=data, ckpt_path=checkpoint)
        return recorder.seen

    straight = run("straight")
    assert len(straight) == 12
    for step in steps:
        assert run(f"from {step}", f"straight/{step}") == straight[step:]
        for later in (number for number in steps if number > step and step % 4):
            assert run("twice", f"from {step}/{later}") == straight[later:]


def test_a_batch_goes_to_another_device_whole_and_stays_as_it_is_on_its_own(
    array_data: Source, preprocessing: Preprocessing
) -> None:
    data = ready(array_data(), preprocessing)
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, Batch)
    assert {value.device.type for value in moved if isinstance(value, torch.Tensor)} == {"meta"}


def test_digits_need_no_workers(preprocessing: Preprocessing) -> None:
    assert ready(DigitsData(), preprocessing).val_dataloader().num_workers == 0


def test_input_goes_by_content_where_it_is_not_random(tmp_path: Path) -> None:
    for name in ("train/a/0", "train/a/1", "train/b/0", "val/a/0", "val/b/0"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[-3]), ord(name[-1]))).save(path)
    (tmp_path / "val" / "a" / "0.png").write_bytes((tmp_path / "train" / "a" / "1.png").read_bytes())

    def digests(split: str, *, train: bool, **augmentation: Any) -> list[bytes] | None:
        data = FolderData(root=str(tmp_path), workers=0, test_fraction=0)
        preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
        data.prepare(preprocessing, Augmentation(**augmentation), seed=0)
        found = data.input_digests(split, train=train)
        return None if found is None else found.tolist()

    train = digests("train", train=True)
    assert train is not None
    assert digests("train", train=False) == train
    assert len(set(train)) == 3
    val = digests("val", train=False, hflip=0.5)
    assert val is not None
    assert val[0] == train[1]
    assert digests("train", train=True, hflip=0.5) is None
    assert digests("val", train=False, val_transforms=[lambda picture: picture]) is None
    # what cannot be read while digests are taken is known by nothing
    gone = FolderData(root=str(tmp_path), workers=0, test_fraction=0)
    gone.prepare(Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3), Augmentation(), seed=0)
    gone.load()
    (tmp_path / "val" / "b" / "0.png").unlink()
    found = gone.input_digests("val", train=False)
    assert found is not None
    assert found.tolist() == [val[0], b""]
