"""Shards of the webdataset package: tar archives of samples, read by random access like any other set of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from frostline.data.decoding import FILE_LIMIT, PIXEL_LIMIT, Reduction, decode_picture, picture_size
from frostline.data.files import FileData
from frostline.data.joint_labels import encode_groups, encode_splits
from frostline.data.listing import existing_folder
from frostline.data.progress import Progress
from frostline.data.shard_columns import Field, NamedShard, choose_columns, read_values
from frostline.data.shard_files import Shard
from frostline.data.shard_index import ShardIndex, read_index
from frostline.data.shard_patterns import find_shards, refuse_url
from frostline.data.splits import ImageSplit, LabelledSet, Labels, NameTable
from frostline.errors import DataError

CLASS_LIST = "classes.txt"
_LIST_LIMIT = 2**24  # bytes


class ShardSplit(ImageSplit):
    """Pictures in shards, which are opened when they are needed, by each process for itself.

    Args:
        shards: those of the split, at least one.
        pictures: extensions, of which each sample has one.
        labels: ``[N]`` int64 class indices.
        groups: see `ImageSplit`.
        pixel_limit, file_limit: see `open_picture`.
    """

    encoded = True

    def __init__(
        self,
        shards: Sequence[NamedShard],
        pictures: Sequence[str],
        labels: Labels,
        groups: Labels | None = None,
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
    ) -> None:
        self.labels, self.groups = labels, groups
        self._shards = [shard.shard for shard in shards]
        self._shard_names = [shard.name for shard in shards]
        self._limits = pixel_limit, file_limit
        self._starts = _starts(shards)
        self._keys = _joined_keys([shard.index for shard in shards])
        members = [_members(shard, pictures) for shard in shards]
        self._offsets, self._sizes, self._extensions = (np.concatenate(parts) for parts in zip(*members, strict=True))
        self._pictures = tuple(pictures)

    def image(self, index: int) -> Image.Image:
        """See `ImageSplit.image`."""
        return decode_picture(self.content(index), self._title(index), self._limits[0])

    def reduced(self, index: int, reduction: Reduction) -> Image.Image:
        """See `ImageSplit.reduced`."""
        return decode_picture(self.content(index), self._title(index), self._limits[0], reduction)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSplit.size`."""
        return picture_size(self.content(index), self._title(index), self._limits[0])

    def name(self, index: int) -> str:
        """The shard's name and, as if it were a folder, the member's, such as ``train-0000.tar/000123.jpg``."""
        return f"{self._shard_names[self._shard_of(index)]}/{self._member(index)}"

    def content(self, index: int) -> bytes:
        """The member's bytes."""
        size, limit = int(self._sizes[index]), self._limits[1]
        if size > limit:
            raise DataError(
                f"The picture {self._title(index)} has {size} bytes, more than the limit of {limit}.",
                mend="Remove it, or raise data.file_limit if you trust the file.",
            )
        return self._shards[self._shard_of(index)].read(int(self._offsets[index]), size)

    def stamp(self, index: int) -> str:
        """Path, size and times of the shard, and the place in it."""
        return f"{self._shards[self._shard_of(index)].stamp}\0{self._offsets[index]}\0{self._sizes[index]}"

    def _shard_of(self, index: int) -> int:
        return _part(self._starts, index)

    def _member(self, index: int) -> str:
        return f"{self._keys[index]}.{self._pictures[int(self._extensions[index])]}"

    def _title(self, index: int) -> str:
        return f"{self._member(index)} in {self._shards[self._shard_of(index)].path}"


@dataclass(kw_only=True, eq=False, repr=False)
class ShardData(FileData):
    """Tar archives whose members ``KEY.EXTENSION`` with one key are a sample, as the webdataset package writes them.

    The key ends at the first dot of the file name. Archives must not be compressed. Their headers are read once, and
    kept in the user's cache by the archive's path, size and times; a picture is read when it is needed. So an epoch has
    an exact length, and any number of workers and processes share it as they share other sets of pictures.

    Attributes:
        root: the folder of the shards.
        train: a name, a pattern such as ``train-*.tar`` or ``train-{0000..0031}.tar``, or a list of these, relative to
            ``root``; None takes the shards that have ``train`` as a word in their names or lie in a folder of that
            name, or all of them where no name says any split.
        val, test: likewise; what is None and not found is split off from ``train`` by ``val_fraction`` and
            ``test_fraction``; an empty list takes none.
        image_key: the extension of the picture; ``jpg;png`` where a sample has one of them; None takes the only one.
        label_key: the extension of the label, or ``json:NAME`` for a value of a JSON object; None takes ``cls``, else
            ``label``, ``class``, ``txt``, or the ``label`` of ``json``.
        group_key: likewise of what belongs together; see `ImageSplit.groups`.
        classes: the class names in order, of which labels that are integers are positions; None takes the lines of
            ``classes.txt`` in ``root``, or where there is none the labels themselves.
    """

    train: str | Sequence[str] | None = None
    val: str | Sequence[str] | None = None
    test: str | Sequence[str] | None = None
    image_key: str | None = None
    label_key: str | None = None
    group_key: str | None = None
    classes: InitVar[Sequence[str] | None] = None

    def __post_init__(self, classes: Sequence[str] | None) -> None:
        super().__post_init__()
        self._known = classes

    def folder(self) -> Path:
        """The folder of the shards.

        Raises:
            ConfigError: ``root`` is a URL.
            DataError: it is no folder.
        """
        root = Path(self.root).expanduser()
        if not root.exists():
            refuse_url(self.root, "root")
        if root.is_file():
            raise DataError(
                f"data.root={self.root} is a file.",
                mend=f"Set data.root={root.parent} and data.train={root.name}.",
            )
        return existing_folder(root)

    def read(self) -> LabelledSet:
        """Reads the headers of the shards, and the labels.

        Raises:
            ConfigError: a pattern is a URL.
            DataError: a shard is missing, damaged, compressed or empty; samples have unequal members; a key occurs
                twice in a shard; a label is none of the classes.
            StorageError: a shard cannot be read.
        """
        root = self.folder()
        names, passed_over = find_shards(root, {"train": self.train, "val": self.val, "test": self.test})
        shards = _indexed(root, names)
        columns = choose_columns(
            [shard for parts in shards.values() for shard in parts],
            image_key=self.image_key,
            label_key=self.label_key,
            group_key=self.group_key,
        )
        label, group = columns.label, columns.group
        values = {split: _column(parts, label) for split, parts in shards.items()}
        known = _class_list(root) if self._known is None else self._known
        classes, labels = encode_splits(values, place=_place(shards, label), known=known)
        groups: dict[str, Labels] = {}
        if group is not None:
            values = {split: _column(parts, group) for split, parts in shards.items()}
            groups = encode_groups(values, place=_place(shards, group))
        splits: dict[str, ImageSplit] = {
            split: ShardSplit(
                parts, columns.pictures, labels[split], groups.get(split), self.pixel_limit, self.file_limit
            )
            for split, parts in shards.items()
        }
        return LabelledSet(classes, splits, _notes(passed_over, label, self.label_key))


def _indexed(root: Path, names: Mapping[str, Sequence[str]]) -> dict[str, list[NamedShard]]:
    progress = Progress("reading headers of shards", sum(map(len, names.values())))
    found: dict[str, list[NamedShard]] = {}
    done = 0
    for split, listed in names.items():
        found[split] = []
        for name in listed:
            shard = Shard.at(root / name)
            found[split].append(NamedShard(name, shard, read_index(shard)))
            done += 1
            progress.at(done)
    progress.end()
    return found


def _place(shards: Mapping[str, Sequence[NamedShard]], field: Field) -> Callable[[str, int], str]:
    """Says where the value of a sample stands, for messages."""
    starts = {split: _starts(parts) for split, parts in shards.items()}

    def place(split: str, position: int) -> str:
        number = _part(starts[split], position)
        shard = shards[split][number]
        return f"'{shard.index.keys[position - int(starts[split][number])]}' in {shard.shard.path} ({field})"

    return place


def _column(shards: Sequence[NamedShard], field: Field) -> pa.ChunkedArray:
    return pa.chunked_array([read_values(shard, field) for shard in shards])


def _class_list(root: Path) -> list[str] | None:
    """The lines of ``classes.txt``, without those that are empty."""
    path = root / CLASS_LIST
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _LIST_LIMIT:
            raise DataError(f"{path} is no list of class names: it has {path.stat().st_size} bytes.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", mend="Name the classes in data.classes.") from error
    names = [line for line in lines if line]
    if not names:
        raise DataError(f"{path} has no class names.", mend="Write one on each line, or remove the file.")
    for number, line in enumerate(lines, start=1):
        if line and line in lines[: number - 1]:
            raise DataError(f"{path}, line {number}: '{line}' is there twice.", mend="Name each class once.")
    return names


def _notes(passed_over: Sequence[str], label: Field, label_key: str | None) -> list[str]:
    notes = []
    if passed_over:
        what = "1 shard whose name says" if len(passed_over) == 1 else f"{len(passed_over)} shards whose names say"
        notes.append(f"Passed over {what} no split: {', '.join(passed_over[:3])}.")
    if label_key is None and label.extension in ("txt", "json"):
        notes.append(f"The label of a sample is its {label}; data.label_key says otherwise.")
    return notes


def _starts(shards: Sequence[NamedShard]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(len(shard.index) for shard in shards)], dtype=np.int64)


def _part(starts: npt.NDArray[np.int64], position: int) -> int:
    return int(np.searchsorted(starts, position, side="right")) - 1


def _joined_keys(indices: Sequence[ShardIndex]) -> NameTable:
    starts = np.cumsum([0, *(len(index.text) for index in indices)], dtype=np.int64)
    ends = [index.ends[1:] + start for index, start in zip(indices, starts[:-1], strict=True)]
    return NameTable.of_text(np.concatenate([starts[:1], *ends]), np.concatenate([index.text for index in indices]))


def _members(shard: NamedShard, pictures: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Offset and size of each sample's picture, and the number of its extension."""
    index = shard.index
    offsets = np.full(len(index), -1, dtype=np.int64)
    sizes = np.zeros(len(index), dtype=np.int64)
    extensions = np.zeros(len(index), dtype=np.uint8)
    for number, extension in enumerate(pictures):
        if extension in index.extensions:
            column = index.extensions.index(extension)
            there = index.offsets[:, column] >= 0
            offsets[there] = index.offsets[there, column]
            sizes[there] = index.sizes[there, column]
            extensions[there] = number
    return offsets, sizes, extensions
