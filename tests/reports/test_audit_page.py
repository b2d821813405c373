from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from frostline.reports import AuditPage, PageFinding, PagePicture, PageSection, PageTable, audit_page

EVIL = "<script>alert('x')</script>\"&.png"


def thumbnail() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def page(*sections: PageSection) -> AuditPage:
    return AuditPage(
        title=f"Audit {EVIL}",
        facts=[("pictures", "12")],
        notes=[f"note {EVIL}"],
        sections=sections,
        classes=[EVIL, "b"],
        counts={"train": [3, 9], "test": [0, 2]},
        tables=[PageTable("Sizes", ["split", "width"], [["train", EVIL]])],
        footer=EVIL,
    )


def section(kind: str, harm: float, findings: list[PageFinding], total: int | None = None) -> PageSection:
    return PageSection(kind, kind.title(), "why", "mend", harm, total or len(findings), findings)


PAIR = PageFinding(
    f"twice {EVIL}", [PagePicture(EVIL, "train", "a", None, thumbnail()), PagePicture("b", "test", "b")], 3
)
WRONG = PageFinding("wrong", [PagePicture("c.png", "val", "cat", "dog", thumbnail())], short="90% against 2%")


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data.strip()} "


def read(path: Path, shown: AuditPage) -> Reader:
    audit_page(path, shown)
    return Reader(path)


def test_names_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    found = read(tmp_path / "deep" / "page.html", page(section("double", 1.0, [PAIR]), section("labels", 0.7, [WRONG])))
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in found.tags)
    sources = [attributes[key] for _, attributes in found.tags for key in ("src", "href") if key in attributes]
    assert all(source and source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "http" not in re.sub("http-equiv", "", (tmp_path / "deep" / "page.html").read_text())
    assert found.text.count("alert('x')") >= 6


def test_sections_come_in_order_with_their_pictures(tmp_path: Path) -> None:
    found = read(tmp_path / "page.html", page(section("double", 1.0, [PAIR]), section("labels", 0.3, [WRONG], total=9)))
    assert [attributes["id"] for tag, attributes in found.tags if tag == "section" and "id" in attributes] == [
        "double",
        "labels",
    ]
    assert sum(tag == "img" for tag, _ in found.tags) == 2
    for part in (
        "cannot be shown",
        "and 3 more pictures",
        "dog?",
        "90% against 2%",
        "8 more of this kind",
        "high",
        "low",
    ):
        assert part in found.text


def test_without_findings_it_says_so_and_shows_the_classes(tmp_path: Path) -> None:
    found = read(tmp_path / "page.html", page())
    assert "Nothing found." in found.text
    assert [attributes["style"] for tag, attributes in found.tags if tag == "span" and "style" in attributes] == [
        "width:33.3%",
        "width:100.0%",
        "width:100.0%",
    ]


def test_a_name_that_is_no_text_does_not_stop_it(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    found = read(
        tmp_path / "page.html", page(section("blank", 0.5, [PageFinding("p", [PagePicture(name, "train", "a")])]))
    )
    assert ".png" in found.text
