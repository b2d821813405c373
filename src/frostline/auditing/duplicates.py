"""The same picture more than once: byte for byte, pixel for pixel, or nearly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frostline.auditing.findings import HARM, Finding, Kind, Place
from frostline.auditing.likeness import alike_pairs, band_pairs, closer, outlines, residuals
from frostline.auditing.scanning import Scan
from frostline.auditing.thresholds import AuditThresholds

EXHAUSTIVE = 200_000
"""Up to so many different pictures all pairs are compared; of more those that `band_pairs` proposes."""

TURNED = 20_000
"""Up to so many, copies that are mirrored or turned by quarters are looked for as well."""

_TOGETHER = 1024
# an enlarged picture of few pixels is smooth: two handwritten digits of 8 x 8 differ in little
_TINY, _TINY_NEAR = 16, 0.05
# mean difference of the colors at 8 x 8 above which a pair is of two colors, in levels; brighter copies have up to 6
_TINTS = 6.0
# a copy is at most so much brighter or darker, as a factor, and a few levels for dark ones
_LIGHTER, _LEVELS = 1.3, 4.0
_NAMED = 4

Thumbs = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Turn = Callable[[Thumbs], Thumbs]

_TURNS: tuple[Turn, ...] = (
    lambda thumbs: thumbs[:, :, ::-1],
    lambda thumbs: thumbs[:, ::-1, :],
    lambda thumbs: thumbs[:, ::-1, ::-1],
    lambda thumbs: np.rot90(thumbs, 1, (1, 2)),
    lambda thumbs: np.rot90(thumbs, 3, (1, 2)),
    lambda thumbs: thumbs.swapaxes(1, 2),
    lambda thumbs: np.rot90(thumbs, 2, (1, 2)).swapaxes(1, 2),
)


@dataclass(frozen=True)
class _Row:
    """The pictures of all splits that can be copies of each other, in one row.

    Attributes:
        split: ``[N]`` number of the split.
        index: ``[N]`` position in the split.
        digest, pixels: ``[N]`` ``S32``.
        thumbs, tints: see `SplitScan`.
        tiny: ``[N]`` bool: the picture has a side of few pixels.
    """

    split: Indices
    index: Indices
    digest: npt.NDArray[np.bytes_]
    pixels: npt.NDArray[np.bytes_]
    thumbs: Thumbs
    tints: Thumbs
    tiny: npt.NDArray[np.bool_]

    def __getitem__(self, chosen: Indices) -> _Row:
        return _Row(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def find_duplicates(scan: Scan, thresholds: AuditThresholds, blank: dict[str, npt.NDArray[np.bool_]]) -> list[Finding]:
    """One finding for each group of equal pictures, and one for each group of nearly equal ones.

    Args:
        scan: the pictures.
        thresholds: how near is near.
        blank: split to ``[N]`` bool: pictures without content, which are no copies of each other.
    """
    row = _row(scan, blank)
    _, first, same = np.unique(row.pixels, return_index=True, return_inverse=True)
    groups = _members(same)
    found = [_finding(scan, row, members, None) for members in groups if len(members) > 1]
    near = _near(row[first], thresholds)
    left, right, scores = near
    roots = _joined(len(first), left, right)
    for members in _members(roots):
        if len(members) > 1:
            score = float(scores[np.isin(left, members)].max())
            every = np.sort(np.concatenate([groups[member] for member in members]))
            found.append(_finding(scan, row, every, score))
    return found


def _row(scan: Scan, blank: dict[str, npt.NDArray[np.bool_]]) -> _Row:
    parts = []
    for number, (name, part) in enumerate(scan.splits.items()):
        chosen = np.flatnonzero(part.readable & ~blank[name])
        facts = part.facts[chosen]
        tiny = np.minimum(facts["width"], facts["height"]) <= _TINY
        where = np.full(len(chosen), number), chosen
        parts.append((*where, facts["digest"], facts["pixels"], part.thumbs[chosen], part.tints[chosen], tiny))
    return _Row(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _near(row: _Row, thresholds: AuditThresholds) -> tuple[Indices, Indices, npt.NDArray[np.float32]]:
    """Pairs of different pictures that are nearly the same, and how much of their detail differs."""
    count = len(row.index)
    propose = alike_pairs if count <= EXHAUSTIVE else band_pairs
    own, middle = outlines(row.thumbs), outlines(closer(row.thumbs))
    # either may be a crop of the other, which is more like its middle
    proposed = (propose(*views, thresholds.alike) for views in ((own, own), (middle, own), (own, middle)))
    found = [_confirmed(row, *_united(count, parts), None, thresholds.near) for parts in zip(*proposed, strict=True)]
    few = count <= TURNED and not row.tiny.all()  # of a handwritten o a turned copy is no news
    for turn in _TURNS if few else ():
        turned = outlines(np.ascontiguousarray(turn(row.thumbs)))
        for pairs in propose(own, turned, max(thresholds.alike, 0.9)):
            found.append(_confirmed(row, *pairs, turn, thresholds.turned))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    left, right, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    return left, right, scores


def _united(count: int, parts: Sequence[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    """Pairs of several proposals, each once."""
    keys = np.unique(np.concatenate([left * count + right for left, right in parts]))
    return keys // count, keys % count


def _confirmed(
    row: _Row, left: Indices, right: Indices, turn: Turn | None, most: float
) -> tuple[Indices, Indices, npt.NDArray[np.float32]]:
    """Those of the proposed pairs that a close look bears out."""
    scores = [np.zeros(0, np.float32)]
    tiny = row.tiny[left] | row.tiny[right]
    for start in range(0, len(left), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        others = row.thumbs[right[some]]
        others = others if turn is None else np.ascontiguousarray(turn(others))
        scores.append(residuals(row.thumbs[left[some]], others, align=not tiny[some].any()))
    differs = np.concatenate(scores)
    kept = np.flatnonzero(differs <= np.where(tiny, min(most, _TINY_NEAR), most))
    kept = kept[_tint_differences(row.tints[left[kept]], row.tints[right[kept]], turn is not None) <= _TINTS]
    means = [row.thumbs[side[kept]].mean(axis=(1, 2)) for side in (left, right)]
    kept = kept[np.maximum(*means) <= _LIGHTER * np.minimum(*means) + _LEVELS]
    return left[kept], right[kept], differs[kept]


def _tint_differences(one: Thumbs, other: Thumbs, turned: bool) -> npt.NDArray[np.float32]:
    """``[N]``: the mean difference of the colors, but for how strong they are: a brighter copy has stronger ones."""
    first, second = (side.astype(np.float32) - 128 for side in (one, other))
    if turned:  # the colors were moved too: only their mean is compared
        first, second = (side.mean(axis=(1, 2), keepdims=True) for side in (first, second))
    axes = (1, 2, 3)
    strength = (first * second).sum(axis=axes, keepdims=True) / ((first * first).sum(axis=axes, keepdims=True) + 1)
    return np.asarray(np.abs(second - np.clip(strength, 0.7, 1.4) * first).mean(axis=axes), dtype=np.float32)


def _joined(count: int, left: Indices, right: Indices) -> Indices:
    """``[count]``: the number of the group that each belongs to, where pairs join groups."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        parent[root(other)] = root(one)
    return np.array([root(item) for item in range(count)], dtype=np.int64)


def _members(groups: Indices) -> list[Indices]:
    """The positions of each group."""
    order = np.argsort(groups, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)) if len(groups) else []


def _finding(scan: Scan, row: _Row, members: Indices, score: float | None) -> Finding:
    """Of one group.

    Args:
        scan: the pictures.
        row: the pictures in a row.
        members: places in ``row``.
        score: how much of their detail differs, at most; None for equal pixels.
    """
    names = list(scan.splits)
    places = tuple(
        scan.place(names[int(split)], int(index))
        for split, index in zip(row.split[members], row.index[members], strict=True)
    )
    labels = sorted({place.label for place in places})
    splits = [name for name in names if any(place.split == name for place in places)]
    exact, same_bytes = score is None, len(np.unique(row.digest[members])) == 1
    kind = _kind(exact=exact, labels=len(labels), splits=len(splits))
    likeness = "the same file" if same_bytes and exact else "the same picture" if exact else "nearly the same picture"
    problem = f"{_named(places)} are {likeness}"
    problem += f", in {_listed(splits)}" if len(splits) > 1 else ""
    problem += f", under the labels {_listed([repr(label) for label in labels])}" if len(labels) > 1 else ""
    detail = {"exact": exact, "same_bytes": same_bytes, "labels": labels, "splits": splits}
    harm = HARM[kind] if exact or len(labels) == 1 else HARM[kind] - 0.1
    return Finding(kind, harm, places, f"{problem}.", _mend(kind, splits), score, detail)


def _kind(*, exact: bool, labels: int, splits: int) -> Kind:
    if labels > 1:
        return Kind.CONFLICTING_LABELS
    if splits > 1:
        return Kind.EXACT_DUPLICATE_ACROSS_SPLITS if exact else Kind.NEAR_DUPLICATE_ACROSS_SPLITS
    return Kind.EXACT_DUPLICATE if exact else Kind.NEAR_DUPLICATE


def _mend(kind: Kind, splits: Sequence[str]) -> str:
    if kind is Kind.CONFLICTING_LABELS:
        return "Find out which label is right and remove the others, or remove all of them."
    if len(splits) > 1:
        return f"Keep it in {splits[-1]} and remove it from {_listed(splits[:-1])}: scores would count what was learnt."
    return "Keep one of them: the others count it more often than it is."


def _named(places: Sequence[Place]) -> str:
    names = [f"{place.name} ({place.split})" for place in places[:_NAMED]]
    more = len(places) - len(names)
    return _listed([*names, f"{more} more"] if more else names)


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
