from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.data.names import escape_name, unescape_name


@given(st.text(st.characters(exclude_categories=())))
def test_every_name_comes_back_from_one_line_that_is_no_comment(name: str) -> None:
    line = escape_name(name)
    assert unescape_name(line) == name
    assert "\n" not in line
    assert "\r" not in line
    assert not line.startswith("#")
    line.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train/cat/1.jpg", "train/cat/1.jpg"),
        (" a, b=é日本 ", " a, b=é日本 "),
        ("# 1.jpg", "\\# 1.jpg"),
        ("a/#1.jpg", "a/#1.jpg"),
        ("a\nb\r\\n", "a\\nb\\r\\\\n"),
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), "caf\\xe9.png"),
    ],
)
def test_only_what_would_be_misread_is_escaped(name: str, line: str) -> None:
    assert escape_name(name) == line


@pytest.mark.parametrize("line", ["a\\tb", "a\\", "\\xZZ"])
def test_a_stray_backslash_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="is no escape"):
        unescape_name(line)
