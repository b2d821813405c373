"""Data sets of Hugging Face ``datasets``: saved to disk, Parquet, image folders, or by their name on the hub."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from frostline.data.arrow import ArrowSplit, is_picture_column, paths_differ
from frostline.data.base import ImageData
from frostline.data.classes import known_classes
from frostline.data.decoding import FILE_LIMIT
from frostline.data.folder import FolderData
from frostline.data.hf_loading import SPLIT_NAMES, from_disk, from_hub, import_datasets, layout_of
from frostline.data.joint_labels import encode_groups, encode_splits, relabelled, without_unused
from frostline.data.listing import existing_folder
from frostline.data.splits import ImageSplit, LabelledSet, Labels
from frostline.errors import ConfigError, DataError, suggestion

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


@dataclass(kw_only=True, eq=False, repr=False)
class HuggingFaceData(ImageData):
    """A data set that ``datasets`` reads; the table stays in a file that all processes share.

    The splits ``train``, ``validation`` (or ``valid``, ``val``, ``dev``) and ``test`` are kept. A set with a single
    split is all ``train`` at first. Class folders are read as `FolderData` reads them, since ``datasets`` takes words
    in the names of folders for splits. Parquet is copied once into the cache of ``datasets`` (``HF_DATASETS_CACHE``).
    Nothing of a data set is run as code.

    Attributes:
        root: a folder that ``save_to_disk`` wrote, or that holds Parquet files, or pictures with a ``metadata`` table
            or in class folders; a ``.parquet`` file; or a name on the hub, ``ORG/NAME``.
        config: which of several configurations; None where there is one.
        revision: a branch, tag or commit on the hub; None for the newest.
        image_column: None takes the only column of pictures, or ``image``.
        label_column: None takes ``label``, or the only column that can be meant.
        group_column: says which pictures belong together, such as a patient; None for none.
        classes: the class names in order; None takes those of the data set in its order.
        file_limit: bytes above which an encoded picture is refused.
    """

    _at_least: ClassVar[dict[str, int]] = {**ImageData._at_least, "file_limit": 1}

    root: str = field(kw_only=False)
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    classes: InitVar[Sequence[str] | None] = None
    file_limit: int = FILE_LIMIT

    def __post_init__(self, classes: Sequence[str] | None) -> None:
        super().__post_init__()
        self._known = None if classes is None else known_classes(classes)

    def read(self) -> LabelledSet:
        """Opens the tables; decodes nothing.

        Raises:
            ConfigError: ``datasets`` is not installed, or a column or configuration does not exist.
            DataError: the data set cannot be used: no such folder, no labels, a label that is none of the classes.
            StorageError: the hub cannot be reached and the data set is not in the cache, or the hub has none.
        """
        hub = import_datasets()
        path = Path(self.root).expanduser()
        if not path.exists() and _HUB_NAME.fullmatch(self.root):
            tables, notes = from_hub(hub, self.root, self.config, self.revision)
            return self._labelled_set(hub, tables, Path(self.root), notes)
        if self.revision is not None:
            raise ConfigError(f"data.revision is set, but {path} is on this machine.", mend="Set data.revision=null.")
        place = path if path.is_file() else existing_folder(path)
        layout = layout_of(place, self.config)
        if layout.kind == "folder":
            return self._class_folders(place)
        return self._labelled_set(hub, from_disk(hub, layout), place if place.is_dir() else place.parent, [])

    def _class_folders(self, root: Path) -> LabelledSet:
        for key in ("image_column", "label_column", "group_column", "config"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"data.{key} is set, but {root} has class folders and no table.", mend=f"Set data.{key}=null."
                )
        found = FolderData(str(root), pixel_limit=self.pixel_limit, file_limit=self.file_limit).read()
        return found if self._known is None else relabelled(found, self._known)

    def _labelled_set(self, hub: Any, tables: Mapping[str, Any], root: Path, notes: Sequence[str]) -> LabelledSet:
        splits, ignored = _official(tables, self.root)
        columns = _columns(hub, splits, self.image_column, self.label_column, self.group_column, self.root)
        labelled, unlabelled = _labelled(splits, columns.label)
        classes, labels = _labels(hub, labelled, columns.label, self._known)
        groups = (
            encode_groups({split: table.data.column(columns.group) for split, table in labelled.items()}, place=_row)
            if columns.group
            else {}
        )
        pictures = {split: table.data.column(columns.image) for split, table in labelled.items()}
        named = paths_differ(list(pictures.values()))
        # datasets itself takes a relative path from the working directory, which says nothing of the data
        found: dict[str, ImageSplit] = {
            split: ArrowSplit(
                pictures[split],
                labels[split],
                split,
                named=named,
                root=root.absolute(),
                origin=_origin(table),
                pixel_limit=self.pixel_limit,
                file_limit=self.file_limit,
                groups=groups.get(split),
            )
            for split, table in labelled.items()
        }
        kept, unused = without_unused(classes, found)
        return LabelledSet(kept, found, [*notes, *ignored, *unlabelled, *unused])


class _Columns(NamedTuple):
    image: str
    label: str
    group: str | None


def _official(tables: Mapping[str, Any], root: str) -> tuple[dict[str, Any], list[str]]:
    """``train``, ``val`` and ``test``, and notes on what else there is."""
    lower = {name.lower(): name for name in tables}
    found: dict[str, str] = {}
    for split, names in SPLIT_NAMES.items():
        present = [lower[name] for name in names if name in lower]
        found.update({split: present[0]} if present else {})
    notes = []
    if "train" not in found and len(tables) == 1:
        (only,) = tables
        found = {"train": only}
        notes.append(f"The only split, '{only}', is taken as train.")
    if "train" not in found:
        raise DataError(
            f"{root} has no train split, but {', '.join(tables)}.", mend="Save it with a split that is called train."
        )
    ignored = [name for name in tables if name not in found.values()]
    notes += [f"Ignored the split{'s' if len(ignored) > 1 else ''} {', '.join(ignored)}."] if ignored else []
    return {split: tables[name] for split, name in found.items()}, notes


def _columns(
    hub: Any, splits: Mapping[str, Any], image: str | None, label: str | None, group: str | None, root: str
) -> _Columns:
    features = splits["train"].features
    wanted = {"image_column": image, "label_column": label, "group_column": group}
    for split, table in splits.items():
        for key, name in wanted.items():
            if name is not None and name not in table.features:
                raise ConfigError(
                    f"data.{key}={name}, but {split} of {root} has no such column.",
                    mend=suggestion(name, table.features, known_as="columns"),
                )
    chosen = _Columns(image or _image_column(hub, features, root), label or _label_column(hub, features, root), group)
    for split, table in splits.items():
        absent = [name for name in chosen if name is not None and name not in table.features]
        if absent:
            raise DataError(
                f"{split} of {root} has no column '{absent[0]}', which train has; it has {', '.join(table.features)}.",
                mend="Give all splits the same columns.",
            )
        kind = table.data.schema.field(chosen.image).type
        if not is_picture_column(kind):
            raise DataError(
                f"The column '{chosen.image}' of {root} holds no pictures, but {kind}.",
                mend=f"Set data.image_column. Columns: {', '.join(table.features)}.",
            )
    return chosen


def _image_column(hub: Any, features: Mapping[str, Any], root: str) -> str:
    pictures = [name for name, feature in features.items() if isinstance(feature, hub.Image)]
    if len(pictures) == 1:
        return pictures[0]
    if "image" in features:
        return "image"
    what = f"several columns of pictures ({', '.join(pictures)})" if pictures else "no column of pictures"
    raise DataError(f"{root} has {what}.", mend=f"Set data.image_column. Columns: {', '.join(features)}.")


def _label_column(hub: Any, features: Mapping[str, Any], root: str) -> str:
    if "label" in features:
        return "label"
    of_classes = [name for name, feature in features.items() if isinstance(feature, hub.ClassLabel)]
    meant = of_classes or [name for name in _LABEL_NAMES if name in features]
    if len(meant) == 1:
        return meant[0]
    what = f"several columns that may be the label ({', '.join(meant)})" if meant else "no column called label"
    raise DataError(f"{root} has {what}.", mend=f"Set data.label_column. Columns: {', '.join(features)}.")


def _labelled(splits: Mapping[str, Any], label: str) -> tuple[dict[str, Any], list[str]]:
    """The splits that have labels, and notes on the others: competitions keep those of their test split."""
    kept, notes = {}, []
    for split, table in splits.items():
        column = table.data.column(label)
        hidden = column.null_count == len(column) or (
            _is_class_label(table.features[label]) and not np.any(_integers(column) != -1)
        )
        if hidden and split != "train" and len(column):
            notes.append(f"Ignored the {split} split, which has no labels.")
        else:
            kept[split] = table
    return kept, notes


def _labels(
    hub: Any, splits: Mapping[str, Any], column: str, known: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    features = {split: table.features[column] for split, table in splits.items()}
    for split, feature in features.items():
        if isinstance(feature, hub.List | hub.LargeList | list):
            raise DataError(
                f"The column '{column}' of {split} holds several labels per picture.",
                mend="Set data.label_column to one that holds a single label.",
            )
    tables = {split: table.data.column(column) for split, table in splits.items()}
    if not any(map(_is_class_label, features.values())):
        return encode_splits(tables, place=_row, known=known)
    names = _class_names(features, column)
    numbers = {split: _class_numbers(tables[split], len(names), split) for split in tables}
    if known is None:
        return names, numbers
    texts = {split: np.array(names, dtype=object)[found].tolist() for split, found in numbers.items()}
    return encode_splits(texts, place=_row, known=known)


def _is_class_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    named = {split: tuple(getattr(feature, "names", None) or ()) for split, feature in features.items()}
    for split, names in named.items():
        if names != named["train"]:
            raise DataError(
                f"The classes of '{column}' in {split} are other ones than in train, or in another order.",
                mend="Save all splits with the same ClassLabel.",
            )
    # one class has one name on file systems that compose letters and on those that do not
    names = tuple(unicodedata.normalize("NFC", str(name)) for name in named["train"])
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise DataError(f"Two classes of '{column}' are called '{again}'.", mend="Rename one of them.")
    return names


def _class_numbers(column: pa.ChunkedArray, count: int, split: str) -> Labels:
    numbers = _integers(column)
    outside = np.flatnonzero((numbers < 0) | (numbers >= count))
    if len(outside):
        first, more = int(outside[0]), f", and {len(outside) - 1:,} more" if len(outside) > 1 else ""
        what = "has no label" if numbers[first] == -1 else f"has the label {numbers[first]}, of {count} classes"
        raise DataError(
            f"{_row(split, first).capitalize()} {what}{more}.", mend="Mend the label, or remove the picture."
        )
    return numbers


def _integers(column: pa.ChunkedArray) -> Labels:
    """``[N]`` int64, with -1 for what is empty."""
    filled = column.cast(pa.int64()).fill_null(-1)
    return np.asarray(filled.to_numpy(), dtype=np.int64)


def _row(split: str, position: int) -> str:
    return f"row {position + 1} of {split}"


def _origin(table: Any) -> str | None:
    """None for a table in memory (``HF_DATASETS_IN_MEMORY_MAX_SIZE``), which no file tells apart from another."""
    files = [Path(file["filename"]) for file in table.cache_files]
    if not files:
        return None
    stats = [(str(file), file.stat()) for file in files]
    known_by = repr([(name, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for name, found in stats])
    return hashlib.sha256(known_by.encode("utf-8", "surrogateescape")).hexdigest()
