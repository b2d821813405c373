"""The Markdown of the comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contest import ONE_PASS, OWN, Contest, Interval, entrants_of

TITLES = {"probe": "(a) Linear probe", "lp_ft": "(b) LP-FT: the head, then everything", "full": "(c) Everything learns"}


def section(contest: Contest, what: str) -> str:
    """One kind of training: its title, what was done, its table, and how it stands to the goals.

    Args:
        contest: all results.
        what: what was done, in a sentence.
    """
    table = rate_table(contest) if contest.kind == "full" else time_table(contest)
    goals = probe_goals(contest) if contest.kind == "probe" else []
    return "\n".join([f"## {TITLES[contest.kind]}", "", what, "", *table, *goals, ""])


def time_table(contest: Contest) -> list[str]:
    """Seconds to the test score, and the score."""
    lines = rows(
        (
            "",
            "s",
            "times Frostline",
            "CPU s",
            "times Frostline",
            "s with imports",
            "memory, MiB",
            "test accuracy",
            "less Frostline's",
        )
    )
    for name in _names(contest):
        if failure := contest.failure(name):
            lines.append(_failed(name, failure, cells=8))
            continue
        lines.append(
            _row(
                name,
                f"{contest.middle(name, 'wall'):.1f}",
                _times(contest.ratio(name, "wall")),
                f"{contest.middle(name, 'cpu'):.1f}",
                _times(contest.ratio(name, "cpu")),
                f"{contest.middle(name, 'whole'):.1f}",
                _memory(contest, name),
                _accuracy(contest.accuracy(name)),
                "" if name == OWN else _difference(contest, name),
            )
        )
    return lines


def rate_table(contest: Contest) -> list[str]:
    """Pictures a second."""
    lines = rows(("", "pictures/s", "of Frostline's", "CPU s in all", "times Frostline", "memory, MiB"))
    for name in _names(contest):
        if failure := contest.failure(name):
            lines.append(_failed(name, failure, cells=5))
            continue
        bound = contest.accuracy(name) is None
        lines.append(
            _row(
                name,
                f"{contest.middle(name, 'rate'):.1f}",
                _times(contest.ratio(name, "rate")),
                "" if bound else f"{contest.middle(name, 'cpu'):.1f}",
                "" if bound else _times(contest.ratio(name, "cpu")),
                _memory(contest, name),
            )
        )
    return lines


def probe_goals(contest: Contest) -> list[str]:
    """How the probe stands to its two goals."""
    lines = [""]
    best = contest.best_peer("wall")
    if best and contest.results(OWN):
        wall, cpu = contest.ratio(best, "wall"), contest.ratio(best, "cpu")
        lines.append(
            f"Goal: at least 10 times as fast as the best peer. Seen: {wall:.1f} times {best} on the wall, "
            f"{cpu:.1f} in processor time. {_met(wall is not None and wall >= 10)}"
        )
    if contest.results(ONE_PASS) and contest.results(OWN):
        wall, cpu = contest.ratio(OWN, "wall", to=ONE_PASS), contest.ratio(OWN, "cpu", to=ONE_PASS)
        lines.append(
            f"Goal: at most 1.3 times one forward pass over all pictures. Seen: {wall:.2f} times on the wall, "
            f"{cpu:.2f} in processor time. {_met(wall is not None and wall <= 1.3)}"
        )
    return lines


def rows(titles: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [_row(*titles), _row("---", *("---:" for _ in titles[1:]))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _failed(name: str, failure: str, *, cells: int) -> str:
    return _row(name, f"failed: {failure}", *[""] * (cells - 1))


def _names(contest: Contest) -> list[str]:
    return [one.name for one in entrants_of(contest.kind) if one.name in contest.taken]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _memory(contest: Contest, name: str) -> str:
    results = contest.results(name)
    host = [result.peak_mib for result in results if result.peak_mib is not None]
    device = [result.device_mib for result in results if result.device_mib is not None]
    return ", GPU ".join(f"{max(found):.0f}" for found in (host, device) if found)


def _accuracy(accuracy: Interval | None) -> str:
    if accuracy is None:
        return ""
    return f"{accuracy.mean:.3f}" + ("" if math.isnan(accuracy.half) else f" ± {accuracy.half:.3f}")


def _difference(contest: Contest, name: str) -> str:
    difference = contest.difference(name)
    if difference is None:
        return ""
    if math.isnan(difference.half):
        return f"{difference.mean:+.3f}"
    shown = f"{difference.mean:+.3f} ± {difference.half:.3f}"
    return shown + (" (equal)" if contest.is_equal(difference) else " (**differs**)")


def _met(holds: bool) -> str:
    return "Met." if holds else "**Missed.**"
