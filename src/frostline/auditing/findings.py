"""What an audit finds: its kinds, how much each may harm a training, and the pictures it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What is wrong; the value is what is written to files."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    EXACT_DUPLICATE_ACROSS_SPLITS = "exact_duplicate_across_splits"
    NEAR_DUPLICATE_ACROSS_SPLITS = "near_duplicate_across_splits"
    CONFLICTING_LABELS = "conflicting_labels"
    BLANK = "blank"
    DARK = "dark"
    BRIGHT = "bright"
    BLURRED = "blurred"
    ODD_SIZE = "odd_size"
    ODD_ASPECT = "odd_aspect"
    EXIF_TURNED = "exif_turned"
    ODD_MODE = "odd_mode"
    CLASS_MISSING = "class_missing"
    CLASS_IMBALANCE = "class_imbalance"
    GROUP_ACROSS_SPLITS = "group_across_splits"
    DRIFT = "drift"
    LABEL_ERROR = "label_error"


HARM: dict[Kind, float] = {
    Kind.EXACT_DUPLICATE_ACROSS_SPLITS: 1.0,
    Kind.NEAR_DUPLICATE_ACROSS_SPLITS: 0.95,
    Kind.GROUP_ACROSS_SPLITS: 0.95,
    Kind.CONFLICTING_LABELS: 0.9,
    Kind.UNREADABLE: 0.85,
    Kind.TRUNCATED: 0.8,
    Kind.CLASS_MISSING: 0.75,
    Kind.LABEL_ERROR: 0.7,
    Kind.DRIFT: 0.6,
    Kind.BLANK: 0.55,
    Kind.EXACT_DUPLICATE: 0.45,
    Kind.NEAR_DUPLICATE: 0.4,
    Kind.CLASS_IMBALANCE: 0.35,
    Kind.DARK: 0.3,
    Kind.BRIGHT: 0.3,
    Kind.BLURRED: 0.3,
    Kind.ODD_MODE: 0.2,
    Kind.ODD_ASPECT: 0.2,
    Kind.ODD_SIZE: 0.15,
    Kind.EXIF_TURNED: 0.1,
}
"""The most that a finding of a kind may harm (0..1): results that are not true, then labels, then pictures."""


@dataclass(frozen=True, slots=True)
class Place:
    """One picture.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        index: its position in that split.
        name: what identifies it in the data set, see `ImageSplit.name`.
        label: the name of its class.
    """

    split: str
    index: int
    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a data set.

    Attributes:
        kind: what it is.
        harm: 0..1; the page of an audit begins with the largest.
        places: the pictures it is about, of ``train`` first; empty where it is about a class or a split.
        problem: one sentence with the names and numbers.
        mend: what to do about it.
        score: how sure or how strong it is, in the unit that ``detail`` or the kind's rule says; None where there is
            no measure.
        detail: what else is known, JSON types only, such as ``suggested`` of a label error.
    """

    kind: Kind
    harm: float
    places: tuple[Place, ...]
    problem: str
    mend: str
    score: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The largest harm first; of equal harm by kind, then the largest score, then by the first picture."""
    kinds = list(HARM)

    def rank(finding: Finding) -> tuple[float, int, float, tuple[tuple[str, int], ...]]:
        first = tuple((place.split, place.index) for place in finding.places[:1])
        return (-finding.harm, kinds.index(finding.kind), -(finding.score or 0.0), first)

    return sorted(findings, key=rank)
