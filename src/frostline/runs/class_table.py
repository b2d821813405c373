"""How many pictures of each class there are, what a class weighs in the loss, and how often it is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from frostline.data.samplers import training_length
from frostline.runs.parts import Parts

SHOWN = 30
"""Rows of a table on the screen, before its middle is left out."""


@dataclass(frozen=True)
class ClassFigures:
    """A class in the data and in training.

    Attributes:
        name: of the class.
        counts: its pictures in each split.
        shares: its share of each split, 0..1; 0 where the split is empty.
        weight: its factor in the loss; None without class weights.
        an_epoch: training pictures of it in an epoch, of all processes together, on average; as in the data, or as
            the balanced sampler evens them out.
    """

    name: str
    counts: Mapping[str, int]
    shares: Mapping[str, float]
    weight: float | None
    an_epoch: float

    @property
    def views(self) -> float:
        """How often an epoch shows one of its pictures, on average."""
        return self.an_epoch / self.counts["train"] if self.counts["train"] else 0.0


def class_figures(parts: Parts, ranks: int = 1) -> list[ClassFigures]:
    """The classes in their order.

    Args:
        parts: of the run.
        ranks: processes that share an epoch.
    """
    data = parts.data
    counts = {split: data.class_counts(split) for split in data.splits}
    totals = {split: sum(found) for split, found in counts.items()}
    length = ranks * training_length(totals["train"], data.batch_size, drop_last=data.drop_last, world_size=ranks)
    shares = _drawn(counts["train"], balanced=data.sampler == "balanced")
    weights = _weights(parts)
    return [
        ClassFigures(
            name,
            {split: found[label] for split, found in counts.items()},
            {split: found[label] / max(totals[split], 1) for split, found in counts.items()},
            None if weights is None else weights[label],
            length * shares[label],
        )
        for label, name in enumerate(data.classes)
    ]


def _drawn(counts: Sequence[int], *, balanced: bool) -> list[float]:
    """The share of each class in what a sampler draws."""
    drawn = [int(count > 0) for count in counts] if balanced else counts
    return [count / max(sum(drawn), 1) for count in drawn]


def _weights(parts: Parts) -> list[float] | None:
    weight = getattr(parts.task.loss, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape != (len(parts.data.classes),):
        return None
    return [float(value) for value in weight]


def class_table(figures: Sequence[ClassFigures]) -> list[list[str]]:
    """The classes as a person reads them, below a header; the middle of many is left out."""
    weighted, resampled = figures[0].weight is not None, _is_resampled(figures)
    own = (["weight in the loss"] if weighted else []) + (["an epoch", "views of each"] if resampled else [])
    cells = [[found.name, *_count_cells(found), *_own_cells(found, resampled=resampled)] for found in figures]
    return [["class", *figures[0].counts, *own], *_shortened(cells)]


def _is_resampled(figures: Sequence[ClassFigures]) -> bool:
    """Whether a picture of one class is seen more often than one of another."""
    views = [found.views for found in figures if found.counts["train"]]
    return bool(views) and max(views) > min(views) * (1 + 1e-9)


def _count_cells(found: ClassFigures) -> list[str]:
    return [f"{count:,} ({found.shares[split]:.1%})" for split, count in found.counts.items()]


def _own_cells(found: ClassFigures, *, resampled: bool) -> list[str]:
    weight = [] if found.weight is None else [f"{found.weight:.3g}"]
    return [*weight, *([f"{found.an_epoch:,.4g}", f"{found.views:.2f}"] if resampled else [])]


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    if len(rows) <= SHOWN:
        return rows
    half = SHOWN // 2
    left_out = f"... {len(rows) - 2 * half} more, in classes.csv ..."
    return [*rows[:half], [left_out, *[""] * (len(rows[0]) - 1)], *rows[-half:]]


def class_records(figures: Sequence[ClassFigures]) -> list[dict[str, Any]]:
    """The classes for a program: numbers as they are, None where there is none."""
    return [
        {
            "class": found.name,
            **found.counts,
            **{f"{split}_share": share for split, share in found.shares.items()},
            "weight": found.weight,
            "an_epoch": found.an_epoch,
            "views": found.views,
        }
        for found in figures
    ]


def imbalance(figures: Sequence[ClassFigures]) -> str:
    """One sentence on the training pictures; a class without any is left to the notes on the data."""
    ordered = sorted((found for found in figures if found.counts["train"]), key=lambda found: found.counts["train"])
    if not ordered:
        return "imbalance: there are no training pictures"
    smallest, largest = ordered[0], ordered[-1]
    few, many = smallest.counts["train"], largest.counts["train"]
    if few == many:
        return f"imbalance: none, {few:,} training pictures of each class"
    named = f"'{largest.name}' has {many:,} training pictures, '{smallest.name}' {few:,}"
    return f"imbalance: largest class is {many / few:.1f} times the smallest ({named})"
