"""Features in the place of pictures: which epochs of a run get them, and the tables that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from frostline.data import ImageData
from frostline.data.loading import Feed, Unreadable
from frostline.errors import ConfigError
from frostline.features.boundary import Boundary, Forward, NotCached, in_eval
from frostline.features.computing import Computed, Pass, Stopped, found_or_computed
from frostline.features.cutting import Cut
from frostline.features.engine import ForwardEngine
from frostline.features.keys import body_hash, body_tensors, feature_key
from frostline.features.known import is_known
from frostline.features.planning import Verdict
from frostline.features.table import FeatureTable, table_of
from frostline.freezing import Position
from frostline.specs import CacheMode
from frostline.storage import FeatureStore, Names

Result = TypeVar("Result")
# of positions to the pictures there that cannot be read
Faults = dict[int, Unreadable]


class Clock(Protocol):
    """Where a run is that is being trained."""

    def current(self) -> Position:
        """What the schedule has gone on to."""
        ...

    def upcoming(self) -> Position:
        """What it will have gone on to before the next batch."""
        ...

    def is_stopping(self) -> bool:
        """Whether the run is about to be saved and ended."""
        ...


class Peers(Protocol):
    """The other processes of a run, which have to be given the same."""

    @property
    def several(self) -> bool:
        """Whether there are any."""
        ...

    def agree(self, place: str) -> bool:
        """Whether all, which call it together, name the same place; each then has the buffers of the first."""
        ...

    def shared(self, key: str, compute: Callable[[], Result], find: Callable[[], Result]) -> Result:
        """What the first of a machine computes, and the others find then.

        Raises:
            NotCached: by ``compute`` of any, on all; or by ``find``, on the one that does not find it.
            Stopped: the run is about to be saved.
        """
        ...


@dataclass
class FrozenBody:
    """The part of a model below a cut, and how it is run.

    Attributes:
        model: unwrapped.
        boundary: where its body ends.
        forward: runs what ``boundary.runner`` gives on pictures of its device, in the precision of the run.
        settings: all that changes the numbers that come out, beside the model, as plain types.
        engine: runs it faster; None runs it plainly.
        ahead: pictures of all splits, and views, that have not been met yet.
    """

    model: nn.Module
    boundary: Boundary | Cut
    forward: Forward
    settings: dict[str, Any] = field(default_factory=dict)
    engine: ForwardEngine | None = None
    ahead: int = 0
    _coming: float = math.inf
    _known: tuple[tuple[tuple[int, int, int], ...], str] = ((), "")

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.model.parameters()).device

    def hash(self) -> str:
        """Of what is frozen; computed again where a tensor was written to since."""
        # a tensor counts the writes to it
        tensors = [tensor for _, tensor in body_tensors(self.model, self.boundary)]
        now = tuple((id(tensor), tensor.data_ptr(), _writes(tensor)) for tensor in tensors)
        if self._known[0] != now:
            self._known = (now, body_hash(self.model, self.boundary))
        return self._known[1]

    def expect(self, wanted: int, count: int) -> None:
        """Say how many pictures of a split are to come; it is taken that as large a share of others lacks features."""
        self._coming = wanted
        if self.engine is not None:
            self.engine.expect(max(wanted, round(self.ahead * wanted / count)))

    def met(self, count: int) -> None:
        """Say that there are features of a split by now."""
        self.ahead = max(0, self.ahead - count)

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, ...]`` what comes of them, on the CPU."""
        # a pass of a single batch is no measure for others
        run = self.plain if self.engine is None or len(images) >= self._coming else self.engine
        with in_eval(self.model):
            return run(images.to(self.device, non_blocking=True)).cpu()

    def plain(self, images: Tensor) -> Tensor:
        """The same as the run does it, in the modes that the model is in, on its device."""
        return self.boundary.features(self.model, self.forward, images)

    def release(self) -> None:
        """Let go of what the engine has made for the body; it is made again where it is needed."""
        if self.engine is not None:
            self.engine.release()


def _writes(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


_TABLE = "features"


class _Shown(NamedTuple):
    """Which pictures go through which body, and how they are shown; the key of what comes of that."""

    body: FrozenBody
    split: str
    train: bool
    view: int
    key: str

    def rows(self, images: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
        """See `frostline.features.computing.Body`."""
        return {_TABLE: self.body(images)}


class CachedPhases:
    """Says what each epoch of each loader is made of: `frostline.data.base.Feeding`.

    In a phase that caches, a table of features stands in for the pictures of each split; it is computed, or found in
    the store, where the split is first asked for. What is computed is known by all that it depends on, weights
    included, so that another run, or another phase, finds it or does not.

    Args:
        verdicts: on each phase of the run.
        bodies: what is frozen in each; None where nothing is computed once.
        data: prepared.
        store: keeps what is computed.
        say: takes a line for the person.
        peers: the other processes of the run; None where there can be none.
    """

    def __init__(
        self,
        verdicts: Sequence[Verdict],
        bodies: Sequence[FrozenBody | None],
        data: ImageData,
        store: FeatureStore,
        say: Callable[[str], None],
        peers: Peers | None = None,
    ) -> None:
        self.verdicts = list(verdicts)
        self.bodies = list(bodies)
        self.data = data
        self.store = store
        self.clock: Clock | None = None
        self._say = say
        self._peers = peers
        self._agreed: tuple[int, bool] = (-1, True)
        self._tables: dict[str, FeatureTable] = {}
        self._refused: set[int] = set()
        self._current = 0
        self._noted = 0

    def __call__(self, split: str, *, train: bool, epoch: int) -> Feed:
        """What a loader of ``split`` gives in the epoch that begins."""
        number = self._phase(train)
        verdict = self.verdicts[number]
        if number != self._current:
            # what the phase before had in memory is in the store, if it is wanted again
            self._current, self._tables = number, {}
        views, body = verdict.views if train and verdict.views > 1 else 0, self.bodies[number]
        if not self._agrees(number) or body is None or not verdict.holds or number in self._refused:
            return Feed(views)
        if self.data.recipe(split, train=train) is None:
            return Feed(views)
        shown = {view: self._shown(body, split, train=train, view=view) for view in self._needed(views, epoch)}
        if not (verdict.is_cached or all(map(self._is_stored, shown.values()))):
            return Feed(views)
        try:
            # an evaluation may be a part of inference mode, whose tensors no gradient can come through
            with torch.inference_mode(False):
                tables = {view: self._table(one) for view, one in shown.items()}
        except NotCached as reason:
            self._refuse(number, reason)
            return Feed(views)
        except Stopped:
            return Feed(views)
        return Feed(views, lambda view: tables[view if views else 0])

    def _agrees(self, number: int) -> bool:
        """Whether all processes cache a phase, or there is one; each has found out by itself, on a disk of its own."""
        peers = self._asked_together
        if peers is None:
            return True
        if number != self._agreed[0]:
            verdict = self.verdicts[number]
            place = verdict.place.cut.key if verdict.is_cached and verdict.place else ""
            self._agreed = (number, peers.agree(place) and bool(place))
            if place and not self._agreed[1]:
                self._refuse(number, NotCached("another process of the run cannot"))
        return self._agreed[1]

    @property
    def _asked_together(self) -> Peers | None:
        """The other processes, where there are any: during training all ask alike, and after it the first may alone."""
        return self._peers if self._peers is not None and self._peers.several and self.clock is not None else None

    @contextmanager
    def following(self, clock: Clock) -> Iterator[None]:
        """While a run is trained, its clock says which phase a split is for; else it is the last one."""
        self.clock = clock
        try:
            yield
        finally:
            self.clock = None

    def is_found(self, number: int, splits: Sequence[str]) -> bool:
        """Whether the store has all features that a phase would begin with, for the body as it is."""
        views, body = self.verdicts[number].views, self.bodies[number]
        if body is None:
            return False
        shown = [
            self._shown(body, split, train=split == "train", view=view)
            for split in splits
            if self.data.recipe(split, train=split == "train") is not None
            for view in range(views if split == "train" else 1)
        ]
        return bool(shown) and all(map(self._is_stored, shown))

    def _phase(self, train: bool) -> int:
        if self.clock is None:
            return len(self.verdicts) - 1
        return (self.clock.upcoming() if train else self.clock.current()).phase

    def _needed(self, views: int, epoch: int) -> list[int]:
        """The views of an epoch; one that repeats pictures may show any of them."""
        if not views:
            return [0]
        return list(range(views)) if self.data.sampler == "balanced" else [epoch % views]

    def _refuse(self, number: int, reason: NotCached) -> None:
        verdict = self.verdicts[number]
        if verdict.mode is CacheMode.require:
            problem = f"freeze.phases.{verdict.phase}.cache.mode=require cannot hold: {reason}."
            raise ConfigError(problem, mend=f"Set freeze.phases.{verdict.phase}.cache.mode=auto.") from reason
        self._refused.add(number)
        self._say(f"phase {verdict.phase} is not cached: {reason}")

    def _is_stored(self, shown: _Shown) -> bool:
        return shown.key in self._tables or is_known(self.store, shown.key, self._digests(shown))

    def _digests(self, shown: _Shown) -> Names | None:
        return self.data.input_digests(shown.split, train=shown.train)

    def _shown(self, body: FrozenBody, split: str, *, train: bool, view: int) -> _Shown:
        recipe = self.data.recipe(split, train=train)
        assert recipe is not None
        content = {
            "body": body.hash(),
            "boundary": body.boundary.key,
            "settings": body.settings,
            "input": recipe,
            "view": view,
        }
        return _Shown(body, split, train, view, feature_key(content, self.data.pictures_hash(split)))

    def _table(self, shown: _Shown) -> FeatureTable:
        key = shown.key
        if key not in self._tables:
            peers = self._asked_together
            work = Pass(
                {_TABLE: key},
                len(self.data.splits[shown.split]),
                partial(self.data.deliveries, shown.split, train=shown.train, view=shown.view),
                shown.rows,
                self._digests(shown),
                partial(shown.body.expect, count=len(self.data.splits[shown.split])),
                self.clock.is_stopping if self.clock else lambda: False,
                self._say,
                is_shared=peers is not None,
            )
            compute, find = partial(self._computed, work, shown), partial(self._found, shown)
            computed, faults = compute() if peers is None else peers.shared(key, compute, find)
            table = computed.tables[_TABLE]
            table.boundary, table.faults = shown.body.boundary.key, faults
            self._tables[key] = table
            shown.body.met(len(table))
            self._tell(shown, computed)
        return self._tables[key]

    def _computed(self, work: Pass, shown: _Shown) -> tuple[Computed, Faults]:
        """The table of a pass, from the store or computed now, and the pictures without a row."""
        computed = found_or_computed(self.store, work)
        faults, mended = self._empty(computed.tables[_TABLE], shown)
        if mended:  # since its features were computed, such as by a disk that is well again
            computed = found_or_computed(self.store, work, anew=True)
            faults, mended = self._empty(computed.tables[_TABLE], shown)
        if mended:
            raise self._unsteady(shown, mended)
        return computed, faults

    def _found(self, shown: _Shown) -> tuple[Computed, Faults]:
        """The same where another process has computed it by now."""
        found = self.store.find(shown.key)
        if found is None:
            raise NotCached("its features, which another process has computed, are not to be found")
        table = table_of(found)
        faults, mended = self._empty(table, shown)
        if mended:
            raise self._unsteady(shown, mended)
        return Computed({_TABLE: table}), faults

    def _unsteady(self, shown: _Shown, mended: list[int]) -> NotCached:
        name = self.data.splits[shown.split].name(mended[0])
        return NotCached(f"'{name}' of {shown.split} can be read at some times only")

    def _empty(self, table: FeatureTable, shown: _Shown) -> tuple[Faults, list[int]]:
        """The pictures of rows without a number, looked at again: those that cannot be read, and those that have one.

        A picture of which the body makes no number has such a row by itself.
        """
        found: Faults = {}
        mended: list[int] = []
        empty, body = table.empty_rows(), shown.body
        start = 0
        read_again = partial(self.data.deliveries, shown.split, train=shown.train, view=shown.view, positions=empty)
        for batch, unreadable in read_again() if empty else ():
            read = [] if batch is None else batch.indices.tolist()
            asked = empty[start : start + len(read) + len(unreadable)]
            found.update(zip([at for at in asked if at not in read], unreadable, strict=True))
            start += len(asked)
            if batch is not None:
                with in_eval(body.model):  # without the engine, which would take these few for its first batch
                    rows = body.plain(batch.images.to(body.device))
                mended += batch.indices[~rows.flatten(1).isnan().all(dim=1).cpu()].tolist()
        return found, mended

    def _tell(self, shown: _Shown, computed: Computed) -> None:
        count = len(computed.tables[_TABLE])
        which = f", view {shown.view}" if shown.view else ""
        self._say(f"features of {count:,} {shown.split} pictures{which}: {computed.how()}")
        for note in self.store.notes[self._noted :]:
            self._say(note)
        self._noted = len(self.store.notes)
