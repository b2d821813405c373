"""The labelled sets of ``torchvision.datasets``, with their official splits."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from frostline.data.base import ImageData
from frostline.data.cache import cache_folder
from frostline.data.classes import class_order
from frostline.data.decoding import FILE_LIMIT
from frostline.data.digits import ArraySplit
from frostline.data.files import FileSplit
from frostline.data.joint_labels import without_unused
from frostline.data.splits import ImageSplit, LabelledSet
from frostline.data.torchvision_parts import ItemSplit, Part, part_of
from frostline.errors import ConfigError, DataError, FrostlineError, StorageError, suggestion

_WITHOUT_LABEL = {
    "boxes": ("CocoDetection", "Kitti", "VOCDetection", "WIDERFace"),
    "masks": ("Cityscapes", "SBDataset", "VOCSegmentation"),
    "captions": ("CocoCaptions", "Flickr8k", "Flickr30k", "SBU"),
    "pairs of pictures": ("LFWPairs", "PhotoTour"),
    "videos": ("HMDB51", "Kinetics", "MovingMNIST", "UCF101"),
    "optical flow": ("FlyingChairs", "FlyingThings3D", "HD1K", "KittiFlow", "Sintel"),
    "stereo pairs": (
        "CREStereo",
        "CarlaStereo",
        "ETH3DStereo",
        "FallingThingsStereo",
        "InStereo2k",
        "Kitti2012Stereo",
        "Kitti2015Stereo",
        "Middlebury2014Stereo",
        "SceneFlowStereo",
        "SintelStereo",
    ),
}
_REFUSED = {
    **{
        name: f"has {what}, where one label per picture is taken"
        for what, all_ in _WITHOUT_LABEL.items()
        for name in all_
    },
    "LSUN": "keeps its index in a pickle file without a checksum, which can run any code",
    "ImageFolder": "is what data=folder reads",
    "DatasetFolder": "is what data=folder reads",
    "VisionDataset": "is the base class of the others",
}
# the two parts of these have other classes: nothing that is learned on one can be tested on the other
_OTHER_CLASSES = ("LFWPeople", "Omniglot")
_NO_LONGER = ("LFWPeople", "StanfordCars")  # their argument download does nothing but raise
_OURS = ("root", "download", "train", "transform", "target_transform", "transforms", "loader", "is_valid_file", "what")
_SPLIT_VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "split": {
        "train": ("train", "trainval", "train-standard"),
        "val": ("val", "valid", "validation"),
        "test": ("test",),
    },
    "version": {"train": ("2021_train",), "val": ("2021_valid",)},
}
"""Argument that tells official splits apart, to the values that each of them may have, the first that exists taken."""

_HOLDS = {"trainval": ("val",), "all": ("val", "test")}
"""What a person can train on, to the official splits that are part of it."""


@dataclass(kw_only=True, eq=False, repr=False)
class TorchvisionData(ImageData):
    """A class of ``torchvision.datasets`` with one label per picture.

    The official splits are kept: those that its argument ``train``, ``split`` or ``version`` tells apart. Where it has
    several that one can train on, ``arguments`` may name one, such as ``{split: trainval}``. Pictures in files are
    decoded as in every other source, arrays stay arrays. torchvision compares its checksums as always.

    Attributes:
        name: of the class, such as ``CIFAR10``.
        root: the folder that the class takes as its root.
        download: fetch what is not there.
        arguments: further ones of the class, such as ``{split: letters}`` for ``EMNIST``.
        file_limit: bytes above which a picture file is refused.
    """

    _at_least: ClassVar[dict[str, int]] = {**ImageData._at_least, "file_limit": 1}

    name: str = field(kw_only=False)
    root: str = field(kw_only=False)
    _booleans: ClassVar[tuple[str, ...]] = (*ImageData._booleans, "download")

    download: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    file_limit: int = FILE_LIMIT

    def __post_init__(self) -> None:
        super().__post_init__()
        self._arrays_alone = False

    @property
    def in_memory(self) -> bool:  # type: ignore[override]  # only the set that was read tells
        """Whether all pictures are arrays, once they are read."""
        return self._arrays_alone

    def read(self) -> LabelledSet:
        """Makes an object of the class for each official split.

        Raises:
            ConfigError: there is no such class, it has no labels, an argument is none of its own, or a package that it
                needs is not installed.
            DataError: its files are not there, or damaged; or a picture has no label, or several.
            StorageError: it cannot be downloaded.
        """
        root = Path(self.root).expanduser().absolute()
        maker = _Maker(self.name, root, self.download, self.arguments)
        with _alone(root) if self.download else contextlib.nullcontext():
            found = maker.official()
        parts, notes = {}, []
        for split, made in found.items():
            with maker.faults_named():
                part = part_of(made, f"{self.name}'s {split} split")
            if part is not None:
                parts[split] = part
            else:
                notes.append(f"Ignored the {split} split of {self.name}, which has no labels.")
        if "train" not in parts:
            raise DataError(f"The train split of {self.name} has no labels.", mend="Choose another in data.arguments.")
        classes, index_of = _joint_classes(parts, self.name)
        splits = {split: self._pictures(part, index_of[split], split, root) for split, part in parts.items()}
        self._arrays_alone = all(isinstance(split, ArraySplit) for split in splits.values())
        kept, unused = without_unused(classes, splits)
        return LabelledSet(kept, splits, [*notes, *unused])

    def _pictures(self, part: Part, index_of: Mapping[int, int], split: str, root: Path) -> ImageSplit:
        numbers, inverse = np.unique(part.labels, return_inverse=True)
        labels = np.array([index_of[number] for number in numbers.tolist()], dtype=np.int64)[inverse]
        if isinstance(part.pictures, np.ndarray):
            return ArraySplit(part.pictures, labels, split)
        if isinstance(part.pictures, list):
            start = f"{root}/"
            names = [str(path).removeprefix(start) for path in part.pictures]
            return FileSplit(root, names, labels, self.pixel_limit, self.file_limit)
        return ItemSplit(part.pictures, labels, split)


class _NoSuchSplit(Exception):  # noqa: N818  # it is no error: another name is tried
    """The class has no official split of that name."""


class _Maker:
    """Makes objects of a class, and says what is wrong in its place.

    Args:
        name: of the class.
        root, download, arguments: see `TorchvisionData`.

    Raises:
        ConfigError: there is no such class, it has no labels, or an argument is none of its own.
    """

    def __init__(self, name: str, root: Path, download: bool, arguments: Mapping[str, Any]) -> None:
        self._name = name
        self._root = root
        self._download = download
        self._arguments = dict(arguments)
        self._kind = _class_called(name)
        self._accepted = _accepted(self._kind)
        self._check_arguments()

    def official(self) -> dict[str, Any]:
        """An object for each official split."""
        if self._name in _OTHER_CLASSES:
            return {"train": self._made()}
        if "train" in self._accepted:
            return {"train": self._made(train=True), "test": self._made(train=False)}
        for key, values in _SPLIT_VALUES.items():
            if key in self._accepted:
                return self._by_value(key, values)
        return {"train": self._made()}

    def _by_value(self, key: str, values: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        chosen = self._arguments.get(key)
        held = [value for split in ("val", "test") for value in values.get(split, ())]
        if chosen in held:
            raise ConfigError(
                f"data.arguments.{key}={chosen} is an official split of {self._name} to validate or test on.",
                mend=f"Leave data.arguments.{key} out: all official splits are read.",
            )
        found = {"train": self._first(key, values["train"] if chosen is None else (chosen,))}
        if found["train"] is None:
            raise ConfigError(
                f"{self._name} has no {' or '.join(values['train'])} split.", mend=f"Set data.arguments.{key}."
            )
        for split in ("val", "test"):
            of_another_year = key == "version" and not str(chosen or "2021").startswith("2021")
            if split in values and split not in _HOLDS.get(str(chosen), ()) and not of_another_year:
                made = self._first(key, values[split])
                found.update({} if made is None else {split: made})
        return found

    def _first(self, key: str, values: tuple[str, ...]) -> Any:
        for value in values:
            with contextlib.suppress(_NoSuchSplit):
                return self._made(**{key: value})
        return None

    def _made(self, **chosen: Any) -> Any:
        arguments = {**self._arguments, **chosen}
        if "download" in self._accepted:
            arguments["download"] = self._download
        if "root" in self._accepted:
            arguments["root"] = str(self._root)
            if not self._download and not self._root.is_dir():  # some make the folder before they look into it
                raise self._absent(f"the folder {self._root} does not exist")
        with self.faults_named(chosen):
            return self._kind(**arguments)

    @contextlib.contextmanager
    def faults_named(self, chosen: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Turns what the class raises into an error that says what mends it."""
        try:
            yield
        except (FrostlineError, _NoSuchSplit):
            raise
        except Exception as error:  # each class has its own ways
            text = " ".join(str(error).split()) or type(error).__name__
            tried = {key: value for key, value in (chosen or {}).items() if self._arguments.get(key) != value}
            if any(f"'{value}' for argument {key}." in text for key, value in tried.items()):
                raise _NoSuchSplit from error
            raise self._fault(error, text.rstrip(".")) from error

    def _fault(self, error: Exception, text: str) -> FrostlineError:
        if isinstance(error, ImportError) or "pip install" in text or "installed" in text:
            return ConfigError(f"{self._name} needs a package that is not installed: {text}.", mend="Install it.")
        if isinstance(error, ValueError) and text.startswith(("Unknown value", "Expected type", "Value for argument")):
            return ConfigError(f"{self._name}: {text}.", mend="Look at data.arguments.")
        if "no longer available" in text or "cannot be downloaded" in text:
            return ConfigError(f"{self._name} cannot be downloaded: {text}.", mend="Set data.download=false.")
        if self._download and (isinstance(error, OSError) or text.startswith("Error downloading")):
            return StorageError(
                f"{self._name} cannot be downloaded into {self._root}: {text}.", mend=self._how_to_fetch(again=True)
            )
        if isinstance(error, FileNotFoundError) or any(
            word in text.lower() for word in ("not found", "not exist", "not present")
        ):
            return self._absent(text)
        return DataError(f"{self._name} in {self._root} cannot be read: {text}.", mend=self._how_to_fetch(again=True))

    def _absent(self, why: str) -> DataError:
        why = why.partition(" You can")[0].rstrip(".")
        return DataError(
            f"{self._name} is not in {self._root}, or is not complete: {why}.", mend=self._how_to_fetch(again=False)
        )

    def _how_to_fetch(self, *, again: bool) -> str:
        own = "put its files there yourself, under the names that torchvision gives them"
        if "download" not in self._accepted or self._name in _NO_LONGER:
            return f"torchvision cannot download it: {own}."
        addresses = _addresses(self._kind)
        where = f" It comes from {' or '.join(addresses)}." if addresses else ""
        first = "Try again" if again and self._download else "Set data.download=true"
        return (
            f"{first}, or {own}; an archive from a mirror that is there already is not downloaded, but checked and "
            f"unpacked, with data.download=true.{where}"
        )

    def _check_arguments(self) -> None:
        own = [name for name in self._accepted if name not in _OURS]
        for name in self._arguments:
            if name in _OURS:
                raise ConfigError(
                    f"data.arguments.{name} is not taken: Frostline sets it itself.",
                    mend="Use data.root, data.download and augment; all official splits are read.",
                )
            if name not in self._accepted:
                raise ConfigError(
                    f"{self._name} has no argument '{name}'.", mend=suggestion(name, own, known_as="arguments")
                )
        told = {*self._arguments, *_OURS, *(() if "train" in self._accepted else _SPLIT_VALUES)}
        for name, parameter in self._accepted.items():
            if parameter.default is parameter.empty and name not in told:
                values = getattr(self._kind, f"{name}s", None)
                known = f" Values: {', '.join(map(str, values))}." if isinstance(values, tuple) else ""
                raise ConfigError(
                    f"{self._name} needs the argument '{name}'.", mend=f"Set data.arguments.{name}.{known}"
                )


def _class_called(name: str) -> Any:
    from torchvision import datasets

    kinds = {
        known: kind
        for known in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, known)) and issubclass(kind, datasets.VisionDataset)
    }
    if name in _REFUSED and name in kinds:
        raise ConfigError(
            f"torchvision's {name} cannot be used: it {_REFUSED[name]}.",
            mend="Choose a set with one label per picture.",
        )
    if name not in kinds:
        usable = [known for known in kinds if known not in _REFUSED]
        raise ConfigError(
            f"torchvision has no data set '{name}'.", mend=suggestion(name, usable, known_as="data sets with labels")
        )
    return kinds[name]


def _accepted(kind: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a class, and of its base classes where it hands on what it does not know."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        named = {
            name: one for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        found = {**named, **found}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            break
    found.pop("self", None)
    return found


def _addresses(kind: Any) -> list[str]:
    """Up to two addresses that a class downloads from."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, str) and value.startswith("http"):
            found.append(value)
        elif isinstance(value, dict):
            look(list(value.values()))
        elif isinstance(value, list | tuple):
            for one in value:
                look(one)

    for base in kind.__mro__:
        look([value for name, value in vars(base).items() if not name.startswith("__")])
        if found:
            break
    return found[:2]


def _joint_classes(parts: Mapping[str, Part], name: str) -> tuple[tuple[str, ...], dict[str, dict[int, int]]]:
    """The class names, and for each split the index of each of its labels."""
    named = {
        split: part.names
        if part.names is not None
        else {label: str(label) for label in np.unique(part.labels).tolist()}
        for split, part in parts.items()
    }
    if parts["train"].names is None:
        classes = class_order(label for names in named.values() for label in names.values())
    else:
        classes = tuple(named["train"].values())
    index_of = {label: index for index, label in enumerate(classes)}
    for split, part in parts.items():
        for label in np.unique(part.labels).tolist():
            if named[split].get(label) not in index_of:
                called = named[split].get(label, label)
                raise DataError(
                    f"The label {called} of {name}'s {split} split is none of the {len(classes)} classes of train.",
                    mend="Look at the files of the data set, and at data.arguments.",
                )
    return classes, {
        split: {label: index_of[called] for label, called in names.items() if called in index_of}
        for split, names in named.items()
    }


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lets one process at a time download into a folder; where there can be no lock, each does."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            key = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            lock = stack.enter_context((cache_folder() / f".download-{key}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
