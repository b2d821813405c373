"""What all pages share: each is one HTML file with all in it, loads nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from frostline.writing import write_text

PAGE_BYTES = 5_000_000
"""No page of a run or of a sweep is larger."""


@dataclass(frozen=True)
class PageTable:
    """A table of a page; cells are text.

    Attributes:
        title: above it; empty for none.
        header: names of the columns.
        rows: of cells.
        note: a sentence between title and table.
        texts: how many columns from the left hold text; the others hold numbers and stand to the right.
        bold: numbers of the rows that stand out.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    texts: int = 1
    bold: Sequence[int] = ()


def write_page(path: Path, template: str, page: object, *, script: str = "") -> None:
    """Write a page, whole or not at all; every text in it is escaped.

    Args:
        path: of the file.
        template: its name in ``templates/``.
        page: what the template calls ``page``.
        script: the name in ``templates/`` of what the page runs, and of nothing else; empty for a page without.

    Raises:
        OSError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frostline.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    code = (files("frostline.reports") / "templates" / script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    text = environment.get_template(template).render(page=page, script=code, script_hash=digest)
    # a name that is no text shows as a replacement character, and so does what no page may hold
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    write_text(path, "".join(letter if _may_stand(letter) else "\N{REPLACEMENT CHARACTER}" for letter in clean))


def _may_stand(letter: str) -> bool:
    return letter >= " " or letter in "\n\t"


def data_uri(content: bytes, kind: str) -> str:
    """A file of the media type ``kind`` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
