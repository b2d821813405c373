"""The page of an audit: one HTML file with everything in it, thumbnails included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frostline.reports.pages import PageTable, data_uri, write_page

THUMBNAIL = 160
"""The longer side of a thumbnail in pixels."""


@dataclass(frozen=True)
class PagePicture:
    """A picture of a finding.

    Attributes:
        name: what identifies it in the data set.
        split: where it is.
        label: its class.
        suggested: the class that it probably is of; None where its label is not in doubt.
        thumbnail: a JPEG, of `THUMBNAIL` pixels at most; None for a picture that cannot be shown.
    """

    name: str
    split: str
    label: str
    suggested: str | None = None
    thumbnail: bytes | None = None

    @property
    def source(self) -> str:
        """The thumbnail as a data URI."""
        return data_uri(self.thumbnail or b"", "image/jpeg")


@dataclass(frozen=True)
class PageFinding:
    """One finding.

    Attributes:
        problem: a sentence.
        pictures: the first of its pictures.
        hidden: how many more there are.
        short: what to say below a single picture, in a few words.
    """

    problem: str
    pictures: Sequence[PagePicture] = ()
    hidden: int = 0
    short: str = ""


@dataclass(frozen=True)
class PageSection:
    """All findings of a kind.

    Attributes:
        kind: a word for links within the page.
        title: the kind as a person says it.
        why: what it does to a training.
        mend: what to do about it.
        harm: 0..1.
        total: how many findings there are.
        findings: those that are shown.
    """

    kind: str
    title: str
    why: str
    mend: str
    harm: float
    total: int
    findings: Sequence[PageFinding]

    @property
    def level(self) -> str:
        """``high``, ``medium`` or ``low``."""
        return "high" if self.harm >= 0.7 else "medium" if self.harm >= 0.4 else "low"

    @property
    def tiled(self) -> bool:
        """Whether each finding is a single picture, so that many fit side by side."""
        return all(len(finding.pictures) == 1 and not finding.hidden for finding in self.findings)


@dataclass(frozen=True)
class AuditPage:
    """What the page shows, from top to bottom.

    Attributes:
        title: of the page.
        facts: names and values in a row below it.
        notes: sentences that a reader must know.
        sections: the largest harm first.
        classes: class names, for the table of their balance.
        counts: split to pictures per class, in the order of ``classes``.
        tables: below it.
        footer: where the rest is.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    sections: Sequence[PageSection]
    classes: Sequence[str]
    counts: dict[str, Sequence[int]]
    tables: Sequence[PageTable] = field(default_factory=tuple)
    footer: str = ""

    @property
    def balance(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Class name, and for each split its count and that as a share of the split's largest class."""
        most = {split: max(max(counts, default=0), 1) for split, counts in self.counts.items()}
        return [
            (name, [(counts[index], counts[index] / most[split]) for split, counts in self.counts.items()])
            for index, name in enumerate(self.classes)
        ]


def audit_page(path: Path, page: AuditPage) -> None:
    """Write the page; every text in it is escaped, and it loads nothing.

    Raises:
        OSError: the file cannot be written.
    """
    write_page(path, "audit_page.html.jinja", page)
