from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frostline.data import Augmentation, FolderData, ImageData
from frostline.data.loading import worker_count
from frostline.errors import DataError
from frostline.types import Batch, Preprocessing

# a machine with one core is warned of two workers
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
STRONG = {"scale": [0.3, 1.0], "hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5}


def prepared(data: ImageData, preprocessing: Preprocessing, *, seed: int = 0, **augment: Any) -> ImageData:
    data.prepare(preprocessing, Augmentation(**augment), seed=seed)
    return data


def by_index(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(index): image for batch in batches for index, image in zip(batch.indices, batch.images, strict=True)}


def epochs(data: ImageData, count: int) -> list[list[Batch]]:
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def test_a_batch_has_the_promised_shapes(array_data: type[ImageData], preprocessing: Preprocessing) -> None:
    data = prepared(array_data(batch_size=4), preprocessing)
    first, *_ = data.train_dataloader()
    assert isinstance(first, Batch)
    assert (first.images.shape, first.images.dtype) == ((4, 3, 16, 16), torch.float32)
    assert (first.targets.shape, first.targets.dtype) == ((4,), torch.int64)
    assert (first.indices.dtype, first.valid.dtype, bool(first.valid.all())) == (torch.int64, torch.bool, True)
    labels = torch.from_numpy(data.splits["train"].labels)
    assert torch.equal(first.targets, labels[first.indices])


def test_the_same_with_any_number_of_workers(array_data: type[ImageData], preprocessing: Preprocessing) -> None:
    none, two = (
        epochs(prepared(array_data(batch_size=5, workers=workers), preprocessing, **STRONG), 3) for workers in (0, 2)
    )
    for first, second in zip(none, two, strict=True):
        assert len(first) == len(second) == 3
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.indices, b.indices)
            assert torch.equal(a.images, b.images)


def test_augmentation_is_a_function_of_seed_epoch_and_index(
    array_data: type[ImageData], preprocessing: Preprocessing
) -> None:
    whole, later = epochs(prepared(array_data(batch_size=5), preprocessing, **STRONG), 2)
    torch.manual_seed(99)
    other_batches, _ = epochs(prepared(array_data(batch_size=3), preprocessing, **STRONG), 2)
    other_seed, _ = epochs(prepared(array_data(batch_size=5), preprocessing, seed=1, **STRONG), 2)
    same, next_epoch, seed = by_index(other_batches), by_index(later), by_index(other_seed)
    for index, image in by_index(whole).items():
        assert torch.equal(image, same[index])
    assert any(not torch.equal(image, next_epoch[index]) for index, image in by_index(whole).items())
    assert any(not torch.equal(image, seed[index]) for index, image in by_index(whole).items())


@pytest.mark.parametrize("train", [True, False])
def test_the_global_generators_are_left_alone(
    array_data: type[ImageData], preprocessing: Preprocessing, train: bool
) -> None:
    data = prepared(array_data(batch_size=5), preprocessing, **STRONG)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    list(data.loader("train", train=train))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_evaluation_is_plain_and_in_order(array_data: type[ImageData], preprocessing: Preprocessing) -> None:
    loader = prepared(array_data(batch_size=5), preprocessing, **STRONG).loader("train")
    first, second = list(loader), list(loader)
    assert torch.cat([batch.indices for batch in first]).tolist() == list(range(12))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_one_plain_message(
    make_tree: Callable[..., Path], preprocessing: Preprocessing, workers: int
) -> None:
    root = make_tree({"train/a": 4, "train/b": 4})
    (root / "train/b/01.jpg").write_bytes(b"no picture")
    data = prepared(FolderData(str(root), batch_size=2, workers=workers, val_fraction=0.0), preprocessing)
    with pytest.raises(DataError) as caught:
        list(data.loader("train"))
    assert caught.value.problem.startswith(f"The picture {root}/train/b/01.jpg cannot be read")
    assert "Traceback" not in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (64, 1, 8), (2, 8, 1)])
def test_auto_workers(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert worker_count("auto", in_memory=False, processes=processes) == expected
    assert worker_count("auto", in_memory=True, processes=processes) == 0
    assert worker_count(3, in_memory=True, processes=processes) == 3
