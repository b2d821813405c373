"""Data sets and loaders that carry out what a sampler asks for."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from frostline.data.randomness import derive_seed, kept_generators, seed_generators
from frostline.data.samplers import Key
from frostline.data.splits import ImageSplit
from frostline.data.transforms import ImageTransform
from frostline.errors import DataError
from frostline.types import Batch

MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture on its way into a batch: image ``[C, H, W]`` float32, class index, position, and whether it counts."""

    image: Tensor
    target: int
    index: int
    valid: bool


class Unreadable(NamedTuple):
    """A fault that a worker process found, as a value: a raised one would come out wrapped in a traceback."""

    problem: str
    mend: str | None


class PictureDataset(Dataset[Sample | Unreadable]):
    """Decodes and transforms the pictures of a split.

    Args:
        split: the pictures.
        transform: from a picture to a tensor.
        seed: where given, the transform draws from generators that are seeded by (seed, epoch, index).
    """

    def __init__(self, split: ImageSplit, transform: ImageTransform, seed: int | None = None) -> None:
        self._split = split
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, key: Key | int) -> Sample | Unreadable:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key | int]) -> list[Sample | Unreadable]:
        """What a DataLoader asks for: the samples of a batch."""
        with kept_generators():
            # a plain index comes from the samplers that Lightning puts in for overfit_batches
            return [self._sample(key if isinstance(key, Key) else Key(0, key)) for key in keys]

    def _sample(self, key: Key) -> Sample | Unreadable:
        try:
            picture = self._split.image(key.index)
        except DataError as error:
            return Unreadable(error.problem, error.mend)
        if self._seed is not None:
            seed_generators(derive_seed("augmentation", self._seed, key.epoch, key.index))
        return Sample(self._transform(picture), int(self._split.labels[key.index]), key.index, key.valid)


def collate(samples: list[Sample | Unreadable]) -> Batch | Unreadable:
    """Stacks samples; the first that could not be read takes the place of the batch."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
        good.append(sample)
    return Batch(
        images=torch.stack([sample.image for sample in good]),
        targets=torch.tensor([sample.target for sample in good]),
        indices=torch.tensor([sample.index for sample in good]),
        valid=torch.tensor([sample.valid for sample in good]),
    )


class PictureLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that raises the faults of its workers as they are.

    Its place in an epoch follows from the trainer's progress (see `TrainingSampler.resume_at`), so that it has no
    state of its own; the two empty methods tell Lightning that it can be resumed all the same.
    """

    def __iter__(self) -> Any:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking beside threads. Workers decode on one thread of their own and take
            # no lock of the parent's; starting afresh instead would import torch in each of them.
            warnings.filterwarnings("ignore", message=".*use of fork\\(\\) may lead", category=DeprecationWarning)
            batches = super().__iter__()
        return _raising(batches)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: see the class."""


def _raising(batches: Iterator[Batch | Unreadable]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Unreadable):
            # else the traceback holds the workers until the garbage collector comes, and it stops them slowly
            del batches
            raise DataError(batch.problem, mend=batch.mend)
        yield batch


def make_loader(
    dataset: PictureDataset, sampler: Sampler[Key], *, batch_size: int, workers: int, pin_memory: bool
) -> PictureLoader:
    """A loader with the settings that all of ours share: workers persist, and the global generator is left alone."""
    return PictureLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
        generator=torch.Generator(),
    )


def worker_count(workers: int | Literal["auto"], *, in_memory: bool, processes: int = 1) -> int:
    """Resolves ``auto``: none for pictures in memory, else the usable cores shared by ``processes``, 1 to 8."""
    if workers != "auto":
        return workers
    if in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // processes))
