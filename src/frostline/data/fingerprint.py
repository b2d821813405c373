"""Hashes that change when a data set does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frostline.data.splits import ImageSplit


def fingerprint(classes: Sequence[str], splits: Mapping[str, ImageSplit]) -> str:
    """SHA-256 over class names, split names, and each picture's content and label, as 64 hexadecimal digits.

    The same pictures have the same fingerprint as a folder, a table or shards, under whatever names and in any order.
    """
    digest = hashlib.sha256(repr(tuple(classes)).encode("utf-8", "surrogateescape"))
    for name in sorted(splits):
        digest.update(f"\n{name} {split_fingerprint(splits[name])}".encode())
    return digest.hexdigest()


def split_fingerprint(split: ImageSplit) -> str:
    """SHA-256 over content and label of each picture of a split, in an order that they alone decide."""
    digests = split.digests()
    order = np.lexsort((split.labels, digests))
    digest = hashlib.sha256(np.ascontiguousarray(digests[order]).tobytes())
    digest.update(split.labels[order].astype("<i8").tobytes())
    return digest.hexdigest()


def names_fingerprint(splits: Mapping[str, ImageSplit]) -> str:
    """SHA-256 over split, name and digest of each picture, as they are listed."""
    digest = hashlib.sha256()
    for title in sorted(splits):
        split = splits[title]
        digest.update(f"{title} {len(split)}\n".encode())
        for index, content in enumerate(split.digests().tolist()):
            digest.update(content + split.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def data_record(classes: Sequence[str], splits: Mapping[str, ImageSplit]) -> dict[str, Any]:
    """What a run writes down of its data, as plain types.

    Keys: ``fingerprint`` of the content, ``names`` (a hash of names and content), and ``splits``: name to the count of
    pictures and the split's own fingerprint.
    """
    return {
        "fingerprint": fingerprint(classes, splits),
        "names": names_fingerprint(splits),
        "classes": len(classes),
        "splits": {
            name: {"pictures": len(split), "fingerprint": split_fingerprint(split)} for name, split in splits.items()
        },
    }
