"""What is wrong with a data set and cheap to see; `frostline audit` looks closer."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from frostline.data import ImageData
from frostline.data.cache import cache_folder
from frostline.data.decoding import picture_size
from frostline.data.progress import Progress
from frostline.data.splits import ImageSplit
from frostline.errors import DataError, FrostlineError

AUDIT = "`frostline audit` shows them and writes a list for data.exclude."
_SHOWN = 3
_CHUNK = 1000


@dataclass
class DataChecks:
    """What was seen.

    Attributes:
        faults: would end the run when it comes to them.
        findings: make its result worth less, which a person should know; errors where ``data.strict`` is set.
    """

    faults: list[DataError] = field(default_factory=list)
    findings: list[DataError] = field(default_factory=list)


def check_data(data: ImageData, splits: Sequence[str]) -> DataChecks:
    """Looks at the headers of all pictures of ``splits``, and for equal pictures and groups among them.

    Headers are read once, and those of the same contents are then known to be good.
    """
    used = {name: data.splits[name] for name in splits}
    checks = DataChecks()
    for name, unreadable in _unreadable_headers(data, used).items():
        if unreadable:
            skipped = name == "train" and data.on_error == "skip"
            fault = _unreadable_fault(name, unreadable, "is left out" if skipped else "cannot be read")
            (checks.findings if skipped else checks.faults).append(fault)
    checks.findings += _shared_pictures(used)
    if data.labelled:
        checks.findings += _conflicting_labels(data.classes, used)
    checks.findings += _shared_groups(used)
    return checks


def _unreadable_fault(split: str, unreadable: Sequence[str], what: str) -> DataError:
    count = len(unreadable)
    some = "A picture" if count == 1 else f"{count} pictures"
    what = what.replace("is ", "are ") if count > 1 else what
    listed = "".join(f"\n    {problem}" for problem in unreadable[:_SHOWN])
    more = f"\n    and {count - _SHOWN} more" if count > _SHOWN else ""
    mend = AUDIT if split != "train" else f"{AUDIT} data.on_error=skip trains without them."
    return DataError(f"{some} of the {split} split {what}:{listed}{more}", mend=mend)


def _unreadable_headers(data: ImageData, splits: dict[str, ImageSplit]) -> dict[str, list[str]]:
    """Split to the problem of each picture whose header cannot be read."""
    encoded = {name: split for name, split in splits.items() if split.encoded}
    if not encoded:
        return {}
    limits = (data.pixel_limit, getattr(data, "file_limit", None))
    contents = np.sort(np.concatenate([split.digests() for split in encoded.values()]))
    known_by = hashlib.sha256(contents.tobytes()).hexdigest()
    memory = cache_folder() / "looked-at" / f"{known_by}-{limits[0]}-{limits[1]}"
    if memory.is_file():
        return {}
    found = {name: _bad_headers(split, data) for name, split in encoded.items()}
    if not any(found.values()):
        # a fault may be mended without a change that the fingerprint sees, such as of permissions
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.touch()
    return found


def _bad_headers(split: ImageSplit, data: ImageData) -> list[str]:
    file_limit = getattr(data, "file_limit", None)
    limits = {"pixel_limit": data.pixel_limit, **({"file_limit": file_limit} if file_limit else {})}

    def problem(index: int) -> str | None:
        try:
            path = split.path(index)
            picture_size(path if path is not None else split.content(index), str(path or split.name(index)), **limits)
        except FrostlineError as error:
            return error.problem
        return None

    progress = Progress("looking at pictures", len(split))
    found: list[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(split), _CHUNK):
            some = range(start, min(start + _CHUNK, len(split)))
            found += [said for said in pool.map(problem, some) if said is not None]
            progress.at(some.stop)
    progress.end()
    return found


def _shared_pictures(splits: dict[str, ImageSplit]) -> Iterator[DataError]:
    for first, second in combinations(splits, 2):
        common = np.intersect1d(splits[first].digests(), splits[second].digests())
        if len(common):
            pairs = [f"{_named(splits[second], one)} is {_named(splits[first], one)}" for one in common[:_SHOWN]]
            count = int(np.isin(splits[second].digests(), common).sum())
            yield DataError(
                f"{_pictures(count)} of the {second} split {'is' if count == 1 else 'are'} also in {first}, byte for "
                f"byte: {'; '.join(pairs)}{'; ...' if len(common) > _SHOWN else ''}",
                mend=AUDIT,
            )


def _conflicting_labels(classes: Sequence[str], splits: dict[str, ImageSplit]) -> Iterator[DataError]:
    digests = np.concatenate([split.digests() for split in splits.values()])
    labels = np.concatenate([split.labels for split in splits.values()])
    order = np.lexsort((labels, digests))
    same = (digests[order][1:] == digests[order][:-1]) & (labels[order][1:] != labels[order][:-1])
    at = np.flatnonzero(same)
    if not len(at):
        return
    pairs = [(int(order[place]), int(order[place + 1])) for place in at[:_SHOWN]]
    said = [
        f"{_name_at(splits, one)} ('{classes[int(labels[one])]}') is {_name_at(splits, two)} "
        f"('{classes[int(labels[two])]}')"
        for one, two in pairs
    ]
    yield DataError(
        f"{_pictures(len(at))} {'has' if len(at) == 1 else 'have'} two labels: {'; '.join(said)}"
        f"{'; ...' if len(at) > _SHOWN else ''}",
        mend=AUDIT,
    )


def _shared_groups(splits: dict[str, ImageSplit]) -> Iterator[DataError]:
    grouped = {name: split.groups for name, split in splits.items() if split.groups is not None}
    for first, second in combinations(grouped, 2):
        common = np.intersect1d(grouped[first], grouped[second])
        if len(common):
            example = splits[second].name(int(np.flatnonzero(np.isin(grouped[second], common))[0]))
            yield DataError(
                f"{len(common)} {'group has' if len(common) == 1 else 'groups have'} pictures in {first} and in "
                f"{second}, such as that of {example}",
                mend="Leave out the split column, so that groups are kept together, or mend it.",
            )


def _named(split: ImageSplit, digest: bytes) -> str:
    return split.name(int(np.flatnonzero(split.digests() == digest)[0]))


def _name_at(splits: dict[str, ImageSplit], position: int) -> str:
    for split in splits.values():
        if position < len(split):
            return split.name(position)
        position -= len(split)
    raise IndexError(position)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
