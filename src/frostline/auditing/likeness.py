"""How alike two pictures are, by their thumbnails: many pairs roughly, few of them closely.

The rough look is a difference hash that is not cut down to bits: the brightness steps between the cells of an 8 x 8
grid, across and down, squashed so that a small bright mark does not decide. The cosine of two such vectors is their
similarity. On photographs it proposes 10 to 30 times fewer pairs than `imagehash.phash` or `dhash` of 64 bits at the
same share of found copies; see ``scripts/bench/audit_peers.py``.

The close look lays one thumbnail over the other (Lucas and Kanade, 1981: shift and zoom, for crops), fits brightness
and contrast, and asks which part of the detail remains unexplained. Six blocks of 64 may differ in any way, for marks.
Narrow stripes are its weakness: a crop shifts them by part of their period, and one such copy in five is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_TILE = 4096
_GRID = 8
# a step between cells that counts as one even in a picture without contrast, in levels of brightness
_STEP = 0.5
# pairs that one picture may propose: a set of pictures that are all alike would propose all pairs
_PROPOSED = 12
_REACH = 0.08  # how far the zoom and the shift of a crop may go, as a share of the picture
_MIDDLE = 0.96  # what is left of a side between the margins
_ZOOM = 0.97  # where the search for a crop begins
_BLOCKS = 58  # of 64, how many must agree
_COARSE, _FINE = 5, 4  # steps of the alignment at 16 x 16 and at 32 x 32
_DECIDED = 0.05  # what is left unexplained by pictures that need no alignment
_HOPELESS = 0.6  # what is left unexplained at 16 x 16 by pictures that need no look at 32 x 32
_GAIN = (0.7, 1.4)
# the share of its detail that a picture has outside the blocks that do not count: a mark covers some of it, while two
# things before one background are all their detail
_SPARED = 0.4
_NOISE = 1.0  # detail, in squared levels, that is taken for noise


def outlines(thumbs: Bytes | Floats) -> Floats:
    """``[N, 112]`` float32 unit vectors of brightness steps; zeros for a picture without any.

    Args:
        thumbs: ``[N, 32, 32]``.
    """
    cells = _halved(_halved(thumbs.astype(np.float32)))
    count = len(cells)
    steps = [np.diff(cells, axis=axis).reshape(count, _GRID * (_GRID - 1)) for axis in (2, 1)]
    found: Floats = np.concatenate(steps, axis=1)
    found = np.tanh(found / (np.abs(found).mean(axis=1, keepdims=True) + _STEP))
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(length, 0.5), dtype=np.float32)


def closer(thumbs: Bytes) -> Floats:
    """``[N, 32, 32]`` float32: the thumbnails without a margin of 2 %, as of a crop from the middle."""
    side = thumbs.shape[-1]
    places = np.clip(((np.arange(side) + 0.5) / side - 0.5) * _MIDDLE * side + side / 2 - 0.5, 0, side - 1)
    rows = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side))).astype(np.float32)
    return np.asarray(rows @ thumbs.astype(np.float32) @ rows.T, dtype=np.float32)


def alike_pairs(first: Floats, second: Floats, least: float) -> Iterator[tuple[Indices, Indices]]:
    """Pairs i < j with a similarity of ``first[i]`` and ``second[j]`` of at least ``least``, a part at a time.

    All pairs are compared. Of one i, the twelve best j are given: in a data set where everything is alike, a copy can
    be missed that is less like its original than twelve other pictures are.

    Args:
        first: ``[N, D]`` unit vectors.
        second: of the same pictures, which may be turned.
        least: the least similarity, -1..1.
    """
    total = len(first)
    for start in range(0, total, _TILE):
        rows = first[start : start + _TILE]
        parts = []
        for column in range(start, total, _TILE):
            similarity = rows @ second[column : column + _TILE].T
            left, right = np.nonzero(similarity >= least)
            values = similarity[left, right]
            later = right + column > left + start
            parts.append((left[later] + start, right[later] + column, values[later]))
        left, right, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = _best(left, values)
        yield left[kept], right[kept]


def band_pairs(first: Floats, second: Floats, least: float) -> Iterator[tuple[Indices, Indices]]:
    """As `alike_pairs`, for more pictures than all pairs can be compared of: those that share a band of signs.

    Seven bands of 16 signs each; a pair whose signs differ in six places or fewer is always found, others the less the
    more they differ. Copies that are resized or compressed nearly always are found; crops and marks often are missed.
    """
    bits = np.packbits(first > 0, axis=1).view(np.uint16)
    others = np.packbits(second > 0, axis=1).view(np.uint16)
    for band in range(bits.shape[1]):
        order = np.argsort(others[:, band], kind="stable")
        keys = others[order, band]
        starts, ends = (np.searchsorted(keys, bits[:, band], side=side) for side in ("left", "right"))
        for start in range(0, len(bits), _TILE):
            rows = np.arange(start, min(start + _TILE, len(bits)))
            # of the pictures in one band, those that stand next: bands of plain pictures hold very many
            counts = np.minimum(ends[rows] - starts[rows], 64)
            left = np.repeat(rows, counts)
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            right = order[np.repeat(starts[rows], counts) + offsets]
            values = np.einsum("nd,nd->n", first[left], second[right])
            kept = np.flatnonzero((right > left) & (values >= least))
            kept = kept[_best(left[kept], values[kept])]
            yield left[kept], right[kept]


def _best(left: Indices, values: Floats) -> Indices:
    """The places of the best few pairs of each ``left``."""
    order = np.lexsort((-values, left))
    sorted_left = left[order]
    ranks = np.arange(len(order)) - np.searchsorted(sorted_left, sorted_left, side="left")
    return np.asarray(np.sort(order[ranks < _PROPOSED]), dtype=np.int64)


def residuals(one: Bytes, other: Bytes, *, align: bool = True) -> Floats:
    """``[N]`` float32: the share of the detail in which two pictures differ at best; 0 for equal ones.

    Detail is the root mean square of the brightness gradient. The blocks that fit worst, six of 64, do not count.

    Args:
        one: ``[N, 32, 32]`` thumbnails.
        other: the same.
        align: look for crops; else they are compared as they lie.
    """
    if len(one) == 0:
        return np.zeros(0, np.float32)
    first, second = _smoothed(one.astype(np.float32)), _smoothed(other.astype(np.float32))
    upright = np.tile(np.array([1, 0, 1, 0], np.float32), (len(first), 1))
    left = _Fit(first, second).unexplained(upright)
    if not align:
        return left
    # either may be the crop: it fits better where the whole picture is moved onto the part
    for moving, still, most in ((first, second, np.inf), (second, first, _HOPELESS)):
        undecided = np.flatnonzero((left > _DECIDED) & (left < most))
        left[undecided] = np.minimum(left[undecided], _aligned_residuals(moving[undecided], still[undecided]))
    return left


def _aligned_residuals(moving: Floats, still: Floats) -> Floats:
    found = np.full(len(moving), np.inf, np.float32)
    if len(moving) == 0:
        return found
    start = np.tile(np.array([_ZOOM, 0, _ZOOM, 0], np.float32), (len(moving), 1))
    coarse = _Fit(_halved(moving), _halved(still))
    place = coarse.aligned(start, _COARSE)
    hopeful = np.flatnonzero(coarse.unexplained(place) < _HOPELESS)
    if len(hopeful):
        fine = _Fit(moving[hopeful], still[hopeful])
        found[hopeful] = fine.unexplained(fine.aligned(place[hopeful], _FINE))
    return found


class _Fit:
    """Lays thumbnails over others.

    A place is four numbers, zoom and shift across and down: ``[N, 4]`` float32, in widths of the picture.

    Args:
        moving: ``[N, S, S]`` float32 brightness that is moved ...
        still: ... to fit these.
    """

    def __init__(self, moving: Floats, still: Floats) -> None:
        self._moving, self._still = moving, still
        self._side = moving.shape[-1]
        self._grid = ((np.arange(self._side) + 0.5) / self._side - 0.5).astype(np.float32)

    def aligned(self, place: Floats, steps: int) -> Floats:
        """The place after some Gauss-Newton steps."""
        down, across = (np.gradient(self._moving, axis=axis) * self._side for axis in (1, 2))
        lowest = np.array([1 - _REACH, -_REACH, 1 - _REACH, -_REACH], np.float32)
        highest = lowest + 2 * _REACH
        for _ in range(steps):
            moved, gain, left, weights = self._compared(place)
            slope_x, slope_y = (gain * self._warped(slope, place) for slope in (across, down))
            columns, rows = self._grid[None, None, :], self._grid[None, :, None]
            jacobian = np.stack([slope_x * columns, slope_x, slope_y * rows, slope_y], axis=1)
            jacobian = jacobian.reshape(len(moved), 4, -1)
            weighted = jacobian * weights.reshape(len(moved), 1, -1)
            normal = weighted @ jacobian.transpose(0, 2, 1)
            damping = 1e-2 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 4 + 1e-3
            normal += np.eye(4, dtype=np.float32) * damping
            step = np.linalg.solve(normal, weighted @ left.reshape(len(moved), -1, 1))[..., 0]
            place = np.clip(place + step, lowest, highest).astype(np.float32)
        return place

    def unexplained(self, place: Floats) -> Floats:
        """``[N]``: the part of the detail that is left, see `residuals`."""
        moved, gain, left, weights = self._compared(place)
        pictures = (left, gain * moved, self._still)
        rest, own, others = (_detail(values, weights) for values in pictures)
        all_rest, all_own, all_others = (_detail(values, self._seen(place)) for values in pictures)
        marked = np.maximum(own[1] / all_own[1], others[1] / all_others[1]) >= _SPARED
        rest, own, others = (
            np.where(marked, some[0], every[0])
            for some, every in ((rest, all_rest), (own, all_own), (others, all_others))
        )
        return np.asarray(np.sqrt(rest / (np.minimum(own, others) + _NOISE)), dtype=np.float32)

    def _compared(self, place: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """The moved pictures, their gain ``[N, 1, 1]``, what differs, and which pixels count (0 or 1)."""
        moved = self._warped(self._moving, place)
        seen = self._seen(place)
        gain, left = self._leveled(moved, seen)
        weights = seen * self._agreeing(left, seen)
        gain, left = self._leveled(moved, weights)
        return moved, gain, left, seen * self._agreeing(left, seen)

    def _seen(self, place: Floats) -> Floats:
        """1 for the pixels that lie in both pictures."""
        across, down = (np.abs(self._positions(place, at)) <= 0.5 for at in (0, 2))
        return (down[:, :, None] & across[:, None, :]).astype(np.float32)

    def _leveled(self, moved: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """Gain of the best fit of brightness and contrast, and what is left after it."""
        count = weights.sum(axis=(1, 2), keepdims=True) + 1e-6
        own, others = (
            values - (values * weights).sum(axis=(1, 2), keepdims=True) / count for values in (moved, self._still)
        )
        product = (own * others * weights).sum(axis=(1, 2), keepdims=True)
        gain = np.clip(product / ((own * own * weights).sum(axis=(1, 2), keepdims=True) + 1e-3), *_GAIN)
        return gain.astype(np.float32), (others - gain * own).astype(np.float32)

    def _agreeing(self, left: Floats, seen: Floats) -> Floats:
        """1 for the pixels of blocks that fit best."""
        count, block = len(left), self._side // _GRID
        errors = (left * left * seen).reshape(count, _GRID, block, _GRID, block).sum(axis=(2, 4)).reshape(count, -1)
        worst = np.partition(errors, _BLOCKS - 1, axis=1)[:, _BLOCKS - 1 : _BLOCKS]
        agrees = (errors <= worst).reshape(count, _GRID, _GRID).astype(np.float32)
        return np.repeat(np.repeat(agrees, block, axis=1), block, axis=2)

    def _positions(self, place: Floats, at: int) -> Floats:
        return np.asarray(place[:, at : at + 1] * self._grid + place[:, at + 1 : at + 2], dtype=np.float32)

    def _warped(self, values: Floats, place: Floats) -> Floats:
        across, down = (self._interpolation(place, at) for at in (0, 2))
        return np.asarray(down @ values @ across.transpose(0, 2, 1), dtype=np.float32)

    def _interpolation(self, place: Floats, at: int) -> Floats:
        """``[N, S, S]``: what each pixel of a row takes from the pixels of the unmoved row."""
        pixels = (self._positions(place, at) + 0.5) * self._side - 0.5
        pixels = np.clip(pixels, 0, self._side - 1)
        near = 1 - np.abs(pixels[:, :, None] - np.arange(self._side, dtype=np.float32))
        return np.asarray(np.maximum(near, 0), dtype=np.float32)


def _detail(values: Floats, weights: Floats) -> Floats:
    """``[2, N]``: mean and sum of the squared brightness gradient, over the pixels that count."""
    inner = weights[:, 1:, 1:] * weights[:, :-1, :-1] * weights[:, 1:, :-1] * weights[:, :-1, 1:]
    across, down = np.diff(values, axis=2)[:, :-1, :], np.diff(values, axis=1)[:, :, :-1]
    total = ((across**2 + down**2) * inner).sum(axis=(1, 2))
    return np.stack([total / (inner.sum(axis=(1, 2)) + 1e-6), total + 1e-6]).astype(np.float32)


def _halved(values: Floats) -> Floats:
    count, side = len(values), values.shape[-1] // 2
    return np.asarray(values.reshape(count, side, 2, side, 2).mean(axis=(2, 4)), dtype=np.float32)


def _smoothed(values: Floats) -> Floats:
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4, dtype=np.float32)
