"""Features of pictures that the store has under other keys of the same kin: of other splits, folds and subsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frostline.features.keys import kin_of
from frostline.storage import Features, FeatureStore, Names

_TOGETHER = 1 << 24  # bytes that are copied at once

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnownRows:
    """Rows of an array of the store, for some pictures of a split.

    Attributes:
        positions: of the pictures in the split.
        features: the array.
        rows: the row there of each of them.
    """

    positions: Positions
    features: Features
    rows: Positions

    def parts(self) -> Iterator[tuple[Positions, Tensor]]:
        """Positions and a copy of their rows, some at a time; those without a number, of no readable picture, are left
        out.
        """
        step = max(1, _TOGETHER // max(1, self.features.array[0].nbytes))
        for start in range(0, len(self.rows), step):
            copied = self.features.rows(self.rows[start : start + step])
            full = ~copied.flatten(1).isnan().all(dim=1)
            yield self.positions[start : start + step][full.numpy()], copied[full]


def known_rows(store: FeatureStore, key: str, pictures: Names) -> Iterator[KnownRows]:
    """What arrays of one kin have of some pictures, each picture once, from as few of them as there need be.

    An array is in use, and stays, until the next one is asked for.

    Args:
        store: to look in.
        key: of the features that are wanted.
        pictures: their digests, by which rows are named; an empty one is that of no picture.
    """
    lacking = np.flatnonzero(pictures != b"")
    for other in store.keys(kin_of(key)):
        hint = store.names(other) if len(lacking) else None
        if hint is None or not np.isin(pictures[lacking], hint).any():
            continue
        features = store.find(other)
        if features is None or features.names is None:
            continue
        rows = _places(pictures[lacking], np.asarray(features.names))
        yield KnownRows(lacking[rows >= 0], features, rows[rows >= 0])
        del features
        lacking = lacking[rows < 0]


def is_known(store: FeatureStore, key: str, pictures: Names | None) -> bool:
    """Whether the store has features of all pictures, under their own key or, where rows have names, under others.

    Others are not looked at closely: what is wrong with one is found out when its rows are taken.
    """
    if store.find(key) is not None:
        return True
    if pictures is None or (pictures == b"").any():
        return False
    lacking = pictures
    for other in store.keys(kin_of(key)):
        hint = store.names(other) if len(lacking) else None
        if hint is not None:
            lacking = lacking[~np.isin(lacking, hint)]
    return not len(lacking)


def _places(wanted: Names, among: Names) -> Positions:
    """Where each name is among others; -1 where it is not."""
    order = np.argsort(among, kind="stable")
    at = np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)
    places: Positions = np.where(among[order[at]] == wanted, order[at], -1)
    return places
