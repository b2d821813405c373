"""The features of a split, ready to be looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.data.loading import Unreadable
from frostline.storage.entry import Features

IN_MEMORY = 1 << 30
"""Bytes up to which a table is read into memory; a larger one stays mapped."""

Lookup = Callable[[npt.NDArray[np.int64]], Tensor]


class FeatureTable:
    """Rows by position in the split.

    Args:
        lookup: gives a copy of the rows of some positions.
        count: rows.
        all_rows: gives all of them.

    Attributes:
        all_rows: ``[N, ...]`` all of them, in memory; not to be written to.
        faults: the pictures without a row, by position.
        boundary: the key of the cut that the rows come from.
    """

    def __init__(self, lookup: Lookup, count: int, all_rows: Callable[[], Tensor]) -> None:
        self._lookup = lookup
        self._count = count
        self.all_rows = all_rows
        self.faults: Mapping[int, Unreadable] = {}
        self.boundary = ""

    def __len__(self) -> int:
        return self._count

    def rows(self, positions: npt.NDArray[np.int64]) -> Tensor:
        """A copy of the rows of ``[N]`` positions: ``[N, ...]``."""
        return self._lookup(positions)

    def empty_rows(self) -> list[int]:
        """The positions of rows without a number: of pictures that could not be read, or of a model gone astray."""
        found: list[int] = []
        for start in range(0, self._count, 4096):
            rows = self.rows(np.arange(start, min(start + 4096, self._count)))
            empty = rows.flatten(1).isnan().all(dim=1)
            found += (empty.nonzero().flatten() + start).tolist()
        return found


def table_of(features: Features) -> FeatureTable:
    """A table of an array of the store."""
    if features.array.nbytes > IN_MEMORY:
        return FeatureTable(features.rows, len(features.array), lambda: features.rows(slice(None)))
    return table_of_parts([features.rows(slice(None))])


def table_of_parts(parts: Sequence[Tensor]) -> FeatureTable:
    """A table of what is in memory, one part after the other."""
    rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return FeatureTable(lambda positions: rows[torch.from_numpy(positions)], len(rows), lambda: rows)
