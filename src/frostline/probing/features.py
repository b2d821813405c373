"""The features of a split for several choices: from the store, or by one pass over its pictures for all that lack."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.data.loading import Delivery
from frostline.data.progress import Progress
from frostline.errors import FrostlineError
from frostline.features import FeatureStore, StoreFault
from frostline.features.keys import feature_key
from frostline.probing import choices as _choices
from frostline.specs import FeatureChoice

Extract = Callable[[Tensor, Sequence[FeatureChoice]], dict[FeatureChoice, Tensor]]
"""Takes ``[B, C, H, W]`` pictures on the CPU, gives ``[B, D]`` float32 features there for each choice."""


@dataclass(frozen=True)
class SplitPass:
    """What is wanted of a split.

    Attributes:
        keys: of each choice in the store; None where its input cannot be told, and nothing is kept.
        choices: what is wanted.
        count: pictures of the split.
        deliveries: begins to read them, in the order of their positions.
        extract: runs the backbone on a batch of them.
    """

    keys: Mapping[FeatureChoice, str] | None
    choices: Sequence[FeatureChoice]
    count: int
    deliveries: Callable[[], Iterator[Delivery]]
    extract: Extract


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split.

    Attributes:
        features: ``[N, D]`` float32 of each choice; the row of a picture that cannot be read has no number.
        computed: the choices that were not in the store.
        seconds: of the pass over the pictures; 0 where there was none.
    """

    features: dict[FeatureChoice, Tensor]
    computed: tuple[FeatureChoice, ...]
    seconds: float

    def unreadable(self) -> Tensor:
        """``[n]`` int64: the positions of the pictures without a row, rising."""
        empty = torch.stack([features.isnan().all(dim=1) for features in self.features.values()])
        return empty.any(dim=0).nonzero().flatten()


def key_of(choice: FeatureChoice, content: Mapping[str, Any]) -> str:
    """The key of a choice in the store, of all that its features depend on.

    Args:
        choice: of what the backbone offers.
        content: backbone and input, as plain types.
    """
    source = hashlib.sha256(Path(_choices.__file__).read_bytes()).hexdigest()
    return feature_key({**content, "choice": choice.value, "choices": source})


def split_features(store: FeatureStore, work: SplitPass, *, anew: bool = False) -> SplitFeatures:
    """All choices of a split, with at most one pass over its pictures, of which the store keeps what is new.

    Of several processes that want the same, one computes and the others wait. What the store cannot keep is used all
    the same; ``store.notes`` says so.

    Args:
        store: keeps them.
        work: what is wanted.
        anew: whether what the store has is left aside, and replaced.

    Raises:
        NotCached: a choice is not offered.
        FrostlineError: no picture can be read, or one could not for a reason that may be gone the next time.
    """
    keys = work.keys or {}
    with contextlib.ExitStack() as held:
        # always in one order, so that two processes do not wait for each other
        for key in sorted(keys.values()):
            held.enter_context(store.alone(key))
        stored = {} if anew else {choice: store.find(key) for choice, key in keys.items()}
        found = {choice: features.rows(slice(None)) for choice, features in stored.items() if features is not None}
        lacking = tuple(choice for choice in work.choices if choice not in found)
        started = time.perf_counter()
        if lacking:
            found |= _computed(work, lacking)
        seconds = time.perf_counter() - started if lacking else 0.0
        for choice in lacking:
            if choice in keys:
                _keep(store, keys[choice], found[choice])
    return SplitFeatures({choice: found[choice] for choice in work.choices}, lacking, seconds)


def _keep(store: FeatureStore, key: str, features: Tensor) -> None:
    with (
        contextlib.suppress(StoreFault),
        store.writer(key, len(features), features.shape[1], features.dtype) as writer,
    ):
        writer.write(0, features)


def _computed(work: SplitPass, choices: Sequence[FeatureChoice]) -> dict[FeatureChoice, Tensor]:
    progress = Progress("computing features", work.count)
    found: dict[FeatureChoice, Tensor] = {}
    fault: FrostlineError | None = None
    done = 0
    for batch, unreadable in work.deliveries():
        for picture in unreadable:
            fault = fault or picture.fault
            if picture.fault.exit_code != 3:  # the machine failed, and may not the next time
                raise picture.fault
        if batch is not None:
            for choice, features in work.extract(batch.images, choices).items():
                if choice not in found:
                    found[choice] = features.new_full((work.count, features.shape[1]), torch.nan)
                found[choice][batch.indices] = features
        done += len(unreadable) + (0 if batch is None else len(batch.images))
        progress.at(done)
    progress.end()
    if not found and fault is not None:
        raise fault
    return found
