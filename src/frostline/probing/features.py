"""The features of a split for several choices: from the store, or by one pass over its pictures for all that lack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline.data.loading import Delivery
from frostline.features import FeatureStore
from frostline.features.computing import Pass, found_or_computed
from frostline.features.keys import feature_key
from frostline.probing.choices import check_row, flat
from frostline.specs import FeatureChoice
from frostline.storage import Names

Extract = Callable[[Tensor, Sequence[FeatureChoice]], Mapping[FeatureChoice, Tensor]]
"""Takes ``[B, C, H, W]`` pictures on the CPU, gives ``[B, ...]`` features there for each choice."""


@dataclass(frozen=True)
class SplitPass:
    """What is wanted of a split.

    Attributes:
        keys: of each choice in the store; None where its input cannot be told, and nothing is kept.
        choices: what is wanted.
        count: pictures of the split.
        deliveries: see `frostline.features.computing.Pass`.
        extract: runs the backbone on a batch of them.
        pictures, expect, say: see `frostline.features.computing.Pass`.
    """

    keys: Mapping[FeatureChoice, str] | None
    choices: Sequence[FeatureChoice]
    count: int
    deliveries: Callable[..., Iterator[Delivery]]
    extract: Extract
    pictures: Names | None = None
    expect: Callable[[int], None] = lambda count: None
    say: Callable[[str], None] = lambda line: None

    def rows(self, images: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
        """See `frostline.features.computing.Body`."""
        found = self.extract(images, [FeatureChoice(name) for name in names])
        return {choice.value: features for choice, features in found.items()}


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split.

    Attributes:
        features: ``[N, D]`` float32 of each choice; the row of a picture that cannot be read has no number.
        lacking: the choices that were not in the store.
        seconds: that computing them took.
        how: they came, as the end of a sentence.
    """

    features: dict[FeatureChoice, Tensor]
    lacking: tuple[str, ...]
    seconds: float
    how: str

    def unreadable(self) -> Tensor:
        """``[n]`` int64: the positions of the pictures without a row, rising."""
        empty = torch.stack([features.isnan().all(dim=1) for features in self.features.values()])
        return empty.any(dim=0).nonzero().flatten()


def key_of(choice: FeatureChoice, content: Mapping[str, Any], pictures: str, *, shares: bool) -> str:
    """The key of a choice in the store, of all that its features depend on; that of ``last`` can be a run's.

    Args:
        choice: of what the backbone offers.
        content: backbone and input, as plain types; as `frostline.features.CachedPhases` has it.
        pictures: a hash of them.
        shares: whether a run that trains the classifier has the same features.
    """
    is_shared = choice is FeatureChoice.last and shares
    return feature_key(content if is_shared else {**content, "choice": choice.value}, pictures)


def split_features(store: FeatureStore, work: SplitPass, *, anew: bool = False) -> SplitFeatures:
    """All choices of a split, with at most one pass over its pictures, of which the store keeps what is new.

    What the store cannot keep is used all the same; ``store.notes`` says so.

    Args:
        store: keeps them.
        work: what is wanted.
        anew: whether what the store has is left aside, and replaced.

    Raises:
        NotCached: a choice is not offered.
        FrostlineError: no picture can be read, or one could not for a reason that may be gone the next time.
    """
    keys = {choice.value: None if work.keys is None else work.keys[choice] for choice in work.choices}
    wanted = Pass(
        keys,
        work.count,
        work.deliveries,
        work.rows,
        work.pictures,
        work.expect,
        say=work.say,
        memory=math.inf,
    )
    found = found_or_computed(store, wanted, anew=anew)
    features = {}
    for choice in work.choices:
        rows = found.tables[choice.value].all_rows()
        check_row(rows.shape[1:])
        features[choice] = flat(rows)
    return SplitFeatures(features, found.lacking, found.seconds, found.how())
