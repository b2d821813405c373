"""What an audit leaves behind for programs: the list for ``data.exclude``, the findings as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frostline.auditing import Finding, Kind, Place
from frostline.data.names import escape_name
from frostline.errors import ConfigError, StorageError, suggestion
from frostline.writing import write_text

UNUSABLE = (Kind.UNREADABLE, Kind.TRUNCATED, Kind.BLANK)
DUPLICATES = (
    Kind.EXACT_DUPLICATE_ACROSS_SPLITS,
    Kind.NEAR_DUPLICATE_ACROSS_SPLITS,
    Kind.EXACT_DUPLICATE,
    Kind.NEAR_DUPLICATE,
)
OPTIONAL = (
    Kind.LABEL_ERROR,
    Kind.DARK,
    Kind.BRIGHT,
    Kind.BLURRED,
    Kind.ODD_SIZE,
    Kind.ODD_ASPECT,
    Kind.EXIF_TURNED,
    Kind.ODD_MODE,
)
COLUMNS = ("number", "kind", "harm", "score", "split", "index", "name", "label", "suggested", "problem")
# of the copies of a picture that of the split that results are reported on stays
_STAYS_FIRST = {"test": 0, "val": 1, "train": 2}

_HEAD = """\
# Pictures that an audit would leave out, one name a line: data.exclude=THIS_FILE trains without them.
# In a name a backslash is written \\\\, the end of a line \\n, a # at the start \\#. Take a line out to keep a picture.
"""


def optional_kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    """The kinds that ``audit.exclude_kinds`` names.

    Raises:
        ConfigError: one is not among those that can be listed.
    """
    for name in names:
        if name not in list(OPTIONAL):
            raise ConfigError(
                f"audit.exclude_kinds: pictures are not listed for '{name}'",
                mend=suggestion(str(name), [str(kind) for kind in OPTIONAL], known_as="kinds"),
            )
    return tuple(Kind(name) for name in names)


def excluded(findings: Sequence[Finding], kinds: Sequence[Kind] = ()) -> dict[str, str]:
    """The names of the pictures to leave out, each with its reason, by kind.

    Unreadable, truncated and blank ones; of copies all but one, which is of ``test`` rather than ``val`` rather than
    ``train``; of copies under two labels all, but for one of ``test`` where those of ``test`` have one label.

    Args:
        findings: of an audit.
        kinds: others of which every picture is listed.
    """
    listed: dict[str, str] = {}
    for finding in findings:
        if finding.kind in UNUSABLE or finding.kind in kinds:
            gone, why = finding.places, f"{finding.kind}"
        elif finding.kind is Kind.CONFLICTING_LABELS:
            gone, why = _without_labels(finding.places), "conflicting_labels"
        elif finding.kind in DUPLICATES:
            kept = min(finding.places, key=_rank)
            # a name that is in a table twice would take the copy that stays with it
            gone = tuple(place for place in finding.places if place.name != kept.name)
            why = f"{finding.kind} of {kept.name} ({kept.split})"
        else:
            continue
        for place in gone:
            listed.setdefault(place.name, why)
    return listed


def _without_labels(places: Sequence[Place]) -> tuple[Place, ...]:
    tested = [place for place in places if place.split == "test"]
    kept = min(tested, key=_rank) if len({place.label for place in tested}) == 1 else None
    return tuple(place for place in places if kept is None or place.name != kept.name)


def _rank(place: Place) -> tuple[int, int]:
    return _STAYS_FIRST.get(place.split, 3), place.index


def exclude_text(listed: Mapping[str, str]) -> str:
    """The list as ``data.exclude`` takes it, with a comment for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in listed.items():
        by_reason.setdefault(why, []).append(name)
    parts = [
        f"# {escape_name(why)}\n" + "".join(f"{escape_name(name)}\n" for name in by_reason[why]) for why in by_reason
    ]
    return _HEAD + "".join(parts)


def write_exclude(path: Path, listed: Mapping[str, str]) -> None:
    """Write the list.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        write_text(path, exclude_text(listed))
    except OSError as error:
        mend = "Choose another place: audit.exclude=FILE."
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.", mend=mend) from error


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write a CSV file with a row for each picture of each finding; names are escaped as in the list."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for number, finding in enumerate(findings, start=1):
        about = (number, finding.kind.value, finding.harm, "" if finding.score is None else f"{finding.score:.6g}")
        suggested = escape_name(str(finding.detail.get("suggested", "")))
        problem = escape_name(finding.problem)
        for place in finding.places:
            where = (place.split, place.index, escape_name(place.name), escape_name(place.label))
            writer.writerow([*about, *where, suggested, problem])
        if not finding.places:
            writer.writerow([*about, finding.detail.get("split", ""), "", "", "", suggested, problem])
    write_text(path, text.getvalue())


def write_audit(path: Path, about: Mapping[str, Any], findings: Sequence[Finding]) -> None:
    """Write all that is known as JSON; a name that is no text has its bytes as lone surrogates."""
    content = {**about, "findings": [_record(finding) for finding in findings]}
    write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _record(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "harm": finding.harm,
        "score": finding.score,
        "problem": finding.problem,
        "mend": finding.mend,
        "detail": finding.detail,
        "places": [
            {"split": place.split, "index": place.index, "name": place.name, "label": place.label}
            for place in finding.places
        ],
    }


def _plain(value: Any) -> Any:
    """What NumPy made of a number."""
    return value.item() if hasattr(value, "item") else str(value)
