"""From the findings of an audit to its page and to the table on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from frostline.auditing import Finding, Kind, Place, Scan, SplitScan
from frostline.data import ImageSplit
from frostline.errors import FrostlineError
from frostline.reports import THUMBNAIL, PageFinding, PagePicture, PageSection, PageTable, thumbnail

_PICTURES = 6  # of a finding
_PAGE_BYTES = 5_000_000  # of all thumbnails: a third more as base64, the page stays below 8 MB
_WIDEST = 96  # characters of a problem on the screen


@dataclass(frozen=True)
class About:
    """What a kind of finding is for people: its title, what it does to a training, and what mends it."""

    title: str
    why: str
    mend: str


_DOUBLE = "Train with the list of this audit: data.exclude=exclude.txt keeps one of them."
_UNUSABLE = "Repair the files, or train with the list of this audit: data.exclude=exclude.txt."
_LOOK = "Look at them; what is wrong can be listed with audit.exclude_kinds."

ABOUT: dict[Kind, About] = {
    Kind.EXACT_DUPLICATE_ACROSS_SPLITS: About(
        "Same picture in two splits",
        "A model is scored on what it has learned by heart: the result is too good.",
        _DOUBLE,
    ),
    Kind.NEAR_DUPLICATE_ACROSS_SPLITS: About(
        "Nearly the same picture in two splits", "A model is scored on what it has all but seen.", _DOUBLE
    ),
    Kind.GROUP_ACROSS_SPLITS: About(
        "Group in two splits",
        "What belongs together, such as one patient's pictures, is learned and scored on.",
        "Divide by group.",
    ),
    Kind.CONFLICTING_LABELS: About(
        "Same picture under two labels", "At most one of them is right.", "Correct them, or leave the pictures out."
    ),
    Kind.UNREADABLE: About("Unreadable", "A run ends when it comes to one.", _UNUSABLE),
    Kind.TRUNCATED: About("Truncated", "The end of the file is missing, and with it a part of the picture.", _UNUSABLE),
    Kind.CLASS_MISSING: About(
        "Class missing in a split", "Nothing is known of how well the class is told.", "Divide by class."
    ),
    Kind.LABEL_ERROR: About(
        "Probably labelled wrongly",
        "A model learns the error, and is scored by it. This is a guess by a linear probe on the backbone's features.",
        "Look at each, and correct those that are wrong.",
    ),
    Kind.DRIFT: About(
        "Drift between splits",
        "What is measured on one split need not hold for the other.",
        "Divide the pictures anew.",
    ),
    Kind.BLANK: About("Blank", "There is nothing to learn in a picture of one color.", _UNUSABLE),
    Kind.EXACT_DUPLICATE: About("Same picture twice in a split", "It counts twice.", _DOUBLE),
    Kind.NEAR_DUPLICATE: About(
        "Nearly the same picture in a split", "There are fewer pictures than it seems.", _DOUBLE
    ),
    Kind.CLASS_IMBALANCE: About(
        "Unequal classes",
        "A model that never names the small class is nearly as good.",
        "class_weights=balanced or data.sampler=balanced.",
    ),
    Kind.DARK: About("Dark", "There may be nothing to see in them.", _LOOK),
    Kind.BRIGHT: About("Overexposed", "There may be nothing to see in them.", _LOOK),
    Kind.BLURRED: About("Blurred", "What tells the classes apart may be lost.", _LOOK),
    Kind.ODD_MODE: About("Unusual mode", "They differ from the others before the first layer.", _LOOK),
    Kind.ODD_ASPECT: About("Unusual shape", "A crop loses most of them.", "data.resize=pad keeps all of a picture."),
    Kind.ODD_SIZE: About("Unusual size", "They are scaled by another factor than the others.", _LOOK),
    Kind.EXIF_TURNED: About(
        "Turned by EXIF",
        "Frostline turns them; other programs may not.",
        "Nothing need be done here; elsewhere, save them turned.",
    ),
}


def by_kind(findings: Sequence[Finding]) -> dict[Kind, list[Finding]]:
    """The findings of each kind, in the order in which the kinds come."""
    found: dict[Kind, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.kind, []).append(finding)
    return found


def summary(findings: Sequence[Finding]) -> list[list[str]]:
    """A row for each kind: its title, how many findings and pictures there are, and the worst of them."""
    rows = []
    for kind, some in by_kind(findings).items():
        pictures = len({(place.split, place.index) for finding in some for place in finding.places})
        worst = printable(some[0].problem)
        worst = worst if len(worst) <= _WIDEST else worst[: _WIDEST - 1] + "…"
        rows.append([ABOUT[kind].title, str(len(some)), str(pictures) if pictures else "", worst])
    return rows


def printable(text: str) -> str:
    """``text`` for a screen, which obeys control characters and cannot show what is no text."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


@dataclass
class Thumbnails:
    """Small pictures, until there are too many bytes of them.

    Args:
        splits: the pictures.
        room: for so many bytes.
    """

    splits: Mapping[str, ImageSplit]
    room: int = _PAGE_BYTES
    _made: dict[tuple[str, int], bytes | None] = field(default_factory=dict)

    def of(self, place: Place) -> bytes | None:
        """A JPEG; None where the picture cannot be read or there is no more room."""
        key = place.split, place.index
        if key not in self._made and self.room > 0:
            self._made[key] = self._make(place)
            self.room -= len(self._made[key] or b"")
        return self._made.get(key)

    def _make(self, place: Place) -> bytes | None:
        try:
            picture = self.splits[place.split].image(place.index)
        except FrostlineError:
            return None
        return thumbnail(picture, THUMBNAIL)


def sections(findings: Sequence[Finding], thumbnails: Thumbnails, *, shown: int) -> Iterator[PageSection]:
    """A section of the page for each kind, the largest harm first.

    Args:
        findings: in order.
        thumbnails: of their pictures.
        shown: findings of a kind.
    """
    for kind, some in by_kind(findings).items():
        about = ABOUT[kind]
        pages = [_page_finding(finding, thumbnails) for finding in some[:shown]]
        yield PageSection(kind.value, about.title, about.why, about.mend, some[0].harm, len(some), pages)


def _page_finding(finding: Finding, thumbnails: Thumbnails) -> PageFinding:
    suggested = finding.detail.get("suggested")
    pictures = [
        PagePicture(place.name, place.split, place.label, suggested, thumbnails.of(place))
        for place in finding.places[:_PICTURES]
    ]
    return PageFinding(finding.problem, pictures, max(0, len(finding.places) - _PICTURES), _short(finding))


def _short(finding: Finding) -> str:
    if finding.kind is Kind.LABEL_ERROR:
        return f"{finding.detail['p_suggested']:.0%} against {finding.detail['p_given']:.0%}"
    if not finding.places:
        return ""
    if finding.kind in (Kind.UNREADABLE, Kind.TRUNCATED):
        return finding.problem.rpartition(": ")[2].strip(".")
    # name and split stand above it
    place = finding.places[0]
    return finding.problem.replace(f"{place.name} ({place.split})", "").replace(place.name, "").strip(" :.,")


def looks(seen: Scan) -> list[PageTable]:
    """Tables of what the pictures are, split by split: sizes, and file formats and modes."""
    sizes = [[name, *_spread(part)] for name, part in seen.splits.items()]
    header = ["split", "width", "height", "width / height", "unreadable"]
    tables = [PageTable("Sizes", header, sizes, "The smallest, the median and the largest, in pixels.")]
    kinds = {name: _kinds(part) for name, part in seen.splits.items()}
    rows = list(dict.fromkeys(kind for counts in kinds.values() for kind, _ in counts.most_common()))
    if rows:
        cells = [[kind, *(str(counts[kind]) for counts in kinds.values())] for kind in rows]
        tables.append(PageTable("Files", ["format and mode", *kinds], cells))
    return tables


def _spread(part: SplitScan) -> list[str]:
    facts = part.facts[part.readable]
    faulty = str(len(part.facts) - len(facts))
    if not len(facts):
        return ["-", "-", "-", faulty]
    width, height = facts["width"].astype(np.float64), facts["height"].astype(np.float64)
    spans = [np.percentile(values, [0, 50, 100]) for values in (width, height, width / height)]
    whole = [" / ".join(f"{value:.0f}" for value in span) for span in spans[:2]]
    return [*whole, " / ".join(f"{value:.2f}" for value in spans[2]), faulty]


def _kinds(part: SplitScan) -> Counter[str]:
    facts = part.facts
    pairs = zip(facts["format"].tolist(), facts["mode"].tolist(), strict=True)
    return Counter(f"{kind.decode()} {mode.decode()}" for kind, mode in pairs if kind)
