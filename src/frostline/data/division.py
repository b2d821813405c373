"""From what a source found to the splits of a run: exclusion, a saved division, folds, derived splits."""

from __future__ import annotations

import csv
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from frostline.data.names import escape_name, unescape_name
from frostline.data.splits import ImageSplit, Joined, SplitView, by_class
from frostline.data.stratify import fold_numbers, split_off
from frostline.errors import DataError, StorageError, suggestion

SPLITS = ("train", "val", "test")
COLUMNS = ("split", "label", "key", "name")
_SHOWN = 3
_COMPARED = 10_000  # names among which one that a misspelt one may mean is looked for


def read_names(path: Path) -> list[str]:
    """The names in a list of pictures: UTF-8, one a line, ``# ...`` for comments, escaped as `escape_name` does it.

    Raises:
        DataError: the file is absent or no such list.
    """
    try:
        # an editor on Windows puts a mark before the first line, and a carriage return at the end of each
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise DataError(f"The list {path} does not exist.", mend="Set data.exclude to a list of names.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read: {error}.") from error
    names = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        try:
            names.append(unescape_name(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
    return names


def without(splits: Mapping[str, ImageSplit], path: Path) -> tuple[dict[str, ImageSplit], str]:
    """The splits without the pictures that a list names, and a note on them.

    Raises:
        DataError: a name is that of no picture, or nothing is left of a split.
    """
    listed = read_names(path)
    unwanted = set(listed)
    kept: dict[str, ImageSplit] = {}
    gone: set[str] = set()
    for title, split in splits.items():
        out = np.array([split.name(index) in unwanted for index in range(len(split))], dtype=bool)
        gone |= {split.name(int(index)) for index in np.flatnonzero(out)}
        kept[title] = SplitView(split, np.flatnonzero(~out)) if out.any() else split
        if len(split) and not len(kept[title]):
            raise DataError(f"data.exclude={path} leaves nothing of the {title} split.", mend="List fewer pictures.")
    unknown = [name for name in listed if name not in gone]
    if unknown:
        some = [split.name(index) for split in splits.values() for index in range(min(len(split), _COMPARED))]
        near = suggestion(unknown[0], some) if len(some) < _COMPARED else None
        raise DataError(
            f"data.exclude={path} names {_count(len(unknown), 'picture')} that the data does not have: "
            f"{_few(unknown)}.",
            mend=near if near and near.startswith("Did") else "Take a list that was made from this data.",
        )
    return kept, f"{_count(len(gone), 'picture')} left out as {path} says."


def with_derived(splits: Mapping[str, ImageSplit], shares: Mapping[str, float], seed: int) -> dict[str, ImageSplit]:
    """The splits, with those of ``shares`` that are not there split off from ``train``."""
    missing = {name: share for name, share in shares.items() if share > 0 and name not in splits}
    derived = split_off(splits["train"], missing, seed=seed) if missing else {}
    return in_order({**splits, **derived})


def in_folds(
    splits: Mapping[str, ImageSplit], classes: Sequence[str], *, folds: int, fold: int, val_share: float, seed: int
) -> dict[str, ImageSplit]:
    """The splits of one fold of a k-fold cross-validation over ``train`` and ``val``.

    Where there is a test split, the fold is ``val`` and the others are ``train``. Where there is none, the fold is
    ``test``, and ``val`` is split off from the others.

    Raises:
        DataError: a class has fewer pictures than there are folds.
    """
    pool = Joined([splits[name] for name in ("train", "val") if name in splits])
    _check_folds(pool, classes, folds)
    chosen = fold_numbers(pool, folds, seed=seed) == fold
    held, rest = (SplitView(pool, np.flatnonzero(part)) for part in (chosen, ~chosen))
    if "test" in splits:
        return {"train": rest, "val": held, "test": splits["test"]}
    return with_derived({"train": rest, "test": held}, {"val": val_share}, seed)


def _check_folds(pool: ImageSplit, classes: Sequence[str], folds: int) -> None:
    small = [
        f"'{classes[int(pool.labels[positions[0]])]}' has {len(positions)}"
        for positions in by_class(pool.labels)
        if len(positions) < folds
    ]
    if small:
        raise DataError(
            f"data.folds={folds}, but of {_count(len(small), 'class')} there are fewer pictures: {_few(small)}.",
            mend="Set data.folds to the smallest of these counts or less, or leave small classes out.",
        )
    if pool.groups is not None and (found := len(np.unique(pool.groups))) < folds:
        raise DataError(
            f"data.folds={folds}, but the pictures fall into {_count(found, 'group')}, and a group is never divided.",
            mend=f"Set data.folds to {found} or less.",
        )


def by_file(
    splits: Mapping[str, ImageSplit], classes: Sequence[str], path: Path, *, partly: bool = False
) -> tuple[dict[str, ImageSplit], str | None]:
    """The splits as a ``splits.csv`` divides the same pictures, whatever they are called now, and a note.

    Args:
        splits: the pictures.
        classes: the names of their labels.
        path: the file, or the folder of a run, which has one.
        partly: take what is there of the pictures that it lists.

    Raises:
        DataError: the file is no such table, or without ``partly`` lists pictures that are not there.
    """
    path = path / "splits.csv" if path.is_dir() else path
    wanted = _read_division(path)
    pool = Joined(list(splits.values()))
    keys = key_texts(pool)
    chosen = np.full(len(pool), -1, dtype=np.int64)
    # of equal pictures under several labels, each goes where its label was
    for position, (key, label) in enumerate(zip(keys, pool.labels.tolist(), strict=True)):
        if rows := wanted.get((key, escape_name(classes[label]))):
            chosen[position] = SPLITS.index(rows.popleft()["split"])
    others: dict[str, deque[dict[str, str]]] = defaultdict(deque)
    for (key, _), rows in wanted.items():
        others[key] += rows
    for position in np.flatnonzero(chosen < 0).tolist():
        if others.get(keys[position]):
            chosen[position] = SPLITS.index(others[keys[position]].popleft()["split"])
    missing = [row.get("name") or key for key, rows in others.items() for row in rows]
    if missing and not partly:
        raise DataError(
            f"data.split_file={path} lists {_count(len(missing), 'picture')} that the data does not have, such as what "
            f"was called {missing[0]}.",
            mend="Use it with the pictures that it was made from; they may have other names and places.",
        )
    positions = {name: np.flatnonzero(chosen == number) for number, name in enumerate(SPLITS)}
    divided: dict[str, ImageSplit] = {name: SplitView(pool, at) for name, at in positions.items() if len(at)}
    if "train" not in divided and not partly:
        raise DataError(f"data.split_file={path} has no picture for train.", mend="Take the splits.csv of a run.")
    left_out = int((chosen < 0).sum())
    note = f"{_count(left_out, 'picture')} left out that {path} does not list." if left_out else None
    return divided, note


def keys_in(path: Path, split: str) -> set[str]:
    """The keys of the pictures that a ``splits.csv`` has in ``split``; empty where it cannot be read."""
    try:
        return {key for (key, _), rows in _read_division(path).items() for row in rows if row["split"] == split}
    except DataError:
        return set()


def _read_division(path: Path) -> dict[tuple[str, str | None], deque[dict[str, str]]]:
    """(key, label as it is written) to the rows of the table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"split", "key"} <= set(rows.fieldnames or ()):
                raise DataError(
                    f"data.split_file={path} has the columns {', '.join(rows.fieldnames or ()) or '(none)'}.",
                    mend="It takes a splits.csv as a run writes it, with the columns split and key.",
                )
            wanted: dict[tuple[str, str | None], deque[dict[str, str]]] = defaultdict(deque)
            for row in rows:
                if row["split"] not in SPLITS:
                    known = suggestion(str(row["split"]), SPLITS, known_as="splits")
                    raise DataError(f"{path}, line {rows.line_num}: there is no split '{row['split']}'.", mend=known)
                wanted[row["key"], row.get("label")].append(row)
            return wanted
    except FileNotFoundError:
        mend = "Name the splits.csv of a run."
        raise DataError(f"data.split_file={path} does not exist.", mend=mend) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.split_file={path} cannot be read: {error}.") from error


def write_division(path: Path, classes: Sequence[str], splits: Mapping[str, ImageSplit]) -> None:
    """Write the splits as a CSV file that ``data.split_file`` takes: split, label (class name), key, name.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for title, split in splits.items():
                for index, key in enumerate(key_texts(split)):
                    label = escape_name(classes[int(split.labels[index])])
                    writer.writerow([title, label, key, escape_name(split.name(index))])
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error


def check_division(classes: Sequence[str], splits: Mapping[str, ImageSplit], how: str) -> None:
    """Raise where a class has no training picture left, or a split no picture.

    Args:
        classes: their names.
        splits: after the division.
        how: what divided the pictures.
    """
    for name, split in splits.items():
        if not len(split):
            raise DataError(
                f"The {name} split gets no pictures by {how}: what belongs together (a group, or equal pictures) "
                "is too large to be divided off.",
                mend="Look at the groups, or give the splits other shares: data.val_fraction, data.test_fraction.",
            )
    counts = np.bincount(splits["train"].labels, minlength=len(classes))
    if not counts.all():
        name = classes[int(np.argmin(counts))]
        raise DataError(
            f"The class '{name}' has no training pictures after {how}.",
            mend="Give it more pictures, or divide otherwise.",
        )


def in_order(splits: Mapping[str, ImageSplit]) -> dict[str, ImageSplit]:
    """``train``, ``val``, ``test``, as far as they are there."""
    return {name: splits[name] for name in SPLITS if name in splits}


def key_texts(split: ImageSplit) -> list[str]:
    """What a ``splits.csv`` knows each picture by."""
    return [key.decode("utf-8", "surrogateescape") for key in split.order_keys().tolist()]


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"1 {what}" if number == 1 else f"{number} {plural}"
