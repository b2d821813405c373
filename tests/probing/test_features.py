from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frostline.data.loading import Delivery, Unreadable
from frostline.errors import DataError, FrostlineError, StorageError
from frostline.features import FeatureStore
from frostline.probing.features import SplitPass, key_of, split_features
from frostline.specs import FeatureChoice
from frostline.types import Batch

LAST, POOLED = FeatureChoice.last, FeatureChoice.pooled


class Source:
    """Ten pictures, some of which may be unreadable; counts what is asked of it."""

    def __init__(self, store: FeatureStore, faults: dict[int, FrostlineError] | None = None) -> None:
        self.store = store
        self.faults = faults or {}
        self.extracted: list[list[FeatureChoice]] = []

    def deliveries(self, positions: Sequence[int] | None = None) -> Iterator[Delivery]:
        asked = list(range(10) if positions is None else positions)
        for start in range(0, len(asked), 4):
            places = asked[start : start + 4]
            good = [at for at in places if at not in self.faults]
            unreadable = [Unreadable(str(at), self.faults[at]) for at in places if at in self.faults]
            images = torch.tensor(good, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
            indices = torch.tensor(good)
            batch = Batch(
                images, torch.zeros(len(good), dtype=torch.int64), indices, torch.ones(len(good), dtype=torch.bool)
            )
            yield Delivery(batch if good else None, unreadable)

    def extract(self, images: Tensor, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, Tensor]:
        self.extracted.append(list(choices))
        base = images.flatten(1)[:, :1]
        known = {LAST: base.repeat(1, 3), POOLED: base + 100.0}
        return {choice: known[choice] for choice in choices}

    def run(self, *choices: FeatureChoice, stored: bool = True) -> dict[FeatureChoice, Tensor]:
        keys = {choice: key_of(choice, {"body": "x"}, "0" * 64, shares=True) for choice in choices} if stored else None
        return split_features(self.store, SplitPass(keys, choices, 10, self.deliveries, self.extract)).features


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", 1 << 20)


def test_only_what_lacks_is_computed_and_all_of_it_at_once(store: FeatureStore) -> None:
    source = Source(store)
    first = source.run(LAST)
    assert source.extracted == [[LAST]] * 3
    both = source.run(POOLED, LAST)
    assert source.extracted[3:] == [[POOLED]] * 3
    again = source.run(LAST, POOLED)
    assert len(source.extracted) == 6
    rows = torch.arange(10.0)[:, None]
    for found in (first, both, again):
        assert torch.equal(found[LAST], rows.repeat(1, 3))
    assert torch.equal(both[POOLED], rows + 100)
    assert torch.equal(again[POOLED], rows + 100)


def test_without_keys_or_room_they_are_computed_all_the_same(store: FeatureStore, tmp_path: Path) -> None:
    source = Source(store)
    assert len(source.run(LAST, stored=False)[LAST]) == 10
    assert not (tmp_path / "features").exists()
    full = Source(FeatureStore(tmp_path / "small", 10))
    assert len(full.run(LAST)[LAST]) == 10
    assert full.store.notes


def test_a_picture_that_cannot_be_read_has_a_row_without_a_number(store: FeatureStore) -> None:
    source = Source(store, {0: DataError("broken"), 9: DataError("broken")})
    for _ in range(2):
        work = SplitPass(
            {LAST: key_of(LAST, {"body": "y"}, "0" * 64, shares=False)}, [LAST], 10, source.deliveries, source.extract
        )
        assert split_features(store, work).unreadable().tolist() == [0, 9]
    with pytest.raises(DataError, match="all broken"):
        Source(store, {at: DataError("all broken") for at in range(10)}).run(LAST)
    with pytest.raises(StorageError, match="gone"):
        Source(store, {3: StorageError("the disk is gone")}).run(POOLED)
