"""What an object of ``torchvision.datasets`` holds: its pictures, its labels and the names of its classes."""

from __future__ import annotations

import operator
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from frostline.data.decoding import to_rgb
from frostline.data.progress import Progress
from frostline.data.splits import ImageSplit, Labels
from frostline.errors import DataError

Pixels = npt.NDArray[np.uint8]

# digests are read by several threads, and FakeData seeds the generator that all of them share
_making = threading.Lock()
_LOADERS = ("loader", "_loader")
_LABELS = ("targets", "labels", "_labels")
_FILES = ("_images", "_samples")


class Part(NamedTuple):
    """One split as torchvision has it.

    Attributes:
        pictures: paths of files; or ``[N, H, W]`` or ``[N, H, W, 3]`` uint8; or the object itself.
        labels: ``[N]`` int64, as torchvision numbers them.
        names: of the classes by number; None where it has none.
    """

    pictures: Sequence[str] | Pixels | Any
    labels: Labels
    names: dict[int, str] | None


class ItemSplit(ImageSplit):
    """Pictures that torchvision makes when they are asked for.

    Args:
        found: the object.
        labels: ``[N]`` int64 class indices.
        prefix: of the names, which are ``prefix/0000`` and so on.
    """

    def __init__(self, found: Any, labels: Labels, prefix: str) -> None:
        self._found = found
        self._prefix = prefix
        self.labels = labels

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        try:
            with _making:
                return to_rgb(self._found[index][0])
        except (OSError, ValueError, LookupError, RuntimeError, SyntaxError, TypeError, struct.error) as error:
            raise DataError(f"The picture {self.name(index)} cannot be read: {error}.") from error

    def name(self, index: int) -> str:
        """See `ImageSplit.name`."""
        return f"{self._prefix}/{index:04d}"


def part_of(found: Any, title: str) -> Part | None:
    """Reads an object; a picture is decoded only where its label cannot be had without.

    Args:
        found: the object, without transforms.
        title: of the split and the class, for messages.

    Returns:
        The part; None where it has pictures, but no label.

    Raises:
        DataError: a label is missing, or is more than one integer.
    """
    pictures, values = _through_loader(found) or _in_memory(found) or _listed(found, title) or _one_by_one(found, title)
    if len(values) and all(value is None for value in values):
        return None
    labels = _integers(values, title)
    return Part(pictures, labels, _class_names(found))


def _through_loader(found: Any) -> tuple[list[str], list[Any]] | None:
    """Paths and labels of a set that opens files through a loader: one that hands on the path decodes nothing."""
    attribute = next((name for name in _LOADERS if hasattr(found, name)), None)
    if attribute is None or not len(found):
        return None
    setattr(found, attribute, str)
    items = [found[index] for index in range(len(found))]
    return [path for path, _ in items], [label for _, label in items]


def _in_memory(found: Any) -> tuple[Pixels, list[Any]] | None:
    data: Any = getattr(found, "data", None)
    pixels = data.numpy() if hasattr(data, "numpy") else data
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not 0 < len(pixels) == len(found):
        return None
    labels = _stated_labels(found)
    first = np.asarray(found[0][0])
    for laid_out in (pixels, pixels.transpose(0, 2, 3, 1) if pixels.ndim == 4 else pixels):
        if np.array_equal(laid_out[0], first) and labels is not None:
            return laid_out, labels
    return None


def _listed(found: Any, title: str) -> tuple[list[str], list[Any]] | None:
    """Paths that are an attribute of the object, and their labels."""
    paths = _stated_files(found)
    if paths is None:
        return None
    labels = _stated_labels(found)
    return paths, (_one_by_one(found, title)[1] if labels is None else labels)


def _stated_files(found: Any) -> list[str] | None:
    for attribute in _FILES:
        items = getattr(found, attribute, None)
        if not isinstance(items, list) or not 0 < len(items) == len(found):
            continue
        paths = [item[0] if isinstance(item, tuple) else item for item in items]
        if all(isinstance(path, str | Path) for path in paths):
            return [str(path) for path in paths]
    return None


def _one_by_one(found: Any, title: str) -> tuple[Any, list[Any]]:
    """Asks for every item; those that Pillow has opened, but not read, tell their path."""
    paths: list[str] = []
    labels: list[Any] = []
    progress = Progress(f"reading the labels of {title}", len(found))
    for index in range(len(found)):
        path, label = _item(found, index)
        paths.append(path)
        labels.append(label)
        progress.at(index + 1)
    progress.end()
    return (paths if paths and all(paths) else found), labels


def _item(found: Any, index: int) -> tuple[str, Any]:
    """The path of a picture that is not read yet, or nothing; and its label."""
    picture, label = found[index]
    path = str(getattr(picture, "filename", ""))
    if path:
        picture.close()
    return path, label


def _stated_labels(found: Any) -> list[Any] | None:
    """Labels that are an attribute, if they are those that the object gives with its pictures."""
    candidates = [getattr(found, name, None) for name in _LABELS]
    samples = getattr(found, "_samples", None)
    if isinstance(samples, list) and all(isinstance(sample, tuple) for sample in samples):
        candidates.append([sample[1] for sample in samples])
    candidates = [candidate for candidate in candidates if candidate is not None]
    if not candidates or not len(found):
        return None
    probes = sorted({0, len(found) // 2, len(found) - 1})
    given = [_item(found, index)[1] for index in probes]
    for candidate in candidates:
        values = _numbers(candidate)
        if len(values) == len(found):
            try:
                if all(bool(values[index] == label) for index, label in zip(probes, given, strict=True)):
                    return values
            except (RuntimeError, ValueError, TypeError):  # several values, whose equality is no truth value
                continue
    return None


def _numbers(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _integers(values: Sequence[Any], title: str) -> Labels:
    labels = np.empty(len(values), dtype=np.int64)
    for index, value in enumerate(values):
        try:
            labels[index] = operator.index(value)
        except (TypeError, ValueError, OverflowError) as error:
            what = "no label" if value is None else f"no single label, but {type(value).__name__}"
            raise DataError(
                f"Picture {index} of {title} has {what}.",
                mend="Set the argument of the class, in data.arguments, that chooses a target of one integer.",
            ) from error
    return labels


def _class_names(found: Any) -> dict[int, str] | None:
    names = _stated_names(found)
    if names is None:
        return None
    first = [name[0] if isinstance(name, tuple | list) else str(name) for name in names]
    whole = [", ".join(name) if isinstance(name, tuple | list) else str(name) for name in names]
    # of ImageNet's classes two are called crane: a bird, and a machine
    short = [one if first.count(one) == 1 else other for one, other in zip(first, whole, strict=True)]
    ids = getattr(found, "wnids", range(len(short)))
    distinct = [name if short.count(name) == 1 else f"{name} ({ids[i]})" for i, name in enumerate(short)]
    return dict(enumerate(distinct))


def _stated_names(found: Any) -> Sequence[Any] | None:
    if getattr(found, "_target_types", None) == ["binary-category"]:  # OxfordIIITPet
        return list(found.bin_classes)
    if hasattr(found, "all_categories"):  # INaturalist
        (target,) = found.target_type
        if target == "full":
            return list(found.all_categories)
        index = found.categories_index[target]
        return sorted(index, key=index.__getitem__)
    by_name = getattr(found, "class_to_idx", None)
    if isinstance(by_name, dict) and sorted(by_name.values()) == list(range(len(by_name))):
        return sorted(by_name, key=by_name.__getitem__)
    names = [getattr(found, attribute, None) for attribute in ("classes", "categories", "_characters")]
    return next((list(listed) for listed in names if listed), None)
