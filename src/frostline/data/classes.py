"""Class names: their order, and how the labels of a column become class indices."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from frostline.data.arrays import true_positions
from frostline.errors import ConfigError, DataError, near_misses, suggestion

Labels = npt.NDArray[np.int64]
Place = Callable[[int], str]
"""Says where the value at a position (from 0) stands, such as ``row 7 (line 8) of labels.csv``."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_SHOWN = 20


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names in the order of their indices.

    Numeric where all are decimal integers as they are usually written (``1``, ``2``, ``10``), else that of the strings.
    """
    distinct = set(names)
    if all(map(_is_integer, distinct)):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def encode_labels(values: Any, *, place: Place, known: Sequence[str] | None = None) -> tuple[tuple[str, ...], Labels]:
    """Turns a column of labels into classes and class indices; a million rows take a fraction of a second.

    Text is taken letter by letter, but for the composition of letters (NFC). Integers are class names as well, unless
    ``known`` lists names of which none is an integer: then they are positions in it.

    Args:
        values: N strings, integers or truth values: a pyarrow or numpy array, or a list.
        place: for messages; called with positions in ``values``.
        known: the class names in order, such as ``data.classes``; None takes those that occur, see `class_order`.

    Returns:
        The class names, and ``[N]`` int64 indices into them.

    Raises:
        ConfigError: ``known`` is no list of distinct names.
        DataError: a label is empty or is none of ``known``, or the values are of another kind; it names the place.
    """
    listed = None if known is None else known_classes(known)
    column = _as_column(values, place)
    _refuse_empty(column, place)
    encoded = _combined(column.dictionary_encode())
    names = [_name(value) for value in encoded.dictionary.to_pylist()]
    of_row: Labels = np.from_dlpack(encoded.indices).astype(np.int64)
    if listed is None:
        classes = class_order(names)
        index_of = {name: index for index, name in enumerate(classes)}
    else:
        classes = listed
        index_of = _positions(names, listed)
    _refuse_unknown(names, of_row, index_of, classes, place)
    lookup = np.array([index_of[name] for name in names], dtype=np.int64)
    return classes, lookup[of_row] if len(names) else np.zeros(0, dtype=np.int64)


def known_classes(known: Sequence[object]) -> tuple[str, ...]:
    """``data.classes`` as names; integers, which YAML makes of such as ``10``, are taken as they are written.

    Raises:
        ConfigError: one is empty, occurs twice, or was read as something else than text or an integer.
    """
    names: list[str] = []
    for value in known:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ConfigError(
                f"data.classes holds {value!r}, which is no class name.",
                mend="""Put names that YAML reads otherwise in quotes: data.classes='["True", "null", "1.0"]'.""",
            )
        name = _name(value)
        if not name.strip():
            raise ConfigError("data.classes holds an empty name.", mend="Remove it.")
        if name in names:
            raise ConfigError(f"data.classes holds '{name}' twice.", mend="Name each class once.")
        names.append(name)
    if not names:
        raise ConfigError("data.classes is empty.", mend="Name the classes, or set data.classes=null to find them.")
    return tuple(names)


def _is_integer(name: str) -> bool:
    return _INTEGER.fullmatch(name) is not None


def _name(value: object) -> str:
    # one class has one name on file systems that compose letters and on those that do not
    return unicodedata.normalize("NFC", str(value))


def _as_column(values: Any, place: Place) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        column = values
    else:
        try:
            column = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise _no_labels(f"are of several kinds: {error}", place) from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def _refuse_empty(column: pa.Array | pa.ChunkedArray, place: Place) -> None:
    if column.null_count:
        raise _empty(true_positions(pc.is_null(column)), place)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        distinct = pc.unique(column)
        blank = [value for value in distinct.to_pylist() if not value.strip()]
        if blank:
            raise _empty(true_positions(pc.is_in(column, value_set=pa.array(blank, kind))), place)
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or len(column) == 0):
        raise _no_labels(f"are of type {kind}", place)


def _empty(positions: Labels, place: Place) -> DataError:
    return DataError(
        f"The label of {place(int(positions[0]))} is empty{_and_more(positions)}.",
        mend="Fill it in, or remove the picture.",
    )


def _no_labels(why: str, place: Place) -> DataError:
    return DataError(
        f"The labels {why} (from {place(0)} on).", mend="Labels are text, such as class names, or integers."
    )


def _and_more(positions: Labels) -> str:
    return f", and {len(positions) - 1:,} more" if len(positions) > 1 else ""


def _combined(column: Any) -> pa.DictionaryArray:
    if not isinstance(column, pa.ChunkedArray):
        return column
    whole = column.unify_dictionaries().combine_chunks()
    # an empty column, or one that is too large for a single piece, stays in pieces
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _positions(names: Sequence[str], listed: tuple[str, ...]) -> dict[str, int]:
    """The index of each name; those of integers are their values where no class is called by an integer."""
    if names and all(map(_is_integer, names)) and not any(map(_is_integer, listed)):
        return {name: int(name) for name in names if 0 <= int(name) < len(listed)}
    return {name: index for index, name in enumerate(listed)}


def _refuse_unknown(
    names: Sequence[str], of_row: Labels, index_of: dict[str, int], classes: Sequence[str], place: Place
) -> None:
    unknown = [index for index, name in enumerate(names) if name not in index_of]
    if not unknown:
        return
    positions = np.flatnonzero(np.isin(of_row, unknown))
    name = names[int(of_row[positions[0]])]
    if all(map(_is_integer, names)) and not any(map(_is_integer, classes)):
        mend = f"The {len(classes)} names of data.classes have the positions 0 to {len(classes) - 1}."
    else:
        # where none is near and they are a thousand, some will do
        options = classes if near_misses(name, classes) else classes[:_SHOWN]
        mend = f"{suggestion(name, options, known_as='classes')} Mend the label, or add it to data.classes."
    raise DataError(
        f"The label '{name}' of {place(int(positions[0]))} is none of the {len(classes)} classes"
        f"{_and_more(positions)}.",
        mend=mend,
    )
