"""The page of a sweep: its runs across their hyper-parameters, and the table that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from frostline.reports.pages import PageTable, write_page


@dataclass(frozen=True)
class SweepRun:
    """A row of the table of runs.

    Attributes:
        key: what the charts call it.
        cells: of the row.
        page: the address of its own page, relative to this one; empty where there is none.
    """

    key: str
    cells: Sequence[str]
    page: str = ""


@dataclass(frozen=True)
class SweepPage:
    """What the page shows, from top to bottom; an empty field leaves its place out.

    Attributes:
        title: of the page.
        facts: names and values.
        notes: sentences that a reader must know.
        parallel: parallel coordinates over what the runs differ in.
        scatter: the score over one hyper-parameter.
        compared: the table over seeds and folds.
        captions: sentences below it.
        header: of the table of runs.
        runs: its rows, the best first.
        unfinished: jobs that failed or did not finish.
        footer: where the rest is.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()
    parallel: Markup | None = None
    scatter: Markup | None = None
    compared: PageTable | None = None
    captions: Sequence[str] = ()
    header: Sequence[str] = ()
    runs: Sequence[SweepRun] = ()
    unfinished: PageTable | None = None
    footer: str = ""


def sweep_page(path: Path, page: SweepPage) -> None:
    """Write the page; every text in it is escaped, it loads nothing, and runs its own script alone.

    Raises:
        OSError: the file cannot be written.
    """
    write_page(path, "sweep_page.html.jinja", page, script="sweep_page.js")
