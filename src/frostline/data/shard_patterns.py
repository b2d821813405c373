"""Which shards a split has: names, patterns, and ranges such as ``train-{0000..0031}.tar``."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from frostline.data.listing import ARCHIVE_SUFFIXES, SPLIT_FOLDERS, is_hidden
from frostline.errors import ConfigError, DataError, suggestion

Pattern = str | Sequence[str] | None

_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.([0-9]+))?")
_URL = re.compile("(?:^|/)(?P<url>(?:pipe:|[a-z][a-z0-9+.-]+:/).*)", re.DOTALL)
_WORD = re.compile("(?<![a-z])(" + "|".join(SPLIT_FOLDERS) + ")(?![a-z])")
_COMPRESSED = (*(one for one in ARCHIVE_SUFFIXES if one not in (".tar", ".zip")), ".tar.zst", ".tar.lz4")
_MOST = 100_000
_SHOWN = 5


def find_shards(root: Path, patterns: Mapping[str, Pattern]) -> tuple[dict[str, list[str]], list[str]]:
    """The shards of each split.

    Args:
        root: the folder that patterns are relative to.
        patterns: of ``train``, ``val`` and ``test``. A name, a pattern with ``*``, ``?``, ``[ab]`` or ``**``, one
            with ``{0000..0031}`` or ``{a,b}``, or a list of these; an empty list is no such split. None takes the
            shards in ``root``, or in a folder of the split, whose name has the split's as a word; where no name says
            any split, ``train`` has all of them.

    Returns:
        Paths relative to ``root`` with forward slashes, for each split that has any; and names that were passed over.

    Raises:
        ConfigError: a pattern is a URL, absolute, or stands for too many names.
        DataError: a pattern matches nothing, shards of a range are missing, one is compressed or is in two splits.
    """
    by_name, others = _by_name(root)
    found: dict[str, list[str]] = {}
    for split, pattern in patterns.items():
        found[split] = by_name.get(split, []) if pattern is None else _matching(root, split, pattern)
    if not by_name and patterns["train"] is None:
        claimed = {name for names in found.values() for name in names}
        found["train"], others = [name for name in others if name not in claimed], []
    if not found["train"]:
        raise _no_training_shards(root, others, by_name)
    _check_disjoint(root, found, patterns)
    taken = {name for names in found.values() for name in names}
    return {split: names for split, names in found.items() if names}, [name for name in others if name not in taken]


def refuse_url(place: str, key: str) -> None:
    """Raise where ``place`` is no path of this machine.

    Raises:
        ConfigError: it is a URL or a command.
    """
    url = _URL.search(place)  # behind the working folder, where it was taken for a relative path
    if url:
        raise ConfigError(
            f"data.{key}={url['url']} is no path. Shards are read by random access, so that an epoch has an exact "
            "length and an interrupted run goes on where it was; a stream allows neither.",
            mend="Copy the shards to a disk and set data.root to their folder.",
        )


def expand_braces(pattern: str) -> list[str]:
    """The names that ``{0000..0031}``, ``{0..30..2}`` and ``{a,b}`` stand for, in order; numbers keep their zeros.

    Raises:
        ConfigError: they are more than 100,000.
    """
    expanded = list(itertools.islice(_expanded(pattern), _MOST + 1))
    if len(expanded) > _MOST:
        raise _too_many(pattern)
    return expanded


def _expanded(pattern: str) -> Iterator[str]:
    for match in re.finditer("{", pattern):
        start = match.start()
        options, end = _options(pattern, start)
        if options:
            for option in options:
                for inner in _expanded(option):
                    for rest in _expanded(pattern[end:]):
                        yield pattern[:start] + inner + rest
            return
    yield pattern


def _options(pattern: str, start: int) -> tuple[Sequence[str], int]:
    """What the brace at ``start`` offers, nothing where it is a character like any other; and where it ends."""
    depth, cuts = 0, [start]
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            cuts.append(place)
            break
        if depth == 1 and pattern[place] == ",":
            cuts.append(place)
    else:
        return (), start
    options = [pattern[cut + 1 : following] for cut, following in itertools.pairwise(cuts)]
    if len(options) > 1:
        return options, cuts[-1] + 1
    numbers = _RANGE.fullmatch(options[0])
    return (_numbers(pattern, *numbers.groups()) if numbers else ()), cuts[-1] + 1


def _too_many(pattern: str) -> ConfigError:
    return ConfigError(f"'{pattern}' stands for more than {_MOST:,} names.", mend="Shorten its ranges.")


def _numbers(pattern: str, first: str, last: str, step: str | None) -> list[str]:
    start, end = int(first), int(last)
    padded = any(number.lstrip("-").startswith("0") and len(number.lstrip("-")) > 1 for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    by = int(step or 1) or 1
    if abs(end - start) // by >= _MOST:
        raise _too_many(pattern)
    numbers = range(start, end + 1, by) if start <= end else range(start, end - 1, -by)
    return [f"{number:0{width}d}" for number in numbers]


def _by_name(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The shards whose names say a split, and the others."""
    found: dict[str, list[str]] = {}
    others = []
    for name in _shards_below(root):
        split = _split_said(name)
        if split:
            found.setdefault(split, []).append(name)
        else:
            others.append(name)
    return found, others


def _split_said(name: str) -> str | None:
    for part in reversed(name.lower().split("/")):
        said = {SPLIT_FOLDERS[word] for word in _WORD.findall(part)}
        if said:
            return said.pop() if len(said) == 1 else None
    return None


def _shards_below(root: Path) -> list[str]:
    """The ``.tar`` files in ``root`` and in the folders that are named for a split, sorted."""
    names = []
    for folder in ("", *sorted(entry for entry in _entries(root) if entry.lower() in SPLIT_FOLDERS)):
        if folder and not (root / folder).is_dir():
            continue
        for entry in sorted(_entries(root / folder)):
            name = f"{folder}/{entry}" if folder else entry
            if not is_hidden(entry) and entry.lower().endswith((".tar", *_COMPRESSED)) and (root / name).is_file():
                _check_suffix(root, name)
                names.append(name)
    return names


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed: {error.strerror}.") from error


def _matching(root: Path, split: str, pattern: str | Sequence[str]) -> list[str]:
    wanted = [pattern] if isinstance(pattern, str) else list(pattern)
    names: list[str] = []
    missing: list[str] = []
    for each in wanted:
        refuse_url(each, split)
        if os.path.isabs(each):
            raise ConfigError(f"data.{split}={each} is absolute.", mend="Give it relative to data.root.")
        for one in expand_braces(each):
            matched = _files(root, one)
            names += matched
            missing += [] if matched else [one]
    if missing:
        raise _missing(root, split, wanted, missing, len(names))
    for name in names:
        _check_suffix(root, name)
    return list(dict.fromkeys(names))


def _files(root: Path, pattern: str) -> list[str]:
    if (root / pattern).is_file():
        return [Path(pattern).as_posix()]
    matched = glob.glob(pattern, root_dir=root, recursive=True)
    return sorted(Path(name).as_posix() for name in matched if (root / name).is_file())


def _check_suffix(root: Path, name: str) -> None:
    lower = name.lower()
    if lower.endswith(_COMPRESSED):
        raise DataError(
            f"The shard {root / name} is compressed, and its pictures cannot be read one by one.",
            mend="Decompress it to a .tar; pictures are compressed already and hardly grow.",
        )
    if not lower.endswith(".tar"):
        raise DataError(f"{root / name} is no .tar file.", mend="Give patterns that end in .tar.")


def _missing(root: Path, split: str, wanted: Sequence[str], missing: Sequence[str], found: int) -> DataError:
    given = ", ".join(wanted)
    if found:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        return DataError(
            f"{len(missing)} of {found + len(missing)} shards of data.{split}={given} are not in {root}: {shown}.",
            mend="Copy them there, or name fewer.",
        )
    problem = f"No shard in {root} matches data.{split}={given}."
    return DataError(problem, mend=suggestion(missing[0], _tars(root), known_as=f"in {root}"))


def _tars(root: Path) -> list[str]:
    return sorted(name for name in _entries(root) if ".tar" in name.lower())[:1000]


def _no_training_shards(root: Path, others: Sequence[str], by_name: Mapping[str, Sequence[str]]) -> DataError:
    known = [*others, *(name for names in by_name.values() for name in names)]
    if not known:
        return DataError(f"{root} has no .tar file.", mend="Set data.root to the folder of the shards.")
    return DataError(
        f"{root} has shards, such as {known[0]}, but none for train.",
        mend="Say which they are: data.train='PATTERN', such as data.train='train-*.tar'.",
    )


def _check_disjoint(root: Path, found: Mapping[str, Sequence[str]], patterns: Mapping[str, Pattern]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for split, names in found.items():
        for name in names:
            path = os.path.realpath(root / name)
            if path not in seen:
                seen[path] = split, name
                continue
            other, before = seen[path]
            same = name if before == name else f"{before} and {name}"
            where = f"twice in the {split} split" if other == split else f"in two splits, {other} and {split}"
            how = " by its name" if patterns[split] is None else ""
            raise DataError(
                f"The shard {same} of {root} is {where}{how}.",
                mend=f"Narrow data.{other} or data.{split}; data.{split}='[]' takes none.",
            )
