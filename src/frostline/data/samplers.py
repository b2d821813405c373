"""The order of pictures, as a function of (seed, epoch, rank): nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch.distributed
from torch.utils.data import Sampler

from frostline.data.randomness import derive_seed


@dataclass(frozen=True, slots=True)
class Key:
    """What a sampler asks a data set for.

    Attributes:
        epoch: the epoch that a random augmentation belongs to.
        index: position in the split.
        valid: False for a picture that only evens out the ranks.
    """

    epoch: int
    index: int
    valid: bool = True


class Placement(NamedTuple):
    """This process among those of a distributed run."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Placement:
        """As torch.distributed says; a single process where it is not initialized."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()


def training_length(length: int, batch_size: int, *, drop_last: bool, world_size: int) -> int:
    """How many pictures each rank sees in an epoch; equal on all ranks.

    With ``drop_last`` only full batches remain. Without it the last batch may be smaller, and ranks are evened out by
    showing some pictures twice; but a last batch of a single picture, which batch norm cannot train on, is left out
    where there are others.
    """
    if drop_last:
        per_rank = length // world_size
        return per_rank - per_rank % batch_size
    per_rank = math.ceil(length / world_size)
    return per_rank - 1 if leaves_single(length, batch_size, world_size=world_size) else per_rank


def leaves_single(length: int, batch_size: int, *, world_size: int) -> bool:
    """Whether the last training batch of a rank would hold a single picture after larger ones."""
    per_rank = math.ceil(length / world_size)
    return 1 < batch_size < per_rank and per_rank % batch_size == 1


ALONE = Placement()


class TrainingSampler(Sampler[Key]):
    """A new order in each epoch; rank r takes every ``world_size``-th picture, starting at the r-th.

    The pictures of one step, over all ranks, therefore do not depend on how many ranks share them.

    Args:
        length: pictures in the split.
        batch_size: per rank.
        seed: of the order.
        drop_last: leave out a last batch that is not full.
        placement: rank and world size.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, drop_last: bool = False, placement: Placement = ALONE
    ) -> None:
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._placement = placement
        self._per_rank = training_length(length, batch_size, drop_last=drop_last, world_size=placement.world_size)
        self._epoch = 0
        self._resume = (-1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; Lightning calls this before each epoch."""
        self._epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Leaves out the first ``batch`` batches of ``epoch``, which were trained on before an interruption."""
        self._resume = (epoch, batch)

    def __len__(self) -> int:
        return self._per_rank

    def __iter__(self) -> Iterator[Key]:
        epoch = self._epoch
        order = np.random.default_rng(derive_seed("order", self._seed, epoch)).permutation(self._length)
        rank, world_size = self._placement
        mine = np.resize(order, max(len(order), world_size * self._per_rank))[rank::world_size][: self._per_rank]
        resumed, batch = self._resume
        start = batch * self._batch_size if resumed == epoch else 0
        self._resume = (-1, 0)
        return (Key(epoch, int(index)) for index in mine[start:])


class EvaluationSampler(Sampler[Key]):
    """Every picture once, in order, over all ranks together; ranks are evened out with pictures marked as not valid.

    Args:
        length: pictures in the split.
        placement: rank and world size.
    """

    def __init__(self, length: int, *, placement: Placement = ALONE) -> None:
        self._length = length
        self._placement = placement

    def __len__(self) -> int:
        return math.ceil(self._length / self._placement.world_size)

    def __iter__(self) -> Iterator[Key]:
        rank, world_size = self._placement
        for place in range(rank, len(self) * world_size, world_size):
            yield Key(0, min(place, self._length - 1), place < self._length)
