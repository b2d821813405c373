"""The base class of every source: what a subclass reads becomes splits, and the splits become loaders."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule

from frostline.data.augmentation import Augmentation
from frostline.data.decoding import PIXEL_LIMIT
from frostline.data.fingerprint import fingerprint
from frostline.data.loading import PictureDataset, PictureLoader, make_loader, worker_count
from frostline.data.resuming import place
from frostline.data.samplers import EvaluationSampler, Placement, TrainingSampler, leaves_single, training_length
from frostline.data.splits import ImageSplit, LabelledSet, by_class, share_of, split_off, subset
from frostline.data.transforms import evaluation_transform
from frostline.errors import ConfigError, DataError, suggestion
from frostline.types import Preprocessing


@dataclass(kw_only=True, eq=False, repr=False)
class ImageData(LightningDataModule):
    """Labelled pictures. A subclass implements `read` and is a dataclass itself, so that its arguments add to these.

    The order of use is `load`, then `prepare`, then loaders (or a Trainer, which asks for them).

    Attributes:
        batch_size: pictures per batch and process.
        size: height and width of the model's input in pixels; None takes what the backbone was pre-trained with.
        workers: processes that decode; ``auto`` takes none for pictures in memory, else one per usable core, up to 8.
        val_fraction: the share of each training class that becomes ``val`` where the source has none; 0 for none.
        test_fraction: likewise for ``test``.
        split_seed: of the derived splits.
        labels_per_class: keep this many training pictures of each class; fewer are always among more.
        fraction: keep this share of each training class, at least one picture.
        subset_seed: chooses the pictures that ``labels_per_class`` and ``fraction`` keep; None takes ``split_seed``.
        drop_last: leave out a last training batch that is not full. Where it is kept, it is left out only if it would
            hold a single picture, which batch norm cannot train on.
        pixel_limit: width times height above which a picture is refused.
        on_error: what becomes of a training picture that cannot be read. ``stop`` raises; ``skip`` leaves it out of
            its batch, which is smaller by it, and raises only where no picture is left, or a single one that batch
            norm cannot train on. Evaluation always raises.

    After `load`:
        classes: class names; a label is an index into them.
        splits: ``train``, and ``val`` and ``test`` where there are any.
        notes: sentences for the person who starts the run.

    While training loaders of this process are read:
        skipped: the names of the pictures that ``on_error=skip`` left out, each with its reason.

    Raises:
        ConfigError: an argument is out of its range.
    """

    labelled: ClassVar[bool] = True
    in_memory: ClassVar[bool] = False
    _at_least: ClassVar[dict[str, int]] = {
        "batch_size": 1,
        "size": 1,
        "labels_per_class": 1,
        "pixel_limit": 1,
        "workers": 0,
    }

    batch_size: int = 64
    size: int | None = None
    workers: int | Literal["auto"] = "auto"
    val_fraction: float = 0.15
    test_fraction: float = 0.0
    split_seed: int = 0
    labels_per_class: int | None = None
    fraction: float = 1.0
    subset_seed: int | None = None
    drop_last: bool = False
    pixel_limit: int = PIXEL_LIMIT
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        super().__init__()
        self._check_arguments()
        self.classes: tuple[str, ...] = ()
        self.splits: dict[str, ImageSplit] = {}
        self.notes: list[str] = []
        self.skipped: dict[str, str] = {}
        self._prepared: tuple[Preprocessing, Augmentation, int] | None = None

    @abstractmethod
    def read(self) -> LabelledSet:
        """Finds the pictures; called once.

        Raises:
            DataError: they cannot be used; the message says why and what mends it.
        """

    def load(self) -> None:
        """Reads, derives the missing splits and keeps the wanted part of ``train``; a second call does nothing.

        Raises:
            DataError: a class or a split is empty, or there are fewer than two classes.
        """
        if self.splits:
            return
        found = self.read()
        if self.labelled:
            _check_found(found)
        splits = self._with_derived(found.splits)
        self.notes = [*found.notes, *(_notes_on(found.classes, splits) if self.labelled else [])]
        self.classes = found.classes
        self.splits = {**splits, "train": self._kept(splits["train"])}

    def class_counts(self, split: str) -> list[int]:
        """Pictures per class, in the order of `classes`."""
        counts: list[int] = np.bincount(self._split(split).labels, minlength=len(self.classes)).tolist()
        return counts

    def fingerprint(self) -> str:
        """SHA-256 over classes, splits, names, labels and file sizes; see `frostline.data.fingerprint`."""
        self.load()
        return fingerprint(self.classes, self.splits)

    def prepare(self, preprocessing: Preprocessing, augmentation: Augmentation, *, seed: int) -> None:
        """Says how pictures become input, before any loader is made.

        Args:
            preprocessing: the backbone's.
            augmentation: of training pictures.
            seed: of the sample order and the augmentation.
        """
        self._prepared = (preprocessing, augmentation, seed)

    def loader(self, split: str, *, train: bool = False) -> PictureLoader:
        """A loader of `Batch` for this process.

        Args:
            split: ``train``, ``val`` or ``test``.
            train: augmented and in a new order each epoch; else plain, in order, each picture valid exactly once over
                all processes.

        Raises:
            DataError: there is no such split, or nothing to train on. While it is read: a picture is unreadable.
        """
        pictures = self._split(split)
        if self._prepared is None:
            raise RuntimeError("prepare() comes before the first loader")
        preprocessing, augmentation, seed = self._prepared
        placement = Placement.current()
        if not train:
            dataset = PictureDataset(pictures, evaluation_transform(preprocessing))
            return self._loader(dataset, EvaluationSampler(len(pictures), placement=placement))
        self._check_training(len(pictures), placement.world_size)
        transform = augmentation.train_transform(preprocessing)
        dataset = PictureDataset(pictures, transform, None if augmentation.deterministic else seed)
        sampler = TrainingSampler(
            len(pictures), self.batch_size, seed=seed, drop_last=self.drop_last, placement=placement
        )
        if self.trainer is not None:
            place(sampler, self.trainer.fit_loop)
        return self._loader(dataset, sampler, self.skipped if self.on_error == "skip" else None)

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches of each of ``world_size`` processes, before any of them runs.

        Raises:
            DataError: there would be none.
        """
        length = len(self._split("train"))
        self._check_training(length, world_size)
        per_rank = training_length(length, self.batch_size, drop_last=self.drop_last, world_size=world_size)
        return -(-per_rank // self.batch_size)

    def setup(self, stage: str) -> None:
        """Lightning's hook: loads."""
        self.load()

    def train_dataloader(self) -> PictureLoader:
        """Lightning's hook."""
        return self.loader("train", train=True)

    def val_dataloader(self) -> PictureLoader | list[PictureLoader]:
        """Lightning's hook; nothing where there is no such split."""
        self.load()
        return self.loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> PictureLoader:
        """Lightning's hook."""
        return self.loader("test")

    def _loader(self, dataset: PictureDataset, sampler: Any, skipped: dict[str, str] | None = None) -> PictureLoader:
        trainer = self.trainer
        processes = trainer.num_devices if trainer else 1
        on_gpu = trainer.strategy.root_device.type == "cuda" if trainer else torch.cuda.is_available()
        workers = worker_count(self.workers, in_memory=self.in_memory, processes=processes)
        return make_loader(
            dataset, sampler, batch_size=self.batch_size, workers=workers, pin_memory=on_gpu, skipped=skipped
        )

    def _split(self, name: str) -> ImageSplit:
        self.load()
        if name not in self.splits:
            raise DataError(f"The data has no {name} split.", mend=suggestion(name, self.splits, known_as="splits"))
        return self.splits[name]

    def _with_derived(self, splits: dict[str, ImageSplit]) -> dict[str, ImageSplit]:
        wanted = {"test": self.test_fraction, "val": self.val_fraction}
        shares = {name: share for name, share in wanted.items() if share > 0 and name not in splits}
        derived = split_off(splits["train"], shares, seed=self.split_seed) if shares else {}
        merged = {**splits, **derived}
        return {name: merged[name] for name in ("train", "val", "test") if name in merged}

    def _kept(self, train: ImageSplit) -> ImageSplit:
        seed = self.split_seed if self.subset_seed is None else self.subset_seed
        wanted = self.labels_per_class
        if wanted is None:
            return train if self.fraction == 1.0 else subset(train, share_of(self.fraction), seed=seed)
        for label, positions in enumerate(by_class(train)):
            if len(positions) < wanted:
                raise DataError(
                    f"The class '{self.classes[label]}' has {len(positions)} training pictures, fewer than "
                    f"data.labels_per_class={wanted}.",
                    mend=f"Set data.labels_per_class to {len(positions)} or less.",
                )
        return subset(train, lambda _: wanted, seed=seed)

    def _check_training(self, length: int, world_size: int) -> None:
        if length < world_size:
            raise DataError(
                f"{length} training pictures cannot be shared by {world_size} processes.",
                mend="Use fewer processes (trainer.devices) or more pictures.",
            )
        if not training_length(length, self.batch_size, drop_last=self.drop_last, world_size=world_size):
            raise DataError(
                f"data.drop_last leaves no training batch: {length // world_size} pictures per process make no full "
                f"batch of {self.batch_size}.",
                mend="Set data.drop_last=false, or a smaller data.batch_size.",
            )
        if not self.drop_last and leaves_single(length, self.batch_size, world_size=world_size):
            note = "The last training batch would hold a single picture; another one is left out in each epoch."
            self.notes += [note] if note not in self.notes else []

    def _check_arguments(self) -> None:
        for name, least in self._at_least.items():
            value = getattr(self, name)
            optional = value is None or (name == "workers" and value == "auto")
            if not optional and not (isinstance(value, int) and value >= least):
                extra = " or 'auto'" if name == "workers" else ""
                raise ConfigError(f"data.{name} is {value!r}.", mend=f"Give a whole number of at least {least}{extra}.")
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"data.on_error is {self.on_error!r}.", mend="Give stop or skip.")
        if not 0.0 < self.fraction <= 1.0:
            raise ConfigError(f"data.fraction is {self.fraction}.", mend="Give a number above 0 and up to 1.")
        if self.fraction != 1.0 and self.labels_per_class is not None:
            raise ConfigError("data.fraction and data.labels_per_class are both set.", mend="Set one of them.")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave nothing to "
                "train on or are negative.",
                mend="Give two numbers from 0 whose sum is below 1.",
            )


def _check_found(found: LabelledSet) -> None:
    if len(found.classes) < 2:
        named = f"a single class, '{found.classes[0]}'" if found.classes else "no class"
        raise DataError(f"The training data has {named}.", mend="Classification takes at least two classes.")
    counts = np.bincount(found.splits["train"].labels, minlength=len(found.classes))
    for label in np.flatnonzero(counts == 0):
        raise DataError(f"The class '{found.classes[label]}' has no training pictures.", mend="Add some, or remove it.")
    for name, split in found.splits.items():
        if len(split) == 0:
            raise DataError(f"The {name} split has no pictures.", mend="Add some, or remove the split's folder.")


def _notes_on(classes: tuple[str, ...], splits: dict[str, ImageSplit]) -> list[str]:
    notes = [f"There is no {name} split." for name in ("val", "test") if name not in splits]
    for name, split in splits.items():
        absent = sorted(set(range(len(classes))) - set(split.labels.tolist()))
        if absent:
            named = ", ".join(f"'{classes[label]}'" for label in absent)
            notes.append(f"The {name} split has no pictures of {named}.")
    return notes
