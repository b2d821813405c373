"""Reading a page as a browser does, with Python's parser or with Chromium where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = ("meta", "img", "br", "link", "input")


class Page(HTMLParser):
    """What is in a page; an end tag that closes nothing, or something else, is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += f" {data.strip()} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def assert_loads_nothing(page: Page) -> None:
    """No address leads away from the page, and its policy forbids the rest."""
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        assert "srcset" not in attributes
        for key in ("src", "href", "data", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/", "#")) or ":" not in value, value
    styles = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    assert not any("url(" in style or "@import" in style for style in styles)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def chromium(page: Path, *, fragment: str = "", probe: str = "") -> str:
    """The page as Chromium has it after loading; skips the test where there is no Chromium.

    Args:
        page: the file.
        fragment: of the address, as a link within the page has it.
        probe: JavaScript whose value is written into the page's title, for what only a browser knows; it is put into a
            copy of the page, with a policy that allows it.
    """
    known = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in known if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    if probe:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
        script = f"<script>addEventListener('load', () => {{ document.title = String({probe}); }});</script>"
        page = page.with_name(f"probed-{page.name}")
        page.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    order = [program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    # what the page itself says is on this stream, beside what Chromium says of its surroundings
    order += ["--enable-logging=stderr", "--v=0", "--window-size=1200,900", "--dump-dom"]
    done = subprocess.run(
        [*order, page.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=False, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == [], said
    return done.stdout


def overflow_at(page: Path, width: int) -> int:
    """Pixels by which a page is wider than a window of ``width``: a frame may be narrower than Chromium's windows."""
    text = html.escape(page.read_text(encoding="utf-8"))
    frame = page.with_name("frame.html")
    within = "frames[0].document.documentElement"
    probe = f"{within}.scrollWidth - {within}.clientWidth"
    script = f"<script>addEventListener('load', () => {{ document.title = {probe}; }});</script>"
    inner = f'<iframe width="{width}" height="700" style="border:0" srcdoc="{text}"></iframe>'
    frame.write_text(f"<!doctype html><title>-</title><body>{inner}{script}</body>", encoding="utf-8")
    return int(title_of(chromium(frame)))


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None
    return found[1]
