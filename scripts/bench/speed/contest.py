"""Who takes part in what, and what all of their trainings gave."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from measuring import Failed, Measured
from scipy import stats

Kind = Literal["probe", "lp_ft", "full"]
KINDS: dict[str, Kind] = {"a": "probe", "b": "lp_ft", "c": "full"}


@dataclass(frozen=True)
class Entrant:
    """One way to train.

    Attributes:
        name: in the tables.
        file: of the folder ``peers``.
        way: that the file knows.
        kinds: what it takes part in.
        role: ``own``; ``peer``, which ``own`` is compared with; ``bound``, which says what could be.
        follows: runs right after that entrant, with the caches that it left.
    """

    name: str
    file: str
    way: str
    kinds: tuple[Kind, ...]
    role: Literal["own", "peer", "bound"] = "peer"
    follows: str | None = None


OWN = "Frostline"
ONE_PASS = "one forward pass over all pictures, by hand"
ENTRANTS = (
    Entrant(OWN, "frostline_run.py", "train", ("probe", "lp_ft", "full"), "own"),
    Entrant("Frostline, the next run, another seed", "frostline_run.py", "train", ("probe",), "own", follows=OWN),
    Entrant("Frostline, `cache.mode=off`", "frostline_run.py", "uncached", ("probe",), "own"),
    Entrant("Frostline, `data.decoded=memory`", "frostline_run.py", "decoded", ("lp_ft", "full"), "own"),
    Entrant("Lightning, `BackboneFinetuning`", "lightning_loop.py", "callback", ("probe", "lp_ft")),
    Entrant("Lightning, its transfer-learning guide", "lightning_loop.py", "guide", ("probe",)),
    Entrant("Lightning", "lightning_loop.py", "callback", ("full",)),
    Entrant("fastai, `freeze`, `fit`", "fastai_loop.py", "train", ("probe",)),
    Entrant("fastai, `freeze`, `fit`, `unfreeze`, `fit`", "fastai_loop.py", "train", ("lp_ft",)),
    Entrant("fastai", "fastai_loop.py", "train", ("full",)),
    Entrant("timm's training loop", "timm_loop.py", "train", ("probe", "lp_ft", "full")),
    Entrant("PyTorch by hand", "by_hand.py", "train", ("probe", "lp_ft", "full")),
    Entrant("PyTorch by hand, features kept by hand", "by_hand.py", "kept", ("probe",), "bound"),
    Entrant(ONE_PASS, "by_hand.py", "pass", ("probe",), "bound"),
    Entrant("steps on one batch of noise, by hand", "by_hand.py", "batch", ("full",), "bound"),
)


def entrants_of(kind: Kind) -> list[Entrant]:
    """Who takes part."""
    return [one for one in ENTRANTS if kind in one.kinds]


def turns(entrants: Sequence[Entrant], repeat: int) -> list[Entrant]:
    """The order of a repeat: another begins each time, and who follows another comes right after it."""
    leading = [one for one in entrants if one.follows is None]
    begin = repeat * max(1, len(leading) // 3) % len(leading)
    order = []
    for one in leading[begin:] + leading[:begin]:
        order += [one, *(other for other in entrants if other.follows == one.name)]
    return order


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval by Student's t; NaN from a single value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of independent values."""
        if len(values) < 2:
            return cls(float(np.mean(values)), float("nan"))
        error = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error)


@dataclass
class Contest:
    """All trainings of one kind.

    Attributes:
        kind: which.
        test_pictures: how many the accuracy is a share of.
        taken: entrant to one result for each repeat.
    """

    kind: Kind
    test_pictures: int
    taken: dict[str, list[Measured | Failed]] = field(default_factory=dict)

    def add(self, name: str, result: Measured | Failed) -> None:
        """One more repeat."""
        self.taken.setdefault(name, []).append(result)

    def failure(self, name: str) -> str | None:
        """Why an entrant has no figures: the reason of its first failure."""
        return next((result.reason for result in self.taken[name] if isinstance(result, Failed)), None)

    def results(self, name: str) -> list[Measured]:
        """Of all repeats; empty for one that failed or did not take part."""
        results = [result for result in self.taken.get(name, []) if isinstance(result, Measured)]
        return results if len(results) == len(self.taken.get(name, [])) else []

    def middle(self, name: str, what: str) -> float:
        """The median over the repeats."""
        return statistics.median(getattr(result, what) for result in self.results(name))

    def ratio(self, name: str, what: str, *, to: str = OWN) -> float | None:
        """The median over the repeats of a figure to that of another entrant in the same repeat."""
        pairs = zip(self.results(name), self.results(to), strict=False)
        ratios = [getattr(one, what) / getattr(other, what) for one, other in pairs]
        return statistics.median(ratios) if ratios else None

    def accuracy(self, name: str) -> Interval | None:
        """Over the seeds; None for one without an accuracy."""
        found = [result.accuracy for result in self.results(name) if result.accuracy is not None]
        return Interval.of(found) if found else None

    def difference(self, name: str) -> Interval | None:
        """The accuracy less Frostline's, seed by seed."""
        pairs = zip(self.results(name), self.results(OWN), strict=False)
        found = [
            one.accuracy - own.accuracy for one, own in pairs if one.accuracy is not None and own.accuracy is not None
        ]
        return Interval.of(found) if found else None

    def is_equal(self, difference: Interval) -> bool:
        """Whether the interval holds zero, or the difference is no more than one test picture."""
        return abs(difference.mean) <= max(difference.half, 1 / self.test_pictures) + 1e-9

    def best_peer(self, what: str) -> str | None:
        """The peer with the least of a figure."""
        peers = [one.name for one in ENTRANTS if one.role == "peer" and self.results(one.name)]
        return min(peers, key=lambda name: self.middle(name, what), default=None)
