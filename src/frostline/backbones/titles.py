"""Names of depth groups, for tables: ``stem``, ``blocks.3``, ``blocks.0..3``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def titles(held: Sequence[Sequence[str]], blocks: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A name for each group, unique and never the head's.

    It is ``stem`` for the first, then the block or the module that holds most of it.

    Args:
        held: parameter names by group.
        blocks: the block of each parameter, where the groups were made of blocks.
    """
    found: list[str] = []
    for names in held:
        title = (_main_block(names, blocks or {}) or main_module(names)) if found else "stem"
        again = (title == "head") + sum(known == title or known.startswith(f"{title} (") for known in found)
        found.append(f"{title} ({again + 1})" if again else title)
    return tuple(found)


def _main_block(names: Sequence[str], blocks: Mapping[str, str]) -> str | None:
    counted = Counter(blocks[name] for name in names if name in blocks).most_common(1)
    return counted[0][0] if counted else None


def main_module(names: Sequence[str]) -> str:
    """The module that holds most of the parameters: its innermost part with a number that holds over half of them."""
    inside = [name.split(".")[:-1] or [name] for name in names]
    chosen: list[str] = []
    while inside:
        part, count = Counter(path[len(chosen)] for path in inside).most_common(1)[0]
        if chosen and 2 * count <= len(inside):
            break
        chosen.append(part)
        inside = [path for path in inside if path[: len(chosen)] == chosen and len(path) > len(chosen)]
    numbered = [place for place, part in enumerate(chosen, start=1) if part.isdigit()]
    return ".".join(chosen[: numbered[-1]] if numbered else chosen)


def span(first: str, last: str) -> str:
    """The name of joined groups: ``blocks.0..3`` where the two differ in their last number alone, else both in full."""
    if first == last:
        return first
    series, _, number = last.rpartition(".")
    within = bool(series) and number.isdigit() and first.rpartition(".")[0] == series
    return f"{first}..{number}" if within else f"{first}..{last}"
