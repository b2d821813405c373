"""What is wrong with a division rather than with a picture: classes and groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from frostline.auditing.findings import HARM, Finding, Kind
from frostline.auditing.scanning import Scan
from frostline.auditing.thresholds import AuditThresholds
from frostline.data.splits import Labels

_SHOWN = 100


def class_counts(scan: Scan) -> dict[str, Labels]:
    """Split to ``[C]`` pictures of each class that can be read."""
    return {
        name: np.bincount(np.asarray(part.split.labels)[part.readable], minlength=len(scan.classes))
        for name, part in scan.splits.items()
    }


def find_classes(scan: Scan, thresholds: AuditThresholds) -> Iterator[Finding]:
    """Classes that a split lacks, and class sizes of ``train`` that are far apart."""
    counts = class_counts(scan)
    for split, present in counts.items():
        for index in np.flatnonzero(present == 0).tolist():
            yield _missing(split, scan.classes[index], {name: int(other[index]) for name, other in counts.items()})
    train = counts.get("train")
    if train is None or not train.any():
        return
    smallest = int(np.where(train > 0, train, train.max() + 1).argmin())
    largest = int(train.argmax())
    ratio = float(train[largest] / train[smallest])
    if ratio >= thresholds.imbalance:
        said = (
            f"'{scan.classes[largest]}' has {train[largest]:,} training pictures and '{scan.classes[smallest]}' "
            f"{train[smallest]:,}: {ratio:.0f} times fewer."
        )
        mend = "Add pictures, or weigh the classes: loss.weight=effective, or data.sampler=balanced."
        detail = {"largest": scan.classes[largest], "smallest": scan.classes[smallest]}
        yield Finding(Kind.CLASS_IMBALANCE, HARM[Kind.CLASS_IMBALANCE], (), said, mend, ratio, detail)


def _missing(split: str, label: str, counts: dict[str, int]) -> Finding:
    elsewhere = ", ".join(f"{count:,} in {name}" for name, count in counts.items() if name != split)
    said = f"The class '{label}' has no picture in {split} that can be read ({elsewhere or 'there is no other split'})."
    mend = "Move some there" if split != "train" else "Add training pictures"
    mend += ", or divide anew: scores of this split say nothing about the class." if split != "train" else "."
    return Finding(Kind.CLASS_MISSING, HARM[Kind.CLASS_MISSING], (), said, mend, None, {"split": split, "class": label})


def find_groups(scan: Scan) -> Iterator[Finding]:
    """Groups, such as patients, with pictures in more than one split; one finding for all."""
    firsts: dict[int, dict[str, int]] = {}
    total: set[int] = set()
    for name, part in scan.splits.items():
        if part.split.groups is None:
            return
        groups, first = np.unique(part.split.groups, return_index=True)
        total.update(groups.tolist())
        for group, index in zip(groups.tolist(), first.tolist(), strict=True):
            firsts.setdefault(group, {})[name] = index
    divided = [where for where in firsts.values() if len(where) > 1]
    if not divided:
        return
    places = tuple(scan.place(name, index) for where in divided[:_SHOWN] for name, index in where.items())
    some = " and ".join(f"{place.name} ({place.split})" for place in places[: len(divided[0])])
    count = (
        f"1 of {len(total):,} groups has" if len(divided) == 1 else f"{len(divided):,} of {len(total):,} groups have"
    )
    said = f"{count} pictures in more than one split, such as {some}."
    mend = "Divide by group, so that no split is judged by what it was trained on."
    kind = Kind.GROUP_ACROSS_SPLITS
    yield Finding(kind, HARM[kind], places, said, mend, len(divided) / len(total), {"groups": len(divided)})
