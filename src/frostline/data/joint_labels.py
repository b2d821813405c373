"""Labels of several splits that share their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.classes import Labels, encode_labels
from frostline.data.splits import ImageSplit, LabelledSet
from frostline.errors import DataError, suggestion

_SHOWN = 5
_KINDS = {pa.int64(): "integers", pa.large_string(): "text", pa.bool_(): "truth values"}

Column = Any
"""N labels: a pyarrow array or chunked array, a numpy array, or a list."""


def encode_splits(
    columns: Mapping[str, Column], *, place: Callable[[str, int], str], known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The classes of all splits together, and the class indices of each.

    Args:
        columns: the labels of each split; integers, or text, in all of them.
        place: for messages; called with a split and a position in it.
        known: see `encode_labels`.

    Raises:
        DataError: see `encode_labels`; or one split has integers and another text.
    """
    parts = {split: _comparable(column, split, place) for split, column in columns.items()}
    kinds = {part.type: split for split, part in parts.items()}
    if len(kinds) > 1:
        told = ", ".join(f"{_KINDS.get(kind, kind)} in {split}" for kind, split in kinds.items())
        raise DataError(f"The labels of the splits are of several kinds: {told}.", mend="Give all of them one kind.")
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    titles = list(parts)

    def whole_place(position: int) -> str:
        number = min(int(np.searchsorted(starts, position, side="right")) - 1, len(titles) - 1)
        return place(titles[number], position - int(starts[number]))

    whole = pa.chunked_array([chunk for part in parts.values() for chunk in part.chunks], type=next(iter(kinds)))
    classes, labels = encode_labels(whole, place=whole_place, known=known)
    return classes, dict(zip(titles, np.split(labels, starts[1:-1]), strict=True))


def _comparable(column: Column, split: str, place: Callable[[str, int], str]) -> pa.ChunkedArray:
    """The column as int64, truth values or large_string, or as it is where it is none of these."""
    try:
        found = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
        chunked = found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])
        kind = chunked.type.value_type if pa.types.is_dictionary(chunked.type) else chunked.type
        if pa.types.is_integer(kind):
            return chunked.cast(pa.int64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return chunked.cast(pa.large_string())
        return chunked.cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"The labels from {place(split, 0)} on cannot be used: {error}.",
            mend="Labels are text, such as class names, or integers.",
        ) from error


def encode_groups(columns: Mapping[str, Column], *, place: Callable[[str, int], str]) -> dict[str, Labels]:
    """``[N]`` int64 numbers for each split, equal where the values of a column are.

    Raises:
        DataError: a value is empty.
    """
    parts = {split: _comparable(column, split, place) for split, column in columns.items()}
    for split, part in parts.items():
        bad = pc.is_null(part)
        if pa.types.is_large_string(part.type):
            bad = pc.or_kleene(bad, pc.equal(pc.utf8_trim_whitespace(part), ""))
        empty = np.flatnonzero(pc.fill_null(bad, True).to_numpy())
        if len(empty):
            raise DataError(f"The group of {place(split, int(empty[0]))} is empty.", mend="Fill it in.")
    kinds = {part.type for part in parts.values()}
    kind = kinds.pop() if len(kinds) == 1 else pa.large_string()
    whole = pa.chunked_array([chunk for part in parts.values() for chunk in part.cast(kind).chunks], type=kind)
    numbers = np.concatenate(
        [chunk.indices.to_numpy() for chunk in whole.dictionary_encode().unify_dictionaries().chunks]
        or [np.zeros(0, dtype=np.int64)]
    ).astype(np.int64)
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(numbers, ends), strict=True))


def without_unused(classes: tuple[str, ...], splits: Mapping[str, ImageSplit]) -> tuple[tuple[str, ...], list[str]]:
    """The classes that occur in a split, to which the labels are renumbered in place, and a note on the others."""
    occurring = np.unique(np.concatenate([split.labels for split in splits.values()]))
    if len(occurring) == len(classes):
        return classes, []
    for split in splits.values():
        split.labels = np.searchsorted(occurring, split.labels).astype(np.int64)
    unused = [name for index, name in enumerate(classes) if index not in set(occurring.tolist())]
    shown = ", ".join(f"'{name}'" for name in unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
    what = "The class" if len(unused) == 1 else f"{len(unused):,} classes"
    kept = tuple(classes[int(index)] for index in occurring)
    return kept, [f"{what} {shown} without a picture in any split {'is' if len(unused) == 1 else 'are'} left out."]


def relabelled(found: LabelledSet, known: Sequence[str]) -> LabelledSet:
    """The same pictures with the classes in another order, or more of them.

    Raises:
        DataError: a class of the pictures is none of ``known``.
    """
    for name in found.classes:
        if name not in known:
            raise DataError(
                f"The class '{name}' is none of data.classes.", mend=suggestion(name, known, known_as="data.classes")
            )
    lookup = np.array([known.index(name) for name in found.classes], dtype=np.int64)
    for split in found.splits.values():
        split.labels = lookup[split.labels]
    return LabelledSet(tuple(known), found.splits, found.notes)
