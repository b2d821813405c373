"""Depth as an order of names: proposed places, held against the order of first use. Knows no model."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from statistics import median_low
from typing import NamedTuple

# what a tensor of a block weighs against one of no block, where a cut cannot do right to both
_OF_BLOCK = 1000


class _Use(NamedTuple):
    """The first use of a tensor: its position, the tensor's place in the order (-1: none), and what it is part of."""

    rank: float
    place: int
    of_block: bool
    of_module: bool


@dataclass(frozen=True)
class Checked:
    """Places that agree with the order of first use.

    Attributes:
        places: for each name its place; larger is deeper, numbers may be missing.
        contradictions: blocks that are first used elsewhere than their proposed place says.
    """

    places: Mapping[str, int]
    contradictions: tuple[str, ...]


def check_order(proposed: Mapping[str, int], ranks: Mapping[str, float], blocks: Mapping[str, str]) -> Checked:
    """Put each tensor that belongs to no block where it is first used, and name the blocks that stand elsewhere.

    One cut through the order of first use tells two neighboring places apart; it leaves as few tensors as possible on
    its wrong side. What belongs to no block (a token, a table, a norm) goes to the side that it is on. What comes from
    elsewhere and is used between the two goes with the first, but a tensor of the model itself with the second: it
    enters there. Blocks stay where they were proposed.

    Args:
        proposed: the place of each name, from the stem on; names may be missing.
        ranks: the position of first use of every name.
        blocks: the block of a name, for those that have one.
    """
    members = _members(proposed, ranks)
    solid = {place: [name for name in names if name in blocks] for place, names in members.items()}
    middles = {place: median_low(ranks[n] for n in solid[place] or names) for place, names in members.items()}
    order = _ascending(middles, [place for place, names in solid.items() if names])
    position = {place: index for index, place in enumerate(order)}
    uses = sorted(_Use(rank, position.get(proposed.get(n, -1), -1), n in blocks, "." in n) for n, rank in ranks.items())
    cuts = [_cut(uses, left, middles[order[left]], middles[order[left + 1]]) for left in range(len(order) - 1)]
    places = {name: order[bisect_left(cuts, rank)] for name, rank in ranks.items()}
    parts: dict[tuple[str, int | None], list[str]] = {}
    for name, block in blocks.items():
        parts.setdefault((block, proposed.get(name)), []).append(name)
    contradictions: dict[str, None] = {}
    for (block, place), names in parts.items():
        used = order[bisect_left(cuts, median_low(ranks[name] for name in names))]
        places.update(dict.fromkeys(names, used if place is None else place))
        if place not in (None, used):
            contradictions[block] = None
    return Checked(places, tuple(contradictions))


def filled(ranks: Mapping[str, int], names: Sequence[str]) -> dict[str, float]:
    """``ranks`` for all of ``names``: what is never used counts as used with the one registered before it.

    What belongs to no module, or comes before every used one, counts as used first.
    """
    complete: dict[str, float] = {}
    first = beside = float(min((ranks[name] for name in names if name in ranks), default=0))
    for name in names:
        complete[name] = ranks.get(name, beside if "." in name else first)
        beside = complete[name] if "." in name else beside
    return complete


def _members(proposed: Mapping[str, int], ranks: Mapping[str, float]) -> dict[int, list[str]]:
    """Names by place, from the lowest on."""
    members: dict[int, list[str]] = {place: [] for place in sorted(set(proposed.values()))}
    for name in ranks:
        if name in proposed:
            members[proposed[name]].append(name)
    return {place: names for place, names in members.items() if names}


def _ascending(middles: Mapping[int, float], solid: Sequence[int]) -> list[int]:
    """All places with blocks, and those without that are first used where they stand among them."""
    order: list[int] = []
    for place, middle in middles.items():
        after = [middles[other] for other in solid if other > place]
        before = [middles[other] for other in order]
        if place in solid or (middle > max(before, default=-1.0) and middle < min(after, default=float("inf"))):
            order.append(place)
    return order


def _cut(uses: Sequence[_Use], left: int, low: float, high: float) -> float:
    """The last position that belongs to the place at ``left`` of the order rather than to the next one.

    Args:
        uses: by position.
        left: the place in the order before the cut.
        low: the middle of that place; the cut is at it or later.
        high: the middle of the next one; the cut is before it.
    """
    best, cut, gain = 0, low, 0
    between = uses[bisect_right(uses, low, key=itemgetter(0)) : bisect_left(uses, high, key=itemgetter(0))]
    settled = [use for use in between if use.place in (left, left + 1) or use.of_module]
    for use, following in zip_longest(settled, settled[1:]):
        weight = _OF_BLOCK if use.of_block else 1
        gain += weight * ((use.place == left) - (use.place == left + 1))
        if gain >= best and (following is None or following.rank != use.rank):
            best, cut = gain, use.rank
    return cut
