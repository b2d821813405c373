"""Data sets and loaders that carry out what a sampler asks for."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from frostline import signals
from frostline.data.decoded import KeptPictures
from frostline.data.randomness import derive_seed, kept_generators, seed_generators
from frostline.data.samplers import Key, TrainingSampler
from frostline.data.splits import ImageSplit, Labels
from frostline.data.transforms import ImageTransform, Look, Normalization, PictureTransform
from frostline.errors import DataError, FrostlineError
from frostline.forking import fork_context
from frostline.types import Batch

MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture on its way into a batch: image ``[C, H, W]``, class index, position, and whether it counts.

    The image is float32 and normalized, or uint8 and not; see `PictureDataset`.
    """

    image: Tensor
    target: int
    index: int
    valid: bool


class Unreadable(NamedTuple):
    """A picture that could not be read: its name in the data set, and the fault as a value.

    A fault that a worker process raised would come out wrapped in a traceback.
    """

    name: str
    fault: FrostlineError


class _Unread(Exception):  # noqa: N818  # never leaves this file
    """A picture could not be read, which is another matter than a transform that fails."""

    def __init__(self, fault: FrostlineError) -> None:
        super().__init__()
        self.fault = fault


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FrostlineError as fault:
        raise _Unread(fault) from fault


class Delivery(NamedTuple):
    """What a worker process made of a batch: the pictures that could be read, if there are any, and the others."""

    batch: Batch | None
    unreadable: list[Unreadable]


class Rows(Protocol):
    """What a frozen body makes of the pictures of a split, by their positions in it.

    Attributes:
        faults: position to picture, where one cannot be read and so has no row.
        boundary: the name of the place in the network that the rows come from.
    """

    faults: Mapping[int, Unreadable]
    boundary: str

    def rows(self, positions: Labels) -> Tensor:
        """A copy of the rows of ``[N]`` int64 positions: ``[N, ...]``."""
        ...


@dataclass(frozen=True)
class Feed:
    """What a loader gives in an epoch.

    Attributes:
        views: in how many fixed ways training pictures are augmented; 0 augments them anew in each epoch.
        features: the rows of a view, which stand in for its pictures; None where pictures are read.
    """

    views: int = 0
    features: Callable[[int], Rows] | None = None


AskFeed = Callable[[int], Feed]
"""Says what an epoch, by its number, is made of."""


class PictureDataset(Dataset[Sample | Unreadable]):
    """Decodes and transforms the pictures of a split.

    Args:
        split: the pictures.
        transform: from a picture to a tensor.
        seed: where given, the transform draws from generators that are seeded by (seed, epoch, index, repeat).
        order: ``[N]`` int64: the position in ``split`` of each index that a sampler asks for; None is as they lie.
        kept: pictures that are decoded once; None decodes each time.
        in_8_bits: leave the normalization to whoever gets the batch, where the transform allows it: a quarter of the
            bytes goes from one process to the other, and a batch is normalized in less time than its pictures.

    Attributes:
        normalization: what is left to do; None where images are normalized.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: ImageTransform,
        seed: int | None = None,
        order: Labels | None = None,
        *,
        kept: KeptPictures | None = None,
        in_8_bits: bool = False,
    ) -> None:
        self._split = split
        self._transform = transform
        self._seed = seed
        self._order = order
        self.kept = kept
        self.normalization: Normalization | None = None
        if in_8_bits and isinstance(transform, PictureTransform) and transform.in_8_bits:
            self.normalization = transform.normalization

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, key: Key | int) -> Sample | Unreadable:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key | int]) -> list[Sample | Unreadable]:
        """What a DataLoader asks for: the samples of a batch."""
        with kept_generators():
            # a plain index comes from the samplers that Lightning puts in for overfit_batches
            return [self._sample(key if isinstance(key, Key) else Key(0, key)) for key in keys]

    def _position(self, key: Key) -> int:
        return key.index if self._order is None else int(self._order[key.index])

    def computed(self, keys: Sequence[Key | int], features: Callable[[int], Rows]) -> Delivery:
        """What comes of a batch whose pictures have been through the frozen body: no picture is read."""
        wanted = [key if isinstance(key, Key) else Key(0, key) for key in keys]
        placed = [(key, self._position(key)) for key in wanted]
        views = {key.epoch: features(key.epoch) for key in wanted}
        unreadable = [views[key.epoch].faults[at] for key, at in placed if at in views[key.epoch].faults]
        good = [(key, at) for key, at in placed if at not in views[key.epoch].faults] if unreadable else placed
        if not good:
            return Delivery(None, unreadable)
        positions = np.array([at for _, at in good], dtype=np.int64)
        batch = Batch(
            images=_of_views([key.epoch for key, _ in good], positions, views),
            targets=torch.from_numpy(self._split.labels[positions].astype(np.int64)),
            indices=torch.from_numpy(positions),
            valid=torch.tensor([key.valid for key, _ in good]),
            features=next(iter(views.values())).boundary,
        )
        return Delivery(batch, unreadable)

    def _sample(self, key: Key) -> Sample | Unreadable:
        position = self._position(key)
        try:
            image = self._image(position, key)
        except _Unread as unread:
            # a copy has no traceback, which would keep the file and the frames that read it
            return Unreadable(self._split.name(position), copy.copy(unread.fault))
        return Sample(image, int(self._split.labels[position]), position, key.valid)

    def _image(self, position: int, key: Key) -> Tensor:
        transform = self._transform
        if not isinstance(transform, PictureTransform):
            with _reading():
                picture = self._split.image(position)
            self._begin(key)
            return transform(picture)
        look = Look(transform, lambda: self._begin(key))
        kept = None if self.kept is None else self.kept.find(position)
        seen: Tensor | Image.Image
        if kept is None:
            with _reading():
                picture = self._split.reduced(position, look.reduction)
            seen = look.shown(picture)
        elif self.kept is not None and self.kept.keeping.enough is not None:
            seen = look.shown(*kept)
        else:
            look.skip()
            seen = torch.from_numpy(np.array(kept.pixels))
        return transform.input(seen) if self.normalization is None else transform.pixels(seen)

    def _begin(self, key: Key) -> None:
        """Seeds what the transform draws from."""
        if self._seed is not None:
            # a first view has the seed that it would have without repeats
            repeat = (key.repeat,) if key.repeat else ()
            seed_generators(derive_seed("augmentation", self._seed, key.epoch, key.index, *repeat))


def _of_views(numbers: Sequence[int], positions: Labels, views: Mapping[int, Rows]) -> Tensor:
    """``[N, ...]`` rows, each of its own view; in an epoch that repeats no picture all are of one."""
    if len(views) == 1:
        return next(iter(views.values())).rows(positions)
    parts = [views[number].rows(positions[at : at + 1]) for at, number in enumerate(numbers)]
    return torch.cat(parts)


def collate(samples: list[Sample | Unreadable]) -> Delivery:
    """Stacks the samples that could be read."""
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    if not good:
        return Delivery(None, unreadable)
    batch = Batch(
        images=torch.stack([sample.image for sample in good]),
        targets=torch.tensor([sample.target for sample in good]),
        indices=torch.tensor([sample.index for sample in good]),
        valid=torch.tensor([sample.valid for sample in good]),
    )
    return Delivery(batch, unreadable)


class PictureLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that raises the faults of its workers as they are.

    Its place in an epoch follows from the trainer's progress (see `TrainingSampler.resume_at`), so that it has no
    state of its own; the two empty methods tell Lightning that it can be resumed all the same.

    Args:
        skipped: where given, pictures that cannot be read are left out of their batch and noted here, name to reason;
            else the first of them raises.
        feed: where given, is asked at the first batch of each epoch what the epoch is made of.
        normalization: of 8-bit batches, here; None where they go to the device as they are.
        arguments: of a DataLoader.
    """

    # Lightning, which puts in samplers of its own for overfit_batches, finds these by the names of their attributes
    def __init__(
        self,
        *arguments: Any,
        skipped: dict[str, str] | None = None,
        feed: AskFeed | None = None,
        normalization: Normalization | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.skipped = skipped
        self.feed = feed
        self.normalization = normalization

    def __iter__(self) -> Any:
        return self._raising(self.deliveries() if self.feed is None else self._fed(self.feed))

    def _fed(self, feed: AskFeed) -> Iterator[Delivery]:
        # asked late, when a trainer that has made its loaders stands where the epoch begins
        sampler = self.sampler
        told = feed(sampler.epoch if isinstance(sampler, TrainingSampler) else 0)
        if isinstance(sampler, TrainingSampler):
            sampler.views = told.views
        if told.features is None:
            yield from self.deliveries()
            return
        dataset = cast(PictureDataset, self.dataset)
        assert self.batch_sampler is not None
        for keys in self.batch_sampler:
            yield dataset.computed(keys, told.features)

    def deliveries(self) -> Iterator[Delivery]:
        """An epoch of pictures, with those that cannot be read as values."""
        dataset = self.dataset
        if isinstance(dataset, PictureDataset) and dataset.kept is not None:
            dataset.kept.fill()  # before there are workers, which share it
        deliveries = cast(Iterator[Delivery], super().__iter__())
        normalization = self.normalization
        if normalization is None:
            return deliveries
        return (Delivery(batch and normalized(batch, normalization), faults) for batch, faults in deliveries)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: see the class."""

    def _raising(self, deliveries: Iterator[Delivery]) -> Iterator[Batch]:
        for batch, unreadable in deliveries:
            fault = _fault(batch, unreadable, skipping=self.skipped is not None, alone=self.batch_size == 1)
            if fault is not None:
                del deliveries
                self._stop_workers()
                raise fault
            if self.skipped is not None:
                self.skipped.update((picture.name, picture.fault.problem) for picture in unreadable)
            assert batch is not None
            yield batch

    def _stop_workers(self) -> None:
        # else the traceback of a fault holds them until the garbage collector comes, and it stops them slowly
        workers, self._iterator = self._iterator, None
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]


def normalized(batch: Batch, normalization: Normalization) -> Batch:
    """A batch whose 8-bit images are normalized, on their device; another batch is as it was."""
    if batch.images.dtype != torch.uint8:
        return batch
    return batch._replace(images=normalization(batch.images))


def _fault(
    batch: Batch | None, unreadable: Sequence[Unreadable], *, skipping: bool, alone: bool
) -> FrostlineError | None:
    """What forbids to train or evaluate on what could be read of a batch; ``alone``: one picture is a full batch."""
    if not unreadable:
        return None
    first = unreadable[0].fault
    if not skipping:
        return first
    passing = [picture.fault for picture in unreadable if not isinstance(picture.fault, DataError)]
    if passing:  # the machine failed, and may not the next time: the run would not be the same run
        return passing[0]
    if batch is not None and (len(batch.images) > 1 or alone):
        return None
    left = "no picture" if batch is None else "a single picture, which batch norm cannot train on"
    return DataError(
        f"data.on_error=skip leaves {left} in a batch: {len(unreadable)} cannot be read. The first: {first.problem}",
        mend=first.mend,
    )


def make_loader(
    dataset: PictureDataset,
    sampler: Sampler[Key] | Iterable[Key | int],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    skipped: dict[str, str] | None = None,
    feed: AskFeed | None = None,
    normalize: bool = True,
) -> PictureLoader:
    """A loader with the settings that all of ours share: workers persist, and the global generator is left alone.

    Its batches are normalized in this process, or, without ``normalize``, as the data set makes them.
    """
    return PictureLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        multiprocessing_context=fork_context(workers),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_main,
        skipped=skipped,
        feed=feed,
        normalization=dataset.normalization if normalize else None,
    )


def _leave_signals_to_main(worker: int) -> None:
    # a signal to the whole group must not take the pictures from a run that is about to be saved; where the main
    # process leaves signals alone, its workers do as well
    if signals.STOP.installed:
        signals.leave_to_main()


def worker_count(workers: int | Literal["auto"], *, in_memory: bool, processes: int = 1) -> int:
    """Resolves ``auto``: none for pictures in memory, else the usable cores shared by ``processes``, 1 to 8."""
    if workers != "auto":
        return workers
    if in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // processes))
