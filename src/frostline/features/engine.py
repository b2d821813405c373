"""The forward engine: runs a frozen part in the way that is the fastest here and gives the same numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frostline.data.cache import cache_folder
from frostline.features.boundary import in_eval
from frostline.features.engine_record import Record, read_record, record_key, write_record
from frostline.features.engine_ways import PLAIN, Run, Way, ways
from frostline.specs import Engine
from frostline.storage.locks import alone

SHARE = 0.05  # of the time of the plain pass, for measuring
SHORT = 10.0  # seconds: what a plain pass has to take for anything to be measured
ROUNDS = (2, 5)  # at least and at most
_CHUNK = 4 * 224 * 224  # pixels for each thread: what fits into the nearer memory of a core
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest feature; coarser numbers: a hundredth
_COARSE = 1e-2


class Precision(Protocol):
    """How a run computes; a precision plugin of Lightning is one."""

    def convert_input(self, data: Any) -> Any:
        """Pictures in the dtype that the part takes."""
        ...

    def forward_context(self) -> AbstractContextManager[Any]:
        """What the part runs in."""
        ...


class _AsIs:
    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()


class NotAlike(Exception):  # noqa: N818  # a reason to leave a way out
    """A way gives other numbers than the plain one."""


@dataclass
class ForwardEngine:
    """Runs a frozen part, and chooses how when it sees the first batch.

    The plain way is the measure of truth: another one is taken where it gives the same features of a real batch, within
    1e-5 of the largest (1e-2 in half precision), and where it was measured to end the pass more than 5 % sooner, with
    the time in which it is made ready. Measuring takes about 5 % of the time of a plain pass at most; without room for
    it the plain way is taken. What was measured is kept for the architecture, input, machine and version of torch, so
    that the choice is the same the next time. Where a tensor of the part was written to, the way is made ready and
    compared anew.

    A way runs on whole chunks of pictures, of one shape; those that are left over go the plain way. The part's modes,
    tensors and memory format, and the state of random generators, stay as they are.

    Args:
        plain: gives the features as the run computes them without an engine.
        part: gives the same features of pictures that ``precision`` has converted, in its context.
        wanted: ``auto``, ``plain``, or a way by name, which is taken unmeasured.
        pictures: of all passes that are to come.
        precision: of the run.
        say: takes a line for the person.
        folder: of what was measured; None is ``engine`` in the cache folder.
        clock: seconds.
        choices: the ways there are; None are those of ``wanted``.
        alike: sees that features by a way are the plain ones; see `compare`.

    Attributes:
        chosen: the name of the way; empty before the first batch.
    """

    plain: Run
    part: nn.Module
    wanted: Engine
    pictures: int
    precision: Precision = field(default_factory=_AsIs)
    say: Callable[[str], None] = lambda line: None
    folder: Path | None = None
    clock: Callable[[], float] = time.perf_counter
    choices: Sequence[Way] | None = None
    alike: Callable[[Tensor, Tensor, float], None] | None = None
    chosen: str = ""
    _run: Run | None = None
    _chunk: int = 0
    _shape: tuple[int, ...] = ()
    _tensors: tuple[tuple[int, int, int], ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, ...]`` features of ``[B, C, H, W]`` pictures of the part's device, without a graph."""
        with torch.no_grad(), in_eval(self.part):
            if not self.chosen:
                self._choose(images)
            if self.chosen == PLAIN or images.shape[1:] != self._shape:
                return self.plain(images)
            if (chunk := chunk_size(images)) > self._chunk:  # the first batch was a small one
                self._chunk, self._run = chunk, None
            if self._run is None or self._tensors != self._written():
                self._make_again(images)
            return self.plain(images) if self._run is None else self._in_chunks(self._run, images)

    def expect(self, pictures: int) -> None:
        """Say how many are to come in all; where the plain way is taken for fewer, it is chosen anew."""
        if self.chosen == PLAIN and pictures > self.pictures:
            self.chosen = ""
        self.pictures = pictures

    def release(self) -> None:
        """Let go of what was traced or compiled; the next batch has it made again."""
        if self._run is not None and "compiled" in self.chosen:
            torch.compiler.reset()
        self._run = None

    def _choose(self, images: Tensor) -> None:
        offered = self._offered(images)
        self._chunk, self._shape = chunk_size(images), tuple(images.shape[1:])
        if self.wanted in (Engine.auto, Engine.bf16):
            self.chosen = self._measured_best(offered, images)
        else:
            self.chosen = offered[0].name if offered else PLAIN

    def _measured_best(self, offered: Sequence[Way], images: Tensor) -> str:
        if not offered:
            return PLAIN
        folder = cache_folder() / "engine" if self.folder is None else self.folder
        path = folder / f"{record_key(self.part, images, autocast=self._has_autocast(images))}.json"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        # two that measure at once would measure each other
        with alone(path.with_suffix(".lock"), remove=True):
            record = read_record(path)
            trial = Trial(self, offered, images, record)
            if trial.is_wanted():
                record = trial.measured()
                with contextlib.suppress(OSError):  # it is measured the next time
                    write_record(path, record)
        if record is None:
            return PLAIN
        chosen = record.best(self.pictures, [way.name for way in offered])
        if len(record.rates) > 1:
            self.say(f"engine: {record.sentence(chosen)}")
        self._run, self._tensors = trial.made.get(chosen), self._written()
        return chosen

    def _make_again(self, images: Tensor) -> None:
        """Make what was chosen ready for the tensors as they are, on a whole chunk; where it fails, choose plain."""
        self._run = None
        if len(images) < self._chunk:
            return
        way = next(way for way in self._offered(images) if way.name == self.chosen)
        chunk = images[: self._chunk]
        try:
            self._run = self._made(way, chunk, self._watched(self.plain, chunk))
            self._tensors = self._written()
        except Exception as error:  # a compiler may fail in any way
            self.say(f"engine: {way.name} is left out: {reason(error)}")
            self.chosen = PLAIN

    def _made(self, way: Way, images: Tensor, plain: Tensor) -> Run:
        """A way made ready and compared.

        Raises:
            NotAlike: it gives other numbers.
            Exception: it cannot be made ready.
        """
        with self._unnoticed(images), self.precision.forward_context():
            inner = way.make(self.part, self.precision.convert_input(images[: self._chunk]))

        dtype = plain.dtype

        def run(pictures: Tensor) -> Tensor:
            with self.precision.forward_context():
                return inner(self.precision.convert_input(pictures)).to(dtype)

        found = self._watched(lambda pictures: self._in_chunks(run, pictures), images)
        coarse = way.is_half or self._has_autocast(images)
        (self.alike or compare)(plain, found, _COARSE if coarse else _CLOSE.get(plain.dtype, _COARSE))
        return run

    def _in_chunks(self, run: Run, images: Tensor) -> Tensor:
        chunks = torch.split(images, self._chunk)
        return torch.cat([(run if len(chunk) == self._chunk else self.plain)(chunk) for chunk in chunks])

    def _watched(self, run: Run, images: Tensor) -> Tensor:
        with self._unnoticed(images):
            return run(images)

    def _unnoticed(self, images: Tensor) -> AbstractContextManager[None]:
        return torch.random.fork_rng([images.device] if images.is_cuda else [])

    def _offered(self, images: Tensor) -> Sequence[Way]:
        if self.choices is not None:
            return self.choices
        return ways(self.wanted, images.device, autocast=self._has_autocast(images))

    def _has_autocast(self, images: Tensor) -> bool:
        with self.precision.forward_context():
            return torch.is_autocast_enabled(images.device.type)

    def _written(self) -> tuple[tuple[int, int, int], ...]:
        """Which tensors the part has, and how often each was written to."""
        tensors = (*self.part.parameters(), *self.part.buffers())
        return tuple((id(one), one.data_ptr(), -1 if one.is_inference() else one._version) for one in tensors)


class Trial:
    """The ways of an engine, measured against the plain one on a batch.

    Args:
        engine: whose ways.
        offered: ways.
        images: ``[B, C, H, W]`` a batch of a chunk or more.
        known: what was measured before.

    Attributes:
        made: the ways that were made ready, by name.
    """

    def __init__(self, engine: ForwardEngine, offered: Sequence[Way], images: Tensor, known: Record | None) -> None:
        self._engine, self._known = engine, known
        failed = () if known is None else [name for name, rate in known.rates.items() if rate == 0]
        self._failed = dict.fromkeys(failed, 0.0)
        self._offered = [way for way in offered if way.name not in self._failed]
        self._images = images if images.is_cuda else images[: 2 * engine._chunk]
        self._ready: dict[str, float] = {}
        self.made: dict[str, Run] = {}

    def is_wanted(self) -> bool:
        """Whether something that is not known can be measured in the time that there is for it."""
        least = len(self._images) * (1 + 2 * ROUNDS[0])
        if self._engine.pictures * SHARE < least:
            return False
        if self._known is None:
            return True
        missing = [way for way in self._offered if way.name not in self._known.rates]
        plain = self._engine.pictures / self._known.rates[PLAIN]
        step = len(self._images) / self._known.rates[PLAIN]
        return plain >= SHORT and any(self._cost(way, len(self._known.rates), step) <= plain * SHARE for way in missing)

    def measured(self) -> Record:
        """The rates of the plain way and of those that there was time for, beside what was known."""
        engine, images = self._engine, self._images
        started = self._now()
        plain = engine._watched(engine.plain, images)
        step = self._now() - started
        whole = step * engine.pictures / len(images)
        if whole < SHORT:
            return Record({PLAIN: len(images) / max(step, 1e-9)})
        end = started + whole * SHARE
        for way in self._offered:
            if self._now() + self._cost(way, len(self.made) + 1, step) <= end:
                self._make(way, plain)
        seconds = self._timed(end)
        rates = {name: len(images) / max(took, 1e-9) for name, took in seconds.items()}
        before = self._known or Record({})
        return Record({**before.rates, **rates, **self._failed}, {**before.ready, **self._ready})

    def _cost(self, way: Way, others: int, step: float) -> float:
        """Seconds that it takes to measure a way beside others, if it is as slow as the plain one."""
        return way.guess + ROUNDS[0] * step * (others + 1)

    def _make(self, way: Way, plain: Tensor) -> None:
        started = self._now()
        try:
            self.made[way.name] = self._engine._made(way, self._images, plain)
        except Exception as error:  # a compiler may fail in any way
            self._failed[way.name] = 0.0
            self._engine.say(f"engine: {way.name} is left out: {reason(error)}")
        else:
            self._ready[way.name] = self._now() - started if way.guess else 0.0

    def _timed(self, end: float) -> dict[str, float]:
        """The shortest of several rounds in which they take turns: what else the machine does makes one longer."""
        engine = self._engine
        runs = {PLAIN: engine.plain} | {name: partial(engine._in_chunks, run) for name, run in self.made.items()}
        shortest = dict.fromkeys(runs, float("inf"))
        for number in range(ROUNDS[1]):
            if number >= ROUNDS[0] and self._now() > end:
                break
            for name, run in runs.items():
                started = self._now()
                engine._watched(run, self._images)
                shortest[name] = min(shortest[name], self._now() - started)
        return shortest

    def _now(self) -> float:
        if self._images.is_cuda:
            torch.cuda.synchronize(self._images.device)
        return self._engine.clock()


def chunk_size(images: Tensor) -> int:
    """How many pictures a way runs on at once.

    On a CPU as many as keep the activations in the nearer memory, four of 224 x 224 for each thread; at most a batch.
    """
    if images.device.type != "cpu":
        return len(images)
    pixels = images.shape[-1] * images.shape[-2]
    return min(len(images), max(1, torch.get_num_threads() * _CHUNK // pixels))


def compare(plain: Tensor, other: Tensor, tolerance: float) -> None:
    """See that features are the same.

    Args:
        plain: ``[B, ...]``
        other: the same by another way.
        tolerance: of the largest number of ``plain``.

    Raises:
        NotAlike: they are not.
    """
    if plain.shape != other.shape:
        raise NotAlike(f"it gives {list(other.shape)} and not {list(plain.shape)}")
    largest = float(plain.abs().max()) if plain.numel() else 0.0
    difference = float((plain - other).abs().max()) if plain.numel() else 0.0
    # no comparison with a number that is not finite holds
    if not difference <= tolerance * largest < float("inf"):
        share = difference / largest if largest else difference
        raise NotAlike(f"its features differ by {share:.1g} of the largest, more than {tolerance:g}")


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
