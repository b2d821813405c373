"""Names of pictures as lines of a text file: any name a file system allows is one line, and comes back as it was."""

from __future__ import annotations

import re

_ESCAPED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPED = {escape: character for character, escape in _ESCAPED.items()} | {"\\#": "#"}
# a byte of a file name that is no UTF-8 is in Python a lone surrogate, which no UTF-8 file can hold
_TO_ESCAPE = re.compile("[\\\\\n\r\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|.|$)", re.DOTALL)


def escape_name(name: str) -> str:
    r"""``name`` as one line of UTF-8 text, without its end, which `unescape_name` turns back into ``name``.

    A backslash becomes ``\\``, an end of a line ``\n`` or ``\r``, a ``#`` at the start ``\#``, since it would begin a
    comment, and a byte that is no UTF-8 ``\xff``. Every other character, spaces at both ends among them, stays.
    """
    line = _TO_ESCAPE.sub(lambda match: _ESCAPED.get(match[0]) or _surrogate(match[0]), name)
    return f"\\{line}" if line.startswith("#") else line


def unescape_name(line: str) -> str:
    r"""The name that `escape_name` made ``line`` of.

    Args:
        line: without the ``\n`` at its end.

    Raises:
        ValueError: a backslash stands before something that is no escape.
    """
    return _ESCAPE.sub(_character, line)


def _surrogate(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _character(match: re.Match[str]) -> str:
    if match[1]:
        return chr(0xDC00 + int(match[1], 16))
    if match[2]:
        return chr(int(match[2], 16))
    if match[0] not in _UNESCAPED:
        raise ValueError(f"'{match[0]}' is no escape; a backslash of a name is written '\\\\'")
    return _UNESCAPED[match[0]]
