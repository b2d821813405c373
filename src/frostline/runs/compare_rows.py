"""From finished runs to rows with a mean and an interval, and to tests between the rows.

A *unit* is one draw of an experiment: a seed, a fold, or both. Rows are compared over the units that both have, and
over the pictures that both have labelled. A difference counts where it holds against the noise of both: the larger of
the two p-values is taken, then corrected for how many there are (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from frostline.evaluation.statistics import (
    bootstrap_p,
    deviation,
    exact_mcnemar,
    exact_proportion,
    holm,
    paired_t,
    percentile_interval,
    t_interval,
    welch,
)
from frostline.runs.compare_pictures import Pictures
from frostline.runs.compare_runs import FinishedRun
from frostline.runs.sweep_means import AVERAGED
from frostline.specs import PaperSpec

Unit = tuple[str, ...]
SPLITTING = ("data.fold", "data.split_seed")
"""Averaged keys that decide which pictures are trained on: what they make shares training pictures."""
ALPHA = 0.05
NO_SPREAD = ": no spread"
"""How the name of a test ends that has nothing to hold a difference against."""


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one setting.

    Attributes:
        setting: the cells of the columns.
        units: what was drawn for each run; no two are the same.
        runs: as many.
        block: rows of one block were scored on the same pictures, unit by unit; others are not compared.
        interval: of the mean, 95 %; None where it is not known.
        method: how the interval was found.
    """

    setting: tuple[str, ...]
    units: tuple[Unit, ...]
    runs: tuple[FinishedRun, ...]
    block: int = 0
    interval: tuple[float, float] | None = None
    method: str = ""

    @property
    def values(self) -> list[float]:
        """One for each run."""
        return [run.value for run in self.runs]

    @property
    def mean(self) -> float:
        """Over the runs."""
        return float(np.mean(self.values))

    @property
    def papers(self) -> list[PaperSpec]:
        """The published results that its runs name, each once."""
        return list({(run.paper.value, run.paper.source): run.paper for run in self.runs if run.paper}.values())

    @property
    def deviation(self) -> float | None:
        """Over the runs, n - 1; None for a single one."""
        return deviation(self.values)


@dataclass(frozen=True)
class Comparison:
    """A test between two rows.

    Attributes:
        first, second: numbers of the rows.
        difference: first minus second, over the units that both have, or of the means where they share none.
        units: how many both have.
        over_runs, p_runs: the test against the noise of the units, and its p-value; None where it has nothing to say.
        over_pictures, p_pictures: as much against the noise of the pictures.
        adjusted: the larger p-value after Holm's correction; None where there was no test.
    """

    first: int
    second: int
    difference: float
    units: int
    over_runs: str
    p_runs: float | None
    over_pictures: str
    p_pictures: float | None
    adjusted: float | None = None

    @property
    def p(self) -> float | None:
        """The larger p-value: a difference has to hold against both kinds of noise."""
        return max((p for p in (self.p_runs, self.p_pictures) if p is not None), default=None)


def drawn_keys(runs: Sequence[FinishedRun], columns: Sequence[str]) -> list[str]:
    """The keys that runs are averaged over: seeds and folds in which they differ, but for those that are columns."""
    return [key for key in AVERAGED if key not in columns and len({repr(run.config.get(key)) for run in runs}) > 1]


def rows_of(
    settings: Sequence[tuple[str, ...]],
    rest: Sequence[tuple[str, ...]],
    runs: Sequence[FinishedRun],
    drawn: Sequence[str],
) -> tuple[list[Row], list[str]]:
    """A row for each setting, in the order of the runs, and notes on runs that were made twice.

    Args:
        settings: the cells of each run.
        rest: what else the runs differ in, and is part of their unit.
        runs: as many.
        drawn: the keys that are averaged over.
    """
    found: dict[tuple[str, ...], dict[Unit, FinishedRun]] = {}
    notes = []
    for setting, other, run in zip(settings, rest, runs, strict=True):
        unit = (*(repr(run.config.get(key)) for key in drawn), *other)
        units = found.setdefault(setting, {})
        if unit in units:
            older, run = sorted((units[unit], run), key=lambda one: one.made)
            notes.append(f"left out: {older.folder.path}: made again as {run.folder.path}")
        units[unit] = run
    rows = [Row(setting, tuple(units), tuple(units.values())) for setting, units in found.items()]
    return _in_blocks(rows), notes


def _in_blocks(rows: Sequence[Row]) -> list[Row]:
    """Rows with the block that each belongs to, by what was scored for each division of the data."""
    blocks: list[dict[Unit, str | None]] = []
    placed = []
    for row in rows:
        own = {_division(run): run.scored_on for run in row.runs}
        fitting = (
            number
            for number, known in enumerate(blocks)
            if own.keys() & known.keys() and all(known.get(key, value) == value for key, value in own.items())
        )
        number = next(fitting, len(blocks))
        if number == len(blocks):
            blocks.append({})
        blocks[number] |= own
        placed.append(replace(row, block=number))
    return placed


def _division(run: FinishedRun) -> Unit:
    return tuple(repr(run.config.get(key)) for key in SPLITTING)


def with_interval(row: Row, pictures: Pictures) -> Row:
    """A row with the interval of its mean: by Student's t over its units, of what does not vary by its pictures."""
    values, overlap, per = _independent(row.units, row.runs, row.values)
    if max(values) - min(values) <= 1e-12:
        return _with_interval_of_pictures(row, pictures)
    if overlap is None:
        return replace(row, method="none: its splits share training pictures, and how many is not known")
    method = "Student's t" if overlap == 0 else "corrected t"
    return replace(row, interval=t_interval(values, overlap=overlap), method=f"{method} over {len(values)} {per}")


def _with_interval_of_pictures(row: Row, pictures: Pictures) -> Row:
    several = len(row.runs) > 1
    resampled = pictures.of(row.runs)
    if resampled is None:
        which = "runs that do not differ" if several else "a single run"
        return replace(row, method=f"none: {which}, and predictions that do not give the metric")
    right = np.concatenate([pictures.predictions[run].right for run in row.runs])
    if pictures.accuracy and (right.all() or not right.any()):
        # no resample of pictures that are all right, or all wrong, is any different, which is no certainty; each
        # picture counts once, whether all runs have labelled it or it is in the fold of one
        count = sum({one.pictures: len(one.names) for one in map(pictures.predictions.__getitem__, row.runs)}.values())
        exact = exact_proportion(count if right.all() else 0, count)
        return replace(row, interval=exact, method="exact binomial over pictures")
    method = "bootstrap over pictures" + (", where the runs do not differ" if several else "")
    return replace(row, interval=percentile_interval(resampled), method=method)


def _independent(
    units: Sequence[Unit], runs: Sequence[FinishedRun], values: Sequence[float]
) -> tuple[list[float], float | None, str]:
    """Values to take a mean over, how much their training pictures overlap, and what they are one for.

    Where the splits of the data are drawn anew, runs of one division are averaged first: seeds of one fold are no
    further folds.
    """
    by_division: dict[Unit, list[int]] = {}
    for index, run in enumerate(runs):
        by_division.setdefault(_division(run), []).append(index)
    if len(by_division) == 1:
        return list(values), 0.0, "runs"
    means = [float(np.mean([values[index] for index in some])) for some in by_division.values()]
    known = [run.overlap for run in runs if run.overlap is not None]
    overlap = float(np.mean(known)) if len(known) == len(runs) else None
    return means, overlap, "splits"


def tests_between(rows: Sequence[Row], pictures: Pictures, *, best: Mapping[int, int] | None) -> list[Comparison]:
    """Tests between rows of a block, corrected for how many there are.

    Args:
        rows: all of them.
        pictures: of their runs.
        best: block to the number of its best row, which the others are held against; None compares all pairs.
    """
    pairs = [
        (first, second)
        for first, second in combinations(range(len(rows)), 2)
        if rows[first].block == rows[second].block
    ]
    if best is not None:
        turned = [(b, a) if b == best[rows[b].block] else (a, b) for a, b in pairs]
        pairs = [pair for pair in turned if pair[0] == best[rows[pair[0]].block]]
    found = [_compare(first, second, rows, pictures) for first, second in pairs]
    tested = [index for index, one in enumerate(found) if one.p is not None]
    adjusted = holm([one.p for one in found if one.p is not None])
    for index, p in zip(tested, adjusted, strict=True):
        found[index] = replace(found[index], adjusted=p)
    return found


def _compare(first: int, second: int, rows: Sequence[Row], pictures: Pictures) -> Comparison:
    one, other = rows[first], rows[second]
    of_one, of_other = (dict(zip(row.units, row.runs, strict=True)) for row in (one, other))
    shared = [unit for unit in one.units if unit in of_other]
    own, others = [of_one[unit] for unit in shared], [of_other[unit] for unit in shared]
    if not shared:
        own, others = list(one.runs), list(other.runs)
    difference = float(np.mean([run.value for run in own]) - np.mean([run.value for run in others]))
    over_runs, p_runs = _test_runs(shared, own, others)
    over_pictures, p_pictures = _test_pictures(own, others, difference, pictures)
    return Comparison(first, second, difference, len(shared), over_runs, p_runs, over_pictures, p_pictures)


def _test_runs(
    shared: Sequence[Unit], own: Sequence[FinishedRun], others: Sequence[FinishedRun]
) -> tuple[str, float | None]:
    """The test against the noise of the units."""
    if shared:
        pairs = [run.value - other.value for run, other in zip(own, others, strict=True)]
        differences, overlap, _ = _independent(shared, own, pairs)
        if len(differences) < 2 or overlap is None:
            return "", None
        p = paired_t(differences, overlap=overlap)
        name = "paired t" if overlap == 0 else "corrected paired t"
        return (name, p) if p is not None else (f"{name}{NO_SPREAD}", None)
    divisions = {_division(run) for run in (*own, *others)}
    if min(len(own), len(others)) < 2 or len(divisions) > 1:
        return "", None
    return "Welch's t", welch([run.value for run in own], [run.value for run in others])


def _test_pictures(
    own: Sequence[FinishedRun], others: Sequence[FinishedRun], difference: float, pictures: Pictures
) -> tuple[str, float | None]:
    """The test against the noise of the pictures."""
    if not pictures.paired(own, others):
        return "", None
    if pictures.accuracy and len(own) == len(others) == 1:
        right = [pictures.predictions[runs[0]].right for runs in (own, others)]
        return "McNemar exact", exact_mcnemar(*right)
    first, second = pictures.of(own), pictures.of(others)
    assert first is not None
    assert second is not None
    return "paired bootstrap", bootstrap_p(difference, first - second)


def best_rows(rows: Sequence[Row], *, larger: bool) -> dict[int, int]:
    """The number of the best row of each block."""
    found: dict[int, int] = {}
    for number, row in enumerate(rows):
        held = found.setdefault(row.block, number)
        if (row.mean > rows[held].mean) == larger and row.mean != rows[held].mean:
            found[row.block] = number
    return found
