"""What the members of a sample are: which is the picture, which the label, and whether every sample has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from frostline.data.decoding import SUFFIXES
from frostline.data.shard_files import Shard
from frostline.data.shard_index import MOST_EXTENSIONS, Arrays, ShardIndex, kept_arrays
from frostline.errors import DataError, suggestion

_LABELS = ("cls", "label", "class", "label.txt", "cls.txt", "class.txt")
_VALUE_LIMIT = 2**20  # bytes of a member that holds a label


@dataclass(frozen=True)
class NamedShard:
    """A shard, what lies in it, and its name in the data set."""

    name: str
    shard: Shard
    index: ShardIndex


@dataclass(frozen=True)
class Field:
    """Where a value of a sample stands.

    Attributes:
        extension: of the member.
        key: in the JSON object that the member is; None where the member is text and the value is all of it.
    """

    extension: str
    key: str | None = None

    @classmethod
    def parsed(cls, text: str) -> Field:
        """``cls`` or ``json:label``."""
        extension, colon, key = text.partition(":")
        return cls(extension.lower(), key if colon else None)

    def __str__(self) -> str:
        return self.extension if self.key is None else f"{self.extension}:{self.key}"


@dataclass(frozen=True)
class Columns:
    """The members that are used.

    Attributes:
        pictures: extensions, of which a sample has one.
        label, group: where these stand.
    """

    pictures: tuple[str, ...]
    label: Field
    group: Field | None


def choose_columns(
    shards: Sequence[NamedShard], *, image_key: str | None, label_key: str | None, group_key: str | None
) -> Columns:
    """The members that are used, and a look whether every sample has them.

    Args:
        shards: of all splits.
        image_key: extensions of pictures, separated by ``;``; None takes the one that there is.
        label_key: see `Field.parsed`; None takes ``cls``, else another that is named for a label, else ``txt`` or the
            ``label`` of ``json``.
        group_key: see `Field.parsed`.

    Raises:
        DataError: there is no such member, several could be meant, or a sample lacks one. Where ``image_key`` or
            ``label_key`` is None, the samples must have equal members.
    """
    known = list(dict.fromkeys(extension for shard in shards for extension in shard.index.extensions))
    if len(known) > MOST_EXTENSIONS:
        raise DataError(
            f"The samples have {len(known)} kinds of members: {', '.join(known[:5])}, ... (at most {MOST_EXTENSIONS}).",
            mend="A key ends at the first dot of the file name: write the shards anew without dots in their keys.",
        )
    if image_key is None:
        pictures = _picture(shards, known)
    else:
        pictures = tuple(_known(one.strip().lower(), "image_key", known) for one in image_key.split(";"))
    label = _label(shards, known) if label_key is None else _field(label_key, "label_key", known)
    group = None if group_key is None else _field(group_key, "group_key", known)
    for wanted, what in ((pictures, "picture"), ((label.extension,), "label"), ((group and group.extension,), "group")):
        if wanted != (None,):
            _check_there(shards, [one for one in wanted if one], what)
    if image_key is None or label_key is None:
        _check_equal(shards, known, pictures)
    return Columns(pictures, label, group)


def choose_pictures(shards: Sequence[NamedShard], image_key: str | None) -> tuple[str, ...]:
    """The extensions of which each sample has one, where nothing but its picture matters.

    Args:
        shards: at least one.
        image_key: extensions of pictures, separated by ``;``; None takes all that name a picture.

    Raises:
        DataError: there is no such member, or a sample has none of them or several.
    """
    known = list(dict.fromkeys(extension for shard in shards for extension in shard.index.extensions))
    if image_key is None:
        wanted = [extension for extension in known if _names_picture(extension)]
    else:
        wanted = [one.strip().lower() for one in image_key.split(";")]
    if not set(wanted) & set(known):
        what = "picture" if image_key is None else f"member '{image_key}'"
        raise DataError(
            f"The samples of {shards[0].shard.path} have no {what}, but {', '.join(known)}.",
            mend="Set image_key to the extension of the pictures, if there are any.",
        )
    _check_there(shards, wanted, "picture")
    return tuple(wanted)


def _names_picture(extension: str) -> bool:
    return "." + extension.rpartition(".")[2] in SUFFIXES


def _picture(shards: Sequence[NamedShard], known: Sequence[str]) -> tuple[str, ...]:
    found = [extension for extension in known if _names_picture(extension)]
    if not found:
        raise DataError(
            f"The samples of {shards[0].shard.path} have no picture, but {', '.join(known)}.",
            mend="Set data.image_key to the extension of the pictures, if there are any.",
        )
    if len(found) > 1:
        raise DataError(
            f"Several members of the samples are pictures: {', '.join(found)}.",
            mend=f"Set data.image_key={found[0]}, or data.image_key='{';'.join(found)}' if a sample has one of them.",
        )
    return tuple(found)


def _label(shards: Sequence[NamedShard], known: Sequence[str]) -> Field:
    for extension in _LABELS:
        if extension in known:
            return Field(extension)
    options = [Field("txt")] if "txt" in known else []
    if "json" in known and "label" in _first_object(shards):
        options.append(Field("json", "label"))
    if not options:
        raise DataError(
            f"The samples of {shards[0].shard.path} have no label, but {', '.join(known)}.",
            mend="Set data.label_key to the extension of the labels, or to json:NAME.",
        )
    if len(options) > 1:
        raise DataError(
            "The labels of the samples may be their txt or the label of their json.",
            mend="Set data.label_key=txt or data.label_key=json:label.",
        )
    return options[0]


def _first_object(shards: Sequence[NamedShard]) -> Mapping[str, object]:
    first = next(shard for shard in shards if "json" in shard.index.extensions)
    offsets = first.index.offsets[:, first.index.extensions.index("json")]
    row = int(np.argmax(offsets >= 0))
    return _parsed_object(first, row, _content(first, row, "json"), "json")


def _known(extension: str, key: str, known: Sequence[str]) -> str:
    if extension not in known:
        raise DataError(
            f"No sample has a member '{extension}'.",
            mend=f"Set data.{key}. {suggestion(extension, known, known_as='members')}",
        )
    return extension


def _field(text: str, key: str, known: Sequence[str]) -> Field:
    field = Field.parsed(text)
    _known(field.extension, key, known)
    return field


def _check_there(shards: Sequence[NamedShard], wanted: Sequence[str], what: str) -> None:
    for shard in shards:
        counts = np.zeros(len(shard.index), dtype=np.int64)
        for extension in wanted:
            counts += _has(shard.index, extension)
        if (counts == 1).all():
            continue
        row = int(np.argmax(counts != 1))
        has = ", ".join(one for one in shard.index.extensions if _has(shard.index, one)[row])
        told = f"no {what} ({' or '.join(wanted)})" if counts[row] == 0 else f"several of {', '.join(wanted)}"
        raise DataError(
            f"The sample '{shard.index.keys[row]}' of {shard.shard.path} has {told}; its members are {has}.",
            mend=f"Complete or remove it{_more(int((counts != 1).sum()) - 1)}.",
        )


def _check_equal(shards: Sequence[NamedShard], known: Sequence[str], pictures: Sequence[str]) -> None:
    """Raise where samples differ in what they have, but for which picture it is."""
    bits = {extension: 0 if extension in pictures else 1 << place for place, extension in enumerate(known)}
    masks = []
    for shard in shards:
        mask = np.zeros(len(shard.index), dtype=np.int64)
        for extension in shard.index.extensions:
            mask |= np.where(_has(shard.index, extension), bits[extension], 0)
        masks.append(mask)
    values, counts = np.unique(np.concatenate(masks), return_counts=True)
    if len(values) == 1:
        return
    usual = int(values[np.argmax(counts)])
    number, row = next(
        (number, int(np.argmax(mask != usual))) for number, mask in enumerate(masks) if (mask != usual).any()
    )
    odd = shards[number]
    has = [one for one in odd.index.extensions if _has(odd.index, one)[row]]
    others = [one for one in known if bits[one] & usual or one in pictures]
    raise DataError(
        f"Samples have unequal members: '{odd.index.keys[row]}' of {odd.shard.path} has {', '.join(sorted(has))}, and "
        f"{int(counts.max()):,} others have {', '.join(sorted(others))}{_more(int(counts.sum() - counts.max()) - 1)}.",
        mend="Write all samples with the same members; or set data.image_key and data.label_key, and only these count.",
    )


def _more(count: int) -> str:
    return f" ({count:,} more like it)" if count > 0 else ""


def _has(index: ShardIndex, extension: str) -> npt.NDArray[np.bool_]:
    if extension not in index.extensions:
        return np.zeros(len(index), dtype=bool)
    present: npt.NDArray[np.bool_] = index.offsets[:, index.extensions.index(extension)] >= 0
    return present


def read_values(shard: NamedShard, field: Field) -> pa.LargeStringArray:
    """The text of a field of each sample, without white space at its ends; read once and kept in the user's cache.

    Raises:
        DataError: one is missing, empty, too long, no UTF-8, or neither text nor a whole number in JSON.
    """
    identity = ("values", *shard.shard, field.extension, field.key)
    arrays = kept_arrays(identity, lambda: _as_arrays(_values(shard, field)))
    buffers = [None, pa.py_buffer(arrays["ends"]), pa.py_buffer(arrays["text"])]
    return pa.Array.from_buffers(pa.large_string(), len(arrays["ends"]) - 1, buffers)


def _as_arrays(values: Iterable[bytes]) -> Arrays:
    encoded = list(values)
    return {
        "ends": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }


def _values(shard: NamedShard, field: Field) -> Iterable[bytes]:
    for row in range(len(shard.index)):
        content = _content(shard, row, field.extension)
        if field.key is not None:
            found = _parsed_object(shard, row, content, field.extension)
            content = _json_value(shard, row, found, field, field.key).encode("utf-8", "surrogatepass")
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            raise _bad_value(shard, row, field, "is no UTF-8 text") from None
        value = content.strip()
        if not value:
            raise _bad_value(shard, row, field, "is empty")
        yield value


def _content(shard: NamedShard, row: int, extension: str) -> bytes:
    column = shard.index.extensions.index(extension)
    size = int(shard.index.sizes[row, column])
    if size > _VALUE_LIMIT:
        raise _bad_value(shard, row, Field(extension), f"has {size} bytes, more than {_VALUE_LIMIT}")
    return shard.shard.read(int(shard.index.offsets[row, column]), size)


def _parsed_object(shard: NamedShard, row: int, content: bytes, extension: str) -> Mapping[str, object]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad_value(shard, row, Field(extension), f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _bad_value(shard, row, Field(extension), "is no JSON object")
    return found


def _json_value(shard: NamedShard, row: int, found: Mapping[str, object], field: Field, key: str) -> str:
    if key not in found:
        raise _bad_value(
            shard, row, Field(field.extension), f"has no key '{key}'", suggestion(key, found, known_as="keys")
        )
    value = found[key]
    if not isinstance(value, str | int):
        raise _bad_value(shard, row, field, f"is {json.dumps(value)[:40]}, neither text nor a whole number")
    return str(value)


def _bad_value(shard: NamedShard, row: int, field: Field, why: str, mend: str | None = None) -> DataError:
    return DataError(
        f"The {field} of sample '{shard.index.keys[row]}' in {shard.shard.path} {why}.",
        mend=mend or "Mend it, or remove the sample.",
    )
