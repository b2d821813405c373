"""Who goes where: pictures to splits, folds and subsets; stratified, seeded, and deaf to listing order."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from frostline.data.splits import ImageSplit, Keys, Labels, SplitView, by_class


def split_off(source: ImageSplit, shares: Mapping[str, float], *, seed: int) -> dict[str, ImageSplit]:
    """Derives splits from ``source``, class by class.

    Of a class of n pictures each split gets ``n * share``, rounded to the nearest and at least one, as long as one
    remains for ``train``. Pictures of one group stay together, and so do pictures with equal content; with groups the
    shares are met as nearly as they allow.

    Args:
        source: the pictures to distribute.
        shares: share (0..1) per split, in the order in which they choose.
        seed: equal seeds give equal splits.

    Returns:
        A view per name in ``shares``, and the rest as ``train``.
    """
    names = [*shares, "train"]
    quotas = np.array([_quotas(len(positions), list(shares.values())) for positions in by_class(source.labels)])
    assigned = assign(source, quotas, seed=seed, purpose="split")
    return {name: SplitView(source, np.flatnonzero(assigned == number)) for number, name in enumerate(names)}


def _quotas(total: int, shares: list[float]) -> list[int]:
    left, counts = total, []
    for share in shares:
        counts.append(max(0, min(_rounded(total * share), left - 1)))
        left -= counts[-1]
    return [*counts, left]


def fold_numbers(source: ImageSplit, folds: int, *, seed: int) -> Labels:
    """``[N]`` int64 from 0 to ``folds - 1``: which fold each picture is in, stratified as `split_off` does it."""
    quotas, extra = [], 0
    for positions in by_class(source.labels):
        share, rest = divmod(len(positions), folds)
        # the folds that get one more take turns, so that all of them are of nearly equal size
        quotas.append([share + ((number - extra) % folds < rest) for number in range(folds)])
        extra = (extra + rest) % folds
    return assign(source, np.array(quotas), seed=seed, purpose="fold")


def subset(source: ImageSplit, count: Callable[[int], int], *, seed: int) -> ImageSplit:
    """Keeps ``count(n)`` of the n pictures of each class; with one seed, fewer are always among more.

    A second picture with the same content comes after all first ones.
    """
    keys = source.order_keys()
    hashes = _hashes(keys, seed=seed, purpose="subset")
    kept = []
    for positions in by_class(source.labels):
        again = _occurrence(keys[positions])
        order = np.lexsort((hashes[positions], again))
        kept.append(positions[order][: count(len(positions))])
    return SplitView(source, np.sort(np.concatenate(kept)))


def share_of(share: float) -> Callable[[int], int]:
    """For `subset`: the nearest number to ``share`` of a class, at least one."""
    return lambda total: min(total, _rounded(total * share))


def canonical_order(split: ImageSplit) -> Labels:
    """``[N]`` positions in an order that depends on what the pictures are and their labels, not on how they lie."""
    return np.lexsort((split.labels, split.order_keys())).astype(np.int64)


def assign(source: ImageSplit, quotas: npt.NDArray[np.int64], *, seed: int, purpose: str) -> Labels:
    """Distributes pictures over buckets.

    What has to stay together is placed first, the largest lot first, each where it brings the counts nearest to the
    quotas (the increase of ``(count - quota)^2 / quota``, summed over classes, is smallest). Single pictures then
    fill what is left, in an order that depends on (seed, purpose, content) alone.

    Args:
        source: the pictures.
        quotas: ``[classes that occur, buckets]`` how many pictures of a class a bucket should get.
        seed: equal seeds give equal results.
        purpose: sets this use of the seed apart from others.

    Returns:
        ``[N]`` int64 number of a bucket.
    """
    keys = source.order_keys()
    hashes = _hashes(keys, seed=seed, purpose=purpose)
    classes = np.unique(source.labels, return_inverse=True)[1]
    lots = _lots(keys, source.groups)
    assigned = np.full(len(classes), -1, dtype=np.int64)
    counts = np.zeros_like(quotas)
    for positions in _large_lots(lots, hashes):
        own, of_class = np.unique(classes[positions], return_counts=True)
        bucket = _nearest(counts[own], quotas[own], of_class)
        assigned[positions] = bucket
        counts[own, bucket] += of_class
    for number in range(len(quotas)):
        positions = np.flatnonzero((classes == number) & (assigned < 0))
        left = np.maximum(quotas[number] - counts[number], 0)
        _fill(assigned, positions[np.argsort(hashes[positions], kind="stable")], left)
    return assigned


def _nearest(counts: npt.NDArray[np.int64], quotas: npt.NDArray[np.int64], more: npt.NDArray[np.int64]) -> int:
    before, after = counts - quotas, counts - quotas + more[:, None]
    added = ((after**2 - before**2) / np.maximum(quotas, 1)).sum(axis=0)
    # of equals the last: `train`, without which a class cannot be learned
    return len(added) - 1 - int(np.argmin(added[::-1]))


def _fill(assigned: Labels, positions: Labels, left: npt.NDArray[np.int64]) -> None:
    ends = np.cumsum(left)
    buckets = np.searchsorted(ends, np.arange(len(positions)), side="right")
    # lots may have taken more than a bucket's quota: what is over goes to the bucket that was meant to be the largest
    assigned[positions] = np.where(buckets < len(left), buckets, int(np.argmax(left)) if left.any() else len(left) - 1)


def _lots(keys: Keys, groups: Labels | None) -> Labels:
    """``[N]`` numbers, equal for pictures that share a group or their content, directly or through others."""
    _, same = np.unique(keys, return_inverse=True)
    if groups is None:
        return same.astype(np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, group = np.unique(groups, return_inverse=True)
    contents = int(same.max(initial=-1)) + 1
    size = contents + int(group.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(same), dtype=np.int8), (same, group + contents)), shape=(size, size))
    lots: Labels = connected_components(edges, directed=False)[1][same].astype(np.int64)
    return lots


def _large_lots(lots: Labels, hashes: npt.NDArray[np.bytes_]) -> list[Labels]:
    """The positions of each lot of several pictures, the largest first."""
    order = np.argsort(lots, kind="stable")
    starts = np.flatnonzero(np.diff(lots[order])) + 1
    several = [lot for lot in np.split(order, starts) if len(lot) > 1]
    return sorted(several, key=lambda lot: (-len(lot), min(bytes(hashes[at]) for at in lot)))


def _hashes(keys: Keys, *, seed: int, purpose: str) -> npt.NDArray[np.bytes_]:
    start = f"{purpose}:{seed}:".encode()
    # S16 would drop zeros at the end
    texts = [hashlib.blake2b(start + _composed(key), digest_size=16).hexdigest() for key in keys.tolist()]
    return np.array(texts, dtype="S32")


def _composed(key: bytes) -> bytes:
    # a key that is a name is the same on file systems that compose letters and on those that do not
    if key.isascii():
        return key
    return unicodedata.normalize("NFC", key.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _occurrence(keys: Keys) -> Labels:
    """``[N]`` how many equal keys come before each one."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], sorted_keys[1:] != sorted_keys[:-1])))
    before = np.arange(len(keys)) - np.repeat(starts, np.diff([*starts, len(keys)]))
    result = np.empty(len(keys), dtype=np.int64)
    result[order] = before
    return result


def _rounded(value: float) -> int:
    return max(1, math.floor(value + 0.5))
