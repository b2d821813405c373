"""The base class of every source: what a subclass reads becomes splits, and the splits become loaders."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from lightning import LightningDataModule

from frostline.data.augmentation import Augmentation
from frostline.data.decoded import Keeping, KeptPictures
from frostline.data.decoding import PIXEL_LIMIT
from frostline.data.digests import UNREADABLE, Digests
from frostline.data.division import by_file, check_division, in_folds, in_order, with_derived, without
from frostline.data.fingerprint import data_record, fingerprint
from frostline.data.frames import enough_for
from frostline.data.loading import (
    AskFeed,
    Delivery,
    Feed,
    PictureDataset,
    PictureLoader,
    make_loader,
    normalized,
    worker_count,
)
from frostline.data.resuming import place
from frostline.data.samplers import (
    BalancedSampler,
    EvaluationSampler,
    Key,
    Placement,
    TrainingSampler,
    leaves_single,
    training_length,
)
from frostline.data.splits import ImageSplit, LabelledSet, Labels
from frostline.data.stratify import canonical_order, share_of, subset
from frostline.data.transforms import Normalization, evaluation_transform
from frostline.errors import ConfigError, DataError, suggestion
from frostline.types import Batch, Preprocessing


class Feeding(Protocol):
    """Says what a loader gives in an epoch, at its first batch."""

    def __call__(self, split: str, *, train: bool, epoch: int) -> Feed:
        """Of ``split``, as it is trained on in an epoch or as it is evaluated."""
        ...


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
        split_file: a ``splits.csv`` of a run, whose division of the same pictures is taken in place of the source's.
        folds: divide ``train`` and ``val`` into this many folds; see `frostline.data.division.in_folds`.
        fold: which of them is held out, from 0; None is 0 where there are folds.
        exclude: a list of names of pictures to leave out, as ``frostline audit`` writes it.
        strict: what a look at the data finds is an error, not a note.
        labels_per_class: keep this many training pictures of each class; fewer are always among more.
        fraction: keep this share of each training class, at least one picture.
        subset_seed: chooses the pictures that ``labels_per_class`` and ``fraction`` keep; None takes ``split_seed``.
        sampler: ``shuffle`` shows each training picture once an epoch; ``balanced`` as many of each class, small
            classes repeated, see `BalancedSampler`.
        resize: how a picture becomes as high and wide as the input: ``crop`` loses its borders, ``squash`` its
            proportions, ``pad`` adds borders; None does as the backbone was pre-trained.
        drop_last: leave out a last training batch that is not full. Where it is kept, it is left out only if it would
            hold a single picture, which batch norm cannot train on.
        decode: ``fast`` has a JPEG that is more than twice as large as needed decoded at a half, a quarter or an eighth
            of its size, and resizes in 8 bits with torch: see `frostline.data.frames.MARGIN` for what that changes.
            ``exact`` decodes all of it and resizes with Pillow, as timm does, bit for bit.
        decoded: keep decoded pictures in 8 bits, in ``memory`` or on the ``disk`` for other runs too, in the cache
            folder and its limit; None decodes each time. What evaluation or a fixed crop shows is kept as large as the
            input, and is the same bit for bit; for random crops the whole picture is kept, so large that the smallest
            crop has two pixels for one of the input. Where there is no room, a line says so.
        pixel_limit: width times height above which a picture is refused.
        on_error: what becomes of a training picture that cannot be read. ``stop`` raises; ``skip`` leaves it out of
            its batch, which is smaller by it, and raises only where no picture is left, or a single one that batch
            norm cannot train on. Evaluation always raises.

    After `load`:
        classes: class names; a label is an index into them.
        splits: ``train``, and ``val`` and ``test`` where there are any.
        notes: sentences for the person who starts the run.

    Where features of a frozen body may stand in for pictures:
        feeding: says what a loader of a split gives in an epoch; None is pictures.

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
        "folds": 2,
        "fold": 0,
        "pixel_limit": 1,
        "workers": 0,
    }

    _booleans: ClassVar[tuple[str, ...]] = ("drop_last", "strict")
    _choices: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "on_error": ("stop", "skip"),
        "sampler": ("shuffle", "balanced"),
        "resize": (None, "crop", "squash", "pad"),
        "decode": ("fast", "exact"),
        "decoded": (None, "memory", "disk"),
    }

    batch_size: int = 64
    size: int | None = None
    workers: int | Literal["auto"] = "auto"
    val_fraction: float = 0.15
    test_fraction: float = 0.0
    split_seed: int = 0
    split_file: str | None = None
    folds: int | None = None
    fold: int | None = None
    exclude: str | None = None
    strict: bool = False
    labels_per_class: int | None = None
    fraction: float = 1.0
    subset_seed: int | None = None
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    resize: Literal["crop", "squash", "pad"] | None = None
    drop_last: bool = False
    decode: Literal["fast", "exact"] = "fast"
    decoded: Literal["memory", "disk"] | None = None
    pixel_limit: int = PIXEL_LIMIT
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        super().__init__()
        self._check_arguments()
        self.classes: tuple[str, ...] = ()
        self.splits: dict[str, ImageSplit] = {}
        self.notes: list[str] = []
        self.skipped: dict[str, str] = {}
        self.feeding: Feeding | None = None
        self._hashes: dict[str, str] = {}
        self._kept_pictures: dict[tuple[str, bool], KeptPictures] = {}
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
        notes = list(found.notes)
        if self.split_file is not None:
            # what is left out is so after the division, which lists it as well
            path = Path(self.split_file)
            found.splits, divided = by_file(in_order(found.splits), found.classes, path)
            notes += [divided] if divided else []
        if self.exclude is not None:
            found.splits, note = without(found.splits, Path(self.exclude))
            notes.append(note)
        if self.labelled:
            _check_found(found)
        splits = self._divided(found, notes)
        self.notes = [*notes, *(_notes_on(found.classes, splits) if self.labelled else [])]
        self.classes = found.classes
        self.splits = {**splits, "train": self._kept(splits["train"])}

    def class_counts(self, split: str) -> list[int]:
        """Pictures per class, in the order of `classes`."""
        counts: list[int] = np.bincount(self._split(split).labels, minlength=len(self.classes)).tolist()
        return counts

    def fingerprint(self) -> str:
        """SHA-256 over classes, splits, contents and labels; see `frostline.data.fingerprint`."""
        self.load()
        return fingerprint(self.classes, self.splits)

    def record(self) -> dict[str, Any]:
        """What a run writes down of its data; see `data_record`."""
        self.load()
        return data_record(self.classes, self.splits)

    def prepare(self, preprocessing: Preprocessing, augmentation: Augmentation, *, seed: int) -> None:
        """Says how pictures become input, before any loader is made.

        Args:
            preprocessing: the backbone's.
            augmentation: of training pictures.
            seed: of the sample order and the augmentation.

        Raises:
            ConfigError: ``decoded`` cannot be had with this augmentation.
        """
        self._check_keeping(augmentation)
        self._prepared = (preprocessing, augmentation, seed)
        self._kept_pictures = {}

    def loader(self, split: str, *, train: bool = False, normalize: bool = True) -> PictureLoader:
        """A loader of `Batch` for this process.

        Args:
            split: ``train``, ``val`` or ``test``.
            train: augmented and in a new order each epoch; else plain, in order, each picture valid exactly once over
                all processes.
            normalize: its images are normalized; else they may be uint8, for `on_after_batch_transfer`.

        Raises:
            DataError: there is no such split, or nothing to train on. While it is read: a picture is unreadable.
        """
        pictures = self._split(split)
        dataset, order = self._dataset(split, train=train)
        placement = Placement.current()
        if not train:
            evaluated = EvaluationSampler(len(pictures), placement=placement)
            return self._loader(dataset, evaluated, self._feed(split, train), normalize=normalize)
        self._check_training(len(pictures), placement.world_size)
        seed = self._ready[2]
        settings: dict[str, Any] = {"seed": seed, "drop_last": self.drop_last, "placement": placement}
        sampler = (
            BalancedSampler(pictures.labels[order], self.batch_size, **settings)
            if self.sampler == "balanced"
            else TrainingSampler(len(pictures), self.batch_size, **settings)
        )
        if self.trainer is not None:
            place(sampler, self.trainer.fit_loop)
        skipped = self.skipped if self.on_error == "skip" else None
        return self._loader(dataset, sampler, self._feed(split, train), skipped, normalize=normalize)

    def deliveries(
        self, split: str, *, train: bool, view: int = 0, positions: Sequence[int] | None = None
    ) -> Iterator[Delivery]:
        """Pictures of a split in the order of their positions, each once; what cannot be read is a value.

        Args:
            split: ``train``, ``val`` or ``test``.
            train: as in training, or as it is evaluated.
            view: which fixed view of a random augmentation.
            positions: which pictures; None is all.
        """
        # for a few pictures, all would be decoded
        dataset, order = self._dataset(split, train=train, keep=positions is None)
        wanted = range(len(dataset)) if positions is None else positions
        # an augmentation goes by what a sampler asks for, not by where that lies
        asked = np.arange(len(dataset)) if order is None else np.argsort(order)
        return self._loader(dataset, [Key(view, int(asked[at])) for at in wanted]).deliveries()

    def recipe(self, split: str, *, train: bool) -> dict[str, Any] | None:
        """All that decides the inputs of a split beside the pictures, as plain types; None where that cannot be told.

        Raises:
            DataError: there is no such split.
        """
        preprocessing, augmentation, seed = self._ready
        words = augmentation.recipe(split, train=train)
        if words is None:
            return None
        recipe: dict[str, Any] = {"preprocessing": repr(preprocessing), "augmentation": words, "decode": self.decode}
        # they decide of which pictures there is any input
        recipe |= {"limits": self._limits}
        if train and not augmentation.deterministic:
            order = canonical_order(self._split(split)).astype("<i8")
            recipe |= {"decoded": self.decoded is not None and augmentation.scale is not None}
            recipe |= {"seed": seed, "order": hashlib.sha256(order.tobytes()).hexdigest()}
        return recipe

    def input_digests(self, split: str, *, train: bool) -> Digests | None:
        """The digests of a split's pictures, where those of one digest become one input in every split.

        None where the input hangs on more than the picture: where it is random, it goes by the place among the others.
        That of a picture which cannot be read is empty.

        Raises:
            DataError: there is no such split.
        """
        pictures = self._split(split)
        random = train and not self._ready[1].deterministic
        if random or self.recipe(split, train=train) is None or not pictures.is_known_by_content():
            return None
        digests = np.ascontiguousarray(pictures.digests())
        last = digests.view("S1").reshape(-1, digests.itemsize)[:, -1]
        return np.where(last == UNREADABLE, b"", digests).astype(digests.dtype)

    def pictures_hash(self, split: str) -> str:
        """SHA-256 of what a split's pictures contain, in the order of their positions."""
        pictures = self._split(split)
        if split not in self._hashes:
            self._hashes[split] = hashlib.sha256(np.ascontiguousarray(pictures.digests()).tobytes()).hexdigest()
        return self._hashes[split]

    @property
    def changes_each_epoch(self) -> bool:
        """Whether the augmentation gives another input for a training picture in each epoch."""
        return not self._ready[1].deterministic

    @property
    def _limits(self) -> list[int | None]:
        return [self.pixel_limit, getattr(self, "file_limit", None)]

    @property
    def _ready(self) -> tuple[Preprocessing, Augmentation, int]:
        if self._prepared is None:
            raise RuntimeError("prepare() comes before the first loader")
        return self._prepared

    def _feed(self, split: str, train: bool) -> AskFeed | None:
        feeding = self.feeding
        return None if feeding is None else lambda epoch: feeding(split, train=train, epoch=epoch)

    def _dataset(self, split: str, *, train: bool, keep: bool = True) -> tuple[PictureDataset, Labels | None]:
        """The pictures as they are trained on or evaluated, and the position of each index that a sampler asks for."""
        pictures = self._split(split)
        preprocessing, augmentation, seed = self._ready
        exact = self.decode == "exact"
        if train:
            transform, is_random = augmentation.train_transform(preprocessing, exact=exact), True
            seeded = not augmentation.deterministic
        else:
            transform, is_random = augmentation.evaluation_transform(preprocessing, split, exact=exact)
            seeded = is_random
        # what is random is so by content, not by the place in a listing
        order = canonical_order(pictures) if is_random else None
        kept = self._kept_of(split, train=train) if keep and self.decoded is not None else None
        dataset = PictureDataset(pictures, transform, seed if seeded else None, order, kept=kept, in_8_bits=True)
        return dataset, order

    def _kept_of(self, split: str, *, train: bool) -> KeptPictures:
        """The decoded pictures of a split, which evaluation and training share where both show the same part."""
        preprocessing, augmentation, _ = self._ready
        crops = train and augmentation.scale is not None
        if (split, crops) not in self._kept_pictures:
            assert self.decoded is not None
            pictures = self._split(split)
            workers = worker_count(self.workers, in_memory=self.in_memory)
            words = {"preprocessing": repr(preprocessing), "decode": self.decode, "limits": str(self._limits)}
            keeping = Keeping(evaluation_transform(preprocessing, exact=self.decode == "exact"), None, words)
            if crops and augmentation.scale is not None:
                enough = enough_for(preprocessing, augmentation.scale, augmentation.ratio)
                shares = f"{augmentation.scale} {augmentation.ratio}"
                keeping = Keeping(keeping.transform, enough, {**words, "crops": shares})
            self._kept_pictures[split, crops] = KeptPictures(pictures, keeping, self.decoded, workers)
        return self._kept_pictures[split, crops]

    def _check_keeping(self, augmentation: Augmentation) -> None:
        if self.decoded is not None and self.in_memory:
            raise ConfigError(
                f"data.decoded={self.decoded}, but these pictures are in memory already.", mend="Set data.decoded=null."
            )
        if self.decoded is not None and self.decode == "exact" and augmentation.scale is not None:
            raise ConfigError(
                f"data.decoded={self.decoded} keeps pictures smaller than they are for random crops (augment.scale), "
                "which data.decode=exact forbids.",
                mend="Set data.decode=fast, or data.decoded=null.",
            )

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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As Lightning's, without a walk through a batch that is where it has to be."""
        if isinstance(batch, Batch) and batch.images.device == device:
            return batch
        moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def train_dataloader(self) -> PictureLoader:
        """Lightning's hook."""
        return self.loader("train", train=True, normalize=self.trainer is None)

    def val_dataloader(self) -> PictureLoader | list[PictureLoader]:
        """Lightning's hook; nothing where there is no such split."""
        self.load()
        return self.loader("val", normalize=self.trainer is None) if "val" in self.splits else []

    def test_dataloader(self) -> PictureLoader:
        """Lightning's hook."""
        return self.loader("test", normalize=self.trainer is None)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lightning's hook: normalizes 8-bit pictures on the device that they were brought to."""
        return normalized(batch, Normalization(self._ready[0]))

    def _loader(
        self,
        dataset: PictureDataset,
        sampler: Any,
        feed: AskFeed | None = None,
        skipped: dict[str, str] | None = None,
        *,
        normalize: bool = True,
    ) -> PictureLoader:
        trainer = self.trainer
        processes = trainer.num_devices if trainer else 1
        on_gpu = trainer.strategy.root_device.type == "cuda" if trainer else torch.cuda.is_available()
        workers = worker_count(self.workers, in_memory=self.in_memory, processes=processes)
        return make_loader(
            dataset,
            sampler,
            batch_size=self.batch_size,
            workers=workers,
            pin_memory=on_gpu,
            skipped=skipped,
            feed=feed,
            normalize=normalize,
        )

    def _split(self, name: str) -> ImageSplit:
        self.load()
        if name not in self.splits:
            raise DataError(f"The data has no {name} split.", mend=suggestion(name, self.splits, known_as="splits"))
        return self.splits[name]

    def _divided(self, found: LabelledSet, notes: list[str]) -> dict[str, ImageSplit]:
        """The splits of the run before a subset is taken; ``notes`` grows by what there is to say of them."""
        if self.split_file is not None:
            splits, how = found.splits, f"data.split_file={self.split_file}"
        elif self.folds is not None:
            fold, share = self.fold or 0, self.val_fraction
            splits = in_folds(
                found.splits, found.classes, folds=self.folds, fold=fold, val_share=share, seed=self.split_seed
            )
            held = "test" if "test" not in found.splits else "val"
            unused = "; data.test_fraction is not used" if held == "test" and self.test_fraction else ""
            notes.append(f"Fold {fold} of {self.folds} (from 0) is the {held} split{unused}.")
            how = f"data.folds={self.folds}"
        else:
            shares = {"test": self.test_fraction, "val": self.val_fraction}
            splits = with_derived(in_order(found.splits), shares, self.split_seed)
            how = "splitting off val and test"
        if self.labelled:
            check_division(found.classes, splits, how)
        return splits

    def _kept(self, train: ImageSplit) -> ImageSplit:
        seed = self.split_seed if self.subset_seed is None else self.subset_seed
        wanted = self.labels_per_class
        if wanted is None:
            return train if self.fraction == 1.0 else subset(train, share_of(self.fraction), seed=seed)
        counts = np.bincount(train.labels, minlength=len(self.classes))
        if counts.min() < wanted:
            raise DataError(
                f"The class '{self.classes[int(counts.argmin())]}' has {counts.min()} training pictures, fewer than "
                f"data.labels_per_class={wanted}.",
                mend=f"Set data.labels_per_class to {counts.min()} or less.",
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

    def _check_folds(self) -> None:
        if self.fold is not None and self.folds is None:
            raise ConfigError(f"data.fold={self.fold} of how many?", mend="Set data.folds=5 as well.")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ConfigError(
                f"data.fold={self.fold}, but with data.folds={self.folds} they are counted from 0 to {self.folds - 1}.",
                mend="All of them: -m 'data.fold=range(" + str(self.folds) + ")'.",
            )
        if self.folds is not None and self.split_file is not None:
            raise ConfigError("data.folds and data.split_file are both set.", mend="Set one of them.")

    def _check_kinds(self) -> None:
        for name in self._booleans:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"data.{name} is {getattr(self, name)!r}.", mend="Give true or false.")
        for name in ("val_fraction", "test_fraction", "fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"data.{name} is {value!r}.", mend="Give a number from 0 to 1.")
        for name in ("split_file", "exclude"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"data.{name} is {getattr(self, name)!r}.", mend="Give a path, in quotes.")

    def _check_arguments(self) -> None:
        self._check_kinds()
        for name, least in self._at_least.items():
            value = getattr(self, name)
            optional = value is None or (name == "workers" and value == "auto")
            if not optional and not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                extra = " or 'auto'" if name == "workers" else ""
                raise ConfigError(f"data.{name} is {value!r}.", mend=f"Give a whole number of at least {least}{extra}.")
        for name, options in self._choices.items():
            value = getattr(self, name)
            if value not in options:
                given = " or ".join("null" if option is None else option for option in options)
                raise ConfigError(f"data.{name} is {value!r}.", mend=f"Give {given}.")
        self._check_folds()
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
