"""The page of a run: one HTML file with everything in it, pictures included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from frostline.reports.pages import PageTable, data_uri, write_page

MATRIX_CLASSES = 40
"""Up to so many classes a confusion is shown as a matrix, above it as the pairs that are taken for each other most."""

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """A picture of a cell of the confusion.

    Attributes:
        name: what identifies it in the data set.
        thumbnail: a JPEG; None for a picture that cannot be shown.
    """

    name: str
    thumbnail: bytes | None = None

    @property
    def source(self) -> str:
        """The thumbnail as a data URI."""
        return data_uri(self.thumbnail or b"", "image/jpeg")


@dataclass(frozen=True)
class Judged:
    """A picture and what the model said of it.

    Attributes:
        name: what identifies it in the data set.
        label, prediction: class names.
        confidence: the probability of ``prediction``, as a text.
        of_label: the probability of ``label``, as a text.
        thumbnail: a JPEG of the picture; None where it cannot be shown.
        heat: a JPEG of what the model got of it under the map of what speaks for ``prediction``; None without one.
    """

    name: str
    label: str
    prediction: str
    confidence: str
    of_label: str
    thumbnail: bytes | None = None
    heat: bytes | None = None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """What to say of each image and its data URI."""
        named = [("picture", self.thumbnail), ("what the model looked at", self.heat)]
        return [(name, data_uri(content, "image/jpeg")) for name, content in named if content is not None]


@dataclass(frozen=True)
class CellPictures:
    """The pictures of one cell of the confusion.

    Attributes:
        row, column: numbers of the label and of the prediction.
        count: how many there are.
        pictures: the first of them.
    """

    row: int
    column: int
    count: int
    pictures: Sequence[Shown]

    @property
    def key(self) -> str:
        """What links within the page call it."""
        return f"cell-{self.row}-{self.column}"


@dataclass(frozen=True)
class Confusion:
    """Which classes are taken for which.

    Attributes:
        classes: their K names.
        counts: ``[K][K]``; rows are labels, columns predictions.
        cells: those with pictures to show.
        note: below it.
    """

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    cells: Sequence[CellPictures]
    note: str = ""

    @property
    def is_matrix(self) -> bool:
        """Whether it is small enough for one."""
        return len(self.classes) <= MATRIX_CLASSES

    @property
    def rows(self) -> list[tuple[int, str, list[tuple[int, int, float]]]]:
        """Number and name of each class, and its cells: column, count, and share of the row."""
        return [
            (row, name, [(column, count, count / max(sum(counts), 1)) for column, count in enumerate(counts)])
            for row, (name, counts) in enumerate(zip(self.classes, self.counts, strict=True))
        ]

    @property
    def pairs(self) -> list[tuple[int, int, int, float]]:
        """What is confused most, up to 30: label, prediction, count, and share of the label's pictures."""
        found = [
            (row, column, count, count / sum(counts))
            for row, counts in enumerate(self.counts)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        return sorted(found, key=lambda one: (-one[2], -one[3], one[:2]))[:30]

    @property
    def linked(self) -> set[tuple[int, int]]:
        """The cells that lead to pictures."""
        return {(cell.row, cell.column) for cell in self.cells}


@dataclass(frozen=True)
class RunPage:
    """What the page shows, from top to bottom; an empty field leaves its place out.

    Attributes:
        title: of the page.
        facts: what a reader wants first: names and values.
        notes: sentences that a reader must know.
        what: what was run.
        overrides: what was typed for it.
        thaw: the thaw plot as a file's content and its media type.
        curves: charts of the training.
        phases: what learned when.
        scores: of all splits, with intervals.
        gap: a sentence on overfitting.
        split: the split that classes, confusion and pictures are of.
        classes: a row for each class.
        confusion: of the classes.
        worst: wrong ones of which the model was most sure.
        uncertain: those of which it was least sure.
        pictures_note: how the pictures are to be read, or why there are none.
        reliability: the diagram.
        calibration: its scores.
        calibration_note: on the temperature.
        data: tables on the data.
        cost: names and values.
        provenance: names and values.
        footer: where the rest is.
    """

    title: str
    facts: Facts
    notes: Sequence[str] = ()
    what: Facts = ()
    overrides: Sequence[str] = ()
    thaw: tuple[bytes, str] | None = None
    curves: Sequence[Markup] = ()
    phases: PageTable | None = None
    scores: PageTable | None = None
    gap: str = ""
    split: str = "test"
    classes: PageTable | None = None
    confusion: Confusion | None = None
    worst: Sequence[Judged] = ()
    uncertain: Sequence[Judged] = ()
    pictures_note: str = ""
    reliability: Markup | None = None
    calibration: PageTable | None = None
    calibration_note: str = ""
    data: Sequence[PageTable] = ()
    cost: Facts = ()
    provenance: Facts = ()
    footer: str = ""

    @property
    def thaw_source(self) -> str:
        """The thaw plot as a data URI."""
        content, kind = self.thaw or (b"", "image/png")
        return data_uri(content, kind)


def run_page(path: Path, page: RunPage) -> None:
    """Write the page; every text in it is escaped, and it loads nothing.

    Raises:
        OSError: the file cannot be written.
    """
    write_page(path, "run_page.html.jinja", page)
