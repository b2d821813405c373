"""The order of pictures, as a function of (seed, epoch, rank): nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import Sampler

from frostline.data.randomness import derive_seed


@dataclass(frozen=True, slots=True)
class Key:
    """What a sampler asks a data set for.

    Attributes:
        epoch: the epoch, or the fixed view, that a random augmentation belongs to.
        index: position in the split.
        valid: False for a picture that only evens out the ranks.
        repeat: how often the epoch has the picture already; another repeat is augmented in another way.
    """

    epoch: int
    index: int
    valid: bool = True
    repeat: int = 0


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

Positions = npt.NDArray[np.int64]


class TrainingSampler(Sampler[Key]):
    """A new order in each epoch; rank r takes every ``world_size``-th picture, starting at the r-th.

    The pictures of one step, over all ranks, therefore do not depend on how many ranks share them.

    Args:
        length: pictures in the split.
        batch_size: per rank.
        seed: of the order.
        drop_last: leave out a last batch that is not full.
        placement: rank and world size.

    Attributes:
        views: pictures are augmented in so many ways, which epochs take in turn; 0 augments them anew in each.
    """

    views: int = 0

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

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; Lightning calls this before each epoch."""
        self._epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Leaves out the first ``batch`` batches of ``epoch``, which were trained on before an interruption."""
        self._resume = (epoch, batch)

    def __len__(self) -> int:
        return self._per_rank

    def order(self, epoch: int) -> tuple[Positions, Positions]:
        """What this rank sees in an epoch: ``[N]`` positions, and the `Key.repeat` of each."""
        rank, world_size = self._placement
        indices, repeats = self._order(epoch, world_size * self._per_rank)
        return indices[rank::world_size][: self._per_rank], repeats[rank::world_size][: self._per_rank]

    def __iter__(self) -> Iterator[Key]:
        epoch = self._epoch
        indices, repeats = self.order(epoch)
        resumed, batch = self._resume
        start = batch * self._batch_size if resumed == epoch else 0
        self._resume = (-1, 0)
        views = self.views
        return (
            # another repeat is another view, as far as there are any
            Key((epoch + int(repeat)) % views, int(index)) if views else Key(epoch, int(index), repeat=int(repeat))
            for index, repeat in zip(indices[start:], repeats[start:], strict=True)
        )

    def _order(self, epoch: int, count: int) -> tuple[Positions, Positions]:
        """At least the first ``count`` positions of an epoch, of all ranks together, and the `Key.repeat` of each."""
        order = np.random.default_rng(derive_seed("order", self._seed, epoch)).permutation(self._length)
        order = np.resize(order, max(len(order), count))
        return order, np.zeros_like(order)


class BalancedSampler(TrainingSampler):
    """Equally many pictures of each class, in an epoch and in any part of it.

    An epoch is as long as without balancing. It goes through the classes in rounds, each in a new order, so that at
    any point, and in each batch of all ranks together, no class is more than one picture ahead of another, or two
    within a batch. Which classes get one picture more, where an epoch does not divide by their number, goes around
    from epoch to epoch.

    A class walks through its pictures in an order of its own, around and around, and each epoch takes up where the
    one before ended. So an epoch has every picture of a class n or n + 1 times, a large class shows another part in
    each epoch until all was seen, and over any number of epochs no picture of a class is more than one ahead of
    another. Within an epoch the pictures of a class are shuffled. All of it is a function of (seed, epoch). It counts
    whole epochs: what is left out of one, because a last batch is dropped, has its next turn like all others.

    Args:
        labels: ``[N]`` int64 class indices of the split; a class without pictures is never asked for.
        batch_size, seed, drop_last, placement: as for `TrainingSampler`.
    """

    def __init__(
        self, labels: Positions, batch_size: int, *, seed: int, drop_last: bool = False, placement: Placement = ALONE
    ) -> None:
        super().__init__(len(labels), batch_size, seed=seed, drop_last=drop_last, placement=placement)
        generator = np.random.default_rng(derive_seed("balance", seed))
        # the pictures of each class in the order of its walk; the classes as their turns for one picture more come
        walks = [generator.permutation(positions) for positions in _grouped(labels) if len(positions)]
        self._walks = [walks[turn] for turn in generator.permutation(len(walks))]

    def _order(self, epoch: int, count: int) -> tuple[Positions, Positions]:
        generator = np.random.default_rng(derive_seed("order", self._seed, epoch))
        classes = len(self._walks)
        rounds, more = divmod(self._length, classes)
        whose = self._whose(generator, epoch, max(count, self._length))
        indices, repeats = np.empty_like(whose), np.empty_like(whose)
        for place, (walk, slots) in enumerate(zip(self._walks, _grouped(whose, classes), strict=True)):
            # of the epochs before: the rounds, and the turns that came around to this class
            begun = epoch * rounds + -(-(epoch * more - place) // classes)
            steps = np.arange(len(slots))
            # what evens out the ranks stays at the end, so that what comes before is the same with any number of them
            own = int(np.searchsorted(slots, self._length))
            steps[:own] = generator.permutation(own)
            indices[slots] = walk[(begun + steps) % len(walk)]
            repeats[slots] = steps // len(walk)
        return indices, repeats

    def _whose(self, generator: np.random.Generator, epoch: int, count: int) -> Positions:
        """``[count]`` positions in ``_walks``: full rounds, each in random order, then the turns that come next."""
        classes = len(self._walks)
        rounds, more = divmod(self._length, classes)
        mixed = generator.random((rounds, classes)).argsort(axis=1).ravel()
        rest = (epoch * more + np.arange(count - len(mixed))) % classes
        return np.concatenate([mixed, rest])


def _grouped(labels: Positions, classes: int = 0) -> list[Positions]:
    """The positions of each label from 0 to the largest, or to ``classes - 1``, in order."""
    counts = np.bincount(labels, minlength=classes)
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


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
