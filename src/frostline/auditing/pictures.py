"""Single pictures that something is wrong with: files, content, sizes, shapes, modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frostline.auditing.findings import HARM, Finding, Kind
from frostline.auditing.scanning import Scan
from frostline.auditing.thresholds import AuditThresholds

Flags = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

# fewer than so many of a kind may always be a finding, however small the set
_FEW = 3
# with fewer pictures there is no telling what is usual
_FEWEST = 10
# a standard deviation is so many median absolute deviations of a normal distribution
_NORMAL = 1.4826
_REMOVE = "Look at it; remove it, or keep it if it is meant."


@dataclass(frozen=True)
class _Rule:
    """One way in which a picture may be odd.

    Attributes:
        kind: of the finding.
        flags: ``[N]`` the pictures of all splits that are.
        score: ``[N]`` by how much.
        said: what is wrong, from the picture's position.
    """

    kind: Kind
    flags: Flags
    score: Values
    said: Callable[[int], str]


class _Set:
    """The facts of all splits in one row, of pictures that could be read."""

    def __init__(self, scan: Scan) -> None:
        chosen = {name: np.flatnonzero(part.readable) for name, part in scan.splits.items()}
        self.places = [(name, int(index)) for name, indices in chosen.items() for index in indices]
        self.facts = np.concatenate([part.facts[chosen[name]] for name, part in scan.splits.items()])

    def __len__(self) -> int:
        return len(self.places)

    def values(self, name: str) -> Values:
        return np.asarray(self.facts[name], dtype=np.float64)


def blank_pictures(scan: Scan, thresholds: AuditThresholds) -> dict[str, Flags]:
    """Split to ``[N]`` bool: pictures of nearly one color."""
    found = {}
    for name, part in scan.splits.items():
        ranges = [
            np.ptp(values.reshape(len(values), -1, depth), axis=1).max(axis=1, initial=0)
            for values, depth in ((part.thumbs, 1), (part.tints, 2))
        ]
        flat = np.maximum(*ranges) <= thresholds.blank_range
        found[name] = part.readable & flat & (part.facts["contrast"] <= thresholds.blank_contrast)
    return found


def find_pictures(scan: Scan, thresholds: AuditThresholds, blank: dict[str, Flags]) -> Iterator[Finding]:
    """What is wrong with single pictures.

    Args:
        scan: the pictures.
        thresholds: from where on.
        blank: see `blank_pictures`.
    """
    yield from _faults(scan)
    yield from _blank(scan, blank)
    row = _Set(scan)
    if not len(row):
        return
    flat = np.array([blank[name][index] for name, index in row.places], dtype=np.bool_)
    for rule in _rules(row, thresholds, flat):
        if _is_rare(rule.flags, thresholds):
            for position in np.flatnonzero(rule.flags).tolist():
                place = scan.place(*row.places[position])
                said = f"{place.name} ({place.split}) {rule.said(position)}."
                yield Finding(rule.kind, HARM[rule.kind], (place,), said, _REMOVE, float(rule.score[position]))
    yield from _modes(scan, row, thresholds, flat)
    yield from _turned(scan, row)


def _is_rare(flags: Flags, thresholds: AuditThresholds) -> bool:
    return bool(0 < flags.sum() <= max(_FEW, thresholds.rare * len(flags)))


def _faults(scan: Scan) -> Iterator[Finding]:
    for name, part in scan.splits.items():
        for index, fault in part.faults.items():
            yield Finding(fault.kind, HARM[fault.kind], (scan.place(name, index),), fault.problem, fault.mend)


def _blank(scan: Scan, blank: dict[str, Flags]) -> Iterator[Finding]:
    for name, flags in blank.items():
        for index in np.flatnonzero(flags).tolist():
            place = scan.place(name, index)
            brightness = float(scan.splits[name].facts["mean"][index])
            said = f"{place.name} ({name}) is blank: all of it has one color, of brightness {brightness:.0f} of 255."
            yield Finding(Kind.BLANK, HARM[Kind.BLANK], (place,), said, "Remove it: there is nothing to learn from.")


def _rules(row: _Set, thresholds: AuditThresholds, blank: Flags) -> Iterator[_Rule]:
    yield from _light(row, thresholds, blank)
    yield from _blur(row, thresholds, blank)
    width, height = row.values("width"), row.values("height")
    if len(row) < _FEWEST:
        return
    area, area_usual, area_odd = _far(width * height, thresholds.size_factor, thresholds)

    def size(position: int) -> str:
        side = f"{width[position]:.0f} x {height[position]:.0f}"
        return f"has {side} pixels, {_times(area[position])} than is usual here ({area_usual:,.0f} in all)"

    yield _Rule(Kind.ODD_SIZE, area_odd, np.abs(np.log2(area)), size)
    length = np.maximum(width, height) / np.minimum(width, height)
    aspect, aspect_usual, aspect_odd = _far(length, thresholds.aspect_factor, thresholds)

    def shape(position: int) -> str:
        side = f"{width[position]:.0f} x {height[position]:.0f}"
        return (
            f"has {side} pixels: it is {length[position]:.1f} times as long as wide, where {aspect_usual:.1f} is usual"
        )

    yield _Rule(Kind.ODD_ASPECT, aspect_odd, np.abs(np.log2(aspect)), shape)


def _light(row: _Set, thresholds: AuditThresholds, blank: Flags) -> Iterator[_Rule]:
    high, low = row.values("p95"), row.values("p5")
    far_below = np.median(high) - high >= thresholds.distance
    far_above = low - np.median(low) >= thresholds.distance

    def dark(position: int) -> str:
        return f"is dark: 95 % of it is below a brightness of {high[position]:.0f} of 255"

    def bright(position: int) -> str:
        return f"is overexposed: 95 % of it is above a brightness of {low[position]:.0f} of 255"

    yield _Rule(Kind.DARK, (high <= thresholds.dark) & far_below & ~blank, (255 - high) / 255, dark)
    yield _Rule(Kind.BRIGHT, (low >= thresholds.bright) & far_above & ~blank, low / 255, bright)


def _blur(row: _Set, thresholds: AuditThresholds, blank: Flags) -> Iterator[_Rule]:
    sharpness = np.where(blank, np.nan, row.values("sharpness"))
    known = sharpness[np.isfinite(sharpness)]
    if len(known) < _FEWEST:
        return
    usual = float(np.median(known))
    limit = min(thresholds.blurred, usual / thresholds.blur_factor)

    def said(position: int) -> str:
        return f"is blurred: its sharpness is {sharpness[position]:.3f}, where {usual:.3f} is usual here"

    flags = np.nan_to_num(sharpness, nan=np.inf) <= limit
    yield _Rule(Kind.BLURRED, flags, usual / np.maximum(sharpness, 1e-3), said)


def _far(values: Values, factor: float, thresholds: AuditThresholds) -> tuple[Values, float, Flags]:
    """By which factor values are off the median, the median, and which are too far off."""
    usual = float(np.median(values))
    logs = np.log(values / usual)
    spread = _NORMAL * float(np.median(np.abs(logs)))
    return np.exp(logs), usual, np.abs(logs) >= max(np.log(factor), thresholds.deviations * spread)


def _times(factor: float) -> str:
    return f"{factor:.3g} times more" if factor >= 1 else f"{1 / factor:.3g} times fewer"


def _modes(scan: Scan, row: _Set, thresholds: AuditThresholds, blank: Flags) -> Iterator[Finding]:
    """One finding for each mode that few pictures have."""
    modes = row.facts["mode"].astype("U12")
    plain = np.isin(modes, ("", "color", "gray"))
    modes = np.where(plain, np.where(row.facts["colorless"], "gray", "color"), modes)
    names, counts = np.unique(modes[~blank], return_counts=True)
    if not len(names):
        return
    usual = str(names[counts.argmax()])
    for mode in (str(name) for name in names if name != usual):
        flags = (modes == mode) & ~blank
        # a picture with fewer colors may be meant by chance; the others come of a mistake more often
        if mode in ("gray", "color") and not _is_rare(flags, thresholds):
            continue
        places = tuple(scan.place(*row.places[position]) for position in np.flatnonzero(flags).tolist())
        names_some = ", ".join(f"{place.name} ({place.split})" for place in places[:3])
        count = "1 picture is" if len(places) == 1 else f"{len(places):,} pictures are"
        said = f"{count} {mode} among {len(row):,} that are mostly {usual}, such as {names_some}."
        mend = "Convert them as the others are, if the difference is not meant: they are trained on as RGB of 8 bits."
        share = len(places) / len(row)
        yield Finding(Kind.ODD_MODE, HARM[Kind.ODD_MODE], places, said, mend, share, {"mode": mode, "usual": usual})


def _turned(scan: Scan, row: _Set) -> Iterator[Finding]:
    turned = np.flatnonzero(row.facts["orientation"] > 1)
    if not len(turned):
        return
    places = tuple(scan.place(*row.places[position]) for position in turned.tolist())
    count = "1 picture is" if len(places) == 1 else f"{len(places):,} pictures are"
    said = f"{count} stored turned, with an EXIF orientation that says how, such as {places[0].name}."
    mend = "Nothing for Frostline, which turns them; other programs that read these files may not."
    kind = Kind.EXIF_TURNED
    yield Finding(kind, HARM[kind], places, said, mend, len(places) / len(row))
